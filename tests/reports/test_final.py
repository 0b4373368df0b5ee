"""What a run says at its start, while it trains and at its end; what it keeps of an evaluation, and what it frees."""

import gc
import json
import math
import shutil
import signal
import weakref

import jax
import numpy as np
import pytest
from refusals import VAE

from aigc_jax.reports import evaluation
from aigc_jax.reports.evaluation import Evaluation
from aigc_jax.reports.evaluator import Evaluator
from aigc_jax.runs import config as config_lib
from aigc_jax.runs.experiment import Experiment
from aigc_jax.runs.paths import Paths


def test_a_run_speaks(command_line, runner, tmp_path):
    run = tmp_path / 'lr=[1e-3]'
    code, out, err = runner(VAE, f'--workdir={run}')
    assert code == 0, err
    lines = err.splitlines()
    assert [line.partition(':')[0] for line in lines[:5]] == ['data', 'parameters', 'memory', 'devices', 'folder']
    assert 'train 1,437, valid 180, test 180' in lines[0] and 'model 2,244' in lines[1] and str(run) in lines[4]
    evaluations = [line for line in lines if '  evaluation  ' in line]
    assert [line.split()[1] for line in evaluations] == ['20/40', '40/40'] and 'model/nll' in evaluations[0]
    assert lines[-1].startswith(f'{run}: ') and 'plots/ with curves.png' in lines[-1]
    manifest = json.loads((run / 'manifest.json').read_text())
    assert manifest['parameters'] == {'model': 2244} and manifest['bytes']['resident_data'] == 1437 * (64 + 4)
    assert out.startswith('step 40, digits, split test\n')
    # The same command says that the run is finished, and changes nothing.
    before = {path: path.read_bytes() for path in run.rglob('*') if path.is_file()}
    code, again, err = runner(VAE, f'--workdir={run}')
    assert code == 0 and again == out and 'finished, at step 40' in err
    assert before == {path: path.read_bytes() for path in run.rglob('*') if path.is_file()}
    # So does an evaluation print it.
    assert runner(f'--workdir={run}', '--mode=evaluate')[1] == out
    # A longer one says what changes.
    code, _, err = runner(VAE, f'--workdir={run}', '--config.total_steps=60')
    (note,) = [line for line in err.splitlines() if line.startswith('note: total_steps')]
    assert code == 0 and '60, 40 before' in note and 'model from 1e-05 to 0.0' in note and "row 'final'" in note


@pytest.mark.parametrize('mode', ['train', 'evaluate'])
def test_an_evaluation_hears_ctrl_c(command_line, smoke, tmp_path, mode):
    """Hours of annealing in one compiled call; what was done before it is kept."""
    run, more = tmp_path / 'run', dict(eval__ais_temperatures=3_000_000)
    if mode == 'train':
        process = command_line.start('vae:smoke', run, **more)
    else:
        shutil.copytree(smoke('vae'), run)
        process = command_line.start(None, run, '--mode=evaluate', **more)
    try:
        while 'diagnostics' not in (line := process.stderr.readline()):
            assert line, 'it ended'
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode == 130
    kept = json.loads((Paths(run).partial).read_text())['parts']
    assert list(kept) == ['0/means']


class Stopped(Exception):
    pass


def test_an_interrupted_evaluation_goes_on_and_is_the_same(tmp_path):
    config = config_lib.load('configs/vae.py:smoke', [])

    def evaluated(digest, between=lambda: None, **fields):
        config.eval.update(fields)
        experiment = Experiment(config)
        whole, computed = Evaluation(Evaluator(experiment, Paths(tmp_path))), []
        for report in whole.reports:
            part, name = report.measure, report.name
            report.measure = lambda *a, part=part, name=name: (computed.append(name), part(*a))[1]
        try:
            found = whole.final(experiment.create_state(), digest, between)
        except Stopped:
            found = None
        return found, computed

    def stop():
        raise Stopped

    whole, computed = evaluated('a')
    assert computed == ['means', 'split_statistics']
    evaluation.forget(Paths(tmp_path))
    assert evaluated('a', stop) == (None, ['means'])
    assert evaluated('a') == (whole, ['split_statistics'])
    evaluation.forget(Paths(tmp_path))
    evaluated('a', stop)
    assert evaluated('b', stop)[1] == ['means']  # another state
    assert evaluated('b', k=2)[1] == ['means', 'split_statistics']  # another evaluation


@pytest.mark.parametrize(
    'row',
    [{'vlaue': 1.0, 'n': 3}, {'value': 1.0}, {'value': 1.0, 'n': 3, 'perfcet': 2.0}, {'value': 1.0, 'n': 3, 'ci': 0.1},
     {'value': np.float32(1), 'n': 3}],
)  # fmt: skip
def test_a_report_that_gives_no_measurement_is_named(row):
    """Before the end of a training, where the table could not be written."""
    evaluated = Evaluation(Evaluator(Experiment(config_lib.load('configs/vae.py:smoke', []))))
    for good in ({'value': 1.0, 'n': 3}, {'value': math.nan, 'low': 0.0, 'high': 1.0, 'n': 3, 'over': 'examples'}):
        evaluated.reports[0].measure = lambda *_, good=good: {'model/x': good}
        assert evaluated.each(None, 0, 'valid') == {'model/x': good}
    evaluated.reports[0].measure = lambda *_: {'model/y': row}
    for measured in (lambda: evaluated.each(None, 0, 'valid'), lambda: evaluated.final(None, 'a')):
        with pytest.raises(TypeError, match='report means: model/y is no'):
            measured()


def test_experiments_are_freed(tmp_path):
    def used(name):
        experiment = Experiment(config_lib.load(f'configs/{name}.py:smoke', []))
        evaluator = Evaluator(experiment, Paths(tmp_path))
        Evaluation(evaluator).final(experiment.create_state(), name)
        return [weakref.ref(thing) for thing in (experiment, evaluator)]

    things = used('rnn_lm') + used('vae')
    jax.clear_caches()
    gc.collect()
    assert [thing() for thing in things] == [None] * 4
