"""Configs: loading a file, its variants and the command line's overrides; comparing and writing them.

absl's own config flag loads a missing file without complaint and answers an unknown field with a traceback,
so the entry point reads `--config` and `--config.a.b=value` here.
"""

import ast
import json
import math
import pathlib
import re
from typing import Any

from ml_collections import ConfigDict

from aigc_jax.core import records, user_code
from aigc_jax.core.errors import UserError, check_type, near

# What the loop reads, each with its type; the rest belongs to the task, which checks it.
FIELDS = {
    **dict.fromkeys(
        ('seed', 'total_steps', 'batch_size', 'micro_batches', 'steps_per_call', 'log_every_steps', 'eval_every_steps',
         'checkpoint_every_steps', 'keep_checkpoints', 'num_seeds', 'eval.batch_size', 'eval.num_shown',
         'eval.patience'), int),
    **dict.fromkeys(
        ('replicas', 'init_from', 'precision', 'parallel.mode', 'data.name', 'task.name', 'eval.split',
         'eval.final_split', 'eval.best_metric', 'eval.best_mode'), str),
    **dict.fromkeys(('parallel.mesh', 'optim', 'model'), dict),
    'parallel.rules': tuple,
    'data.stream': bool,
}  # fmt: skip
POSITIVE = ('total_steps', 'batch_size', 'micro_batches', 'steps_per_call', 'log_every_steps', 'eval_every_steps',
            'checkpoint_every_steps', 'keep_checkpoints', 'num_seeds', 'eval.batch_size', 'eval.num_shown',
            'eval.num_samples')  # fmt: skip
# The least and the most of fields that some configs have.
RANGES = {
    'eval.patience': (0, math.inf), 'eval.temperature': (0, math.inf), 'eval.ais_temperatures': (0, math.inf),
    'eval.ais_chains': (1, math.inf), 'eval.ais_examples': (0, math.inf), 'data.fim_rate': (0, 1),
    'data.fim_identifiers': (0, 1),
}  # fmt: skip
_MOST_LAYERS, _MOST_FIELDS = 1000, 5000  # more would take too long
SIZES = ('_dim', 'features')  # endings of the names of fields that are one such number, or a tuple of them
CHECKED_ELSEWHERE = ('optim.', 'model.', 'task.')  # by those who read them; a variant may add an option there
# Fields that runs of earlier days lack; without them, their values are those that these runs had.
LATER_FIELDS = {'eval.extractor': '', 'data.shape': (), 'data.code': False}
FREE = ('data.', 'eval.', 'parallel.')  # what `evaluate` and `sample` may override on a finished run


def load(path_and_arg: str, overrides: list[tuple[str, str]]) -> ConfigDict:
    """The resolved, checked config of 'FILE.py[:variant,…]' with overrides [('a.b', 'text'), …]. Raises UserError."""
    path, _, arg = path_and_arg.partition(':')
    module = user_code.load(path, '--config')
    if not hasattr(module, 'get_config'):
        raise UserError(f'--config: {path} defines no get_config(arg="")')
    variants = getattr(module, 'VARIANTS', {})
    if not isinstance(variants, dict):
        raise UserError(f'--config: VARIANTS of {path} is {type(variants).__name__}, not a dict')
    for name in filter(None, arg.split(',')):
        if name not in variants:
            raise UserError(f'--config: {path} has no variant {name!r}{near(name, variants)}')
    with user_code.errors_of(path, '--config'):
        config = module.get_config(arg) if arg else module.get_config()
    if not isinstance(config, ConfigDict):
        raise UserError(f'--config: get_config of {path} returns {type(config).__name__}, not its ConfigDict')
    with user_code.errors_of(path, '--config'):
        json.dumps(config.to_dict())  # raises unless all values are plain, and none contains itself
    if arg:
        with user_code.errors_of(path, '--config'):
            known = flatten(module.get_config())
        for name in flatten(config):
            if name not in known and not name.startswith(CHECKED_ELSEWHERE):
                raise UserError(f'--config: {path}:{arg} sets {name}, which is no field{near(name, known)}')
    override(config, overrides)
    check(config)
    return config


