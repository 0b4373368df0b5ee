"""What the tests share: runs of the command line, what a run's folder holds, and two trained models."""

import atexit
import fcntl
import gc
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import warnings

import numpy as np
import pytest
from forks import Forks
from refusals import Runner

for name in [name for name in os.environ if name.startswith('SLURM_')]:  # they are no part of a job that they run in
    del os.environ[name]
# Before anything imports jax: tests run on the CPU, and compile each program once for the whole session.
os.environ.setdefault('JAX_PLATFORMS', 'cpu')
# Most of their time is compilation: a third less without LLVM's optimization, and half of the rest with the older code
# for fused operations. A version of jaxlib that lacks a flag aborts. Any XLA_FLAGS of one's own are kept.
UNOPTIMIZED, OLDER = '--xla_backend_optimization_level=0', ' --xla_cpu_use_fusion_emitters=false'
if 'XLA_FLAGS' not in os.environ:
    for flags in (UNOPTIMIZED + OLDER, UNOPTIMIZED, ''):
        os.environ['XLA_FLAGS'] = flags
        if not subprocess.run([sys.executable, '-c', 'import jax; jax.devices()'], capture_output=True).returncode:
            break
if 'JAX_COMPILATION_CACHE_DIR' not in os.environ:
    os.environ['JAX_COMPILATION_CACHE_DIR'] = tempfile.mkdtemp(prefix='aigc_jax_xla_')
    os.environ['JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS'] = '0'
    atexit.register(shutil.rmtree, os.environ['JAX_COMPILATION_CACHE_DIR'], ignore_errors=True)

gc.set_threshold(10_000)  # tracing makes many objects: every 700, as Python has it, is a twentieth of the time

# In a process, before the command line runs: a signal behind the call up to a step.
SIGNALLED = """
import os
from aigc_jax.training import loop

called = loop.Loop.called

def signalled(self, *arguments):
    called(self, *arguments)
    if self.step == %d:
        os.kill(os.getpid(), %d)

loop.Loop.called = signalled
"""
RUN = """
from absl import app
from aigc_jax import main
app.run(main.main, flags_parser=main.parse)
"""
ROOT = pathlib.Path(__file__).resolve().parent.parent
SECONDS = 300  # that any process of a test may take
# `pytest -m quick`: the tests of these folders and files, but those of SLOW and those that start processes. What takes
# more than a few seconds of a core is none of them.
QUICK = ('core', 'data', 'metrics', 'plots', 'runs/test_config.py', 'test_floors.py')
SLOW = (
    'core/test_parallel.py', 'core/test_processes.py', 'data/test_data_tfds.py', 'data/test_denoising.py',
    'data/test_infilling.py',
    'data/test_own_source.py', 'data/test_programs.py', 'data/test_text_data.py', 'plots/test_text_plots.py',
    'core/test_step.py::test_golden_values', 'core/test_step.py::test_one_call_of_many_steps_is_the_loop_over_steps',
    'data/test_batching.py::test_held_out_images_are_binarized_alike_whatever_the_seed',
    'metrics/test_text_metrics.py::test_the_final_evaluation_scores_samples_beside_held_out_text',
)  # fmt: skip
PROCESSES = {'command_line', 'runner', 'runner8', 'exact_runner', 'smoke'}  # the fixtures


# Files of more than half a minute, the longest first: what begins late leaves a core idle at the end.
LONG = (
    'core/test_parallel.py', 'core/test_processes.py', 'studies/test_sweep.py', 'runs/test_configs.py',
    'studies/test_slurm.py', 'studies/test_study.py', 'decoding/test_decoding.py', 'studies/test_upgrade.py',
    'tasks/test_flow.py', 'tasks/test_language_models.py',
    'training/test_multiprocess.py', 'training/test_resume.py',
    'training/test_library.py', 'tasks/test_vae_family.py', 'tasks/test_gan_family.py', 'runs/test_state.py',
    'training/test_replicas.py', 'runs/test_shards.py', 'scripts/test_bench.py', 'runs/test_bad_runs.py',
)  # fmt: skip


