"""plots/forest.py and plots/pareto.py: where things stand in the figure."""

import math

import numpy as np
import pytest

from aigc_jax.plots import forest, pareto
from aigc_jax.plots.forest import Row, Style

pytestmark = pytest.mark.usefixtures('warnings_fail')
STYLES = {'good': Style('#0072B2', 'o'), 'bad': Style('#D55E00', 'v'), 'open': Style('#666666', 'D', filled=False)}


@pytest.fixture
def drawn(monkeypatch):
    """The figures that were made a PNG."""
    figures = []
    for module in (forest, pareto):
        monkeypatch.setattr(module, 'png', lambda figure, real=module.png: figures.append(figure) or real(figure))
    return figures


def marks(axes) -> dict[int, tuple[str, float]]:
    """{row: (marker, x)} of the points."""
    found = [(line.get_marker(), *line.get_data()) for line in axes.lines]
    return {int(y[0]): (marker, x[0]) for marker, x, y in found if marker not in ('None', '') and len(x) == 1}


def test_rows_of_other_scales_are_seen_against_their_regions(drawn):
    rows = [
        Row('a', 1.05, (1.0, 1.1), (0.9, 1.1), 'good', 'words'),
        Row('b', 2050.0, (2000.0, 2100.0), (1900.0, 2100.0), 'bad', right=-1),
        Row('diverged', math.nan, None, (0.9, 1.1), 'bad'),
    ]
    assert forest.forest(rows, STYLES, 'distance').startswith(b'\x89PNG')
    axes = drawn[0].axes[0]
    points = marks(axes)
    assert points[0] == ('o', pytest.approx(0.5)) and points[1] == ('v', pytest.approx(-0.5))
    assert points[2] == ('x', axes.get_xlim()[0])
    lines = [line.get_xdata() for line in axes.lines if len(line.get_xdata()) == 2 and line.get_ydata()[0] == 1]
    assert any(np.allclose(line, [-1, 0]) for line in lines)
    assert axes.get_xscale() == 'linear' and [t.get_text() for t in axes.get_yticklabels()] == ['a', 'b', 'diverged']
    assert 'words' in [text.get_text() for text in axes.texts]


def test_what_is_far_away_stands_at_the_edge(drawn):
    region = 0.9, 1.1
    rows = [Row('near', 1.0, (0.95, 1.05), region, 'good'), Row('far', 1e9, None, region, 'bad'),
            Row('below', -1e9, (-2e9, 0), region, 'open'), Row('ten', 2.0, None, region, 'bad')]  # fmt: skip
    forest.forest(rows, STYLES, 'distance')
    axes = drawn[0].axes[0]
    low, high = axes.get_xlim()
    assert axes.get_xscale() == 'symlog' and marks(axes)[1] == ('>', high) and marks(axes)[2] == ('<', low)
    assert marks(axes)[3] == ('v', pytest.approx(10)) and marks(axes)[0] == ('o', pytest.approx(0))


def test_dots_show_each_seed_and_what_was_expected(drawn):
    row = Row('a', 2.0, (1.5, 2.5), (1.8, 2.4), 'open', values=[1.0, 3.0, math.nan], marks=[0.5, math.nan])
    forest.dots('a title $x_1$', [row, Row('none', math.nan, kind='bad')], STYLES)
    axes = drawn[0].axes[0]
    assert marks(axes) == {0: ('D', 2.0)} | {k: v for k, v in marks(axes).items() if v[0] == 'x'}
    crosses = [line for line in axes.lines if line.get_marker() == 'x']
    assert len(crosses) == 1 and len(crosses[0].get_xdata()) == 1
    dots = [line.get_xdata() for line in axes.lines if line.get_marker() == 'o']
    assert [*dots[0]] == [1.0, 3.0] and axes.patches[0].get_x() == 1.8
    assert axes.patches[0].get_width() == pytest.approx(0.6) and axes.get_xscale() == 'linear'
    assert [0.5, 0.5] in [[*line.get_xdata()] for line in axes.lines]


def test_dots_of_a_wide_range_have_a_logarithmic_axis(drawn):
    rows = [Row('a', 0.01, values=[0.01], kind='good'), Row('b', 6.0, values=[6.0], kind='good')]
    forest.dots('t', rows, STYLES)
    forest.dots('t', [*rows, Row('c', -1.0, values=[-1.0], kind='good')], STYLES)
    assert [figure.axes[0].get_xscale() for figure in drawn] == ['log', 'linear']


def test_labels_have_letters_that_the_font_has():
    assert forest.short('ω ≥ 3 – 生') == 'ω ≥ 3 – ?'
    assert len(forest.short('x' * 500)) == 48


@pytest.mark.parametrize('better', [('min', 'min'), ('max', 'min'), ('min', 'max'), ('max', 'max')])
def test_the_front_is_what_no_other_is_better_than(better):
    """Against its definition, with ties and values that are not finite."""
    draws = np.random.default_rng(0)
    x, y = draws.integers(0, 6, 60).astype(float), draws.integers(0, 6, 60).astype(float)
    x[:3], y[3:5] = math.nan, math.inf
    x[5:25] += draws.normal(size=20)
    u, v = (of if mode == 'min' else -of for of, mode in zip((x, y), better, strict=True))
    alive = np.isfinite(u) & np.isfinite(v)
    beaten = [any(alive[j] and u[j] <= u[i] and v[j] <= v[i] and (u[j] < u[i] or v[j] < v[i]) for j in range(60))
              for i in range(60)]  # fmt: skip
    assert [*pareto.front(x, y, better)] == [*(alive & ~np.array(beaten))]


def test_the_front_of_nothing_is_empty():
    assert not len(pareto.front([], [], ('min', 'min')))
    assert not pareto.front([math.nan], [1.0], ('min', 'min')).any()


def test_the_points_on_the_front_are_filled_and_named(drawn):
    x, y, none = [1.0, 2.0, 3.0, math.nan], [3.0, 1.0, 2.0, 1.0], [(math.nan, math.nan)] * 4
    names = ['fast', 'good', 'beaten', 'diverged']
    pareto.pareto(x, y, [(0.9, 1.1), *none[1:]], none, names, ('cost', 'error $'), ('min', 'min'))
    axes = drawn[0].axes[0]
    rings, filled = [line for line in axes.lines if line.get_marker() == 'o']
    assert [*filled.get_xdata()] == [1, 2] and filled.get_markerfacecolor() != 'white'
    assert rings.get_xdata()[0] == 3 and rings.get_markerfacecolor() == 'white'
    assert [text.get_text() for text in axes.texts] == ['fast', 'good', 'beaten']
    assert axes.get_xlabel() == 'cost (less is better)' and axes.get_ylabel() == 'error $ (less is better)'
