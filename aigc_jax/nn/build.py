"""From config fields to modules."""

import dataclasses
import inspect
from typing import Any

import jax.numpy as jnp

from aigc_jax.core import schema
from aigc_jax.core.errors import UserError, near
from aigc_jax.core.schema import REQUIRED, Field

PRECISIONS = {'float32': jnp.float32, 'bfloat16': jnp.bfloat16}


def build(module: type, what: str, config: Any, **given):
    """module(**config, **given), where `config` holds `fields(module)`; one that has a default may be left out.

    Raises UserError for a field that is misspelt, missing or out of its range, by its name: `what`.FIELD.
    """
    declared = fields(module).items()
    group = {name: field for name, field in declared if name in config or field.default is REQUIRED}
    schema.check(config, group, what)
    return module(**config, **given)


def fields(module: type) -> dict[str, Field]:
    """What a config holds of `module`: those of its attributes that FIELDS of its file declares. The default of an
    attribute is that of its field; what else the module has is given by the code that builds it."""
    declared, found = inspect.getmodule(module).FIELDS, {}
    for name, parameter in inspect.signature(module).parameters.items():
        if name in declared:
            is_required = parameter.default is inspect.Parameter.empty
            default = {} if is_required else {'default': parameter.default}
            found[name] = dataclasses.replace(declared[name], **default)
    return found


def compute_dtype(precision: str):
    """The dtype of the products; the parameters stay float32 (Micikevicius et al. 2018, section 3.1)."""
    if precision not in PRECISIONS:
        raise UserError(f'precision: {precision!r}{near(precision, PRECISIONS)}')
    return PRECISIONS[precision]
