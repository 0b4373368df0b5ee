"""The table of tasks: a name that a config's task.name may hold -> make(config, dataset) -> Task."""

from aigc_jax.core.errors import UserError, near
from aigc_jax.core.types import Task
from aigc_jax.data.dataset import Dataset
from aigc_jax.tasks import flow, gan, lm, vae, vq

TASKS = {
    'vae': vae.make,
    'gan': gan.make,
    'lm': lm.make,
    'vq': vq.make,
    'flow': flow.make,
}


def make(config, dataset: Dataset) -> Task:
    """The task that `config` describes, for data of this shape. Raises UserError."""
    if config.task.name not in TASKS:
        raise UserError(f'task.name: {config.task.name!r}{near(config.task.name, TASKS)}')
    return TASKS[config.task.name](config, dataset)
