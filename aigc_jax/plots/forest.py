"""Measured values against the values that were expected of them: a forest plot over rows of other scales, and the dots
of each seed of rows of one scale."""

import functools
import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from aigc_jax.plots.figure import is_wide, new_figure, nothing, plain, png

_WIDE, _ROW, _EDGE = 10.0, 0.27, 0.8  # inches: of a picture, of each row, of what stands above and below the rows
_LINEAR, _FAR = 4.0, 300.0  # half-widths of a region: up to which the scale is linear, and beyond which it ends
_REGION = '0.88'  # grey
_MOST_LETTERS, _MOST_TITLE = 48, 110  # of a label, of a title


class Style(NamedTuple):
    """How a kind of row is drawn, told apart by its shape as well. filled: else it is a ring."""

    colour: str
    marker: str
    filled: bool = True


class Row(NamedTuple):
    """label: left of it, words: right of it. interval, region: (low, high) or None. styles' key: kind.

    right: 1 where a greater value lies to the right in a forest plot, −1 where a lesser one does. values: of the seeds.
    marks: other values in the same unit that stand beside it.
    """

    label: str
    value: float
    interval: tuple[float, float] | None = None
    region: tuple[float, float] | None = None
    kind: str = ''
    words: str = ''
    right: int = 1
    values: Sequence[float] = ()
    marks: Sequence[float] = ()


def forest(rows: Sequence[Row], styles: Mapping[str, Style], label: str) -> bytes:
    """A PNG of each row's value and interval against its region, which is −1 to 1 in every row: the unit of a row is
    half the width of its region. The scale is linear up to 4 units and logarithmic beyond. An arrow at the edge is a
    value beyond 300, a cross at the left edge one that is not finite. label: of the axis."""
    figure, axes = _rows_figure([row.label for row in rows])
    scaled = [_scaled(row) for row in rows]
    finite = [abs(u) for value, ends in scaled for u in (value, *ends) if math.isfinite(u)]
    far = min(max([_LINEAR / 2, *finite]), _FAR)
    if far > _LINEAR:
        axes.set_xscale('symlog', linthresh=_LINEAR, linscale=2.0, base=10)
        ticks = [t for t in (1, 4, 30, 300) if t <= far * 1.15]
        axes.set_xticks([*(-t for t in reversed(ticks)), 0, *ticks])
        axes.xaxis.set_major_formatter('{x:g}')
        axes.minorticks_off()
    edge = far * 1.15
    axes.set_xlim(-edge, edge)
    axes.axvspan(-1, 1, color=_REGION, linewidth=0, zorder=0)
    axes.axvline(0, color='0.55', linewidth=0.8, zorder=1)
    for k, (row, (value, ends)) in enumerate(zip(rows, scaled, strict=True)):
        style = styles[row.kind]
        if ends:
            low, high = np.clip(sorted(ends), -edge, edge)
            axes.plot([low, high], [k, k], color=style.colour, linewidth=1.8)
        if not math.isfinite(value):
            _point(axes, -edge, k, style._replace(marker='x'))
        elif abs(value) > edge:
            _point(axes, math.copysign(edge, value), k, style._replace(marker='>' if value > 0 else '<', filled=True))
        else:
            _point(axes, value, k, style)
    _words(axes, rows)
    axes.set_xlabel(label, fontsize=8, parse_math=False)
    return png(figure)


def dots(title: str, rows: Sequence[Row], styles: Mapping[str, Style]) -> bytes:
    """A PNG of rows in one unit: a circle for each of a row's values, its mean with the interval, its region as a grey
    bar, and its marks as upright lines. Values that are not finite are crosses at the right edge. The axis is
    logarithmic where the values are positive and differ by more than a factor of 50."""
    figure, axes = _rows_figure([row.label for row in rows])
    of_row = lambda row: (*row.values, row.value, *row.marks, *(row.region or ()), *(row.interval or ()))
    shown = [x for row in rows for x in of_row(row)]
    if is_wide(shown):
        axes.set_xscale('log')
    if not np.isfinite(shown).any():
        axes.set_xticks([])
        nothing(axes)
    for k, row in enumerate(rows):
        style, values = styles[row.kind], np.asarray(row.values, np.float64)
        if row.region:
            axes.barh(k, row.region[1] - row.region[0], 0.8, row.region[0], color=_REGION, zorder=0)
        # Apart, always in the same way, so that seeds of one value are seen.
        at, finite = k + 0.22 * np.sin(2.4 * np.arange(len(values))), np.isfinite(values)
        dot = {'color': '0.35', 'markersize': 3, 'alpha': 0.55, 'markeredgewidth': 0, 'zorder': 2.5}
        axes.plot(values[finite], at[finite], 'o', **dot)
        if not finite.all():
            lost = at[~finite]
            edge = axes.get_yaxis_transform()
            axes.plot(np.full(len(lost), 0.99), lost, 'x', color='0.2', markersize=5, transform=edge, in_layout=False)
        if row.interval:
            axes.plot(row.interval, [k, k], color=style.colour, linewidth=2.2)
        if math.isfinite(row.value):
            _point(axes, row.value, k, style)
        for mark in row.marks:
            if math.isfinite(mark):
                axes.plot([mark, mark], [k - 0.4, k + 0.4], color='black', linewidth=1, linestyle=(0, (2, 1)))
    _words(axes, rows)
    axes.set_title(short(title, _MOST_TITLE), fontsize=9, loc='left', parse_math=False)
    return png(figure)


def short(text: str, most: int = _MOST_LETTERS) -> str:
    """`text` as the font of the pictures has it: without letters that it lacks, and cut where it is long."""
    text = ''.join(c if ord(c) in _letters() else '?' for c in text)
    return text if len(text) <= most else text[: most - 1] + '…'


@functools.cache
def _letters() -> frozenset[int]:
    from matplotlib.font_manager import FontProperties, findfont, get_font

    return frozenset(get_font(findfont(FontProperties())).get_charmap())


def _scaled(row: Row) -> tuple[float, tuple[float, ...]]:
    """(value, ends of the interval) from the middle of the region, in halves of its width."""
    low, high = row.region
    unit = lambda x: row.right * (x - (low + high) / 2) / ((high - low) / 2)
    return unit(row.value), tuple(map(unit, row.interval or ()))


def _rows_figure(labels: Sequence[str]) -> tuple:
    """(figure, axes) whose rows go down from 0."""
    figure = new_figure(_WIDE, _EDGE + _ROW * len(labels), layout='constrained')
    axes = figure.add_subplot()
    plain(axes)
    axes.use_sticky_edges = False
    axes.set_yticks(range(len(labels)), [short(label) for label in labels], fontsize=8, parse_math=False)
    axes.set_ylim(len(labels) - 0.4, -0.6)
    axes.grid(visible=False, axis='y')
    return figure, axes


def _point(axes, x: float, y: float, style: Style) -> None:
    face = style.colour if style.filled else 'white'
    axes.plot([x], [y], style.marker, color=style.colour, markerfacecolor=face, markersize=6, clip_on=False, zorder=3)


def _words(axes, rows: Sequence[Row]) -> None:
    place = axes.get_yaxis_transform()
    for k, row in enumerate(rows):
        axes.text(1.025, k, short(row.words), fontsize=8, va='center', transform=place, parse_math=False)
