"""Pictures of a run as PNG files, written whole: image grids, reconstructions, learning curves, 2-D points.

Matplotlib is imported inside the functions and never through pyplot: no global state, no display, and a run
that draws nothing does not pay for it.
"""

import io
import math

import numpy as np

from aigc_jax.core.files import atomic_write
from aigc_jax.evals.codes import perplexity

# Okabe & Ito (2008): told apart with every kind of colour vision.
BLUE, ORANGE, GREEN = '#0072B2', '#D55E00', '#009E73'
_COLOURS = (BLUE, ORANGE, GREEN, '#CC79A7', '#E69F00', '#56B4E9', '#000000')
_DPI = 120  # pixels an inch
_TILE = 48  # pixels: the least side of an image in a grid
_GAP = 2  # pixels
_LOG_SCALE = ('grad_norm', 'update_ratio')
_POINTS = 4000  # more in a scatter hide each other and cost time


def image_grid(x, path, columns: int = 0) -> None:
    """Tiles images x (N, H, W, C), C 1 or 3, in [0, 1] (clipped), row by row; `columns` 0 makes a square.

    Small images are enlarged by a whole factor, each pixel a square. Raises ValueError on another shape.
    """
    from matplotlib.image import imsave

    tiles = _tiles(x)
    columns = min(columns or math.ceil(math.sqrt(len(tiles))), len(tiles))
    buffer = io.BytesIO()
    imsave(buffer, _grid(tiles, columns), format='png')
    atomic_write(path, buffer.getvalue())


def image_classes(x, classes: list[str], path) -> None:
    """Images (N, H, W, C) in order of their classes, each named: a line or more of each class where the picture becomes
    at most twice as tall as wide by that, else a square whose images have their classes above them.

    classes: N names, equal ones side by side. Values and errors as in `image_grid`.
    """
    columns, names = math.ceil(math.sqrt(len(x))), list(dict.fromkeys(classes))
    if len(names) ** 2 > 2 * len(x):
        rows, heads = _lines(x, classes, columns)
        return image_rows(rows, path, heads=heads)
    rows = []
    for name in names:
        own = np.flatnonzero(np.asarray(classes) == name)
        lines = [own[start : start + columns] for start in range(0, len(own), columns)]
        rows += [('' if i else name, np.asarray(x)[line]) for i, line in enumerate(lines)]
    image_rows(rows, path)


def _lines(x, heads: list[str], columns: int) -> tuple[list, list[list[str]]]:
    """Rows without labels, and the texts above them, for `image_rows`."""
    starts = range(0, len(x), columns)
    return [('', x[start : start + columns]) for start in starts], [heads[start : start + columns] for start in starts]


