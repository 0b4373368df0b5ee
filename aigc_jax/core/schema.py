"""Fields of a config: each is declared once, beside the code that reads it, with its type, range, default and meaning.

A group of fields is a dict {name: Field}. What a config leaves out is filled in from it, what a config holds is checked
against it, and the tables of the documentation are rendered from it.
"""

import copy
import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from ml_collections import ConfigDict

from aigc_jax.core.errors import UserError, check_type, near

REQUIRED = object()  # the default of a field that has none
Group = Mapping[str, 'Field']


@dataclasses.dataclass(frozen=True, kw_only=True)
class Field:
    """One field.

    type: int, float (a whole number serves), str, bool, tuple, or dict for a group of fields.
    default: what a config that leaves the field out gets; REQUIRED: it has to hold the field.
    doc: what the field means, with its unit; the first words of a sentence whose subject is the field.
    choices: the values that there are; (): any.
    least, most, above, below: bounds of a number, the first two inclusive.
    items: what each item of a tuple is; None: anything.
    fields: of a group, its fields, or a function (the group, the group around it) -> fields, where they depend on what
        a config holds; None: anything, as of the arguments of a function of optax.
    """

    type: type = dataclasses.field(kw_only=False)
    default: Any = dataclasses.field(default=REQUIRED, kw_only=False)
    doc: str = ''
    choices: tuple = ()
    least: float = -math.inf
    most: float = math.inf
    above: float = -math.inf
    below: float = math.inf
    items: 'Field | None' = None
    fields: 'Group | Callable[[Any, Any], Group] | None' = None

    def check(self, name: str, value: Any) -> None:
        """Raises UserError, which begins with `name`, unless `value` is one that this field can hold."""
        check_type(name, value, self.type)
        if self.choices and value not in self.choices:
            raise UserError(f'{name}: {value!r}{near(value, self.choices)}')
        if self.type in (int, float) and not self._holds(value):
            raise UserError(f'{name}: {value}; it is {self.range()}')
        if self.items and self.items.choices:
            for item in value:
                self.items.check(name, item)
        if self.items and any(not self.items.fits(item) for item in value):
            raise UserError(f'{name}: {value!r}; each of its items is {self.items.words()}')

    def fits(self, value: Any) -> bool:
        try:
            self.check('', value)
        except UserError:
            return False
        return True

    def _holds(self, value: float) -> bool:
        finite = isinstance(value, int) or math.isfinite(value)  # a whole number may be too large for a float
        return finite and self.least <= value <= self.most and self.above < value < self.below

    def range(self) -> str:
        """The bounds of a number in words; '' where it has none."""
        if -math.inf < self.least and self.most < math.inf:
            return f'{self.least} to {self.most}'
        bounds = {
            f'{self.least} or more': self.least, f'more than {self.above}': self.above,
            f'{self.most} or less': self.most, f'less than {self.below}': self.below,
        }  # fmt: skip
        return ' and '.join(words for words, bound in bounds.items() if math.isfinite(bound))

    def words(self) -> str:
        """What the field can hold, in words."""
        if self.choices:
            return ', '.join(repr(choice) for choice in self.choices)
        kinds = {int: 'a whole number', float: 'a number', str: 'a text', bool: 'True or False', tuple: 'a tuple'}
        of = f' of {self.items.words()}' if self.items else ''
        return ', '.join(filter(None, (kinds.get(self.type, 'a group') + of, self.range())))

    def group(self, config: Any, around: Any) -> Group | None:
        """The fields of the group `config`, which stands in the group `around`; None where any may stand in it."""
        return self.fields(config, around) if callable(self.fields) else self.fields


def fill(config: ConfigDict, group: Group) -> None:
    """Gives each field that `config` leaves out its default; one that is REQUIRED is left to `check`."""
    for name, field in group.items():
        is_group = field.type is dict
        if name not in config:
            if field.default is not REQUIRED:
                default = copy.deepcopy(field.default)
                config[name] = ConfigDict(default) if is_group else default
            elif is_group and field.fields is not None:
                config[name] = ConfigDict()
        if is_group and isinstance(config.get(name), ConfigDict):
            fill(config[name], field.group(config[name], config) or {})


