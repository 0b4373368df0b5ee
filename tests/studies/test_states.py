"""How a trial stands, by files as runs leave them."""

import json
import pathlib

import pytest

from aigc_jax.runs import config as config_lib
from aigc_jax.studies import drift, local, rows, states, status

ROOT = pathlib.Path(__file__).resolve().parents[2]
RESULTS = {'samples/modes': {'value': 7.0, 'n': 200}}


@pytest.fixture(scope='module')
def sweep():
    overrides = [('eval.best_metric', 'samples/modes'), ('eval.best_mode', 'max'), ('eval.patience', '1')]
    return rows.load(f'{ROOT}/configs/gan.py:ring8,smoke', overrides, [('task.r1', '0.5,0.25')], 2)


@pytest.fixture
def trial(sweep, tmp_path):
    return sweep.trials(tmp_path)[0]


def put(trial, config=None, step=None, final=None, evaluations=(), log=''):
    """The files of a run; step: of its evaluation.json; final: of the row of its metrics."""
    trial.folder.mkdir(parents=True, exist_ok=True)
    if config is not None:
        (trial.folder / 'config.json').write_text(config)
    if step is not None:
        (trial.folder / 'evaluation.json').write_text(json.dumps({'step': step, **RESULTS}))
    metrics = [{'step': at, 'split': 'eval', 'samples/modes': value} for at, value in evaluations]
    metrics += [{'step': final, 'split': 'final', 'samples/modes': 7.0}] if final else []
    (trial.folder / 'metrics.jsonl').write_text(''.join(json.dumps(row) + '\n' for row in metrics))
    if log:
        trial.log.write_text(log)


def text(trial, **changed) -> str:
    config = rows.resolved(trial)
    config.update_from_flattened_dict(changed)
    return config_lib.to_json(config)


def test_done_by_the_steps_or_by_early_stopping(sweep, trial):
    assert states.look(trial).kind == states.MISSING
    put(trial, text(trial))
    assert states.look(trial).kind == states.STOPPED
    put(trial, step=40)
    assert states.look(trial) == states.State(states.DONE, 40, results=RESULTS)
    put(trial, step=20, evaluations=[(10, 5.0), (20, 5.0)], final=20)
    assert states.look(trial).kind == states.DONE
    put(trial, step=20, evaluations=[(10, 5.0), (20, 6.0)], final=20)  # of fewer total_steps, which have grown
    assert states.look(trial).kind == states.STOPPED
    put(trial, step=20, evaluations=[(10, 5.0), (20, 5.0)])
    assert states.look(trial).kind == states.STOPPED


def test_more_steps_go_on_and_fewer_are_another_config(sweep, trial):
    put(trial, text(trial, total_steps=30), step=30, final=30, evaluations=[(10, 5.0), (30, 6.0)])
    assert states.look(trial).kind == states.STOPPED
    put(trial, text(trial, total_steps=50), step=50)
    assert states.look(trial).kind == states.OTHER


def test_what_bears_identity(sweep, trial):
    same = {'parallel.mode': 'pmap', 'parallel.mesh.data': 8}
    put(trial, text(trial, **same), step=40)
    assert states.look(trial).kind == states.DONE
    put(trial, json.dumps(json.loads(text(trial))))  # written by another hand, or an older version
    assert states.look(trial).kind == states.DONE
    for name, value in {'seed': 1, 'task.r2': 3.0, 'data.num_examples': 7, 'model.generator.features': (3,)}.items():
        put(trial, text(trial, **{name: value}))
        assert states.look(trial).kind == states.OTHER, name


@pytest.mark.parametrize(
    'log, kind, words',
    (
        ('\n$ a\nstep 10\nerror: no data: give\nmore\n[exit code 2]\n', states.FAILED, 'no data: give'),
        ('\n$ python -m\nerror: no data\n', states.FAILED, 'no data'),  # the launcher was killed meanwhile
        ('\n$ a\nerror: no data\n[exit code 1]\n\n$ a\nstep 10\n', states.MISSING, ''),  # so it was, in a second launch
        ('\n$ a\nTraceback (most recent call last):\n  x\nKeyError: 1\n[exit code 1]\n', states.FAILED, 'KeyError: 1'),
        ('\n$ a\nstep 10\n[exit code -9]\n', states.FAILED, 'killed by SIGKILL'),
        ('\n$ a\nstep 10\n[exit code -11]\n', states.FAILED, 'killed by SIGSEGV'),
        ('\n$ a\nSIGTERM: saved at step 10\n[exit code 143]\n', states.MISSING, ''),
        ('\n$ a\n[exit code -2]\n', states.MISSING, ''),
        ('\n$ a\nerror: \x1b[31mred\n[exit code 1]\n', states.FAILED, '\\x1b[31mred'),
        ('\n$ a\n' + 'step 10\n' * 10_000 + 'error: late\n[exit code 1]\n', states.FAILED, 'late'),
    ),
)  # fmt: skip
def test_reasons(trial, log, kind, words):
    put(trial, log=log)
    state = states.look(trial)
    assert state.kind == kind and state.words.startswith(words) and bool(state.words) == bool(words)


