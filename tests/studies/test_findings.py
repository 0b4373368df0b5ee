import dataclasses
import math

import pytest

from aigc_jax.core.errors import UserError
from aigc_jax.studies import findings
from aigc_jax.studies.claims import Claim, Published, Study, Versus
from aigc_jax.studies.findings import Finding, Report, Seed

CLAIM = dict(claim='it holds', config='own.py', metric='model/nll', better='min')


def report() -> Report:
    first = Claim('a', expected=Published(1.0, 'eq. 1', tolerance=0.1), fields={'task.loss': 'hinge'}, **CLAIM)
    second = Claim('b', expected=Versus('a', share=0.5, over='c'), evaluate={'sample.steps': 1}, **CLAIM)
    seeds = {3: Seed(1.0, 'a/seed-3', 0.5), 4: Seed(math.nan, 'a/seed-4', 0.25, 'c0ffee')}
    row = {'value': math.nan, 'ci': math.nan, 'n': 2, 'over': 'seeds'}
    found = Finding(first, 2, 0.05, seeds, row, marks={'perfect': 0.5}, verdict=findings.WORSE, absent=('b: failed',))
    return Report('own', 'Title', 'ab' * 32, (found, Finding(second, 2, 0.05)), 0.75, ('a note',), (('x', 'y'),))


def test_a_report_is_read_as_it_was_written(tmp_path):
    path = tmp_path / 'report.json'
    path.write_text(report().to_json(), encoding='utf-8')
    assert repr(findings.read(path)) == repr(report())  # nan is no nan, but reads the same
    assert 'NaN' not in path.read_text()
    assert findings.read(path).findings[0].hours == 0.75


@pytest.mark.parametrize('text', ['', '[]', '{"findings": []}', '{"findings": [{}], "notes": [], "pareto": []}'])
def test_what_is_no_report_is_named(tmp_path, text):
    path = tmp_path / 'report.json'
    path.write_text(text)
    with pytest.raises(UserError, match='report.json: cannot be read as the report of a study'):
        findings.read(path)


@pytest.mark.parametrize(
    'make, words',
    [
        (lambda: Published(1.0, ''), 'has no source'),
        (lambda: Published(1.0, 'table 1'), 'neither tolerance nor sd'),
        (lambda: Published(math.nan, 'table 1', 0.1), 'no such value'),
        (lambda: Published(1.0, 'table 1', sd=0.1, n=1), 'over 2 or more seeds'),
        (lambda: Claim('a/b', **CLAIM), 'is no name'),
        (lambda: Claim('a', **CLAIM | {'better': 'less'}), 'min or max'),
        (lambda: Claim('a', seeds=0, **CLAIM), '1 or more'),
        (lambda: Claim('a', first_step=True, **CLAIM), 'needs reach'),
        (lambda: Claim('a', evaluate={'task.loss': 'x'}, **CLAIM), 'sample and eval alone'),
        (lambda: Claim('a', fields={'seed': 1}, **CLAIM), 'set seed'),
        (lambda: Study('t', []), 'no claims'),
        (lambda: Study('t', [Claim('a', **CLAIM)] * 2), 'the name a'),
        (lambda: Study('t', [Claim('a', expected=Versus('a'), **CLAIM)]), 'no other claim'),
        (lambda: Study('t', [Claim('a', **CLAIM)], alpha=0), 'no such study'),
        (lambda: Versus('b', share=0.95), 'give both'),
        (lambda: Versus('b', over='c'), 'give both'),
        (
            lambda: Study('t', [Claim(n, expected=e, **CLAIM) for n, e in (('a', Versus('b', 0.9, 'c')), ('b', None))]),
            "compared with 'c', which is no other claim",
        ),
    ],
)
def test_a_study_that_says_nothing_is_refused(make, words):
    with pytest.raises(ValueError, match=words):
        make()


def test_a_path_that_is_no_utf_8_may_stand_in_a_note(tmp_path):
    of = dataclasses.replace(report(), notes=('/L\udce4t/manifest.json: cannot be read',))
    (tmp_path / 'own.results.json').write_text(of.to_json(), encoding='utf-8')
    assert findings.read(tmp_path / 'own.results.json').notes == of.notes
