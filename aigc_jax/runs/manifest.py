"""manifest.json: what a run was made with, so that another can make it again."""

import contextlib
import hashlib
import importlib.metadata
import json
import os
import pathlib
import platform
import subprocess
import sys
import time
from collections.abc import Sequence

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from aigc_jax import tasks
from aigc_jax.core import records
from aigc_jax.core.errors import UserError
from aigc_jax.core.files import atomic_write
from aigc_jax.data import Text
from aigc_jax.runs import numerics
from aigc_jax.runs.experiment import Experiment

PACKAGES = (
    'aigc_jax', 'jax', 'jaxlib', 'flax', 'optax', 'orbax-checkpoint', 'ml_collections', 'absl-py', 'numpy', 'grain',
    'tensorflow-datasets', 'scikit-learn',
)  # fmt: skip
_MOST_DIFF = 200_000  # characters


def check(path: pathlib.Path, experiment: Experiment) -> None:
    """Raises UserError where the run that the manifest is of was trained on other data than are there now."""
    before, now, dataset = trained_on(path), experiment.dataset.fingerprint, experiment.dataset
    names = at(read(path), 'data.classes')
    known = isinstance(names, str) and before == now
    if known and not are_classes(names, dataset.num_classes, dataset.class_names):
        raise UserError(
            f'data.name: the classes of {experiment.config.data.name} have other names than those that this run was '
            'trained on; bring the data back, or name another folder'
        )
    if before not in (None, now):
        tokenizer, back = '', 'the data'
        if isinstance(experiment.dataset.spec, Text):
            tokenizer, back = ', or its tokenizer,', 'both'
        raise UserError(
            f'data.name: {experiment.config.data.name}{tokenizer} is no longer what this run was trained on (sha256 '
            f'{before[:8]}… there, {now[:8]}… now); bring {back} back, or name another folder'
        )


def trained_on(path: pathlib.Path) -> str | None:
    """The fingerprint of the data; None where there is no manifest, or one that says nothing of it."""
    fingerprint = read(path).get('data', {}).get('fingerprint')
    if not isinstance(fingerprint, (str, type(None))):
        raise _unreadable(path, 'data.fingerprint is no text')
    return fingerprint


def read(path: pathlib.Path) -> dict:
    """What the manifest holds; {} where there is none. Raises UserError."""
    try:
        manifest = records.read(path) if path.exists() else {}
    except (OSError, ValueError) as error:
        raise _unreadable(path, getattr(error, 'strerror', None) or str(error)) from None
    if not isinstance(manifest.get('data', {}), dict):
        raise _unreadable(path, 'data is no group')
    starts = manifest.get('starts', [])
    if not isinstance(starts, list) or not all(isinstance(start, dict) for start in starts):
        raise _unreadable(path, 'starts is no list of groups')
    return manifest


def at(manifest: dict, name: str):
    """What stands at 'data.fingerprint'; None where nothing does."""
    for part in name.split('.'):
        manifest = manifest.get(part) if isinstance(manifest, dict) else None
    return manifest


def _unreadable(path: pathlib.Path, why: str) -> UserError:
    return UserError(f'{path}: cannot be read as a manifest: {why}; bring it back from a copy, or remove it')


def write(path: pathlib.Path, experiment: Experiment, step: int, taken: dict) -> None:
    """Writes the manifest of this start. A resumed run appends its start to `starts`. The start before it gets
    `made_with`: the fields that had other values then. taken: the steps and the digests of the checkpoints of init.run
    and distill.run."""
    before = read(path)
    earlier = before.pop('starts', [])
    config, dataset = experiment.config, experiment.dataset
    began = time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime())
    start = {'time': began, 'step': step, 'command': sys.argv, 'total_steps': config.total_steps, **taken}
    manifest = {
        **ground(config, experiment.plan.mesh),
        'seeds': experiment.seeds,
        **experiment.sizes(),
        'data': {
            'name': config.data.name,
            'fingerprint': dataset.fingerprint,
            **({'loader_sha256': dataset.loader} if dataset.loader else {}),
            **({'classes': classes(dataset.num_classes, dataset.class_names)} if dataset.num_classes else {}),
            'licence': dataset.licence,
            'sizes': {split: len(source) for split, source in dataset.splits.items()},
        },
    }
    if earlier and (other := {name: value for name, value in before.items() if manifest.get(name) != value}):
        earlier[-1]['made_with'] = other
    manifest['starts'] = [*earlier, start]
    atomic_write(path, json.dumps(manifest, indent=2) + '\n')


