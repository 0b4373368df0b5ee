import dataclasses
import locale
import math
import re

import handmade
import pytest

from aigc_jax.core.errors import UserError
from aigc_jax.studies import findings, report_text, report_words
from aigc_jax.studies.claims import Published

COMMAND = 'python -m aigc_jax.study --config=own.py --workdir=runs/own'


def cells(table: str) -> list[dict[str, str]]:
    """The rows of a Markdown table."""
    lines = [[c.strip() for c in re.split(r'(?<!\\)\|', line)[1:-1]] for line in table.splitlines()]
    return [dict(zip(lines[0], line, strict=True)) for line in lines[2:]]


@pytest.mark.parametrize(
    'row, want',
    [
        ({'value': 46.1234, 'ci': 0.4321}, '46.12 ± 0.43'),
        ({'value': 46.1234, 'ci': 0.0996}, '46.12 ± 0.10'),
        ({'value': 1234.5, 'ci': 123.4}, '1230 ± 120'),
        ({'value': 12345.6, 'ci': 7.77}, '12345.6 ± 7.8'),
        ({'value': -0.001, 'ci': 12.0}, '0 ± 12'),
        ({'value': 1.23456e-6, 'ci': 1.2e-8}, '1.235e-06 ± 1.2e-08'),
        ({'value': 1.23456e9, 'ci': 1.2e6}, '1.2346e+09 ± 1200000'),
        ({'value': 3.0, 'ci': 0.0}, '3 ± 0'),
        ({'value': 0.171875, 'low': 0.0988, 'high': 0.282}, '0.172 (0.099–0.282)'),
        ({'value': -0.2, 'low': -0.31, 'high': 0.052}, '-0.20 (-0.31 to 0.05)'),
        ({'value': 1.4234567, 'ci': math.nan}, '1.423'),
        ({'value': 12345.6}, '12346'),
        ({'value': 12000.0}, '12000'),
        ({'value': 0.0}, '0'),
        ({'value': math.nan, 'ci': math.nan}, 'not finite'),
        ({'value': math.inf, 'ci': math.nan}, 'not finite'),
        ({}, 'not finite'),
    ],
)
def test_digits_follow_the_interval(row, want):
    assert report_words.measured(row) == want


@pytest.mark.parametrize(
    'published, want',
    [
        (Published(6.232, 's', sd=0.186, n=10), '6.232 ± 0.186 (n=10)'),
        (Published(0.12, 's', sd=0.045), '0.120 ± 0.045'),
        (Published(78.9, 's', 3.0), '78.9, tolerance 3'),
        (Published(2.8378770664093453, 's', 0.02), '2.838, tolerance 0.02'),
        (Published(1000, 's', 0.5, 2.5), '1000.0 ± 2.5, tolerance 0.5'),
    ],
)
def test_a_published_value_is_shown_as_its_source_has_it(published, want):
    assert report_words.published(published) == want


def test_the_table_has_the_numbers_of_each_claim():
    rows = {row['row']: row for row in cells(report_text.table(handmade.of_every_kind()))}
    assert [*rows] == ['a', 'b', 'share', 'steps', 'diverged', 'one', 'none']
    a = rows['a']
    assert (a['verdict'], a['seeds'], a['hours'], a['p']) == ('reproduced', '4 of 4', '1', '')
    assert a['measured'] == '1.005 ± 0.038' and a['for reference'] == 'perfect sampler 0.0004'
    assert a['expected'] == '1.000 ± 0.186 (n=10), tolerance 0.05' and a['source'] == 'arXiv:1234.5678, table 1'
    assert rows['b']['expected'] == 'better than a: -0.5025 ± 0.0080'
    assert rows['b']['verdict'] == 'better' and float(rows['b']['p'].removeprefix('< ')) <= 1e-4
    assert rows['share']['measured'] == '0.172 (0.099–0.282)'
    assert rows['share']['metric'] == 'share of seeds of which samples/modes is at least 25, more is better'
    assert rows['steps']['measured'] == 'not finite (1 of 3 never reached it)'
    assert rows['steps']['metric'] == 'first step at which samples/modes is at least 25, less is better'
    assert rows['diverged']['measured'] == 'not finite (1 of 2 diverged)'
    assert rows['one']['measured'] == '1.423' and rows['one']['seeds'] == '1 of 3'
    assert (rows['none']['measured'], rows['none']['seeds'], rows['none']['hours']) == ('', '0 of 3', '')


def test_the_table_is_aligned_and_has_no_empty_column():
    lines = report_text.table(handmade.of_every_kind()).splitlines()
    edges = [[found.start() for found in re.finditer(r'(?<!\\)\|', line)][:9] for line in lines]
    assert all(edge == edges[0] for edge in edges)
    one = cells(report_text.table(handmade.report(handmade.finding(handmade.claim('a'), []))))
    assert one[0].keys() == {'row', 'verdict', 'seeds', 'claim', 'metric'}
    assert cells(report_text.table(handmade.report())) == []


def test_the_table_of_some_claims_is_in_the_order_that_names_them():
    report = handmade.of_every_kind()
    assert [row['row'] for row in cells(report_text.table(report, ['share', 'a']))] == ['share', 'a']
    with pytest.raises(UserError, match="has no claim 'z'; known: a, b, share"):
        report_text.table(report, ['z'])


