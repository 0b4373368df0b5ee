"""Changes of a model. Each is a function Task -> Task of a group of the config, and changes nothing by default."""

from collections.abc import Mapping

from ml_collections import ConfigDict

from aigc_jax.adapt import distill, lora
from aigc_jax.core.schema import Field
from aigc_jax.core.types import Task, Tree

FIELDS = {
    'adapt': Field(dict, fields=lora.FIELDS, doc='what is trained in the place of the parameters themselves'),
    'distill': Field(dict, fields=distill.FIELDS, doc='a trained model whose probabilities are learned'),
}  # fmt: skip


def adapted(task: Task, config: ConfigDict) -> Task:
    """`task` as the config's groups of FIELDS change it. Raises UserError."""
    return lora.adapted(task, config.adapt)


def merged(params: Mapping[str, Tree], config: ConfigDict) -> dict[str, Tree]:
    """{player: its tree} of the parameters that the model computes with, as the task without changes has them."""
    return lora.merged(params, config.adapt)
