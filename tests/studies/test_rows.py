"""Rows of a sweep are checked as configs before anything starts; their names and fingerprints; 10,000 of them."""

import dataclasses
import json
import pathlib
import resource
import subprocess
import sys

import pytest

from aigc_jax.core.errors import UserError
from aigc_jax.runs import config as config_lib
from aigc_jax.studies import local, rows, states, status, sweeps
from aigc_jax.studies.sweeps import name_of

ROOT = pathlib.Path(__file__).resolve().parents[2]
RATE = 'optim.generator.schedule.init_value'


def own(folder, body: str) -> str:
    """A researcher's own config: that of the GAN, with a sweep()."""
    path = folder / 'own.py'
    imports = 'from aigc_jax.studies.space import Range, chain, product, random, values, zipped\n'
    path.write_text((ROOT / 'configs/gan.py').read_text() + f'\n\n{imports}\n\ndef sweep():\n    return {body}\n')
    return f'{path}:ring8,smoke'


@pytest.mark.parametrize(
    'body, words',
    (
        ('[]', ('returns no row',)),
        ('{"task.r1": 1.0}', ('returns dict', 'a list of rows')),
        ('[1]', ('has the row',)),
        ('[{"task.r1": {1}}]', ('set', 'not JSON serializable')),
        ('product(values("task.r1", [1.0]), values("task.r1", [2.0]))', ('two sweeps set task.r1', 'line')),
        ('[{"task.rr1": 1.0}]', ('row 1 of 1', 'task has no field', 'did you mean')),
        ('[{"task.r1": 1.0}, {"task.r1": 1}]', ('rows 1 and 2 are the same config', 'task.r1')),
        # 0.01 is what the config has.
        ('[{"task.r1": 0.5}, {}, {"task.r1": 0.01}]', ('rows 2 and 3 are the same config',)),
        ('[{"task.r1": 0.5}, {"task.r1": "0.6"}]', ('row 2 of 2', "'0.6' is a text", 'task.r1')),
        ('[{"task.r1": 0.5}, {"task.r1": -1.0}]', ('row 2 of 2', 'task.r1: -1.0; it is 0 or more')),
        ('[{"task.r1": 0.5}, {"task.r1": 1e999}]', ('row 2 of 2', 'task.r1: inf is no finite number')),
        ('[{"batch_size": 8}, {"batch_size": 8.5}]', ('row 2 of 2', '8.5 is no whole number')),
        ('[{"batch_size": 8}, {"batch_size": True}]', ('row 2 of 2', 'batch_size')),
        ('[{"eval_every_steps": 20}, {"eval_every_steps": 15}]', ('row 2 of 2', 'not a multiple of steps_per_call')),
        ('[{"task.loss": "hinge"}, {"task.loss": "hinged"}]', ('row 2 of 2', 'task.loss', 'hinge')),
        ('[{"seed": 1}, {"seed": 2}]', ('seed: no row sets it', '--seeds=N')),
        ('[{"model.generator": 3}]', ('row 1 of 1', 'model.generator', 'group')),
    ),
)  # fmt: skip
def test_a_wrong_sweep_is_refused_in_one_line(tmp_path, body, words):
    with pytest.raises(UserError) as caught:
        rows.load(own(tmp_path, body), [])
    message = str(caught.value)
    assert '\n' not in message and 'Traceback' not in message
    assert all(word in message for word in words), message


def test_flags_that_do_not_fit_the_sweep(tmp_path):
    config = own(tmp_path, '[{"task.r1": 0.5}]')
    for arguments, word in (
        ((config, [('task.r1', '1')]), '--config.task.r1: the sweep sets this field'),
        ((config, [], [('task.r1', '1,2')]), 'two sweeps set task.r1'),
        ((config, [], [('task.loss', 'hinge,,wgan')]), 'lacks a value'),
        ((config, [('num_seeds', '2')], [], 2), '--seeds=2: num_seeds is 2'),
        ((config, [('seed', str(2**31 - 2))], [], 3), 'seeds lie between'),
        (('configs/gan.py:ring8,smoke', []), 'has no sweep()'),
    ):
        with pytest.raises(UserError, match='.*'.join(map(_escaped, [word]))):
            rows.load(*arguments)


