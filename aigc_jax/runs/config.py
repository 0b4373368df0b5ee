"""Configs: loading a file, its variants and the command line's overrides; comparing and writing them.

absl's own config flag loads a missing file without complaint and answers an unknown field with a traceback,
so the entry point reads `--config` and `--config.a.b=value` here.
"""

import ast
import inspect
import json
import math
import pathlib
import re
from collections.abc import Collection, Sequence
from typing import Any

from ml_collections import ConfigDict

from aigc_jax.core import records, schema, user_code
from aigc_jax.core.errors import UserError, near, unreadable
from aigc_jax.runs import migrations

_MOST_LAYERS, _MOST_FIELDS = 1000, 5000  # more would take too long
FREE = ('data.', 'eval.', 'parallel.', 'sample.')  # what `evaluate` and `sample` may override on a finished run


def load(path_and_arg: str, overrides: list[tuple[str, str]]) -> ConfigDict:
    """The resolved config of 'FILE.py[:variant,…]' with overrides [('a.b', 'text'), …]. Raises UserError.

    The file defines get_config(), which returns a ConfigDict of what differs from the defaults (`runs.fields`), and may
    define VARIANTS, {name: {'a.b': value}}, which are set one after the other. A get_config(arg) that takes an argument
    is given 'variant,…', and sets the variants itself; without VARIANTS, the argument may be any.
    """
    path, arg = file_and_argument(path_and_arg)
    module = user_code.load(path, 'config')
    if not hasattr(module, 'get_config'):
        raise UserError(f'config: {path} defines no get_config()')
    variants = getattr(module, 'VARIANTS', {})
    if not isinstance(variants, dict):
        raise UserError(f'config: VARIANTS of {path} is {type(variants).__name__}, not a dict')
    with user_code.errors_of(path, 'config'):
        parameters = inspect.signature(module.get_config).parameters
    takes_variants = bool(parameters)
    for name in filter(None, arg.split(',')):
        if name not in variants and (hasattr(module, 'VARIANTS') or not takes_variants):
            known = near(name, variants) if variants else '; the file defines no VARIANTS'
            raise UserError(f'config: {path} has no variant {name!r}{known}')
    with user_code.errors_of(path, 'config'):
        wants = any(p.default is p.empty for p in parameters.values())
        config = module.get_config(arg) if takes_variants and (arg or wants) else module.get_config()
    if not isinstance(config, ConfigDict):
        raise UserError(f'config: get_config of {path} returns {type(config).__name__}, not its ConfigDict')
    with user_code.errors_of(path, 'config'):
        json.dumps(config.to_dict())  # raises unless all values are plain, and none contains itself
    from aigc_jax.runs import fields  # imports all tasks, which a mistake in a flag need not wait for

    config = _copy(config)
    fields.fill(config)
    chosen = [] if takes_variants else list(filter(None, arg.split(',')))
    for name in chosen:
        with user_code.errors_of(path, 'config'):
            config.update_from_flattened_dict(variants[name])
        fields.fill(config)
    try:
        fields.check_names(config)
    except UserError as error:
        mend = '; a variant that replaces a group goes behind those that set its fields' if chosen[1:] else ''
        raise UserError(f'config: {path}{f":{arg}" if arg else ""}: {error}{mend}') from None
    return resolved(config, overrides)


def file_and_argument(path_and_arg: str) -> tuple[str, str]:
    """('FILE.py', 'variant,…') of 'FILE.py:variant,…'. A path may hold colons."""
    path, _, arg = re.fullmatch(r'(.+\.py|[^:]*)(:(.*))?', path_and_arg, re.DOTALL).groups(default='')
    return path, arg


def resolved(config: ConfigDict, overrides: Sequence[tuple[str, str]] = ()) -> ConfigDict:
    """A checked copy of `config` with the defaults of what it leaves out, and `overrides`. Raises UserError."""
    from aigc_jax.runs import fields, pretrained

    config = _copy(config)
    fields.fill(config)
    override(config, overrides)
    pretrained.fit(config, {name for name, _ in overrides})
    fields.fill(config)  # other data or another kind of network have other fields
    check(config)
    locate(config)
    return config


def locate(config: ConfigDict) -> None:
    """Gives the files of an own task and of own data, of a config that is checked, their whole paths."""
    from aigc_jax import data, tasks

    config.task.name, config.data.name = tasks.located(config.task.name), data.located(config.data.name)


def _copy(config: ConfigDict) -> ConfigDict:
    """Groups that a file makes of one and the same dict, which a ConfigDict would change together, become two."""
    return ConfigDict({name: _copy(v) if isinstance(v, ConfigDict) else v for name, v in config.items()})


def override(config: ConfigDict, overrides: list[tuple[str, str]], only: tuple[str, ...] = ()) -> None:
    """Sets fields from text, each read as the type it holds. `only`: the prefixes that may be set."""
    for name, text in overrides:
        if only and not name.startswith(only):
            raise UserError(f'{name}: in this mode only {", ".join(f"{p}*" for p in only)} can be set')
        *parents, last = name.split('.')
        node = config
        for depth, part in enumerate(parents + [last]):
            where = '.'.join(parents[:depth]) or 'the config'
            if not isinstance(node, ConfigDict):
                raise UserError(f'{name}: {where} is no group; it holds {node!r}, set by {where}=…')
            if part not in node:
                also = () if depth < len(parents) else schema.namesakes(config, last)
                raise UserError(f'{name}: {where} has no field {part!r}{near(part, node, also)}')
            parent, node = node, node[part]
        if isinstance(node, ConfigDict):
            # The arguments of a function of optax, which others of its kind do not share.
            if not last.endswith(('options', 'schedule')):
                raise UserError(f'{name}: this is a group; its fields are {", ".join(node)}')
            parent[last] = ConfigDict(_arguments(name, text))
        else:
            parent[last] = _read(name, text, node)