def test_the_report_says_what_each_claim_found_and_lacks():
    text = report_text.markdown(handmade.of_every_kind(), COMMAND)
    sections = dict(re.findall(r'^## (\w+)\n(.*?)(?=^## |\Z)', text, re.MULTILINE | re.DOTALL))
    assert text.startswith('# A study\n\n- 1 reproduced, 1 better, 2 worse, 1 undecided, 2 missing of 7 claims.\n')
    assert 'registered as `' + 'ab' * 32 + '`' in text and 'Its runs took 1.5 hours.' in text
    assert f'\n    {COMMAND} --row=ROW --seed=SEED\n' in text
    assert '- The seeds of tuning are 100 to 109.\n- All seeds are of commit c0ffeec0ffee.\n' in text
    a = sections['a']
    assert '\nwhat a claims\n' in a and '- verdict: reproduced\n' in a
    assert '- measured: 1.005 ± 0.038 (at 95 %)\n' in a
    assert '- each seed: 0: 1.020 1: 0.990 2: 1.030 3: 0.980\n' in a
    assert '- interquartile mean: 1.005 (0.980–1.030), by bootstrap, whose interval is too short for 4 seeds\n' in a
    assert '- config: `../gan.py:ring8`\n' in a
    assert "- test: Student's paired t, p < 0.0001\n" in sections['b'] and '`task.loss=hinge`' in sections['b']
    assert '- each seed: reached by seeds 0–10; not reached by seeds 11–63\n' in sections['share']
    assert 'interquartile' not in sections['share']
    assert '- each seed: 0: 3000 1: 4500 2: never reached it\n' in sections['steps']
    assert '- each seed: 0: 1.900 1: diverged\n' in sections['diverged']
    assert '- verdict: undecided: about 7 more seeds, 2.1 h\n' in sections['one']
    assert '- absent: seed 0: failed: exit code 1\n' in sections['none'] and 'sample.steps=1' in sections['none']
    assert '--row' not in report_text.markdown(handmade.of_every_kind())


def test_a_terminal_shows_no_backslashes():
    claim = handmade.claim('a_b', claim='-1 is *more* than _x_ [1]')
    report = handmade.report(handmade.finding(claim, [1.0, 2.0]), notes=('--until spends alpha',))
    plain, marked = (report_text.markdown(report, escaped=escaped) for escaped in (False, True))
    assert '\n- --until spends alpha\n' in plain and '-1 is *more* than _x_ [1] |' in plain and '\\' not in plain
    assert '\n- \\--until' in marked or '\n- --until' in marked
    assert '\\*more\\*' in marked


def test_seeds_of_other_commits_are_told():
    of = handmade.claim('a')
    two = [handmade.finding(of, [1.0, 2.0], commit=commit) for commit in ('1' * 40, '')]
    text = report_text.markdown(handmade.report(*two))
    assert '- The seeds are of 2 commits: 111111111111, no commit.\n' in text
    assert 'of commit' not in text and '- commit: no commit\n' in text


def test_an_interval_of_another_level_says_so():
    one = handmade.finding(handmade.claim('a'), [1.0, 2.0], level=0.02)
    text = report_text.markdown(handmade.report(one))
    assert cells(report_text.table(handmade.report(one)))[0]['measured'].endswith('(at 98 %)')
    assert text.count('(at 98 %)') == 2


def test_hostile_text_stays_text():
    text = report_text.markdown(handmade.hostile(), COMMAND)
    assert all(c.isprintable() or c == '\n' for c in text)
    table = [line for line in text.splitlines() if line.startswith('|')]
    assert len(table) == 3 and len({len(re.split(r'(?<!\\)\|', line)) for line in table}) == 1
    outside = re.sub(r'(`+) .*? \1(?!`)', '', text)  # a code span shows what it holds
    assert '<script>' not in outside.replace('\\<', '') and '\\<script>' in outside
    assert 'ω³ 生' in text and '\\_x\\_' in text and '\\$y\\$' in text
    assert '\n- metric: ' in text and sum(line.startswith('#') for line in text.splitlines()) == 2


@pytest.mark.parametrize('text', ['---', '# a', '- a', '1. a', '12) a', '> a', '+ a', '==='])
def test_a_line_begins_no_block(text):
    assert report_text.escape(text) != text and report_text.escape(text).replace('\\', '') == text


@pytest.mark.parametrize('text', ['samples/w2_squared', '-0.4 ± 0.1', '2.8379 nats', '< 0.0001', 'a & b', '3 > 2'])
def test_what_is_no_mark_stays_as_it_is(text):
    assert report_text.escape(text) == text


def test_the_locale_changes_nothing():
    text = report_text.markdown(handmade.of_every_kind())
    before = locale.setlocale(locale.LC_ALL)
    known = [name for name in ('de_DE.UTF-8', 'fr_FR.UTF-8', 'C', 'C.UTF-8') if _set(name)]
    try:
        for name in known:
            locale.setlocale(locale.LC_ALL, name)
            assert report_text.markdown(handmade.of_every_kind()) == text
    finally:
        locale.setlocale(locale.LC_ALL, before)
    assert known


def _set(name: str) -> bool:
    try:
        locale.setlocale(locale.LC_ALL, name)
    except locale.Error:
        return False
    return True


def test_a_report_that_was_written_and_read_has_the_same_text(tmp_path):
    report = handmade.of_every_kind()
    (path := tmp_path / 'report.json').write_text(report.to_json(), encoding='utf-8')
    assert report_text.markdown(findings.read(path), COMMAND) == report_text.markdown(report, COMMAND)


def test_two_hundred_claims_have_a_line_and_a_section_each():
    report = handmade.report(*(handmade.finding(handmade.claim(f'c{k}'), []) for k in range(200)))
    text = report_text.markdown(dataclasses.replace(report, title='many'))
    assert text.count('\n| c') == 200 and text.count('\n## c') == 200
