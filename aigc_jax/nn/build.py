"""From config fields to modules."""

import inspect
import typing
from typing import Any

import jax.numpy as jnp

from aigc_jax.core.errors import UserError, check_fields, near

PRECISIONS = {'float32': jnp.float32, 'bfloat16': jnp.bfloat16}


def build(module: type, what: str, config: Any, **given):
    """module(**config, **given); a misspelt or missing field, or an unknown name in one, is named as `what`.FIELD.

    Which names a field can hold stands in CHOICES of the module's file. A field that a module was given later has a
    default, which is what the runs that lack it were made with.
    """
    hints, parameters = typing.get_type_hints(module), inspect.signature(module).parameters
    names = [name for name in parameters if name not in ('name', 'parent', *given)]
    names = [name for name in names if name in config or parameters[name].default is inspect.Parameter.empty]
    kinds = {name: hints[name] if isinstance(hints[name], type) else tuple for name in names}  # Sequence[int]: tuple
    check_fields(config, kinds, what, module.__name__)
    for field, choices in inspect.getmodule(module).CHOICES.items():
        if field in config and config[field] not in choices:
            raise UserError(f'{what}.{field}: {config[field]!r}{near(config[field], choices)}')
    return module(**config, **given)


def compute_dtype(precision: str):
    """The dtype of the products; the parameters stay float32 (Micikevicius et al. 2018, section 3.1)."""
    if precision not in PRECISIONS:
        raise UserError(f'precision: {precision!r}{near(precision, PRECISIONS)}')
    return PRECISIONS[precision]
