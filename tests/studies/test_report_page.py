import base64
import html.parser
import io
import math
import re
import time

import handmade
import numpy as np
import pytest
from matplotlib.image import imread

from aigc_jax.studies import findings, report_page, report_pictures
from aigc_jax.studies.claims import Published, Versus

pytestmark = pytest.mark.usefixtures('warnings_fail')
STEPS = {step: 1 / (1 + step) for step in range(0, 100, 10)}
CURVES = {'a': {'model/loss': {'train': {0: STEPS, 1: STEPS}, 'eval': {0: {50: 0.1}}}}, 'b': {'model/loss': {}}}


class Reader(html.parser.HTMLParser):
    """What a page holds: its tags, links, pictures, and the cells of its tables by row."""

    def __init__(self, text: str):
        super().__init__()
        self.open, self.tags, self.links, self.rows, self.words, self.ids = [], [], [], [], [], set()
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.tags.append(tag)
        self.links += [attrs[name] for name in ('src', 'href') if name in attrs]
        self.ids |= {attrs['id']} if 'id' in attrs else set()
        assert not [name for name in attrs if name.startswith('on')]
        if tag not in ('meta', 'img', 'br'):
            self.open.append(tag)
        if tag == 'tr':
            self.rows.append([])
        if tag in ('td', 'th'):
            self.rows[-1].append('')

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)
        if {'td', 'th'} & set(self.open):
            self.rows[-1][-1] += data

    def pictures(self) -> list[np.ndarray]:
        data = [link.removeprefix('data:image/png;base64,') for link in self.links if not link.startswith('#')]
        return [imread(io.BytesIO(base64.b64decode(picture, validate=True))) for picture in data]


def test_the_page_has_the_numbers_and_the_pictures_of_each_claim():
    page = Reader(report_page.page(handmade.of_every_kind(), CURVES, 'python -m aigc_jax.study --config=own.py'))
    rows = {re.sub('what .* claims', '', row[0]): row[1:] for row in page.rows if row[0]}
    assert rows['row'] == ['verdict', 'measured', 'expected', 'seeds', 'p', 'for reference', 'hours']
    assert rows['a'] == [
        '● reproduced', '1.005 ± 0.038', '1.000 ± 0.186 (n=10), tolerance 0.05arXiv:1234.5678, table 1', '4 of 4', '',
        'perfect sampler 0.0004', '1',
    ]  # fmt: skip
    assert rows['b'][:3] == ['▲ better', '0.502 ± 0.044', 'better than a: -0.5025 ± 0.0080']
    assert rows['share'][:2] == ['▼ worse', '0.172 (0.099–0.282)']
    assert rows['one'][0] == '◇ undecided' and rows['none'][:2] == ['□ missing', '']
    assert ['absent', 'seed 0: failed: exit code 1'] in page.rows
    assert ['each seed', '0: 1.020 1: 0.990 2: 1.030 3: 0.980'] in page.rows
    assert 'python -m aigc_jax.study --config=own.py --row=ROW --seed=SEED' in page.words
    assert len(page.pictures()) == 1 + 3 + 1  # forest, dots of three metrics, curves
    assert page.ids == {link[1:] for link in page.links if link.startswith('#')} == {*'ab'} | {
        'share', 'steps', 'diverged', 'one', 'none',
    }  # fmt: skip


def test_hostile_text_stays_text():
    curves = {'hostile': {handmade.HOSTILE: {'train': {0: STEPS}}}}
    text = report_page.page(handmade.hostile(), curves, handmade.HOSTILE)
    page = Reader(text)
    assert 'script' not in page.tags and all(c.isprintable() or c == '\n' for c in text)
    assert all(link.startswith(('data:image/png;base64,', '#')) for link in page.links)
    assert sum('<script>alert(1)</script> | a & b' in cell for row in page.rows for cell in row) > 5


def test_the_page_of_nothing_has_no_pictures():
    empty = handmade.report()
    none = handmade.report(handmade.finding(handmade.claim('a'), [], 3), pareto=(('x', 'y'),))
    for report in (empty, none):
        assert not Reader(report_page.page(report)).pictures()


