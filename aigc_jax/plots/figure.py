"""Figures as PNG files, written whole.

Matplotlib is imported inside the functions and never through pyplot: no global state, no display, and a run
that draws nothing does not pay for it.
"""

import io

from aigc_jax.core.files import atomic_write

# Okabe & Ito (2008): told apart with every kind of colour vision.
BLUE, ORANGE, GREEN = '#0072B2', '#D55E00', '#009E73'
COLOURS = (BLUE, ORANGE, GREEN, '#CC79A7', '#E69F00', '#56B4E9', '#000000')
DPI = 120  # pixels an inch


def new_figure(width: float, height: float, **options):
    """An Agg figure of width x height inches."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=DPI, **options)
    FigureCanvasAgg(figure)
    return figure


def png(figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format='png', dpi=DPI)
    return buffer.getvalue()


def save_figure(figure, path):
    atomic_write(path, png(figure))