def override(config: ConfigDict, overrides: list[tuple[str, str]], only: tuple[str, ...] = ()) -> None:
    """Sets fields from text, each read as the type it holds. `only`: the prefixes that may be set."""
    for name, text in overrides:
        if only and not name.startswith(only):
            raise UserError(f'--config.{name}: in this mode only {", ".join(f"{p}*" for p in only)} can be set')
        *parents, last = name.split('.')
        node = config
        for depth, part in enumerate(parents + [last]):
            where = '.'.join(parents[:depth]) or 'the config'
            if not isinstance(node, ConfigDict):
                raise UserError(f'--config.{name}: {where} is no group; it holds {node!r}, set by --config.{where}=…')
            if part not in node:
                raise UserError(f'--config.{name}: {where} has no field {part!r}{near(part, node)}')
            parent, node = node, node[part]
        if isinstance(node, ConfigDict):
            # The arguments of a function of optax, which others of its kind do not share.
            if not last.endswith(('options', 'schedule')):
                raise UserError(f'--config.{name}: this is a group; its fields are {", ".join(node)}')
            parent[last] = ConfigDict(_arguments(name, text))
        else:
            parent[last] = _read(name, text, node)


def _arguments(name: str, text: str) -> dict[str, Any]:
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):  # the last two: nested too deeply
        value = None
    if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
        raise UserError(f'--config.{name}: {text!r} is no group; set single fields of it, or all by "{{\'b1\': 0.9}}"')
    return value


def _read(name: str, text: str, present: Any) -> Any:
    wanted = type(present)
    if wanted is str:
        return text
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):  # the last two: nested too deeply
        value = {'true': True, 'false': False}.get(text.lower(), text)
    if wanted is float and type(value) is int:
        value = float(value)
    if wanted is int and type(value) is float and value.is_integer():
        value = int(value)  # 1e5 steps
    if wanted is tuple and isinstance(value, list):
        value = tuple(value)
    if wanted is not type(None) and type(value) is not wanted:
        raise UserError(f'--config.{name}: {text!r} is no {wanted.__name__}; the field holds {present!r}')
    if wanted is tuple and not {type(item) for item in value} <= {type(item) for item in present or value}:
        raise UserError(f'--config.{name}: {text!r} holds something else than {present!r}, which is there now')
    return value


def check(config: ConfigDict) -> None:
    """Raises UserError for a field that is missing or that does not fit the others."""
    flat = flatten(config)
    if len(flat) > _MOST_FIELDS:
        raise UserError(f'config: {len(flat)} fields; at most {_MOST_FIELDS} are read')
    for name, kind in FIELDS.items():
        group = any(key.startswith(name + '.') for key in flat)
        if name not in flat and not group:
            raise UserError(f'config: the field {name} is missing; every config has it')
        check_type(name, {} if group else flat[name], kind)
    for name, value in flat.items():
        if name != 'seed':
            _check_value(name, value)
        sizes = value if name.endswith(SIZES) and isinstance(value, tuple) else (value,)
        if (name in POSITIVE or name.endswith(SIZES)) and any(type(size) is not int or size < 1 for size in sizes):
            raise UserError(f'{name}: {value!r} is not a whole number of 1 or more')
    for name, (least, most) in RANGES.items():
        value = flat.get(name, least)
        if isinstance(value, (int, float)) and not (least <= value <= most and math.isfinite(value)):
            wanted = f'{least} or more' if most == math.inf else f'{least} to {most}'
            raise UserError(f'{name}: {value}; it is {wanted}')
    if not -(2**31) <= config.seed <= 2**31 - config.num_seeds:
        raise UserError(f'seed: {config.seed}; seeds lie between −2**31 and 2**31 − 1')
    for name in ('total_steps', 'log_every_steps', 'eval_every_steps', 'checkpoint_every_steps'):
        if flat[name] % config.steps_per_call:
            raise UserError(f'{name}: {flat[name]} is not a multiple of steps_per_call, {config.steps_per_call}')
    if config.eval.best_mode not in ('min', 'max'):
        raise UserError(f'eval.best_mode: {config.eval.best_mode!r}; it is min or max')
    if config.eval.patience and not config.eval.best_metric:
        raise UserError('eval.patience: early stopping needs eval.best_metric')


