"""How a trial stands, by files as runs leave them."""

import dataclasses
import hashlib
import json
import math
import os
import pathlib
import random
import re
import resource
import sys

import pytest

from aigc_jax.runs import config as config_lib
from aigc_jax.studies import drift, local, rows, states, status, sweeps

ROOT = pathlib.Path(__file__).resolve().parents[2]
ABORTED = """
$ a
F1127 22:17:35.27 18781 env.cc:93] Check failed: Thread x creation failed.
    @ 0x7f
Fatal Python error: Aborted
[exit code -6]
"""
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
        (ABORTED, states.FAILED, 'killed by SIGABRT: Check failed: Thread x creation failed.'),
        ('\n$ a\nterminate\n  what():  no thread\n[exit code -6]\n', states.FAILED, 'killed by SIGABRT: no thread'),
        ('\n$ a\nstep 10\n[exit code -35]\n', states.FAILED, 'killed by signal 35'),
        ('\n$ a\nSIGTERM: saved at step 10\n[exit code 143]\n', states.MISSING, ''),
        ('\n$ a\nSIGTERM: saved\nsrun: error: n1: task 0: Exited with exit code 143\n', states.MISSING, ''),  # requeued
        ('\n$ a\nsrun: error: n1: task 0: Killed\n[exit code 137]\n', states.FAILED, 'killed by SIGKILL, perhaps'),
        ('\n$ a\nsrun: error: launch failed\nsrun: aborted\n[exit code 141]\n', states.FAILED, 'srun: error: la'),
        ('\n$ a\n[exit code -2]\n', states.MISSING, ''),
        ('\n$ a\nerror: \x1b[31mred\n[exit code 1]\n', states.FAILED, '\\x1b[31mred'),
        ('\n$ a\n' + 'step 10\n' * 10_000 + 'error: late\n[exit code 1]\n', states.FAILED, 'late'),
    ),
)  # fmt: skip
def test_reasons(trial, log, kind, words):
    put(trial, log=log)
    state = states.look(trial)
    assert state.kind == kind and state.words.startswith(words) and bool(state.words) == bool(words)


def test_a_run_that_was_interrupted_before_it_wrote_anything_is_not_missing(trial):
    put(trial, log='\n$ a\nSIGTERM: ended\n[exit code 143]\n')
    (trial.folder / 'metrics.jsonl').unlink()
    state = states.look(trial)
    assert state.kind == states.MISSING  # as the same command sees it
    assert status.ended(trial, state) == f'{trial.name}: interrupted before its first step'
    assert status.ended(trial, states.State(states.STOPPED, 5)) == f'{trial.name}: stopped'


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
    for trial, _ in found:  # what two commands with --jobs=1 and --jobs=2 leave on two cores
        threads = 1 + (trial.seed != found[0][0].seed)
        made_with = {'packages': {'jax': '0.10.2'}, 'device': {'threads': threads}, 'execution': trial.row.fields}
        (trial.folder / 'manifest.json').write_text(json.dumps(made_with))
    (line,) = drift.notes(found)  # the fields of a row may decide bits, and are its own
    assert line.startswith('the seeds of 2 rows do not have the same device.threads, such as those of ')
    assert ': 1, 2; ' in line and '--jobs' in line
    (found[0][0].folder / 'manifest.json').write_text('{"packages"')
    told, line = drift.notes(found)
    assert f'{found[0][0].name}/manifest.json: cannot be read as a manifest' in told and 'seeds of 1 rows' in line


def test_a_run_that_cannot_be_started_fails_alone(sweep, tmp_path):
    trials, told = sweep.trials(tmp_path), []
    (tmp_path / trials[0].row.name).write_text('a file in the place of the folder')
    for trial in trials[1::2]:
        put(trial, text(trial), step=40)  # by another launcher, since it was asked
    todo = [trials[0], *trials[1::2]]
    outcome = local.launch(todo, 1, lambda trial, state: told.append((trial, state.kind)))
    assert told == [(todo[0], states.FAILED), (todo[1], states.DONE), (todo[2], states.DONE)]
    assert 'cannot be started: ' in outcome.states[todo[0].name].words and not outcome.interrupted


