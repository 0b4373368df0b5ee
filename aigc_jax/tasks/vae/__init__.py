from aigc_jax.tasks.vae.task import make

__all__ = ['make']
