"""Points in the plane: real ones, samples, the density and a function around them."""

import numpy as np

from aigc_jax.plots.figure import BLUE, GREEN, ORANGE, new_figure, save_figure

_POINTS = 4000  # more in a scatter hide each other and cost time


def points(path, real, generated, reconstructed=None, density=None, surface=None) -> None:
    """Scatters of 2-D points (N, 2): the data, the samples over `surface`, and all modes recentred.

    density    a mixture with `means` (K, 2) and scalar `std`: rings at 1, 2, 3 std around each mode, and for
               K > 1 a panel where each point is shown relative to its nearest mode, in units of std, since a
               mode may be far smaller than the distance between modes
    surface    (xs (n,), ys (m,), values (m, n), label), say D(x) or log p(x), drawn beneath the samples

    The view is the surface's, else that of the data; the number of samples outside is written in it. Beyond 4000 points
    of a kind, the first are drawn.
    """
    real, generated = np.asarray(real, np.float64), np.asarray(generated, np.float64)
    kinds = [('real', real, BLUE), ('generated', generated, ORANGE)]
    if reconstructed is not None:
        kinds.append(('reconstructed', np.asarray(reconstructed, np.float64), GREEN))
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