def check(config: ConfigDict, group: Group, what: str = '') -> None:
    """Raises UserError unless `config` holds the fields of `group`, each what it can hold, and no others.

    what: the name of the group; '' for the whole config.
    """
    check_type(what or 'config', config, dict)
    check_names(config, group, what)
    for name, field in group.items():
        path = f'{what}.{name}' if what else name
        if name not in config:
            known = f'{what} has {", ".join(group)}' if what else 'every config has it'
            raise UserError(f'{path}: this field is missing; {known}')
        field.check(path, config[name])
        inner = field.group(config[name], config) if field.type is dict else None
        if inner is not None:
            check(config[name], inner, path)


def check_names(config: ConfigDict, group: Group, what: str = '', whole: ConfigDict | None = None) -> None:
    """Raises UserError where `config` holds a field that `group` has not, at any depth. whole: the config around it."""
    whole = config if whole is None else whole
    for name in config:
        path = f'{what}.{name}' if what else str(name)
        if name not in group:
            also = [other for other in namesakes(whole, name) if other != path]
            raise UserError(f'{path}: {what or "the config"} has no such field{near(name, group, also)}')
        field, value = group[name], config[name]
        if field.type is dict and isinstance(value, ConfigDict) and (inner := field.group(value, config)) is not None:
            check_names(value, inner, path, whole)


def namesakes(config: Mapping, name: str, what: str = '') -> Iterator[str]:
    """The fields 'a.name' of the groups of `config`: where a field may be that is sought in another group."""
    for key, value in config.items():
        path = f'{what}.{key}' if what else str(key)
        if hasattr(value, 'items'):
            yield from namesakes(value, name, path)
        elif what and key == name:
            yield path


def find(group: Group, config: Any, name: str) -> Field | None:
    """The Field of 'a.b' in `config`, whose fields are `group`; None where there is none."""
    first, _, rest = name.partition('.')
    field = group.get(first)
    if field is None or not rest:
        return field
    inner = config[first] if first in config else {}
    return find(field.group(inner, config) or {}, inner, rest) if field.type is dict else None


def named(config: Any, name: str) -> str | None:
    """The text that the field `name` of a group holds; None where there is none, in a config not yet checked."""
    value = config[name] if hasattr(config, 'items') and name in config else None
    return value if isinstance(value, str) else None


def chosen(config: Any, name: str, field: Field, what: str) -> str:
    """The same of the group `what`, whose other fields depend on it. Raises UserError where it does not fit `field`."""
    check_type(what, config, dict)
    if name not in config:
        raise UserError(f'{what}.{name}: this field is missing; the other fields of {what} depend on it')
    field.check(f'{what}.{name}', config[name])
    return config[name]


def listed(config: ConfigDict, group: Group, what: str = '') -> Iterator[str]:
    """Each field of a checked `config` in two lines: its value, what it can hold and its default; what it means."""
    for name, field in group.items():
        path, value = f'{what}.{name}' if what else name, config[name]
        inner = field.group(value, config) if field.type is dict else None
        if inner is not None:
            yield from listed(value, inner, path)
            continue
        value = value.to_dict() if isinstance(value, ConfigDict) else value
        default = '' if field.default is REQUIRED else f'; default {field.default!r}'
        yield f'{path}={value!r}  ({field.words()}{default})\n    {field.doc}'


def markdown(group: Group, what: str = '') -> str:
    """The table of a group in Markdown: a row for each field, those of a group within it by their dotted names.

    Groups whose fields depend on what a config holds have one row; their tables stand by themselves.
    """
    rows = [('Field', 'Default', 'Holds', 'Meaning'), ('---',) * 4, *_rows(group, what)]
    escaped = ((cell.replace('|', '\\|').replace('\n', ' ') for cell in row) for row in rows)
    return ''.join(f'| {" | ".join(row)} |\n' for row in escaped)


def _rows(group: Group, what: str) -> Iterator[tuple[str, str, str, str]]:
    for name, field in group.items():
        path = f'{what}.{name}' if what else name
        if field.type is dict and isinstance(field.fields, Mapping):
            yield from _rows(field.fields, path)
            continue
        default = '' if field.default is REQUIRED else f'`{field.default!r}`'
        yield f'`{path}`', default, field.words(), field.doc