def _escaped(text: str) -> str:
    return ''.join(f'[{c}]' if c in '().[' else c for c in text)


def test_the_command_line_multiplies_the_sweep_of_the_file(tmp_path):
    sweep = rows.load(own(tmp_path, 'values("task.loss", ["hinge", "relativistic"])'), [], [(RATE, '1e-3,1')], 2)
    assert [row.fields for row in sweep.rows] == [
        {'task.loss': loss, RATE: rate} for loss in ('hinge', 'relativistic') for rate in (1e-3, 1.0)
    ]
    assert sweep.seeds == (0, 1)
    assert [trial.seed for trial in sweep.trials(tmp_path)] == [0] * 4 + [1] * 4  # every row has a result early
    assert rows.load('configs/gan.py:ring8,smoke', [('seed', '5')], seeds=2).seeds == (5, 6)


def test_every_way_to_check_a_row_gives_the_config_that_its_process_has(tmp_path):
    """The numbers of most rows are put into the text of another row's config."""
    body = (
        'product(values("task.r1", [0, 0.5, 1e-7]), values("batch_size", [8, 16.0]), '
        'values("model.generator.features", [(4,), (4, 8)]), values("optim.generator.options.b1", [0, 0.25]))'
    )
    sweep = rows.load(own(tmp_path, body), [('task.r2', '0.125')], seeds=2)
    assert len(sweep.rows) == 24
    for trial in sweep.trials(tmp_path)[len(sweep.rows) :]:
        config, row = rows.resolved(trial), trial.row
        assert sweeps.fingerprint(config_lib.to_json(config)) == row.fingerprint, row
        assert config.seed == 1 and config.task.r2 == 0.125


def test_a_config_may_lie_anywhere(tmp_path):
    """Its path may hold what a shell, a flag or a config name holds too."""
    folder = tmp_path / '-a: b=c, ü 数据'
    folder.mkdir()
    config = own(folder, '[{"task.r1": 0.5}]')
    (trial,) = rows.load(config, []).trials(folder / 'runs')
    assert rows.resolved(trial).task.r1 == 0.5 and f'--config={config}' in local.command(trial)


def test_names_are_short_and_stay_where_rows_are_added(tmp_path):
    assert name_of({'task.r1': 0.5, 'model.generator.features': (4, 8)}).startswith('r1=0.5,features=4x8-')
    both = {'optim.generator.schedule.init_value': 1e-3, 'optim.discriminator.schedule.init_value': 2e-3}
    assert name_of(both).startswith('generator.schedule.init_value=0.001,discriminator.schedule.init_value=0.002-')
    assert name_of({'data.name': 'npz:/tmp/../a b'}).startswith('name=npz_tmp_.._a_b-')
    one, more = 'values("task.r1", [0.5])', 'product(values("task.r1", [0.5, 0.6]), [{}, {"task.r2": 0.5}])'
    names = [row.name for row in rows.load(own(tmp_path, more), []).rows]
    assert rows.load(own(tmp_path, one), []).rows[0].name in names and len({*names}) == 4


def test_the_record_is_read_as_it_was_written(tmp_path):
    config = own(tmp_path, 'values("model.generator.features", [(4,), (4, 8)])')
    sweep = rows.load(config, [('task.r2', '0.1')], seeds=3)
    sweep.write(tmp_path)
    read = sweeps.read(tmp_path)
    assert json.dumps(dataclasses.asdict(read)) == json.dumps(dataclasses.asdict(sweep))
    (tmp_path / sweeps.RECORD).write_text('{"rows": 3}')
    with pytest.raises(UserError, match='cannot be read as a sweep'):
        sweeps.read(tmp_path)


