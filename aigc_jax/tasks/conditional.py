"""Whether the networks of a task are told the class of an example: the field model.conditional."""

from aigc_jax.core.errors import UserError
from aigc_jax.data import Dataset


def classes(config, dataset: Dataset) -> int:
    """How many classes the networks are told; 0: none. Raises UserError where the data have no labels."""
    if not config.model.conditional:
        return 0
    if not dataset.num_classes:
        raise UserError(f'model.conditional: {config.data.name} has no labels; set it to False')
    return dataset.num_classes
