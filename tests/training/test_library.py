"""Training as a library: any thread, any number of runs in a process, silence, and nothing global changed."""

import io
import signal
import sys
import threading

import pytest

from aigc_jax.core.errors import UserError
from aigc_jax.runs import config as config_lib
from aigc_jax.runs import store
from aigc_jax.runs.folder import Run
from aigc_jax.training import trainer
from aigc_jax.training.trainer import train

SHORT = [('total_steps', '20'), ('log_every_steps', '10'), ('eval_every_steps', '10'), ('checkpoint_every_steps', '10')]
CONFIGS = {
    'vae': ('configs/vae.py:smoke', SHORT),
    'gan': ('configs/gan.py:smoke', [*SHORT, ('data.name', 'ring8'), ('eval.num_samples', '100')]),
}
# In a process of its own: other tests leave memory of theirs.
MANY = """
import gc, os, pathlib, sys, threading
import jax

from aigc_jax.runs import config as config_lib
from aigc_jax.runs.folder import Run
from aigc_jax.training.trainer import train

def resident():  # in MB, without the pages of files, which come and go with the load of the machine
    return next(int(line.split()[1]) for line in open('/proc/self/status') if line.startswith('RssAnon')) / 1024

config = config_lib.load(sys.argv[1], [pair.split('=') for pair in sys.argv[4:]])
for k in range(int(sys.argv[3])):
    train(config, Run(pathlib.Path(sys.argv[2]) / str(k)))
    gc.collect()
    print(resident(), len(jax.live_arrays()), threading.active_count(), len(os.listdir('/proc/self/fd')))
"""


@pytest.fixture
def configs(monkeypatch, command_line):
    monkeypatch.chdir(command_line.root)
    return {name: config_lib.load(*arguments) for name, arguments in CONFIGS.items()}


def digest(run: Run) -> str:
    checkpoints = run.checkpoints()
    try:
        return checkpoints.digest(checkpoints.latest())
    finally:
        checkpoints.close()


def test_two_at_once_in_threads_are_their_single_runs_to_the_bit(configs, tmp_path, capfd):
    alone, beside, failed = {}, {}, []
    before = {name: config.to_json() for name, config in configs.items()}
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)], sys.unraisablehook
    for name, config in configs.items():
        alone[name] = train(config, Run(tmp_path / f'{name}_alone'))

    def in_thread(name):
        try:
            beside[name] = train(configs[name], Run(tmp_path / name))
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=in_thread, args=[name]) for name in configs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed
    for name in configs:
        ours, theirs = Run(tmp_path / name), Run(tmp_path / f'{name}_alone')
        for file in ('metrics', 'evaluation', 'config'):
            assert getattr(ours.paths, file).read_bytes() == getattr(theirs.paths, file).read_bytes()
        assert digest(ours) == digest(theirs)
        assert beside[name] == alone[name] and beside[name].step == 20 and beside[name].results
        assert beside[name].interrupted == 0 and beside[name].diverged == ()
    assert before == {name: config.to_json() for name, config in configs.items()}
    assert handlers == ([signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)], sys.unraisablehook)
    out, err = capfd.readouterr()
    assert out == '' and all(line.startswith('note: ') for line in err.splitlines())


def test_the_memory_of_a_run_is_given_back(command_line, tmp_path):
    """Measured over 20 runs: 0.3 MB a run after the first three; a run's state and executables take tens."""
    fields = [f'{name}={value}' for name, value in SHORT]
    done = command_line.python('-c', MANY, 'configs/vae.py:smoke', tmp_path, 8, *fields)
    assert done.returncode == 0, done.stderr
    rows = [[float(part) for part in line.split()] for line in done.stdout.splitlines()]
    resident, arrays, threads, files = zip(*rows, strict=True)
    assert (resident[-1] - resident[2]) / (len(rows) - 3) < 6, resident
    assert arrays[-1] == arrays[0] and threads[-1] == 1 and files[-1] == files[0], rows
    found = [(tmp_path / str(k) / 'metrics.jsonl').read_bytes() for k in range(len(rows))]
    assert len(set(found)) == 1


def test_a_finished_run_is_not_trained_again_and_progress_goes_to_the_stream_that_is_given(configs, tmp_path, capfd):
    stream = io.StringIO()
    first = train(configs['gan'], Run(tmp_path), progress=stream)
    said = stream.getvalue()
    assert 'step 10/20' in said and 'evaluation 1/' in said and str(tmp_path) in said
    stamp = (tmp_path / 'metrics.jsonl').stat().st_mtime_ns
    again = train(configs['gan'], Run(tmp_path))
    assert again == first and (tmp_path / 'metrics.jsonl').stat().st_mtime_ns == stamp
    out, err = capfd.readouterr()
    assert out == '' and 'step' not in err


def test_two_threads_cannot_train_in_one_folder(configs, tmp_path):
    with Run(tmp_path).lock():
        with pytest.raises(UserError, match=f'another thread trains in {tmp_path}'):
            train(configs['gan'], Run(tmp_path))
    (tmp_path / 'link').symlink_to(tmp_path)
    with Run(tmp_path / 'link').lock(), pytest.raises(UserError, match='another thread'), Run(tmp_path).lock():
        pass
    with Run(tmp_path).lock():  # it is free again
        pass


def test_two_threads_may_share_a_single_device_but_not_one_of_several():
    with trainer._alone_on(['cpu:0']), trainer._alone_on(['cpu:0']), trainer._alone_on(['cpu:1', 'cpu:2']):
        for devices in (['cpu:0', 'cpu:1'], ['cpu:2']):
            with pytest.raises(UserError, match='devices: another thread trains on'), trainer._alone_on(devices):
                pass
    with trainer._alone_on(['cpu:0', 'cpu:1']):
        pass


def test_a_config_that_does_not_fit_is_refused_before_anything_is_written(configs, tmp_path):
    configs['vae'].log_every_steps = 3
    configs['vae'].steps_per_call = 2
    with pytest.raises(UserError, match='log_every_steps: 3 is not a multiple of steps_per_call'):
        train(configs['vae'], Run(tmp_path / 'run'))
    assert not (tmp_path / 'run').exists()


def test_what_orbax_is_kept_from_saying_is_as_before_once_no_thread_saves():
    """Two threads that save at once begin and end in any order."""
    hook = sys.unraisablehook
    quiet = store._Quiet()
    first, second = quiet(), quiet()
    first.__enter__(), second.__enter__()
    assert sys.unraisablehook != hook
    first.__exit__(None, None, None)
    assert sys.unraisablehook != hook
    second.__exit__(None, None, None)
    assert sys.unraisablehook == hook


def test_the_installed_command_is_the_command_line(command_line):
    start = 'import sys, aigc_jax; sys.argv = ["aigc-jax", *sys.argv[1:]]; aigc_jax.command()'
    done = command_line.python('-c', start, '--help')
    assert done.returncode == 0 and '--workdir' in done.stdout
    done = command_line.python('-c', start, '--mode=evaluate')
    assert done.returncode == 2 and done.stderr.startswith('error: --workdir: missing')


def test_the_package_itself_imports_nothing(command_line):
    done = command_line.python('-c', 'import sys, aigc_jax; print(*sys.modules)')
    assert not {'jax', 'numpy', 'absl'} & set(done.stdout.split())
    done = command_line.python('-c', 'import aigc_jax; aigc_jax.trian')
    assert "module 'aigc_jax' has no attribute 'trian'" in done.stderr