def test_why_a_run_cannot_be_started_stands_in_the_table(sweep, tmp_path, monkeypatch):
    monkeypatch.setattr(local, 'command', lambda trial: [str(tmp_path / 'no such program')])
    trials = sweep.trials(tmp_path)
    local.launch(trials, 1, lambda *_: None)
    found = status.look(trials)
    assert [state.kind for _, state in found] == [states.FAILED] * 4
    assert status.table(sweep, found, '').count(': failed: cannot be started: [Errno 2] No such file') == 4


def test_a_folder_may_have_a_name_that_is_no_utf_8(sweep, tmp_path, monkeypatch):
    """Such as one of another century, or any that is not ASCII where the locale is C."""
    monkeypatch.setattr(local, 'command', lambda t: [sys.executable, '-c', 'raise SystemExit(3)', str(t.folder)])
    trial = sweep.trials(tmp_path / os.fsdecode(b'L\xe4t'))[0]
    outcome = local.launch([trial], 1, lambda *_: None)
    assert outcome.states[trial.name].kind == states.FAILED and b'/L\xe4t/' in trial.log.read_bytes()


def test_where_no_more_processes_can_be_started_the_others_wait_for_those_that_run(sweep, tmp_path, monkeypatch):
    """By the limit of open files, each process having a log; root has no limit of processes."""
    finishes = 'import time; time.sleep(0.5); import os, sys; os.rename(sys.argv[1] + ".made", sys.argv[1])'
    monkeypatch.setattr(local, 'command', lambda t: [sys.executable, '-c', finishes, f'{t.folder}/evaluation.json'])
    trials, told = sweep.trials(tmp_path), []
    for trial in trials:
        put(trial, text(trial), step=40)
        os.rename(trial.folder / 'evaluation.json', trial.folder / 'evaluation.json.made')
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    highest = max(map(int, os.listdir('/proc/self/fd')))
    taken = [os.open(os.devnull, os.O_RDONLY) for _ in range(highest)]  # all below it
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(taken) + 6, before[1]))
    try:
        local.launch(trials, 3, lambda trial, state: told.append((trial.name, state.kind, state.words)))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
        for number in taken:
            os.close(number)
    assert sorted(told) == sorted((trial.name, states.DONE, '') for trial in trials)


def test_hours_are_those_of_a_clock_that_nobody_sets(trial):
    trial.folder.mkdir(parents=True)
    begin = {'time': 1e9, 'elapsed': 0.0, 'event': 'start', 'step': 0, 'seconds': {'imports': 30.0}}
    later = [{'time': t, 'elapsed': e, 'event': 'log', 'step': 1} for t, e in ((2e9, 10.0), (5e8, 60.0))]
    again = {**begin, 'time': 3e9}
    lines = [*(json.dumps(row) + '\n' for row in (begin, *later, again)), '{"time": 3e9, "elapsed": 999']
    (trial.folder / 'timing.jsonl').write_text(''.join(lines))
    assert states.hours(trial) == pytest.approx((30 + 60 + 30) / 3600)


def test_cores_are_shared_evenly(monkeypatch):
    monkeypatch.setattr(local, '_cores', lambda: {0, 1, 2, 3, 4, 5, 6})
    assert local.shares(3) == [{0, 1}, {2, 3}, {4, 5}]
    assert local.shares(1) == [{0, 1, 2, 3, 4, 5, 6}]
    monkeypatch.setattr(local, '_cores', lambda: {2, 5})
    assert local.shares(3) == [{2}, {5}, {2}]
    monkeypatch.setattr(local, '_cores', set)
    assert local.shares(2) == [set(), set()]