def image_pairs(upper, lower, path, labels: tuple[str, str], classes: list[str] | None = None) -> None:
    """Rows of `upper` (N, H, W, C), each with its row of `lower` (the same shape) below, labelled.

    classes: N names, to stand above the pairs. Values and errors as in `image_grid`.
    """
    if np.shape(upper) != np.shape(lower):
        raise ValueError(f'shapes differ: {np.shape(upper)} and {np.shape(lower)}')
    wide = _tiles(upper[:1]).shape[2]
    columns = min(len(upper), max(1, 800 // (wide + _GAP)))
    rows = []
    for start in range(0, len(upper), columns):
        rows += [(label, x[start : start + columns]) for label, x in zip(labels, (upper, lower), strict=True)]
    image_rows(rows, path, together=2, heads=classes and _lines(upper, classes, columns)[1])


def reconstructions(original, reconstruction, path, classes: list[str] | None = None) -> None:
    """Rows of `original` (N, H, W, C), each with its row of `reconstruction` below; classes as in `image_pairs`."""
    image_pairs(original, reconstruction, path, ('original', 'reconstruction'), classes)


def image_rows(rows, path, together: int = 1, heads: list[list[str]] | None = None) -> None:
    """Rows of images, [(label, (N, H, W, C)), …], N at most as in the longest; each `together` rows are set apart.

    heads: of each set of rows, the texts above its columns. Values and errors as in `image_grid`.
    """
    columns = max(len(x) for _, x in rows)
    strips = [_grid(_tiles(x), columns) for _, x in rows]
    tall, wide = strips[0].shape[:2]
    between = 18 if heads else 12 if together > 1 else 0  # pixels between sets of rows
    margin = 130 if any(label for label, _ in rows) else 12  # pixels left of them, for the labels
    width, height = margin + wide + 12, len(strips) * tall + (-(-len(strips) // together) + 1) * between
    figure = new_figure(width / _DPI, height / _DPI)
    for index, (strip, (label, _)) in enumerate(zip(strips, rows, strict=True)):
        top = between + index * tall + index // together * between
        # figimage copies pixel for pixel; imshow would resample.
        figure.figimage(strip, margin, height - top - tall, origin='upper')
        if label:
            x, y = (margin - 8) / width, 1 - (top + tall / 2) / height
            _write(figure, x, y, label, margin - 8, 9, ha='right', va='center')
        if heads and index % together == 0:
            each = (wide - _GAP) / columns
            for column, head in enumerate(heads[index // together]):
                x, y = (margin + _GAP / 2 + (column + 0.5) * each) / width, 1 - (top - 1) / height
                _write(figure, x, y, head, each, 7, ha='center', va='bottom')
    save_figure(figure, path)


def _write(figure, x: float, y: float, text: str, room: float, size: int, **how) -> None:
    """A text in a place `room` pixels wide: smaller than `size` points where it is long, and cut where that is too."""
    written = figure.text(x, y, text, fontsize=size, parse_math=False, **how)
    if written.get_window_extent().width > room:
        written.set_fontsize(5)
    while len(text) > 1 and written.get_window_extent().width > room:
        text = text[:-1]
        written.set_text(text + '…')


def curves(rows: list[dict], path) -> None:
    """Learning curves from the rows of metrics.jsonl: one panel a metric, in it one colour a player.

    train is a line, eval a line with circles, final a diamond. Rows with "seed" are replicas: thin lines,
    with their median thick. Values that are None or not finite leave a gap.
    """
    from matplotlib.lines import Line2D
    from matplotlib.ticker import EngFormatter, LogFormatter, MaxNLocator

    panels = series_of(rows)
    players = sorted({player for series in panels.values() for player, _ in series})
    colours = {player: _COLOURS[i % len(_COLOURS)] for i, player in enumerate(players)}
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
    for split in ('train', 'eval', 'final'):
        if any(split == s for series in panels.values() for _, s in series):
            handles.append(Line2D([], [], color='0.35', label=split, **_STYLE[split]))
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


def points(path, real, generated, reconstructed=None, density=None, surface=None, extent=None) -> None:
    """Scatters of 2-D points (N, 2): the data, the samples over `surface`, and all modes recentred.

    density    a mixture with `means` (K, 2) and scalar `std`: rings at 1, 2, 3 std around each mode, and for
               K > 1 a panel where each point is shown relative to its nearest mode, in units of std, since a
               mode may be far smaller than the distance between modes
    surface    (xs (n,), ys (m,), values (m, n), label), say D(x) or log p(x), drawn beneath the samples
    extent     (x_min, x_max, y_min, y_max) of the view; by default the surface's, else that of the data

    The number of samples outside a view is written in it. Beyond 4000 points of a kind, the first are drawn.
    """
    real, generated = np.asarray(real, np.float64), np.asarray(generated, np.float64)
    kinds = [('real', real, BLUE), ('generated', generated, ORANGE)]
    if reconstructed is not None:
        kinds.append(('reconstructed', np.asarray(reconstructed, np.float64), GREEN))
    if extent is None:
        extent = _extent(real, density, surface)
    several = density is not None and len(density.means) > 1
    figure = new_figure(4.6 * (2 + several) + 0.4, 5.3 if reconstructed is None else 5.7, layout='constrained')
    axes = figure.subplots(1, 2 + several)
    if surface is not None:
        _contour(figure, axes[1], surface)
    for panel, drawn in ((axes[0], kinds[:1] + kinds[2:]), (axes[1], kinds[1:2])):
        if density is not None:
            # Beneath the points, which a small mode's rings would hide.
            _rings(panel, np.asarray(density.means), float(density.std), zorder=1.5)
        _scatter(panel, drawn, extent)
    axes[0].set_title('data' if reconstructed is None else 'data and reconstructions', fontsize=10)
    axes[1].set_title('samples' if surface is None else f'samples over {surface[3]}', fontsize=10)
    if several:
        _rings(axes[2], np.zeros((1, 2)), 1.0, zorder=3, label=True)
        recentred = [(name, _recentre(x, density), colour) for name, x, colour in kinds]
        _scatter(axes[2], recentred, (-5, 5, -5, 5))
        axes[2].set_title('all modes, recentred, in units of σ', fontsize=10)
    save_figure(figure, path)


def _tiles(x) -> np.ndarray:
    """(N, H, W, C) in [0, 1] to uint8 (N, sH, sW, 3), enlarged by the whole factor s; the first three channels are the
    colours, the first is grey where there are fewer."""
    x = np.asarray(x, np.float32)
    if x.ndim != 4 or not x.size:
        raise ValueError(f'images must have shape (N, H, W, C) with N > 0, got {x.shape}')
    x = x[..., : 3 if x.shape[-1] >= 3 else 1]
    pixels = np.rint(255 * np.clip(np.nan_to_num(x), 0, 1)).astype(np.uint8)
    scale = math.ceil(_TILE / min(x.shape[1:3]))
    return np.broadcast_to(pixels, x.shape[:3] + (3,)).repeat(scale, axis=1).repeat(scale, axis=2)


def _grid(tiles: np.ndarray, columns: int) -> np.ndarray:
    """uint8 (N, H, W, 3) to one picture with gaps around every tile; empty places look like the gaps."""
    count, height, width, _ = tiles.shape
    lines = math.ceil(count / columns)
    tall, wide = height + _GAP, width + _GAP
    picture = np.full((lines * tall + _GAP, columns * wide + _GAP, 3), 255, np.uint8)
    for index, tile in enumerate(tiles):
        top, left = _GAP + index // columns * tall, _GAP + index % columns * wide
        picture[top : top + height, left : left + width] = tile
    return picture


_STYLE = {
    'train': {'linewidth': 1.4},
    'eval': {'linewidth': 1.4, 'linestyle': (0, (4, 2)), 'marker': 'o', 'markersize': 3.5},
    'final': {'linewidth': 0, 'marker': 'D', 'markersize': 5, 'markeredgecolor': 'white'},
}


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


def _extent(real, density, surface):
    if surface is not None:
        return surface[0][0], surface[0][-1], surface[1][0], surface[1][-1]
    corners = real[np.isfinite(real).all(axis=1)]
    if density is not None:
        corners = np.concatenate([corners, density.means - 3 * density.std, density.means + 3 * density.std])
    low, high = corners.min(axis=0), corners.max(axis=0)
    middle, half = (low + high) / 2, 0.6 * max(*(high - low), 1e-6)
    return middle[0] - half, middle[0] + half, middle[1] - half, middle[1] + half


def _contour(figure, axes, surface):
    from matplotlib import colormaps
    from matplotlib.colors import ListedColormap
    from matplotlib.ticker import MaxNLocator

    xs, ys, values, label = surface
    values = np.ma.masked_invalid(np.asarray(values, np.float64))
    low, high = (values.min(), values.max()) if values.count() else (0.0, 0.0)
    if high - low < 1e-9 * max(1.0, abs(low)):  # a flat surface, too, has a colour
        low, high = low - 0.5, high + 0.5
    # The light half of the greys: points and rings must stand out from every value.
    greys = ListedColormap(colormaps['Greys'](np.linspace(0.0, 0.5, 256)))
    filled = axes.contourf(xs, ys, values, levels=MaxNLocator(16).tick_values(low, high), cmap=greys)
    bar = figure.colorbar(filled, ax=axes, fraction=0.045, pad=0.02, ticks=MaxNLocator(8))
    bar.set_label(label, fontsize=9)
    bar.ax.tick_params(labelsize=8)


def _rings(axes, means, std, zorder, label=False):
    from matplotlib.collections import EllipseCollection

    for sigmas in (1, 2, 3):
        size = np.full(len(means), 2 * sigmas * std)
        axes.add_collection(EllipseCollection(
            size, size, np.zeros(len(means)), units='xy', offsets=means, offset_transform=axes.transData,
            facecolors='none', edgecolors='0.25', linewidths=0.9 if label else 0.5, zorder=zorder,
        ))  # fmt: skip
        if label:
            axes.annotate(f'{sigmas}σ', (0, sigmas), ha='center', va='bottom', fontsize=8, zorder=zorder)


def _recentre(x, density):
    """Points (N, 2) relative to their nearest mode, in units of std."""
    means = np.asarray(density.means)
    nearest = np.square(x[:, None] - means).sum(axis=-1).argmin(axis=1)
    return (x - means[nearest]) / density.std


def _scatter(axes, kinds, extent):
    x_min, x_max, y_min, y_max = extent
    handles = []
    for name, x, colour in kinds:
        inside = (x[:, 0] >= x_min) & (x[:, 0] <= x_max) & (x[:, 1] >= y_min) & (x[:, 1] <= y_max)
        out = f' ({len(x) - inside.sum()} of {len(x)} outside)' if not inside.all() else ''
        shown = x[inside][:_POINTS]
        alpha = float(np.clip(800 / max(1, len(shown)), 0.3, 0.7))
        axes.scatter(*shown.T, s=6, c=colour, alpha=alpha, linewidths=0, zorder=2)
        handles.append(axes.scatter([], [], s=18, c=colour, label=name + out))
    axes.set(xlim=(x_min, x_max), ylim=(y_min, y_max), aspect='equal')
    axes.tick_params(labelsize=8)
    axes.legend(handles=handles, fontsize=8, loc='upper center', bbox_to_anchor=(0.5, -0.06), frameon=False)


def new_figure(width: float, height: float, **options):
    """An Agg figure of width x height inches."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=_DPI, **options)
    FigureCanvasAgg(figure)
    return figure


def save_figure(figure, path):
    buffer = io.BytesIO()
    figure.savefig(buffer, format='png', dpi=_DPI)
    atomic_write(path, buffer.getvalue())
