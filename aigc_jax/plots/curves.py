"""Curves over training, and of rates and distortions; how often codes are used."""

import math

import numpy as np

from aigc_jax.metrics.codebook import perplexity
from aigc_jax.plots.figure import BLUE, COLOURS, new_figure, save_figure

_LOG_SCALE = ('grad_norm', 'update_ratio')
_STYLE = {
    'train': {'linewidth': 1.4},
    'eval': {'linewidth': 1.4, 'linestyle': (0, (4, 2)), 'marker': 'o', 'markersize': 3.5},
    'final': {'linewidth': 0, 'marker': 'D', 'markersize': 5, 'markeredgecolor': 'white'},
}


def curves(rows: list[dict], path, splits: dict[str, str]) -> None:
    """Learning curves from the rows of metrics.jsonl: one panel a metric, in it one colour a player.

    train is a line, eval a line with circles, final a diamond. splits: the names of those that 'eval' and 'final' are
    of, in the legend. Rows with "seed" are replicas: thin lines,
    with their median thick. Values that are None or not finite leave a gap.
    """
    from matplotlib.lines import Line2D
    from matplotlib.ticker import EngFormatter, LogFormatter, MaxNLocator

    panels = series_of(rows)
    players = sorted({player for series in panels.values() for player, _ in series})
    colours = {player: COLOURS[i % len(COLOURS)] for i, player in enumerate(players)}
    trained = {player for series in panels.values() for player, split in series if player and split == 'train'}
    if len(trained) == 1:
        colours[''] = colours[min(trained)]  # what is measured without a player is of the only one
    columns = min(4, math.ceil(math.sqrt(len(panels)))) or 1
    lines = math.ceil(len(panels) / columns) or 1
    # Placed by hand, in inches: a layout engine takes twice the time, at each evaluation.
    wide, tall, left, between, top, under = 2.6, 1.75, 0.55, 0.7, 0.75, 0.5
    width, height = left + columns * (wide + between) - between + 0.15, top + lines * (tall + between) - between + under
    figure = new_figure(width, height)
    for index, (metric, series) in enumerate(panels.items()):
        line, column = divmod(index, columns)
        low = height - top - line * (tall + between) - tall
        place = (left + column * (wide + between)) / width, low / height, wide / width, tall / height
        axes = figure.add_axes(place)
        axes.set_title(metric, fontsize=10, loc='left')
        log = metric in _LOG_SCALE
        drawn = [
            draw_series(axes, by_seed, split, colours[player], log)
            for split in _STYLE
            for (player, s), by_seed in series.items()
            if s == split
        ]
        if not any(drawn):
            axes.text(0.5, 0.5, 'no finite value', ha='center', va='center', color='0.5')
            axes.set_axis_off()
            continue
        if log:
            axes.set_yscale('log')
            axes.yaxis.set_major_formatter(LogFormatter())
            axes.yaxis.set_minor_formatter(LogFormatter(minor_thresholds=(1.5, 0.5)))
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True, min_n_ticks=1))
        axes.xaxis.set_major_formatter(EngFormatter(sep=''))
        axes.tick_params(which='both', labelsize=8)
        axes.grid(alpha=0.25, linewidth=0.6)
        axes.spines[['top', 'right']].set_visible(False)
        if index + columns >= len(panels):
            axes.set_xlabel('step', fontsize=9)
    if not panels:
        figure.text(0.5, 0.5, 'no metrics', ha='center', va='center', color='0.5')
    handles = [Line2D([], [], color=colours[name], linewidth=2, label=name) for name in players if name]
    for split, name in ({'train': 'train'} | splits).items():
        if any(split == s for series in panels.values() for _, s in series):
            handles.append(Line2D([], [], color='0.35', label=name, **_STYLE[split]))
    seeds = {row['seed'] for row in rows if 'seed' in row}
    if len(seeds) > 1:
        handles.append(Line2D([], [], color='0.35', linewidth=0.6, label=f'each of {len(seeds)} seeds'))
        handles.append(Line2D([], [], color='0.35', linewidth=2, label='median'))
    if handles:
        figure.legend(handles=handles, loc='upper left', ncols=3 * columns, fontsize=9, frameon=False)
    save_figure(figure, path)


def code_use(counts, path) -> None:
    """The share of each code, from counts (K,), not all 0, the most used first; the dashed line is even use."""
    shares = np.sort(counts)[::-1] / counts.sum()
    figure = new_figure(6, 4, layout='constrained')
    axes = figure.add_subplot()
    edges = np.arange(len(shares) + 1)
    axes.stairs(shares, edges, fill=True, color=BLUE)
    axes.axhline(1 / len(shares), color='black', linewidth=1, linestyle='--')
    axes.set(
        yscale='log', xlim=(0, len(shares)), ylim=(0.5 / counts.sum(), 1), xlabel='code, by its use', ylabel='share',
        title=f'{np.count_nonzero(counts)} of {len(counts)} codes used, perplexity {perplexity(counts):.1f}',
    )  # fmt: skip
    save_figure(figure, path)


def rate_distortion(curve, own, path) -> None:
    """The decoder's curve, (points, 2) of rate and distortion in nats, and `own`, (rate, distortion) of the encoder."""
    rate, distortion = np.asarray(curve).T
    figure = new_figure(6, 4, layout='constrained')
    axes = figure.add_subplot()
    axes.plot(distortion, rate, color=BLUE, marker='o', markersize=3.5, label='best channels, by annealing')
    axes.plot(own[1], own[0], color='black', marker='D', linewidth=0, label='the encoder')
    axes.set(xlabel='distortion, −log p(x given z), nats', ylabel='rate, KL(q ‖ p(z)), nats', ylim=(0, None))
    axes.legend(frameon=False, fontsize=9)
    save_figure(figure, path)


def series_of(rows) -> dict:
    """{metric: {(player, split): {seed: {step: value}}}}; losses first, optimizer's metrics last."""
    panels: dict = {}
    for row in rows:
        for key, value in row.items():
            if key not in ('step', 'split', 'seed'):
                player, slash, metric = key.partition('/')
                player, metric = (player, metric) if slash else ('', player)
                seeds = panels.setdefault(metric, {}).setdefault((player, row['split']), {})
                value = math.nan if value is None or not math.isfinite(value) else value
                seeds.setdefault(row.get('seed'), {})[row['step']] = value
    order = sorted(panels, key=lambda metric: (metric in _LOG_SCALE, metric != 'loss', metric))
    return {metric: panels[metric] for metric in order}


def draw_series(axes, by_seed: dict, split: str, colour: str, positive: bool, label: str | None = None) -> bool:
    """Draws one player's split, {seed: {step: value}}; False if no value can be shown."""
    steps = sorted({step for values in by_seed.values() for step in values})
    table = [[values.get(step, math.nan) for step in steps] for values in by_seed.values()]
    table = np.ma.masked_invalid(table)
    if positive:
        table = np.ma.masked_less_equal(table, 0)
    if not table.count():
        return False
    style = _STYLE[split] | {'color': colour}
    if len(table) > 1:
        thin = style | {'linewidth': min(0.6, style['linewidth']), 'alpha': 0.4, 'marker': ''}
        axes.plot(steps, table.T, **thin)
        style['linewidth'] *= 1.4
    middle = np.ma.median(table, axis=0)
    if split == 'train' and middle.count() == 1:
        style['marker'] = '.'  # a line through one point shows nothing
    axes.plot(steps, middle, label=label, **style)
    return True
