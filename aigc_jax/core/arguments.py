"""What the command line and Python take besides a config: ranges of numbers, and checks of what Python gives."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from aigc_jax.core.errors import UserError
from aigc_jax.core.schema import Field

if TYPE_CHECKING:
    import numpy as np

N = Field(int, least=1, most=1_000_000)  # samples, or texts for each prompt
SEED = Field(int, least=-(2**31), most=2**31 - 1)
MAX_NEW_TOKENS = Field(int, least=1, most=1_000_000)


def plain(value: Any) -> Any:
    """The Python value of a number of NumPy or JAX; anything else as it is."""
    is_number = getattr(value, 'shape', None) == () and hasattr(value, 'item')
    return value.item() if is_number else value


def checked(name: str, value: Any, field: Field) -> Any:
    """The plain value of the argument `name`. Raises UserError unless `field` can hold it."""
    value = plain(value)
    field.check(name, value)
    return value


def array(name: str, value: Any) -> 'np.ndarray':
    """The array that the argument `name` holds, with float32 for float64. Raises UserError where it is none."""
    import numpy as np  # here, for --help does without

    try:
        found = np.asarray(value)
    except (ValueError, TypeError, RuntimeError) as error:  # rows of unequal lengths; a tensor of another library
        raise UserError(f'{name}: is no array: {" ".join(str(error).split())}') from None
    with np.errstate(over='ignore'):  # infinity is in no range
        return found.astype(np.float32) if found.dtype == np.float64 else found


def texts(name: str, value: str | Sequence[str]) -> list[str]:
    """The texts that the argument `name` holds, one or several. Raises UserError."""
    found = [value] if isinstance(value, str) else list(value) if hasattr(value, '__iter__') else [value]
    for k, text in enumerate(found):
        if not isinstance(text, str):
            raise UserError(f'{name}: holds {str(text)[:40]}, {type(text).__name__}; it is a text, or a list of texts')
        try:
            text.encode()
        except UnicodeEncodeError as error:
            which = f'text {k}, ' if found[1:] else ''
            at = f'{which}character {error.start + 1}, {text[error.start]!r}'
            raise UserError(f'{name}: {at}, is no UTF-8') from None
    return found