def _arguments(name: str, text: str) -> dict[str, Any]:
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):  # the last two: nested too deeply
        value = None
    if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
        raise UserError(f'{name}: {text!r} is no group; set single fields of it, or all by "{{\'b1\': 0.9}}"')
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
        raise UserError(f'{name}: {text!r} is no {wanted.__name__}; the field holds {present!r}')
    if wanted is tuple and not {type(item) for item in value} <= {type(item) for item in present or value}:
        raise UserError(f'{name}: {text!r} holds something else than {present!r}, which is there now')
    return value


def check(config: ConfigDict) -> None:
    """Raises UserError for a field that is missing, unknown or out of its range, or that does not fit the others."""
    from aigc_jax.runs import fields

    flat = flatten(config)
    if len(flat) > _MOST_FIELDS:
        raise UserError(f'config: {len(flat)} fields; at most {_MOST_FIELDS} are read')
    for name, value in flat.items():
        if name != 'seed':
            check_value(name, value)
    fields.check(config)
    check_together(flat)


def check_together(flat: dict[str, Any]) -> None:
    """Raises UserError where fields of a config, `flatten`ed, do not fit each other."""
    if not -(2**31) <= flat['seed'] <= 2**31 - flat['num_seeds']:
        raise UserError(f'seed: {flat["seed"]}; seeds lie between −2**31 and 2**31 − 1')
    for name in ('total_steps', 'log_every_steps', 'eval_every_steps', 'checkpoint_every_steps'):
        if flat[name] % flat['steps_per_call']:
            raise UserError(f'{name}: {flat[name]} is not a multiple of steps_per_call, {flat["steps_per_call"]}')
    if not flat['total_steps'] and not flat['init.run']:
        raise UserError('total_steps: 0, but init.run names no model that is to be evaluated; name one, or give steps')
    if flat['quantize.method'] == 'gptq':
        wanted = {'quantize.weights': bool(flat['quantize.weights']), 'init.run': bool(flat['init.run'])}
        wanted |= {'total_steps=0': not flat['total_steps'], "adapt.name=''": not flat['adapt.name']}
        if missing := [name for name, is_there in wanted.items() if not is_there]:
            raise UserError(f'quantize.method: gptq rounds a trained model once; set {", ".join(missing)}')
    if flat['prune.redrawn'] and flat['init.run']:
        raise UserError('prune.redrawn: parameters are drawn otherwise, and init.run gives them; leave out one of both')
    if flat['eval.patience'] and not flat['eval.best_metric']:
        raise UserError('eval.patience: early stopping needs eval.best_metric')


def check_value(name: str, value: Any) -> None:
    """Raises UserError for a number or a text that no field can use, and for thousands of layers."""
    if isinstance(value, (tuple, list)) and len(value) > _MOST_LAYERS:
        raise UserError(f'{name}: {len(value)} values; at most {_MOST_LAYERS} are read')
    if name.endswith(('layers', 'depth')) and isinstance(value, int) and value > _MOST_LAYERS:
        raise UserError(f'{name}: {str(value)[:20]}; at most {_MOST_LAYERS}')
    for item in value if isinstance(value, (tuple, list)) else (value,):
        if isinstance(item, (tuple, list)):
            check_value(name, item)
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


def depends_on_classes(config: ConfigDict) -> bool:
    """Whether a model of it tells classes, or draws for them: with those of other data it would mean others."""
    return config.task.name == 'classify' or ('conditional' in config.model and config.model.conditional)


def to_json(config: ConfigDict) -> str:
    return json.dumps(config.to_dict(), indent=2, sort_keys=True) + '\n'


def from_json(path: pathlib.Path) -> ConfigDict:
    """The config of a run's folder, brought to the fields of today. Raises UserError."""
    try:
        config = ConfigDict(_tuples(records.read(path)))
    except FileNotFoundError:
        raise UserError(f'{path.parent}: no run is there (config.json is missing); train one first') from None
    except OSError as error:
        raise UserError(f'{path}: {unreadable(error)}') from None
    except ValueError as error:
        raise UserError(f'{path}: cannot be read as a config: {error}') from None
    migrations.migrate(config, str(path))
    return config


def _tuples(value: Any) -> Any:
    """JSON has lists where a config has tuples."""
    if isinstance(value, dict):
        return {key: _tuples(inner) for key, inner in value.items()}
    return tuple(_tuples(inner) for inner in value) if isinstance(value, list) else value


def differing(ours: ConfigDict, theirs: ConfigDict, moved: Collection[str] = ()) -> list[str]:
    """'a.b: 1 now, 2 there' for each differing field, except total_steps where it grew, parallel.*, the folder that the
    file of an own task or own data lies in, and fields that name what has `moved`; the fields that both have come
    first."""
    a, b = (flatten(ConfigDict(_tuples(json.loads(to_json(c))))) for c in (ours, theirs))
    names = sorted(a.keys() | b.keys(), key=lambda name: (name not in a or name not in b, name))
    names = [name for name in names if a.get(name) != b.get(name) and name not in moved]
    names = [name for name in names if not name.startswith('parallel.')]  # a run may go on with another layout
    place = lambda flat, name: pathlib.Path(str(flat.get(name))).name  # manifest.json says whether the file has changed
    same = [name for name in ('task.name', 'data.name') if '.py' in (own := place(a, name)) and own == place(b, name)]
    names = [name for name in names if name not in same]
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
