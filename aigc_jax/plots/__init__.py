"""Pictures of a run as PNG files."""

from aigc_jax.plots.curves import code_use, curves, rate_distortion
from aigc_jax.plots.figure import new_figure, save_figure
from aigc_jax.plots.images import image_classes, image_grid, image_pairs, image_rows, reconstructions
from aigc_jax.plots.points import points
from aigc_jax.plots.text import attention, loss_against_tokens

__all__ = [
    'attention', 'code_use', 'curves', 'image_classes', 'image_grid', 'image_pairs', 'image_rows',
    'loss_against_tokens', 'new_figure', 'points', 'rate_distortion', 'reconstructions', 'save_figure',
]  # fmt: skip
