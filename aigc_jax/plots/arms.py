"""Arms of seeds beside each other: the dots of each seed, and curves over each other with bands over seeds.

Arms are named by letters, and each has one colour in both pictures.
"""

import math
from collections.abc import Sequence

import numpy as np

from aigc_jax.plots.figure import COLOURS, new_figure, nothing, plain, png

_WIDE, _TALL, _COLUMNS = 3.2, 2.2, 3  # inches of a panel; panels beside each other
_LETTER = 0.07  # inches of a letter of the legend
_DASHED = (0, (4, 2))
_MOST_THIN = 16  # seeds of which each has a line of its own


def colours(count: int) -> list[str]:
    from matplotlib import colormaps
    from matplotlib.colors import to_hex

    if count <= len(COLOURS):
        return list(COLOURS[:count])
    return [to_hex(colormaps['turbo'](0.05 + 0.9 * k / (count - 1))) for k in range(count)]


def dots(panels: dict[str, list[tuple[Sequence[float], float, tuple[float, float] | None]]], names) -> bytes:
    """A PNG with a panel for each metric: {metric: [(values of the seeds, mean, interval or None) of each arm]}.

    A circle is a seed, the bar the mean with its interval. A seed whose value is not finite is a cross at the upper
    edge. names: of the arms.
    """
    figure, places = _panels(len(panels))
    for axes, (metric, arms) in zip(places, panels.items(), strict=True):
        for k, ((values, mean, interval), colour) in enumerate(zip(arms, colours(len(names)), strict=True)):
            values = np.asarray(values, np.float64)
            # Apart, always in the same way, so that seeds of one value are seen.
            at = k + 0.16 * np.sin(2.4 * np.arange(len(values)))
            finite = np.isfinite(values)
            axes.plot(at[finite], values[finite], 'o', color=colour, markersize=4.5, alpha=0.65, markeredgewidth=0)
            if not finite.all():
                lost, edge = at[~finite], axes.get_xaxis_transform()
                axes.plot(lost, np.full(len(lost), 0.98), 'x', color=colour, transform=edge, in_layout=False)
            if math.isfinite(mean):
                axes.plot([k + 0.28, k + 0.42], [mean, mean], color=colour, linewidth=2)
                if interval:
                    axes.plot([k + 0.35] * 2, interval, color=colour, linewidth=1.2)
        axes.set_xticks(range(len(names)), names, fontsize=8)
        axes.set_xlim(-0.5, len(names) - 0.3)
        _finish(axes, metric)
    return png(figure)


def curves(panels: dict[str, dict[str, list[dict[int, dict[int, float]]]]], names) -> bytes:
    """A PNG with a panel for each metric: {metric: {'train' or 'eval': [{seed: {step: value}} of each arm]}}.

    A thin line is a seed, of up to 16. The thick line is the median over an arm's seeds, and the band reaches from
    their lowest to their highest, of those that have come to a step. train is solid, eval dashed. A seed's curve ends
    where its value is not finite.
    """
    from matplotlib.lines import Line2D
    from matplotlib.ticker import EngFormatter, MaxNLocator

    figure, places = _panels(len(panels))
    for axes, (metric, splits) in zip(places, panels.items(), strict=True):
        for split, arms in splits.items():
            for of_arm, colour in zip(arms, colours(len(names)), strict=True):
                steps = sorted({step for curve in of_arm.values() for step in curve})
                table = [[curve.get(step, math.nan) for step in steps] for curve in of_arm.values()]
                table = np.ma.masked_invalid(np.array(table, np.float64).reshape(len(of_arm), len(steps)))
                if not table.count():
                    continue
                style = {'linestyle': _DASHED, 'marker': '.'} if split == 'eval' else {}
                axes.plot(steps, np.ma.median(table, axis=0), color=colour, linewidth=1.6, **style)
                if len(table) > 1:
                    if len(table) <= _MOST_THIN:
                        axes.plot(steps, table.T, color=colour, linewidth=0.5, alpha=0.5)
                    low, high = table.min(axis=0), table.max(axis=0)
                    axes.fill_between(steps, low, high, color=colour, alpha=0.18, linewidth=0)
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True, min_n_ticks=1))
        axes.xaxis.set_major_formatter(EngFormatter(sep=''))
        axes.set_xlabel('step', fontsize=8)
        _finish(axes, metric)
    shades = zip(names, colours(len(names)), strict=True)
    handles = [Line2D([], [], color=colour, linewidth=2, label=name) for name, colour in shades]
    drawn, styles = {split for splits in panels.values() for split in splits}, {'train': '-', 'eval': _DASHED}
    handles += [Line2D([], [], color='0.35', linestyle=styles[s], label=s) for s in styles if s in drawn]
    letters = max(map(len, (*names, 'train')))
    columns = max(1, min(8, int(figure.get_figwidth() / (0.6 + _LETTER * letters))))
    legend = figure.legend(handles=handles, loc='outside upper left', ncols=columns, fontsize=8, frameon=False)
    for text in legend.get_texts():
        text.set_parse_math(False)
    return png(figure)


def _panels(count: int) -> tuple:
    columns = min(_COLUMNS, count)
    lines = math.ceil(count / columns)
    figure = new_figure(0.3 + columns * _WIDE, 0.4 + lines * _TALL, layout='constrained')
    return figure, [figure.add_subplot(lines, columns, k + 1) for k in range(count)]


def _finish(axes, metric: str) -> None:
    axes.set_title(metric, fontsize=9, loc='left', parse_math=False)
    plain(axes)
    if not any(np.isfinite(line.get_ydata()).any() for line in axes.lines if line.get_transform() == axes.transData):
        axes.set_yticks([])
        nothing(axes)