# What a change seldom breaks, and takes long: run where AIGC_JAX_THOROUGH is set, so that the suite ends in 25 minutes
# on two cores.
THOROUGH = (
    'scripts/test_bench.py', 'scripts/test_bench_checkpoints.py', 'scripts/test_bench_gpu.py',
    'scripts/test_compare_commits.py', 'runs/test_state.py',
    'runs/test_shards.py', 'tasks/test_vae_family.py', 'data/test_data_stacked.py', 'studies/test_tier2_studies.py',
    'training/test_library.py::test_the_memory_of_a_run_is_given_back', 'nn/test_conv.py::test_statistics_resume',
    'data/test_functions.py::test_no_held_out_function_of_the_whole_library_was_trained_on',
    'adapt/test_prune.py::test_eight_devices_keep_the_same',
    'adapt/test_distill.py::test_eight_devices_train_the_same',
    'adapt/test_lora.py::test_eight_devices_train_the_same',
    'adapt/test_quantize.py::test_eight_devices_train_the_same',
    'tasks/test_seq2seq.py::test_eight_devices_train_the_same_on_packed_rows',
    'tasks/test_tagging.py::test_eight_devices_train_the_same',
)  # fmt: skip


def pytest_xdist_auto_num_workers(config):
    """One more than there are cores, for many tests wait: for processes to end, for the other of two, for the disk."""
    return min(4, (os.cpu_count() or 1) + 1)


def pytest_collection_modifyitems(items):
    place = lambda item: item.path.relative_to(ROOT / 'tests').as_posix()
    items.sort(key=lambda item: LONG.index(place(item)) if place(item) in LONG else len(LONG))
    inside = lambda name, places: any(name == place or name.startswith((f'{place}/', f'{place}::')) for place in places)
    for item in items:
        function = f'{item.path.relative_to(ROOT / "tests").as_posix()}::{item.originalname}'
        if inside(function, QUICK) and not inside(function, SLOW) and not PROCESSES & set(item.fixturenames):
            item.add_marker('quick')
        if inside(function, THOROUGH) and 'AIGC_JAX_THOROUGH' not in os.environ:
            item.add_marker(pytest.mark.skip(reason='takes long: AIGC_JAX_THOROUGH=1 runs it'))


class CommandLine:
    """Processes in the repository's root; `workdir`, `config` and `overrides` become flags.

    config: 'vae:smoke'; None leaves the flag out, as the modes other than train want it.
    """

    root = ROOT

    def __init__(self):
        path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get('PYTHONPATH')]))
        self._path = {'PYTHONPATH': path}
        self._forks = Forks({**os.environ, **self._path})

    def close(self):
        self._forks.close()

    def python(self, *arguments, env: dict | None = None, seconds: float = SECONDS):
        """python ARGUMENTS, to its end, in an interpreter of its own."""
        options = self._options(env, subprocess.PIPE)
        return self._finish(subprocess.Popen([sys.executable, *map(str, arguments)], **options), seconds)

    def run(self, config, workdir, *flags, env=None, seconds=SECONDS, returns=0, **overrides):
        """python -m aigc_jax.main, to its end, which must be the exit code `returns`; None: any."""
        done = self._finish(self.start(config, workdir, *flags, env=env, **overrides), seconds)
        assert returns is None or done.returncode == returns, f'exit code {done.returncode}\n{done.stderr}'
        return done

    def start(
        self, config, workdir, *flags, env=None, signalled=None, before='', stderr=subprocess.PIPE, **overrides
    ) -> subprocess.Popen:
        """The same, left running. `overrides`: optim__model__name='sgd' is --config.optim.model.name=sgd.

        signalled: (step, number), for the signal of that number as soon as the call up to that step has returned;
        before: Python that the process executes first.
        """
        before += SIGNALLED % signalled if signalled else ''
        program = ['-c', before + RUN] if before else ['-m', 'aigc_jax.main']
        arguments = [*program, f'--workdir={workdir}', *flags]
        if config:
            name, colon, variants = config.partition(':')
            path = name if name.endswith('.py') else f'configs/{name}.py'
            arguments.append(f'--config={path}{colon}{variants}')
        arguments += [f'--config.{name.replace("__", ".")}={value}' for name, value in overrides.items()]
        return self._forks.start([*map(str, arguments)], **self._options(env, stderr))

    def _options(self, env, stderr) -> dict:
        env = {**os.environ, **self._path, **(env or {})}
        return dict(cwd=ROOT, stdout=subprocess.PIPE, stderr=stderr, text=True, env=env)

    def _finish(self, process, seconds):
        try:
            out, err = process.communicate(timeout=seconds)
        finally:
            process.kill()
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)