JUNK = [
    b'', b'[]', b'{}', b'null', b'\x00' * 9, b'\xff\xfe', b'[' * 5000, b'"' * 3, b'9' * 5000, b'1e999', b'"x"',
    b'{"a":', b'\n', b'\n\n$ ', b'[exit code -99]\n', b'[exit code ' + b'9' * 5000 + b']\n', b'NaN', b'true', b'-',
]  # fmt: skip


def damaged(data: bytes, draw: random.Random) -> bytes:
    a, b = sorted(draw.randrange(len(data) + 1) for _ in range(2))
    match draw.randrange(5):
        case 0:
            return data[:a]
        case 1:
            return data[:a] + data[b:]
        case 2:
            return data[:a] + draw.choice(JUNK) + data[b:]
        case 3:  # a value in the place of another
            return re.sub(rb'(: )[^,\n]+', lambda m: m[1] + draw.choice(JUNK) if draw.random() < 0.2 else m[0], data)
    changed = bytearray(data)
    for _ in range(draw.randint(1, 4)):
        changed[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
    return bytes(changed)


def test_no_damage_to_any_file_is_more_than_a_failure_of_its_run(sweep, trial):
    """Files cut short, with flipped bits, with other values: status tells of all runs, whatever one of them is."""
    put(trial, text(trial), step=40, final=40, evaluations=[(10, 5.0), (20, 6.0), (40, 7.0)])
    made_with = {'source': 'aa', 'packages': {'jax': '0'}, 'data': {'fingerprint': 'ab'}}
    (trial.folder / 'manifest.json').write_text(json.dumps(made_with))
    begin = {'time': 1e9, 'elapsed': 0.1, 'event': 'start', 'step': 0, 'seconds': {'imports': 1.0}}
    logs = [{'time': 1e9 + k, 'elapsed': k, 'step': k, 'steps_per_second': 2.0} for k in range(9)]
    (trial.folder / 'timing.jsonl').write_text(''.join(json.dumps(row) + '\n' for row in [begin, *logs]))
    trial.log.write_text('\n$ a\nerror: no data: give\nmore\n[exit code 2]\n')
    names = ['config.json', 'evaluation.json', 'manifest.json', 'metrics.jsonl', 'timing.jsonl']
    files = [*(trial.folder / name for name in names), trial.log]
    whole = {path: path.read_bytes() for path in files}
    draw, kinds = random.Random(0), set()
    for _ in range(int(os.environ.get('AIGC_JAX_DAMAGES', 300))):
        for path in (struck := draw.sample(files, draw.randint(1, 2))):
            path.write_bytes(damaged(whole[path], draw))
        if draw.random() < 0.3:
            (trial.folder / 'evaluation.json').unlink()
        found = [(trial, states.look(trial, held=draw.random() < 0.2))]
        assert math.isfinite(states.hours(trial)) and states.hours(trial) >= 0
        lines = status.table(sweep, found, status.metric_of(sweep, found, None)) + status.summary(found)
        assert all(line.isprintable() for line in lines.split('\n'))
        assert all(isinstance(line, str) for line in drift.notes(found))
        kinds.add(found[0][1].kind)
        for path in {*struck, trial.folder / 'evaluation.json'}:
            path.write_bytes(whole[path])
    config = trial.folder / 'config.json'
    config.write_bytes(whole[config].replace(b'"batch_size": ', b'"batch_size": 1'))
    kinds.add(states.look(trial, held=False).kind)
    assert kinds >= {states.DONE, states.FAILED, states.OTHER}


def test_no_damage_is_more_than_a_failure_of_an_evaluation(sweep, trial):
    """The same of a finished run that is evaluated once more."""
    evaluation = sweeps.Evaluation((('sample.steps', '1'),), {'sample.steps': 1, 'eval.num_samples': 9})
    again = dataclasses.replace(trial, evaluation=evaluation)
    put(trial, text(trial), step=40, final=40)
    (trial.folder / 'manifest.json').write_text('{"commit": "c0ffee"}')
    digest = hashlib.sha256((trial.folder / 'manifest.json').read_bytes()).hexdigest()
    made = {'step': 40, 'manifest': digest, 'data': {}, 'eval': {'num_samples': 9}, 'metrics': RESULTS}
    (trial.folder / 'evaluations').mkdir()
    files = {name: trial.folder / 'evaluations' / f'{name}.json' for name in ('a-other', 'own')}
    for name, path in files.items():
        path.write_text(json.dumps({**made, 'sample': {'steps': 1 + (name != 'own')}}, indent=1))
    assert states.look(again).kind == states.DONE
    files['a-other'].write_text('{"step": ')  # another evaluation of this run
    assert states.look(again).kind == states.DONE
    struck = [*files.values(), trial.folder / 'evaluation.json', trial.folder / 'manifest.json']
    whole, draw, kinds = {path: path.read_bytes() for path in struck}, random.Random(1), set()
    for _ in range(int(os.environ.get('AIGC_JAX_DAMAGES', 300))):
        for path in (some := draw.sample(struck, draw.randint(1, 2))):
            path.write_bytes(damaged(whole[path], draw)) if draw.random() < 0.9 else path.unlink()
        found = [(again, states.look(again, held=False))]
        lines = status.table(sweep, found, status.metric_of(sweep, found, None)) + status.summary(found)
        assert all(line.isprintable() for line in lines.split('\n')) and type(found[0][1].step) is int
        kinds.add(found[0][1].kind)
        for path in some:
            path.write_bytes(whole[path])
    assert kinds == {states.DONE, states.FAILED, states.MISSING}


@pytest.mark.parametrize(
    'row',
    [
        {'value': [1]}, {'value': 'x'}, {'value': True}, {'value': 10**400}, {'value': 1.0, 'values': [1.0]},
        {'value': 1.0, 'values': {'x': 1.0}}, {'value': 1.0, 'values': {'0': {}}}, 3, None,
    ],
)  # fmt: skip
def test_a_metric_that_is_no_number_is_damage(sweep, trial, row):
    evaluation = sweeps.Evaluation((), {})
    put(trial, text(trial), step=40, final=40)
    (trial.folder / 'manifest.json').write_text('{}')
    digest = hashlib.sha256(b'{}').hexdigest()
    made = {'step': 40, 'manifest': digest, 'data': {}, 'sample': {}, 'eval': {}, 'metrics': {'m': row}}
    (trial.folder / 'evaluations').mkdir()
    (trial.folder / 'evaluations' / 'a.json').write_text(json.dumps(made))
    state = states.look(dataclasses.replace(trial, evaluation=evaluation))
    assert state.kind == states.FAILED and 'a.json: cannot be read as an evaluation' in state.words
    (trial.folder / 'evaluation.json').write_text(json.dumps({'step': 40, 'm': row}))
    state = states.look(trial)
    assert state.kind == states.FAILED and 'evaluation.json: cannot be read as an evaluation' in state.words


def test_an_own_task_and_own_data_may_lie_elsewhere():
    """A clone that has moved has the same runs."""
    text = '{\n  "data": {\n    "name": "%s"\n  },\n  "task": {\n    "name": "%s"\n  }\n}'
    same = {sweeps.fingerprint(text % pair) for pair in (('/a/b/own.py:load', '/a/t.py'), ('/c/own.py:load', '/t.py'))}
    assert len(same) == 1
    others = ('/a/own.py:load', '/a/u.py'), ('/a/own.py:other', '/a/t.py'), ('images:/a/own.pyx', '/a/t.py')
    assert len(same | {sweeps.fingerprint(text % pair) for pair in others}) == 4
    assert sweeps.fingerprint(text % ('idx:/a/b', 'vae')) != sweeps.fingerprint(text % ('idx:/c/b', 'vae'))
