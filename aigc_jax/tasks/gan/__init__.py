from aigc_jax.tasks.gan.task import make

__all__ = ['make']
