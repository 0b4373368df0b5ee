"""Networks by name: a module with its parameters and its statistics kept apart."""

import dataclasses
from typing import Any

import flax.linen as linen

from aigc_jax.core import parallel, schema
from aigc_jax.core.schema import Field, Group
from aigc_jax.core.types import Array, Tree
from aigc_jax.nn import convnets, mlp
from aigc_jax.nn.build import build, compute_dtype, fields

# model.kind -> the file that has Encoder, Decoder, Generator, Discriminator, Classifier
KINDS = {'mlp': mlp, 'conv': convnets}

KIND = Field(str, 'mlp', choices=tuple(KINDS), doc='of all networks: `conv` is for images')


def field(role: str, doc: str) -> Field:
    """The field of `model` for the network `role`, 'Encoder' …; its fields are those of that module of model.kind."""

    def of_kind(own, model) -> Group | None:
        kind = KINDS.get(schema.named(model, 'kind'))
        return fields(getattr(kind, role)) if kind else None  # which the check of KIND says

    return Field(dict, fields=of_kind, doc=doc)


@dataclasses.dataclass(frozen=True)
class Network:
    """init(key, *inputs) -> (params, stats): stats, of batches and of spectral norms, are {} where it has none.

    network(params, stats, *inputs) -> output; network.train(…) -> (output, stats), the renewed ones.
    """

    module: linen.Module

    def init(self, key: Array, *inputs) -> tuple[Tree, Tree]:
        variables = dict(self.module.init(key, *inputs))
        return variables.pop('params'), variables

    def __call__(self, params: Tree, stats: Tree, *inputs):
        return self.module.apply({'params': params, **stats}, *inputs)

    def train(self, params: Tree, stats: Tree, *inputs):
        if not stats:
            return self(params, stats, *inputs), stats
        return self.module.apply({'params': params, **stats}, *inputs, train=True, mutable=list(stats))


def make(config, role: str, fields: Any, image_shape: tuple[int, ...], **given) -> Network:
    """The `role`, 'Encoder' …, of config.model.kind, with the `fields` that config.model holds for it.

    Raises UserError for a field that does not fit.
    """
    kind, what = config.model.kind, f'model.{role.lower()}'
    KIND.check('model.kind', kind)
    if kind == 'conv':
        given['axis_name'] = parallel.axis_name(config.parallel.mode, config.num_seeds > 1)
    network = build(getattr(KINDS[kind], role), what, fields, dtype=compute_dtype(config.precision), **given)
    if kind == 'conv':
        convnets.check(network, image_shape, what)
    return Network(network)
