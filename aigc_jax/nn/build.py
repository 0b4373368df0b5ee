"""From config fields to modules."""

import dataclasses
import functools
import inspect
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from aigc_jax.core import schema
from aigc_jax.core.errors import UserError
from aigc_jax.core.schema import REQUIRED, Field
from aigc_jax.core.types import Array, Tree

PRECISIONS = {'float32': jnp.float32, 'bfloat16': jnp.bfloat16}


def build(module: type, what: str, config: Any, **given):
    """module(**config, **given), where `config` holds `fields(module)`; one that has a default may be left out.

    Raises UserError for a field that is misspelt, missing or out of its range, by its name: `what`.FIELD.
    """
    declared = fields(module).items()
    group = {name: field for name, field in declared if name in config or field.default is REQUIRED}
    schema.check(config, group, what)
    return module(**config, **given)


def embedding_rows(model: Any, tokens: int) -> int:
    """model.vocab_size, which is taken out of `model`, a config's group: the rows of the embedding; where it is 0, as
    many as the tokenizer has tokens. Raises UserError where it is less."""
    rows = model.vocab_size or tokens
    del model['vocab_size']
    if rows < tokens:
        raise UserError(f'model.vocab_size: {rows}, but the tokenizer has {tokens} tokens')
    return rows


def fields(module: type) -> dict[str, Field]:
    """What a config holds of `module`: those of its attributes that FIELDS of its file declares. The default of an
    attribute is that of its field; what else the module has is given by the code that builds it."""
    attributes, found = inspect.signature(module).parameters, {}
    for name, field in inspect.getmodule(module).FIELDS.items():
        if name in attributes:
            default = attributes[name].default
            is_required = default is inspect.Parameter.empty
            found[name] = field if is_required else dataclasses.replace(field, default=default)
    return found


def drawn(module: nn.Module, key: Array, *inputs: Array, method: str = '__call__') -> Tree:
    """The parameters that module.init draws. Where they are not computed but traced, for their shapes or for a program,
    a module of the same fields is traced once, because tracing a deep one takes a third of a second."""
    if not isinstance(key, jax.core.Tracer):
        return module.init(key, *inputs, method=method)['params']
    return _traced(module, method)(key, *inputs)


@functools.lru_cache(maxsize=8)
def _traced(module: nn.Module, method: str):
    """JAX keeps what it traced as long as the function is there. Equal modules draw the same, by the values of their
    fields; JAX itself looks at the shapes of the inputs and at its settings."""
    return jax.jit(lambda key, *inputs: module.init(key, *inputs, method=method)['params'])


def compute_dtype(precision: str):
    """The dtype of the products; the parameters stay float32 (Micikevicius et al. 2018, section 3.1)."""
    return PRECISIONS[precision]
