"""A run that is stopped, however, and started again by the same command, is the run that never stopped.

AIGC_JAX_KILLS=20 kills twenty times at random moments, VAE and GAN in turn, instead of twice.
"""

import json
import os
import random
import signal
import time

import pytest

KILLS = int(os.environ.get('AIGC_JAX_KILLS', '2'))
# Many short phases, so that a random moment falls into a call, an evaluation, a picture or a save.
FIELDS = dict(
    total_steps=40, steps_per_call=5, log_every_steps=5, eval_every_steps=20, checkpoint_every_steps=10,
    keep_checkpoints=2, eval__num_shown=4,
)  # fmt: skip
# A constant schedule (alpha=1, an end that is the peak), so that a run that grows equals one that was long at first.
OF_MODEL = {
    'vae': {'optim__model__schedule__alpha': 1.0, 'eval__best_mode': 'max', 'eval__num_samples': 64},
    'gan': {
        'optim__generator__schedule__alpha': 1.0, 'optim__discriminator__schedule__alpha': 1.0, 'eval__num_samples': 64,
    },
    'rnn_lm': {
        'optim__model__schedule__warmup_percent': 0.0, 'optim__model__schedule__end_value': 3e-3, 'steps_per_call': 1,
    },
    'gpt': {
        'optim__model__schedule__warmup_percent': 0.0, 'optim__model__schedule__end_value': 2e-2, 'steps_per_call': 1,
    },
    'bert': {
        'optim__model__schedule__warmup_percent': 0.0, 'optim__model__schedule__end_value': 1e-3, 'steps_per_call': 1,
        'model__dropout': 0.1, 'task__whole_words': True,
    },
    't5': {
        'optim__model__schedule__warmup_percent': 0.0, 'optim__model__schedule__end_value': 1e-2, 'steps_per_call': 1,
        'model__dropout': 0.1, 'task__objective': 'identifier_aware', 'task__tagging_share': 0.5,
        'data__number_identifiers': True,
    },
}  # fmt: skip
MODELS = list(OF_MODEL)


@pytest.fixture(scope='module')
def command(command_line):
    """command(model) -> the (config, fields) of its run; the same command starts it and goes on with it."""
    return lambda model, **more: (f'{model}:smoke', {**FIELDS, **OF_MODEL[model], **more})


@pytest.fixture(scope='module')
def whole(command_line, command, tmp_path_factory):
    """whole(model) -> the folder of the uninterrupted run."""
    runs = {}

    def trained(model):
        if model not in runs:
            folder = tmp_path_factory.mktemp('whole') / model
            config, fields = command(model)
            command_line.run(config, folder, **fields)
            runs[model] = folder
        return runs[model]

    return trained


@pytest.fixture(scope='module')
def assert_same_run(leaves, assert_same_bits):
    """Every leaf of every checkpoint bit for bit, metrics.jsonl and evaluation.json byte for byte."""

    def check(ours, theirs):
        assert steps(ours) == steps(theirs)
        for step in (steps(ours)[0], steps(ours)[-1]):
            assert_same_bits(leaves(ours, step), leaves(theirs, step))
        for name in ('metrics.jsonl', 'evaluation.json'):
            assert (ours / name).read_bytes() == (theirs / name).read_bytes(), name

    return check


def steps(workdir) -> list[int]:
    """The steps of the checkpoints that are whole."""
    return sorted(int(path.name) for path in (workdir / 'checkpoints').glob('*') if path.name.isdigit())


def rows(workdir) -> list[str]:
    path = workdir / 'metrics.jsonl'
    return path.read_text().splitlines() if path.exists() else []


def left(workdir) -> str:
    """What a kill left behind, for a person."""
    folder = workdir / 'checkpoints'
    partial = [path.name for path in folder.glob('*') if not path.name.isdigit()]
    return f'checkpoints {steps(workdir)}, partial {partial}, {len(rows(workdir))} rows'


def stop(process, ready, number) -> int:
    """Sends the signal as soon as `ready()`; the exit code, or 0 where the process was done before."""
    end = time.monotonic() + 300
    try:
        while not ready() and process.poll() is None:
            assert time.monotonic() < end
            time.sleep(0.002)
        process.send_signal(number)
        _, error = process.communicate(timeout=300)
        assert process.returncode in (0, -9, 130, 143), error
        return process.returncode
    finally:
        process.kill()


def test_the_newest_and_the_best_checkpoints_stay(whole):
    folder = whole('vae')
    evaluations = [row for row in map(json.loads, rows(folder)) if row['split'] == 'eval']
    assert [row['step'] for row in evaluations] == [20, 40]
    # best_mode=max calls the worst one the best, which is not among the newest two.
    assert max(evaluations, key=lambda row: row['model/nll'])['step'] == 20
    assert steps(folder) == [20, 30, 40]