def classes(count: int, names: Sequence[str]) -> str:
    """sha256 of how many classes there are, and of their names in order."""
    return hashlib.sha256(json.dumps([count, *names]).encode()).hexdigest()


def are_classes(found: str, count: int, names: Sequence[str]) -> bool:
    """Whether `found`, which `classes` gave, is of these. Classes without names have their numbers as names."""
    numbers = [str(i) for i in range(count)]
    alike = ((), numbers) if list(names) in ([], numbers) else (names,)
    return found in {classes(count, one) for one in alike}


def ground(config: ConfigDict, mesh: Mesh) -> dict:
    """The code, the packages, the devices and the settings that a run of `config` over `mesh` is made with here.

    numerics: the key over what decides bits (runs/numerics.py).
    """
    found = {
        **code(),
        'packages': {name: _version(name) for name in PACKAGES},
        'python': platform.python_version(),
        'device': numerics.device(mesh),
        'xla_flags': os.environ.get('XLA_FLAGS', ''),
        'jax': numerics.settings(),
        'environment': numerics.environment(),
        'execution': {
            'mode': config.parallel.mode,
            'rules': [list(rule) for rule in config.parallel.rules],
            'steps_per_call': config.steps_per_call,
            'replicas': f'{config.replicas} of {config.num_seeds}' if config.num_seeds > 1 else 'none',
        },
    }
    return {'numerics': numerics.key(found), **found, **own_code(config)}


def made_with() -> dict[str, object]:
    """The code, the packages and the settings that all processes of a run must have alike."""
    found = code()
    for name in ('diff', 'untracked'):
        found[name] = found[name] and f'sha256 {hashlib.sha256(repr(found[name]).encode()).hexdigest()[:8]}'
    return {
        **found,
        **{name: _version(name) for name in PACKAGES},
        'python': platform.python_version(),
        'platform': jax.default_backend(),
        'XLA_FLAGS': numerics.flags_that_matter(os.environ.get('XLA_FLAGS', '')),
        **numerics.settings(),
    }


def own_code(config: ConfigDict) -> dict[str, str]:
    """The sha256 of the file that task.name is the path of; {} of a task of the package. Raises UserError."""
    if not tasks.is_own(config.task.name):
        return {}
    try:
        return {'own_task': hashlib.sha256(pathlib.Path(config.task.name).expanduser().read_bytes()).hexdigest()}
    except OSError as error:
        raise UserError(f'task.name: {config.task.name}: {error.strerror}') from None


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def code() -> dict[str, object]:
    """The sha256 of the package's own files as they run, and of a clone also its commit, what differs from that, and
    the sha256 of the Python files that the commit lacks."""
    package = pathlib.Path(__file__).resolve().parents[1]
    root, source = package.parent, hashlib.sha256()
    for path in sorted(package.rglob('*.py')):
        with contextlib.suppress(FileNotFoundError):  # an editor's lock is a link to nothing
            source.update(f'{path.relative_to(package)} {hashlib.sha256(path.read_bytes()).hexdigest()}\n'.encode())
    source = source.hexdigest()

    def git(*arguments: str) -> str | None:
        try:
            command = ['git', '-C', str(root), *arguments]
            done = subprocess.run(command, capture_output=True, text=True, timeout=20, errors='replace')
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout if done.returncode == 0 else None

    if not (root / '.git').exists():
        return {'source': source, 'commit': None, 'diff': None, 'untracked': None}
    commit, diff = git('rev-parse', 'HEAD'), git('diff', 'HEAD')
    new = git('ls-files', '--others', '--exclude-standard', '-z', '--', '*.py')
    if diff and len(diff) > _MOST_DIFF:
        diff = f'{diff[:_MOST_DIFF]}\n… {len(diff) - _MOST_DIFF} characters more'
    files = [path for path in (new or '').split('\0') if (root / path).is_file()]  # an editor's lock is a broken link
    untracked = {path: hashlib.sha256((root / path).read_bytes()).hexdigest() for path in files}
    return {'source': source, 'commit': commit and commit.strip(), 'diff': diff, 'untracked': untracked}