def _check_value(name: str, value: Any) -> None:
    """Raises UserError for a number or a text that no field can use, and for thousands of layers."""
    if isinstance(value, (tuple, list)) and len(value) > _MOST_LAYERS:
        raise UserError(f'{name}: {len(value)} values; at most {_MOST_LAYERS} are read')
    if name.endswith(('layers', 'depth')) and isinstance(value, int) and value > _MOST_LAYERS:
        raise UserError(f'{name}: {str(value)[:20]}; at most {_MOST_LAYERS}')
    for item in value if isinstance(value, (tuple, list)) else (value,):
        if isinstance(item, (tuple, list)):
            _check_value(name, item)
        if hasattr(item, 'items') and isinstance(value, (tuple, list)):
            raise UserError(f'{name}: {str(item)[:40]} is a group of fields, and stands in a tuple')
        if isinstance(item, int) and abs(item) >= 2**31:  # it may become an int32
            raise UserError(f'{name}: {str(item)[:20]}; a whole number lies between −2**31 and 2**31')
        if isinstance(item, float) and not math.isfinite(item):
            raise UserError(f'{name}: {item} is no finite number')
        if isinstance(item, str) and ('\0' in item or re.search('[\ud800-\udc7f\udd00-\udfff]', item)):
            raise UserError(f'{name}: {item[:40]!r} holds what is no letter')


def flatten(config: ConfigDict) -> dict[str, Any]:
    """{'a.b': value}, with an empty group as {}."""
    flat = {}
    for key, value in config.items():
        if isinstance(value, ConfigDict) and len(value):
            flat |= {f'{key}.{inner}': leaf for inner, leaf in flatten(value).items()}
        else:
            flat[key] = value
    return flat


def to_json(config: ConfigDict) -> str:
    return json.dumps(config.to_dict(), indent=2, sort_keys=True) + '\n'


def from_json(path: pathlib.Path) -> ConfigDict:
    """The config of a run's folder. Raises UserError."""
    try:
        return ConfigDict(_tuples(records.read(path)))
    except FileNotFoundError:
        raise UserError(f'{path.parent}: no run is there (config.json is missing); train one with --config=…') from None
    except (ValueError, OSError) as error:
        raise UserError(f'{path}: cannot be read as a config: {getattr(error, "strerror", None) or error}') from None


def _tuples(value: Any) -> Any:
    """JSON has lists where a config has tuples."""
    if isinstance(value, dict):
        return {key: _tuples(inner) for key, inner in value.items()}
    return tuple(_tuples(inner) for inner in value) if isinstance(value, list) else value


def differing(ours: ConfigDict, theirs: ConfigDict) -> list[str]:
    """'a.b: 1 now, 2 there' for each differing field, except total_steps where it grew, and parallel.*; the fields that
    both have come first."""
    a, b = (flatten(ConfigDict(_tuples(json.loads(to_json(c))))) for c in (ours, theirs))
    a, b = LATER_FIELDS | a, LATER_FIELDS | b
    names = sorted(a.keys() | b.keys(), key=lambda name: (name not in a or name not in b, name))
    names = [name for name in names if a.get(name) != b.get(name)]
    names = [name for name in names if not name.startswith('parallel.')]  # a run may go on with another layout
    if 'total_steps' in names and a['total_steps'] > b.get('total_steps', math.inf):
        names.remove('total_steps')
    return [f'{name}: {a.get(name)!r} now, {b.get(name)!r} there' for name in names]


def split_arguments(argv: list[str]) -> tuple[list[str], str | None, list[tuple[str, str]]]:
    """(the other arguments, --config, [(field, text)]) of a command line. Raises UserError."""
    rest, config, overrides = argv[:1], None, []
    arguments = iter(argv[1:])
    for argument in arguments:
        flag, equals, value = argument.partition('=')
        flag = '--' + flag.lstrip('-') if flag.startswith('-') else flag
        if flag != '--config' and not flag.startswith('--config.'):
            rest.append(argument)
            continue
        if not equals:
            value = next(arguments, '--')
            if value.startswith('--'):
                raise UserError(f'{flag}: a value is missing')
        if flag == '--config':
            config = value
        else:
            overrides.append((flag.removeprefix('--config.'), value))
    return rest, config, overrides
