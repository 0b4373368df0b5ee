"""What the families ask of a config.json and of our config, and the line that refuses it."""

from collections.abc import Container, Mapping
from typing import Any

from aigc_jax.core.errors import UserError
from aigc_jax.nn import blocks

ACTIVATIONS = {
    'gelu_new': 'gelu', 'gelu_pytorch_tanh': 'gelu', 'gelu_fast': 'gelu', 'gelu': 'gelu_erf', 'relu': 'relu',
    'relu2': 'relu2', 'silu': 'silu', 'swish': 'silu',
}  # fmt: skip
"""{theirs: ours}; silu is that of a gated MLP alone."""


# What the decoders here do not have.
PLAIN = {
    'model.kind': 'transformer', 'model.qk_norm': False, 'model.qk_scale': False, 'model.qkv_bias': False,
    'model.head_width': 0, 'model.softcap': 0.0, 'model.window': 0, 'model.rope_theta': 10_000.0,
    'model.rope_scaling': (),
}  # fmt: skip


def number(theirs: Mapping[str, Any], name: str, where: str, kind: type = int, default=None):
    """A number of config.json, more than 0. Raises UserError."""
    value = theirs.get(name, default)
    if value is None:
        value = default
    if kind is float and type(value) is int:
        value = float(value)
    if type(value) is not kind or not 0 < value < 1e12:
        raise UserError(f'{where}: {name} is {value!r}, which is no number of this model')
    return value


def activation(
    theirs: Mapping[str, Any], name: str, where: str, default: str, known: Container[str] = blocks.PLAIN
) -> str:
    """Ours, one of `known`, of the one that config.json names. Raises UserError."""
    found, names = theirs.get(name, default), [name for name, own in ACTIVATIONS.items() if own in known]
    if found not in names:
        raise UserError(f'{where}: {name} is {found!r}; known: {", ".join(names)}')
    return ACTIVATIONS[found]


def theirs_of(ours: str) -> str:
    """The first name in transformers of one of our activations."""
    return next(name for name, own in ACTIVATIONS.items() if own == ours)


def only(theirs: Mapping[str, Any], where: str, **wanted: Any) -> None:
    """Raises UserError where config.json has another value than `wanted`; one that is absent is as wanted."""
    for name, value in wanted.items():
        if (found := theirs.get(name, value)) != value:
            raise UserError(f'{where}: {name} is {found!r}; such models have it as {value!r} here')


def ours(fields: Mapping[str, Any], kind: str, **wanted: Any) -> None:
    """Raises UserError for a field of our model that checkpoints of this kind do not have."""
    for name, values in wanted.items():
        found = fields[f'model.{name}']
        if found not in (values if isinstance(values, tuple) else (values,)):
            raise UserError(f'model.{name}: {found!r}; a checkpoint of {kind} has no such model')
