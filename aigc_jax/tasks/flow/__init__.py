"""Flow matching: a velocity field whose ODE carries a source to the data."""

from aigc_jax.tasks.flow.task import make

__all__ = ['make']
