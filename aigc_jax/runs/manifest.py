"""manifest.json: what a run was made with, so that another can make it again."""

import contextlib
import hashlib
import importlib.metadata
import json
import os
import pathlib
import platform
import re
import subprocess
import sys
import time

import jax
from ml_collections import ConfigDict

from aigc_jax import tasks
from aigc_jax.core import records
from aigc_jax.core.errors import UserError
from aigc_jax.core.files import atomic_write
from aigc_jax.runs.experiment import Experiment

PACKAGES = (
    'aigc_jax', 'jax', 'jaxlib', 'flax', 'optax', 'orbax-checkpoint', 'ml_collections', 'absl-py', 'numpy', 'grain',
    'tensorflow-datasets', 'scikit-learn',
)  # fmt: skip
_MOST_DIFF = 200_000  # characters
_OF_ONE = re.compile('dump|device_count')  # flags of XLA that may differ between processes
# Of JAX, those that change what is computed.
_SETTINGS = (
    'jax_enable_x64', 'jax_default_matmul_precision', 'jax_default_prng_impl', 'jax_threefry_partitionable',
    'jax_numpy_dtype_promotion', 'jax_random_seed_offset', 'jax_disable_jit', 'jax_exec_time_optimization_effort',
)  # fmt: skip


def check(path: pathlib.Path, experiment: Experiment) -> None:
    """Raises UserError where the run that the manifest is of was trained on other data than are there now."""
    before, now = trained_on(path), experiment.dataset.fingerprint
    if before not in (None, now):
        raise UserError(
            f'data.name: {experiment.config.data.name} is no longer what this run was trained on (sha256 '
            f'{before[:8]}… there, {now[:8]}… now); bring the data back, or name another folder'
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


def _unreadable(path: pathlib.Path, why: str) -> UserError:
    return UserError(f'{path}: cannot be read as a manifest: {why}; bring it back from a copy, or remove it')


def write(path: pathlib.Path, experiment: Experiment, step: int, init_step: int | None = None) -> None:
    """Writes the manifest of this start. A resumed run appends its start to `starts`. The start before it gets
    `made_with`: the fields that had other values then. init_step: of the parameters that init.run gave it."""
    before = read(path)
    earlier = before.pop('starts', [])
    config, dataset = experiment.config, experiment.dataset
    start = {'time': time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime()), 'step': step, 'command': sys.argv}
    start |= {} if init_step is None else {'init_step': init_step}
    manifest = {
        **code(),
        **own_code(config),
        'packages': {name: _version(name) for name in PACKAGES},
        'python': platform.python_version(),
        'device': {
            'platform': jax.default_backend(),
            'kind': jax.devices()[0].device_kind,
            'count': jax.device_count(),
            'processes': jax.process_count(),
            'mesh': dict(experiment.plan.mesh.shape),
            'machine': platform.machine(),
            'instruction_set': _instruction_set(),
            'cores': os.cpu_count(),
        },
        'xla_flags': os.environ.get('XLA_FLAGS', ''),
        'execution': {
            'mode': config.parallel.mode,
            'rules': [list(rule) for rule in config.parallel.rules],
            'steps_per_call': config.steps_per_call,
            'replicas': f'{config.replicas} of {config.num_seeds}' if config.num_seeds > 1 else 'none',
        },
        'seeds': experiment.seeds,
        **experiment.sizes(),
        'data': {
            'name': config.data.name,
            'fingerprint': dataset.fingerprint,
            **({'loader_sha256': dataset.loader} if dataset.loader else {}),
            'licence': dataset.licence,
            'sizes': {split: len(source) for split, source in dataset.splits.items()},
        },
    }
    if earlier and (other := {name: value for name, value in before.items() if manifest.get(name) != value}):
        earlier[-1]['made_with'] = other
    manifest['starts'] = [*earlier, start]
    atomic_write(path, json.dumps(manifest, indent=2) + '\n')


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
        'XLA_FLAGS': [flag for flag in sorted(os.environ.get('XLA_FLAGS', '').split()) if not _OF_ONE.search(flag)],
        **{name: str(jax.config.values.get(name)) for name in _SETTINGS},
    }


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


def own_code(config: ConfigDict) -> dict[str, str]:
    """The sha256 of the file that task.name is the path of; {} of a task of the package."""
    if not tasks.is_own(config.task.name):
        return {}
    return {'own_task': hashlib.sha256(pathlib.Path(config.task.name).expanduser().read_bytes()).hexdigest()}


def _instruction_set() -> str:
    """The widest vector instructions of the processor: results may differ between them in the last bits."""
    try:
        flags = pathlib.Path('/proc/cpuinfo').read_text().partition('flags')[2].partition('\n')[0].split()
    except OSError:
        return 'unknown'
    return next((name for name in ('amx_tile', 'avx512f', 'avx2', 'avx', 'sse4_2') if name in flags), 'baseline')