def test_damaged_files_are_named(sweep, trial):
    put(trial, text(trial)[:300])
    state = states.look(trial)
    assert state.kind == states.FAILED and 'config.json: cannot be read' in state.words
    put(trial, text(trial))
    for damaged in ('{"step": 40, ', '{"step": 40, "samples/modes": 3}', '[]', ''):
        (trial.folder / 'evaluation.json').write_text(damaged)
        state = states.look(trial)
        assert state.kind == states.FAILED and 'evaluation.json: cannot be read' in state.words, damaged


def test_a_log_is_held_by_whoever_has_it_open(trial):
    assert not states.is_held(trial.log)
    file = states.held(trial.log)
    assert states.held(trial.log) is None and states.is_held(trial.log)
    assert states.look(trial).kind == states.RUNNING and states.look(trial, held=False).kind == states.MISSING
    file.close()
    assert not states.is_held(trial.log)


def test_the_table_takes_replicas_as_seeds_and_counts_what_is_lost(sweep, tmp_path):
    trials = sweep.trials(tmp_path)
    replicas = {'value': 2.0, 'values': {'0': 1.0, '1': 2.0, '2': 3.0, '3': None}}
    found = [(trial, states.State(states.DONE, 40, results={'samples/modes': replicas})) for trial in trials[:1]]
    found += [(trial, states.State(states.MISSING)) for trial in trials[1:]]
    lines = status.table(sweep, found, status.metric_of(sweep, found, None)).splitlines()
    assert lines[0].split() == ['row', 'done', 'samples/modes']
    assert lines[1].split()[1:] == '1/2 2 ± 1 (1 of 4 not finite)'.split()
    assert lines[2].split()[1:] == ['0/2'] and len(lines) == 3
    assert status.summary(found).startswith('4 runs: 1 done, 3 missing; 0 h spent')


def test_runs_of_other_code_or_data_are_noted(sweep, tmp_path):
    found = [(trial, states.State(states.DONE, 40, results=RESULTS)) for trial in sweep.trials(tmp_path)]
    for number, (trial, _) in enumerate(found):
        trial.folder.mkdir(parents=True)
        made_with = {'source': 'a' * 64, 'packages': {'jax': '0.10.2'}, 'data': {'fingerprint': trial.row.name}}
        made_with['source'] = ('a' if number else 'b') * 64
        made_with['data']['fingerprint'] += 'other' * (number == 3)
        (trial.folder / 'manifest.json').write_text(json.dumps(made_with))
    code, data = drift.notes(found)
    assert code == 'the finished runs do not have the same code (sha256): 3 with aaaaaaaa, 1 with bbbbbbbb'
    assert data.startswith('the seeds of 1 rows do not have the same data, such as ') and found[3][0].row.name in data
    assert not list(drift.notes(found[1:3]))


def test_a_run_that_cannot_be_started_fails_alone(sweep, tmp_path):
    trials, told = sweep.trials(tmp_path), []
    (tmp_path / trials[0].row.name).write_text('a file in the place of the folder')
    for trial in trials[1::2]:
        put(trial, text(trial), step=40)  # by another launcher, since it was asked
    todo = [trials[0], *trials[1::2]]
    outcome = local.launch(todo, 1, lambda trial, state: told.append((trial, state.kind)))
    assert told == [(todo[0], states.FAILED), (todo[1], states.DONE), (todo[2], states.DONE)]
    assert 'cannot be started: ' in outcome.states[todo[0].name].words and not outcome.interrupted


def test_cores_are_shared_evenly(monkeypatch):
    monkeypatch.setattr(local, '_cores', lambda: {0, 1, 2, 3, 4, 5, 6})
    assert local.shares(3) == [{0, 1}, {2, 3}, {4, 5}]
    assert local.shares(1) == [{0, 1, 2, 3, 4, 5, 6}]
    monkeypatch.setattr(local, '_cores', lambda: {2, 5})
    assert local.shares(3) == [{2}, {5}, {2}]
    monkeypatch.setattr(local, '_cores', set)
    assert local.shares(2) == [set(), set()]