@pytest.fixture(scope='session')
def command_line() -> CommandLine:
    made = CommandLine()
    yield made
    made.close()


@pytest.fixture(scope='session')
def exact_flags() -> str:
    """XLA_FLAGS for two programs whose bits are compared, which the older code rounds differently."""
    return os.environ['XLA_FLAGS'].replace(OLDER, '')


@pytest.fixture(scope='session')
def runner(command_line):
    """runner(*arguments) -> (exit code, stdout, stderr) of the command line, in one process for the session."""
    runner = Runner(command_line.root)
    yield runner
    runner.close()


@pytest.fixture(scope='session')
def runner8(command_line):
    """`runner` with eight virtual devices."""
    runner = Runner(
        command_line.root, {'XLA_FLAGS': f'{os.environ["XLA_FLAGS"]} --xla_force_host_platform_device_count=8'}
    )
    yield runner
    runner.close()


@pytest.fixture(scope='session')
def exact_runner(command_line, exact_flags):
    """`runner` with exact_flags."""
    runner = Runner(command_line.root, {'XLA_FLAGS': exact_flags})
    yield runner
    runner.close()


@pytest.fixture(scope='session')
def smoke(command_line, tmp_path_factory):
    """smoke('vae') -> the folder of configs/vae.py:smoke, trained once for all workers; to be read, or copied."""
    folders, base = {}, tmp_path_factory.getbasetemp()
    shared = base.parent if 'PYTEST_XDIST_WORKER' in os.environ else base

    def trained(name: str) -> pathlib.Path:
        if name not in folders:
            folder, first = tmp_path_factory.mktemp('smoke') / name, shared / f'smoke-{name}'
            with open(first.with_suffix('.lock'), 'w') as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                if first.exists():
                    shutil.copytree(first, folder)
                else:
                    command_line.run(f'{name}:smoke', folder)
                    shutil.copytree(folder, first)
            folders[name] = folder
        return folders[name]

    return trained


@pytest.fixture(scope='session')
def leaves():
    """leaves(workdir, step=None) -> {'params/model/…': array} of a checkpoint: its whole state."""

    def read(workdir, step=None) -> dict[str, np.ndarray]:
        import aigc_jax
        from aigc_jax.core import tree

        _, _, state = aigc_jax.load(workdir, step)
        return {name: np.asarray(leaf) for name, leaf in tree.flatten(state).items()}

    return read


@pytest.fixture(scope='session')
def assert_same_bits():
    """assert_same_bits(ours, theirs): of {name: array}, names, dtypes, shapes and bytes; NaN equals NaN."""

    def check(ours: dict, theirs: dict) -> None:
        assert ours.keys() == theirs.keys()
        different = [
            f'{name}: {a.dtype}{a.shape} {b.dtype}{b.shape}, up to {np.max(np.abs(a - b), initial=0)}'
            for name, (a, b) in {name: (ours[name], theirs[name]) for name in ours}.items()
            if a.dtype != b.dtype or a.shape != b.shape or a.tobytes() != b.tobytes()
        ]
        assert not different, different

    return check


@pytest.fixture
def warnings_fail():
    """Each warning of the test itself is an error. What is said of files and threads that earlier tests left is not:
    the garbage collector comes upon those at any moment, and the load decides which tests share a process.
    """
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        of_others = pytest.PytestUnraisableExceptionWarning, pytest.PytestUnhandledThreadExceptionWarning
        for category in (ResourceWarning, *of_others):
            warnings.simplefilter('ignore', category)
        yield


@pytest.fixture
def figure(monkeypatch):
    """The figure that was saved last, as a list of one."""
    from aigc_jax.plots import curves, images, points, text
    from aigc_jax.plots.figure import save_figure

    saved = []
    for module in (curves, images, points, text):
        monkeypatch.setattr(module, 'save_figure', lambda fig, path: (saved.append(fig), save_figure(fig, path)))
    return saved