def test_many_claims_are_drawn_in_part_and_in_time(monkeypatch):
    """10,000 claims, of which the page says how many it does not draw."""
    monkeypatch.setattr(report_pictures, 'MOST_ROWS', rows := 50)
    monkeypatch.setattr(report_pictures, 'MOST_PANELS', panels := 5)
    expected = Published(1.0, 'table 1', 0.05)
    of = [handmade.claim(f'c{k}', expected=expected, metric=f'm/{k % 200}', config=f'{k}.py') for k in range(10_000)]
    row = {'value': 1.0, 'ci': 0.1, 'n': 1, 'over': 'seeds'}
    report = handmade.report(*(handmade.finding(one, [1.0], row=row) for one in of), pareto=(('m/0', 'm/1'),))
    before = time.process_time()
    text = report_page.page(report, {one.name: {'loss': {'train': {0: STEPS}}} for one in of})
    assert time.process_time() - before < 30
    assert text.count('<img ') == text.count('src="data:image/png') == 2 + panels + panels
    assert f'{10_000 - rows} more claims are not drawn.' in text and f'{10_000 - panels} more claims' in text
    assert f'{math.ceil(10_000 / 7) - panels} more panels are not drawn.' in text
    assert text.count('<tr>') > 10_000 and f'<td>{of[-1].name}' in text


def test_claims_of_the_same_runs_have_one_curve(monkeypatch):
    seen = []
    monkeypatch.setattr(report_pictures.arms, 'curves', lambda panels, names: seen.append((panels, names)) or b'')
    twice = [handmade.claim('a'), handmade.claim('again', evaluate={'sample.steps': 2})]
    other = [handmade.claim(f'o{k}', fields={'seed_of': k}) for k in range(8)]
    report = handmade.report(*(handmade.finding(one, [1.0]) for one in twice + other))
    curves = {f.claim.name: CURVES['a'] for f in report.findings}
    report_pictures.curves(report, curves | {'again': {'model/other': CURVES['a']['model/loss']}})
    assert [names for _, names in seen] == [['a', *(f'o{k}' for k in range(6))], ['o6', 'o7']]
    assert [*seen[0][0]] == ['model/loss', 'model/other'] and seen[0][0]['model/other']['eval'][1] == {}
    assert seen[0][0]['model/loss']['train'] == [CURVES['a']['model/loss']['train']] * 7


def test_a_setting_is_a_point_where_it_has_both_metrics(monkeypatch):
    """Not a share of a metric, nor another evaluation of the same runs."""
    drawn = []
    monkeypatch.setattr(report_pictures.pareto, 'pareto', lambda *given: drawn.append(given) or b'')
    x, y = {'metric': 'x', 'better': 'min'}, {'metric': 'y', 'better': 'max'}
    setting = lambda k: {'fields': {'model.width': k}}
    of = [
        (handmade.claim('a.x', **x), [1.0, 1.2]), (handmade.claim('a.y', **y), [3.0]),
        (handmade.claim('b.x', **setting(1), **x), [2.0]), (handmade.claim('b.y', **setting(1), **y), [5.0]),
        (handmade.claim('c.x', **setting(2), **x), [2.0]), (handmade.claim('c.y', **setting(2), reach=4.0, **y), [1]),
        (handmade.claim('d.y', evaluate={'eval.n': 1}, **y), [5.0]), (handmade.claim('e.x', **setting(3), **x), []),
    ]  # fmt: skip
    report = handmade.report(*(handmade.finding(*one) for one in of), pareto=(('x', 'y'), ('x', 'z')))
    assert report_pictures.fronts(report)[1] == 'No setting has seeds of both x and z.'
    ((x, y, x_limits, y_limits, names, titles, better),) = drawn
    assert (x, y, names, titles, better) == ([1.1, 2.0], [3.0, 5.0], ['a', 'b'], ('x', 'y'), ('min', 'max'))
    assert x_limits[0][0] < 1.1 < x_limits[0][1] and np.isnan(y_limits).all()
    other = handmade.claim('f.y', fields={'model.width': 3}, metric='y', better='min'), [1.0]
    of[-1] = of[-1][0], [4.0]
    report = handmade.report(*(handmade.finding(*one) for one in [*of, other]), pareto=(('x', 'y'),))
    assert 'Claims of x and y differ in whether less or more is better' in report_page.page(report)


def test_a_row_lies_to_the_right_where_it_is_better(monkeypatch):
    seen = []
    monkeypatch.setattr(report_pictures.forest, 'forest', lambda rows, styles, label: seen.extend(rows) or b'')
    value = Published(1.0, 'table 1', tolerance=0.1, sd=0.2)
    of = [handmade.claim('less', expected=value), handmade.claim('more', expected=value, better='max')]
    of = [handmade.finding(one, [0.9, 1.0], verdict=findings.REPRODUCED) for one in of]
    of.append(handmade.finding(handmade.claim('versus', expected=Versus('less')), [1.0]))
    report_pictures.against_published(handmade.report(*of))
    assert [(row.label, row.right) for row in seen] == [('less', -1), ('more', 1)]
    assert seen[0].region == pytest.approx((0.7, 1.3)) and seen[0].value == 0.95
    assert seen[0].words == 'reproduced  0.95 ± 0.64  [1]' and list(seen[0].values) == [0.9, 1.0]