def test_the_best_evaluation_is_kept_where_no_checkpoint_is_due(command_line, tmp_path):
    more = dict(eval_every_steps=10, checkpoint_every_steps=40, eval__best_metric='model/kl', eval__best_mode='max',
                optim__model__schedule__init_value=0.5)  # fmt: skip
    command_line.run('vae:smoke', tmp_path / 'run', **more)
    values = {row['step']: row['model/kl'] for row in map(json.loads, rows(tmp_path / 'run')) if row['split'] == 'eval'}
    assert {max(values, key=values.get), 40} <= set(steps(tmp_path / 'run'))
    assert len(values) == 4 and max(values, key=values.get) < 40


@pytest.mark.parametrize('model', MODELS)
def test_killed_at_any_moment_and_resumed_is_uninterrupted(
    command_line, command, whole, assert_same_run, tmp_path, model
):
    reference = whole(model)
    config, fields = command(model)
    wanted = max(1, KILLS // len(MODELS) + (model == 'vae') * (KILLS % len(MODELS)))
    seed = random.SystemRandom().randrange(2**32)
    chance, kills, number = random.Random(seed), 0, 0
    length = 3.0  # of a run, in multiples of what it takes to begin: a busy machine slows both down alike
    print(f'{wanted} kills of {model}, random.Random({seed})')

    def killed(workdir, ready) -> bool:
        code = stop(command_line.start(config, workdir, **fields), ready, signal.SIGKILL)
        print(f'run {number}: exit code {code}; {left(workdir)}')
        assert code in (0, -9)
        return code == -9

    while kills < wanted:
        number += 1
        workdir = tmp_path / str(number)
        # First when it begins, mostly before there is any checkpoint, then at random moments, until one finds it done.
        began = time.monotonic()
        alive = killed(workdir, (workdir / 'config.json').exists)
        beginning = time.monotonic() - began
        while alive and kills < wanted:
            end = time.monotonic() + chance.uniform(0.1, length) * beginning
            alive = killed(workdir, lambda: time.monotonic() > end)
            kills += alive
        if alive:
            command_line.run(config, workdir, **fields)
        else:
            length *= 0.8  # it is over sooner than that
        assert_same_run(workdir, reference)


def test_terminated_and_interrupted_after_saving(command_line, command, whole, assert_same_run, tmp_path):
    reference = whole('gan')
    config, fields = command('gan')
    for number, code, step in ((signal.SIGTERM, 143, 5), (signal.SIGINT, 130, 25)):
        command_line.run(config, tmp_path, signalled=(step, number), returns=code, **fields)
        assert json.loads(rows(tmp_path)[-1])['step'] == steps(tmp_path)[-1] == step
    command_line.run(config, tmp_path, **fields)
    assert_same_run(tmp_path, reference)


AGAIN = """
import os, signal
from aigc_jax.runs.checkpoint import Checkpoints

save = Checkpoints.save

def saved(self, *arguments, **options):
    os.kill(os.getpid(), signal.{})
    save(self, *arguments, **options)

Checkpoints.save = saved
"""


def test_a_second_sigterm_loses_nothing_and_ctrl_c_ends_it_at_once(command_line, command, tmp_path):
    config, fields = command('gan')
    once = {'signalled': (5, signal.SIGTERM), **fields}
    done = command_line.run(config, tmp_path / 'a', before=AGAIN.format('SIGTERM'), returns=143, **once)
    assert steps(tmp_path / 'a')[-1] == 5 and 'SIGTERM: saved at step 5' in done.stderr
    done = command_line.run(config, tmp_path / 'b', before=AGAIN.format('SIGINT'), returns=130, **once)
    assert not steps(tmp_path / 'b') and 'saved at step' not in done.stderr


def test_grown_is_as_if_long_from_the_start_and_a_finished_run_stays(
    command_line, command, whole, assert_same_run, tmp_path
):
    reference = whole('vae')
    config, fields = command('vae', total_steps=20)
    command_line.run(config, tmp_path, **fields)
    assert steps(tmp_path) == [10, 20] and '"final"' in rows(tmp_path)[-1]
    config, fields = command('vae')
    command_line.run(config, tmp_path, **fields)
    assert_same_run(tmp_path, reference)

    def checkpoints():
        files = (path for path in (tmp_path / 'checkpoints').rglob('*') if path.is_file())
        return {path: path.stat().st_mtime_ns for path in files}

    kept = checkpoints()
    command_line.run(config, tmp_path, **fields)
    assert_same_run(tmp_path, reference)
    assert kept and kept == checkpoints()
