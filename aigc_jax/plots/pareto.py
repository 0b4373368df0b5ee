"""Two quantities of several settings against each other, with the front of those that no other is better than."""

import math
from collections.abc import Sequence

import numpy as np

from aigc_jax.plots.figure import BLUE, is_wide, new_figure, plain, png

_MOST_NAMES = 24  # that are written beside their points
_MODES = {'min': 1, 'max': -1}


def front(x, y, better: tuple[str, str]) -> np.ndarray:
    """(n,) bool: which points no other is at least as good as on both axes and better than on one. x, y: (n,). better:
    'min' or 'max' of each axis. A point that is not finite is not on the front."""
    x, y = (_MODES[mode] * np.asarray(of, np.float64) for of, mode in zip((x, y), better, strict=True))
    found = np.zeros(len(x), bool)
    best = math.inf  # of y, over all lesser x
    alive = np.flatnonzero(np.isfinite(x) & np.isfinite(y))
    order = alive[np.lexsort((y[alive], x[alive]))]
    for begin in np.flatnonzero(np.diff(x[order], prepend=-math.inf)) if len(order) else ():
        first = order[begin]  # the least y of those of its x
        if y[first] < best:
            best = y[first]
            found[(x == x[first]) & (y == y[first])] = True
    return found


def pareto(x, y, x_limits, y_limits, names: Sequence[str], titles: tuple[str, str], better: tuple[str, str]) -> bytes:
    """A PNG of n points: x, y (n,), x_limits, y_limits (n, 2) their intervals, nan without one. Points on the front are
    filled circles joined by a line, the others are grey rings. Names stand beside the points on the front, and beside
    the others where there are few."""
    x, y, x_limits, y_limits = (np.asarray(of, np.float64) for of in (x, y, x_limits, y_limits))
    on_front = front(x, y, better)
    figure = new_figure(6.4, 4.4, layout='constrained')
    axes = figure.add_subplot()
    plain(axes)
    for set_scale, of in ((axes.set_xscale, (x, x_limits)), (axes.set_yscale, (y, y_limits))):
        if is_wide(np.concatenate([part.ravel() for part in of])):
            set_scale('log')
    for group, colour, face, over in ((~on_front, '0.5', 'white', 1), (on_front, BLUE, BLUE, 2)):
        for lines, at, limits in ((axes.hlines, y, x_limits), (axes.vlines, x, y_limits)):
            lines(at[group], *limits[group].T, color=colour, linewidth=1, zorder=over)
        axes.plot(x[group], y[group], 'o', color=colour, markerfacecolor=face, markersize=6, zorder=over + 2)
    order = np.flatnonzero(on_front)[np.lexsort((y[on_front], x[on_front]))]
    # A step: what is between two points of the front is as good as the worse of them.
    where = 'post' if better[0] == 'min' else 'pre'
    axes.plot(x[order], y[order], color=BLUE, linewidth=1, linestyle=(0, (4, 2)), drawstyle=f'steps-{where}')
    named = [*order, *np.flatnonzero(~on_front)] if len(x) <= _MOST_NAMES else order[:_MOST_NAMES]
    for k in named:
        if math.isfinite(x[k]) and math.isfinite(y[k]):
            axes.annotate(names[k], (x[k], y[k]), (6, 5), textcoords='offset points', fontsize=8, parse_math=False)
    words = {'min': 'less is better', 'max': 'more is better'}
    axes.set_xlabel(f'{titles[0]} ({words[better[0]]})', fontsize=8, parse_math=False)
    axes.set_ylabel(f'{titles[1]} ({words[better[1]]})', fontsize=8, parse_math=False)
    return png(figure)
