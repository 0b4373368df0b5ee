"""The table of tasks: a name that a config's task.name may hold -> make(config, dataset) -> Task.

task.name may also be the path of a Python file of the user's, which defines such a `make`. The file of a `make` may
declare fields of the config: FIELDS = {'task': {name: Field}, 'model': {…}, 'sample': {…}, 'eval': {…}}; see
core/schema.py. `sample` says how samples are drawn, `eval` how the model is measured. A group of `task` or `model` that
is not declared may hold anything. A group may be a function (the group, the whole config) -> its fields, where they
depend on what it holds.
"""

import functools
import os
import pathlib
import sys
from types import ModuleType

from aigc_jax.core import schema, user_code
from aigc_jax.core.errors import UserError, near
from aigc_jax.core.schema import Field, Group
from aigc_jax.core.types import Task
from aigc_jax.data import Dataset
from aigc_jax.tasks import classify, electra, flow, gan, lm, mlm, seq2seq, vae, vq

TASKS = {
    'vae': vae.make,
    'gan': gan.make,
    'lm': lm.make,
    'seq2seq': seq2seq.make,
    'mlm': mlm.make,
    'electra': electra.make,
    'classify': classify.make,
    'vq': vq.make,
    'flow': flow.make,
}
NAME = Field(str, doc=f'{", ".join(f"`{name}`" for name in TASKS)}, or the path of a Python file that defines `make`')
GROUPS = ('task', 'model', 'sample', 'eval')


def make(config, dataset: Dataset) -> Task:
    """The task that `config` describes, for data of this shape. Raises UserError."""
    name = config.task.name
    if name in TASKS:
        return TASKS[name](config, dataset)
    with user_code.errors_of(name, 'task.name'):
        task = _own(name).make(config, dataset)
    if not isinstance(task, Task):
        raise UserError(f'task.name: make of {name} returns {type(task).__name__}, not a Task (aigc_jax/core/types.py)')
    return task


def is_own(name: str) -> bool:
    """Whether task.name is the path of a Python file."""
    return name not in TASKS


def own_file(name: str) -> str | None:
    """FILE.py, if task.name is one; else None."""
    return name if is_own(name) and name.endswith('.py') else None


def located(name: str) -> str:
    """task.name with the whole path of an own file, so that its run opens from any folder."""
    return os.path.abspath(os.path.expanduser(name)) if own_file(name) else name


def fields(group: str, config, around) -> Group | None:
    """The fields that the task of the whole config `around` has in `group`, one of GROUPS, which holds `config`; None:
    any. Raises UserError for a task that there is not."""
    own = declared(schema.chosen(around.get('task'), 'name', NAME, 'task')).get(group)
    own = own(config, around) if callable(own) else own
    return {'name': NAME, **own} if group == 'task' and own is not None else own


def declared(name: str) -> dict[str, Group]:
    """FIELDS of the file of the task `name`; {} where it declares none. Raises UserError."""
    module = sys.modules[TASKS[name].__module__] if name in TASKS else _own(name)
    found = getattr(module, 'FIELDS', {})
    if not isinstance(found, dict) or not found.keys() <= set(GROUPS):
        raise UserError(f'task.name: FIELDS of {name} is no dict of groups of fields, {", ".join(GROUPS)}')
    for group, own in found.items():
        for field, value in own.items() if isinstance(own, dict) else ():
            if not isinstance(value, Field):
                raise UserError(f'task.name: FIELDS of {name}: {group}.{field} is no Field (aigc_jax/core/schema.py)')
    return found


def _own(name: str) -> ModuleType:
    if not name.endswith('.py'):
        raise UserError(f'task.name: {name!r}{near(name, TASKS)}; or the path of a Python file')
    path = pathlib.Path(name).expanduser()
    module = _executed(name, path.stat().st_mtime_ns if path.is_file() else 0)
    if not callable(getattr(module, 'make', None)):
        raise UserError(f'task.name: {name} defines no make(config, dataset)')
    return module


@functools.lru_cache(maxsize=8)
def _executed(name: str, changed: int) -> ModuleType:
    """The module of a file, executed again when the file has changed. Its name in sys.modules may be another file's."""
    return user_code.load(name, 'task.name')