def seconds_of(who=resource.RUSAGE_SELF) -> float:
    """Of this process's, or its children's, own computing: other processes of the machine have no part in it."""
    used = resource.getrusage(who)
    return used.ru_utime + used.ru_stime


def test_ten_thousand_rows(tmp_path):
    """Checked within 10 s; when all are done, their table comes within 2 s."""
    space = f'"{RATE}": Range(1e-5, 1e-2, log=True), "batch_size": Range(1, 99, integer=True)'
    space += ', "task.loss": ["hinge", "relativistic"]'
    began = seconds_of()
    sweep = rows.load(own(tmp_path, f'random(10_000, {{{space}}})'), [])
    checked = seconds_of() - began
    assert len(sweep.rows) == 10_000
    assert checked < 10
    sweep.write(tmp_path)
    made = json.loads(config_lib.to_json(rows.resolved(sweep.trials(tmp_path)[0])))
    for number, trial in enumerate(sweep.trials(tmp_path)):
        fields, config = trial.row.fields, made
        config['batch_size'], config['task']['loss'] = fields['batch_size'], fields['task.loss']
        config['optim']['generator']['schedule']['init_value'] = fields[RATE]
        trial.folder.mkdir(parents=True)
        (trial.folder / 'config.json').write_text(json.dumps(config, indent=2, sort_keys=True) + '\n')
        found = {'ci': 0.1, 'n': 100, 'over': 'samples'}
        results = {f'samples/metric{k}': {'value': number + k, **found} for k in range(8)}
        (trial.folder / 'evaluation.json').write_text(json.dumps({'step': 40, **results}, indent=2) + '\n')
        start = {'time': 1e9, 'elapsed': 0.0, 'event': 'start', 'step': 0, 'seconds': {'imports': 1.0}}
        logs = [{'time': 1e9 + k, 'elapsed': k, 'event': 'log', 'step': k, 'steps_per_second': 1.0} for k in range(40)]
        (trial.folder / 'timing.jsonl').write_text(''.join(json.dumps(row) + '\n' for row in [start, *logs]))
    command = [sys.executable, '-m', 'aigc_jax.sweep', 'status', f'--workdir={tmp_path}', '--metric=samples/metric1']
    for _ in range(3):  # other processes of the machine slow it down
        began = seconds_of(resource.RUSAGE_CHILDREN)
        done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
        if (seconds := seconds_of(resource.RUSAGE_CHILDREN) - began) < 2:
            break
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == 10_002
    assert lines[7].split() == [sweep.rows[6].name, '1/1', '7']
    assert lines[-1] == '10000 runs: 10000 done; 111 h spent'
    print(f'10,000 rows: checked in {checked:.2f} s, their table in {seconds:.2f} s')
    assert seconds < 4  # 2 on a quiet machine; CPU seconds double where others fill the caches


def test_hours_are_those_of_all_starts(tmp_path):
    trial = sweeps.Trial(sweeps.Row('r', {}, '', 1), 0, tmp_path, 'own.py')
    trial.folder.mkdir(parents=True)
    assert states.hours(trial) == 0
    start = '{"time": %s, "event": "start", "step": 0, "seconds": {"imports": 2.0, "data": 1.0}}\n'
    log = '{"time": %s, "event": "log", "step": 10, "steps_per_second": 5.0}\n'
    # Killed 7 s after its start; the clock was put back during the second start; the third has a torn last line.
    text = start % 100.0 + log % 107.0 + start % 90_000.0 + log % 80_000.0 + start % 5e5 + log % 500_010.5
    (trial.folder / 'timing.jsonl').write_text(text + '{"time": 9')
    assert states.hours(trial) == pytest.approx((7 + 10.5 + 3 * 3) / 3600)


def test_means_over_seeds():
    assert status.mean_words([]) == ''
    assert status.mean_words([0.5]) == '0.5'
    assert status.mean_words([1.0, 2.0, 3.0]) == '2 ± 1'
    assert status.mean_words([1.0, float('nan'), 3.0]) == '2 ± 1.4 (1 of 3 not finite)'
