"""Figures as PNG files, written whole.

Matplotlib is imported inside the functions and never through pyplot: no global state, no display, and a run
that draws nothing does not pay for it.
"""

import io

import numpy as np

from aigc_jax.core.files import atomic_write

# Okabe & Ito (2008): told apart with every kind of colour vision.
BLUE, ORANGE, GREEN = '#0072B2', '#D55E00', '#009E73'
COLOURS = (BLUE, ORANGE, GREEN, '#CC79A7', '#E69F00', '#56B4E9', '#000000')
DPI = 120  # pixels an inch
_WIDE = 50.0


def new_figure(width: float, height: float, **options):
    """An Agg figure of width x height inches."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=DPI, **options)
    FigureCanvasAgg(figure)
    return figure


def plain(axes) -> None:
    """Axes without a frame, over a light grid."""
    axes.tick_params(labelsize=8)
    axes.grid(alpha=0.25, linewidth=0.6)
    axes.spines[['top', 'right']].set_visible(False)


def nothing(axes) -> None:
    """Says so in the middle of axes whose values are all nan or infinite."""
    axes.text(0.5, 0.5, 'no finite value', fontsize=8, color='0.4', ha='center', va='center', transform=axes.transAxes)


def is_wide(values) -> bool:
    """Whether positive values differ so much that a logarithmic axis shows them better."""
    values = np.asarray(values, np.float64)
    values = values[np.isfinite(values)]
    return bool(values.size and values.min() > 0 and values.max() / values.min() > _WIDE)


def png(figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format='png', dpi=DPI)
    return buffer.getvalue()


def save_figure(figure, path):
    atomic_write(path, png(figure))
