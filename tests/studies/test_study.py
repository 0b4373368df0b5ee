"""Studies: which runs they start, what becomes of failures, and one study through the command line."""

import json
import math
import os
import pathlib
import subprocess
import sys

import pytest

from aigc_jax import study as door
from aigc_jax.core.errors import UserError
from aigc_jax.runs import config as config_lib
from aigc_jax.studies import again, findings, gathering, planning, registration, report, rows, states
from aigc_jax.studies.conduct import Conduct, unfinished
from aigc_jax.studies.local import Outcome

ROOT = pathlib.Path(__file__).resolve().parents[2]
GAN, FLOW = f'{ROOT}/configs/gan.py:ring8,smoke', f'{ROOT}/configs/flow.py:moons,smoke'
HEAD = 'from aigc_jax.studies.claims import Claim, Published, Study, Versus\n'
EULER = {'sample.solver': 'euler', 'sample.steps': 1}
TWO = f"""
def study():
    fields = {{'total_steps': 20}}
    return Study('Two arms', seeds=3, claims=[
        Claim('a', 'a holds', {GAN!r}, 'samples/modes', 'max', Published(5.0, 'table 1', 1.0), fields=fields),
        Claim('b', 'b beats a', {GAN!r}, 'samples/modes', 'max', Versus('a'), fields=fields | {{'task.r1': 0.5}}),
    ])
"""


LACKS = 'an evaluation of these runs will have no'


def one(config: str, **own) -> str:
    return f"def study(): return Study('t', [Claim('a', 'x', {config!r}, 'm', 'min', **{own!r})])"


def write(folder: pathlib.Path, body: str, name='own.py') -> str:
    path = folder / name
    path.write_text(HEAD + body)
    return str(path)


class Runs:
    """A launcher that leaves the files of finished runs. value: of a trial; None: it fails; nan: it diverges."""

    def __init__(self, value, hours: float = 1.0):
        self.value, self.hours, self.begun = value, hours, []

    def __call__(self, trials, tell) -> Outcome:
        for trial in trials:
            self.begun.append(trial.name)
            self.put(trial)
            tell(trial, states.look(trial))
        return Outcome({}, 0)

    def put(self, trial):
        folder, value, config = trial.folder, self.value(trial), rows.resolved(trial)
        folder.mkdir(parents=True, exist_ok=True)
        if trial.evaluation:
            config_lib.override(config, trial.evaluation.fields)
            groups = {group: json.loads(config_lib.to_json(config))[group] for group in ('data', 'sample', 'eval')}
            digest = gathering.hashlib.sha256((folder / 'manifest.json').read_bytes()).hexdigest()
            (folder / 'evaluations').mkdir(exist_ok=True)
            made = {'step': config.total_steps, 'manifest': digest, 'metrics': self.results(config, value), **groups}
            (folder / 'evaluations' / f'{trial.evaluation.name}.json').write_text(json.dumps(made))
            return
        (folder / 'config.json').write_text(config_lib.to_json(config))
        (folder / 'manifest.json').write_text(json.dumps({'commit': 'c0ffee', 'source': 'a' * 64}))
        seconds = 3600 * self.hours
        start = f'{{"time": 0.0, "event": "start", "step": 0, "seconds": {{"imports": {seconds}}}}}\n'
        (folder / 'timing.jsonl').write_text(start)
        trial.log.write_text('$ the command\n' + ('error: no luck\n[exit code 1]\n' if value is None else ''))
        if value is None:
            return
        lost = '{"step": 5, "split": "train", "diverged": 1.0}\n' if math.isnan(value) else ''
        (folder / 'metrics.jsonl').write_text(lost)
        if lost:
            trial.log.write_text('$ the command\nerror: step 5: the loss is nan\n[exit code 1]\n')
        else:
            made = {'step': config.total_steps, **self.results(config, value)}
            (folder / 'evaluation.json').write_text(json.dumps(made))

    @staticmethod
    def results(config, value) -> dict:
        row = {'value': value, 'n': 100, 'perfect': 8.0}
        if config.num_seeds > 1:
            row['values'] = {str(config.seed + k): value + k for k in range(config.num_seeds)}
        return {'samples/modes': row, 'model/nll': {'value': 2.5, 'n': 100}}


def conducted(path, workdir, runs, claims=None, alpha=None, budget=None) -> gathering.Gathered:
    plan = planning.load(path)
    registration.register(workdir, plan.registration, alpha)
    study = Conduct(plan, workdir, claims or list(plan.claims), alpha, budget, runs, 2, lambda text: None)
    assert study.run() == 0
    return study.gathered()


def test_a_study_runs_what_is_missing_and_nothing_else(tmp_path):
    path = write(tmp_path, TWO)
    runs = Runs(lambda trial: 7.0 - 0.1 * trial.seed if 'r1' in trial.name else 5.0 + 0.1 * trial.seed)
    found = conducted(path, tmp_path, runs)
    assert len(runs.begun) == 6 and sorted(runs.begun[:2]) != sorted(runs.begun[2:4])
    assert [name.rpartition('-')[2] for name in runs.begun] == ['0', '0', '1', '1', '2', '2']  # all first seeds first
    a, b = found.findings.values()
    assert a.verdict == b.verdict == findings.REPRODUCED and a.marks == {'perfect sampler': 8.0}
    assert a.values == [5.0, 5.1, 5.2] and a.hours == 3 and a.seeds[0].commit == 'c0ffee'
    assert found.report().hours == 6
    again = Runs(None)
    # As text, since of Python 3.13 on dataclasses that hold one NaN are not equal.
    assert repr(conducted(path, tmp_path, again).findings) == repr(found.findings) and not again.begun


def test_a_failure_stops_nothing_and_is_tried_again_by_the_next_command(tmp_path):
    path = write(tmp_path, TWO)
    runs = Runs(lambda trial: None if trial.seed == 1 and 'r1' in trial.name else 5.0 + 0.1 * trial.seed)
    found = conducted(path, tmp_path, runs)
    assert len(runs.begun) == 6 == len({*runs.begun})
    a, b = found.findings.values()
    assert a.verdict == findings.REPRODUCED and a.absent == () and b.verdict == findings.MISSING
    (line,) = b.absent
    assert 'r1=0.5' in line and line.endswith('/seed-1: failed: no luck')
    assert unfinished(found, ['a', 'b']) == ['b']
    again = Runs(lambda trial: 7.0)
    assert conducted(path, tmp_path, again).findings['b'].verdict == findings.UNDECIDED
    assert [name.rpartition('/')[2] for name in again.begun] == ['seed-1']


def test_a_seed_that_diverged_counts_as_the_worst_and_is_not_run_again(tmp_path):
    path = write(tmp_path, TWO)
    runs = Runs(lambda trial: math.nan if trial.seed == 2 else 5.0 + 0.1 * trial.seed)
    found = conducted(path, tmp_path, runs)
    a = found.findings['a']
    assert a.verdict == findings.WORSE and math.isnan(a.values[2]) and a.row['diverged'] == 1
    again = Runs(None)
    conducted(path, tmp_path, again)
    assert not again.begun


def test_until_adds_seeds_to_what_is_undecided_and_to_what_it_is_compared_with(tmp_path):
    # a: reproduced at the first look; b − a alternates at first, and is clear with 8 seeds.
    gains = [1.0, -0.4, 0.6, 0.9, 1.1, 0.9, 1.0, 1.2]
    runs = Runs(lambda trial: 5.0 + 0.01 * trial.seed + ('r1' in trial.name) * gains[trial.seed])
    found = conducted(write(tmp_path, TWO), tmp_path, runs, alpha=0.05)
    a, b = found.findings.values()
    assert (a.verdict, a.wanted) == (findings.REPRODUCED, 3) and (b.verdict, b.wanted) == (findings.REPRODUCED, 8)
    assert len(runs.begun) == 16  # both arms
    assert '--until spends alpha = 0.05' in found.report().notes[1]
    with pytest.raises(UserError, match='spends alpha = 0.05'):
        registration.register(tmp_path, 'ab', 0.01)


def test_a_budget_ends_the_study(tmp_path):
    runs = Runs(lambda trial: 5.0 + 0.1 * trial.seed, hours=0.5)
    found = conducted(write(tmp_path, TWO), tmp_path, runs, budget=1.5)
    assert len(runs.begun) == 4  # two at a time: one hour, then two
    assert found.findings['a'].verdict == findings.MISSING


def test_claims_share_runs_and_an_evaluation_of_another_training_does_not_count(tmp_path):
    path = write(tmp_path, f"""
def study():
    own = dict(config={GAN!r}, metric='samples/modes', better='max', fields={{'num_seeds': 2}}, seeds=4)
    return Study('Evaluations', [
        Claim('final', 'x', **own),
        Claim('share', 'x', reach=6.0, **own),
        Claim('more', 'x', evaluate={{'eval.num_samples': 50}}, floors=['model/nll'], **own),
    ])
""")
    runs = Runs(lambda trial: 5.0 + bool(trial.evaluation))
    found = conducted(path, tmp_path, runs)
    assert len(runs.begun) == 4  # two runs of two seeds, and their evaluations
    final, share, more = found.findings.values()
    assert final.values == [5, 6, 5, 6] and share.values == [0, 1, 0, 1] and more.values == [6, 7, 6, 7]
    assert list(final.seeds) == [0, 1, 2, 3] and more.marks == {'perfect sampler': 8.0, 'model/nll': 2.5}
    assert final.hours == 2 and found.report().hours == 2
    (first, *_) = tmp_path.glob('gan*/seed-0/manifest.json')
    first.write_text('{"commit": "another"}')
    late = Runs(lambda trial: 9.0)
    assert conducted(path, tmp_path, late).findings['more'].values == [9, 10, 6, 7]
    assert len(late.begun) == 1 and 'evaluation' in late.begun[0]


def test_an_evaluation_leaves_the_next_one_of_the_same_runs_alone(tmp_path):
    body = f"""
def study():
    own = dict(config={FLOW!r}, metric='samples/squared_wasserstein', better='min')
    return Study('t', [
        Claim('euler', 'x', evaluate={EULER!r}, **own),
        Claim('more', 'x', evaluate={{'eval.transport_samples': 5}}, **own),
    ])
"""
    plan = planning.load(write(tmp_path, body))
    trained = plan.settings['more'].resolved
    assert trained.sample.solver == plan.evaluations['more'].made_with['sample.solver'] != 'euler'
    assert plan.evaluations['euler'].made_with['sample.solver'] == 'euler' and trained.eval.transport_samples != 5


def test_a_study_may_take_an_argument(tmp_path):
    body = f"def study(name='digits'): return Study(name, [Claim('a', 'x', {GAN!r}, 'm', 'min')])"
    path = write(tmp_path, body)
    assert planning.load(path).study.title == 'digits' and planning.load(f'{path}:C:/a b').study.title == 'C:/a b'
    assert planning.load(f'{path}:own').name == 'own'
    # Where the data lie is not what is claimed.
    assert planning.load(f'{path}:/a/ü').registration == planning.load(f'{path}:/b').registration
    assert planning.load(f'{path}:/a/ü').registration != planning.load(path).registration
    with pytest.raises(UserError, match='takes no argument; leave out :own'):
        planning.load(write(tmp_path, TWO) + ':own')


TUNED = f"""
from aigc_jax.studies.claims import Tuning
from aigc_jax.studies.space import values
def study():
    own = dict(config={GAN!r}, metric='samples/modes', better='max')
    return Study('Tuned', seeds=3, tuning=Tuning('model/nll', 'min', seeds=2), claims=[
        Claim('a', 'x', tune=values('task.r1', [0.0, 0.5, 1.0]), **own),
        Claim('b', 'x', tune=values('task.r2', [0.25, 0.5, 1.0]), expected=Versus('a'), **own),
    ])
"""


class TunedRuns(Runs):
    """The best of task.r1 is 0.5, and of task.r2 1.0, by the validation split, which the runs of the report are not
    measured on."""

    def results(self, config, value) -> dict:
        tuned = config.eval.final_split == 'valid'
        assert tuned == (config.seed >= 1_000_000)
        nll = abs(config.task.r1 - 0.5) + abs(config.task.r2 - 1.0) + 0.01 * config.seed % 2
        return {'samples/modes': {'value': value + config.task.r2 + 0.1 * config.seed * config.task.r2}} | (
            {'model/nll': {'value': nll}} if tuned else {}
        )


def test_settings_are_chosen_on_the_validation_split_by_seeds_that_are_not_reported(tmp_path):
    path = write(tmp_path, TUNED)
    fails = TunedRuns(lambda trial: None if trial.seed == 1_000_001 and 'r2=0.5' in trial.name else 5.0)
    found = conducted(path, tmp_path, fails)
    a, b = found.findings.values()
    assert len(fails.begun) == 12 + 3  # a is tuned and reported; b is not tuned
    assert a.verdict == findings.MEASURED and a.chosen == {'task.r1': 0.5} and len(a.tuning) == 3
    assert b.verdict == findings.MISSING and b.words == '5 of 6 runs of its tuning are there' and not b.chosen
    assert b.absent[0].endswith('failed: no luck') and [*b.tuning] == ['task.r2=0.25', 'task.r2=1.0']
    assert found.report().hours == 12 + 3  # hours of runs, the tuning's too
    runs = TunedRuns(lambda trial: 5.0)
    found = conducted(path, tmp_path, runs)
    assert found.findings['b'].chosen == {'task.r2': 1.0} and len(runs.begun) == 4
    assert found.findings['b'].verdict == findings.REPRODUCED
    plan = planning.load(path)
    with pytest.raises(UserError, match='claim a is not tuned yet'):
        again.settled(plan, plan.claims['a'], tmp_path / 'other')
    text = report.write(found, 'the command')
    (line,) = [line for line in text.split('\n') if 'split: task.r2=0.25: 1.2' in line]
    assert line.endswith('; chosen: task.r2=1.0')
    assert findings.read(tmp_path / 'own.results.json').findings[1].chosen == {'task.r2': 1.0}
    # Somebody else makes a number again, with the setting that was chosen.
    assert plan.results == tmp_path / 'own.results.json'
    assert again.settled(plan, plan.claims['a'], tmp_path / 'other').settings['a'].row.fields == {'task.r1': 0.5}


@pytest.mark.parametrize(
    'old, new, words',
    [
        ("Tuning('model/nll', 'min', seeds=2)", 'None', 'the study has no Tuning'),
        ('[0.25, 0.5, 1.0]', '[0.25, 0.5]', 'tuned with other budgets, in rows: a 3, b 2'),
        ("tune=values('task.r2', [0.25, 0.5, 1.0]), ", '', 'of it and a one is tuned'),
        ('seeds=2)', 'seeds=2, first_seed=11)', 'first_seed=11 is a seed of the report; give one from 12 on'),
        ("'task.r2', [0.25, 0.5, 1.0]", "'total_steps', [20, 40, 60]", 'trained for other numbers of steps'),
        ("'task.r2', [0.25, 0.5, 1.0]", "'num_seeds', [1, 2, 4]", 'all rows the same num_seeds'),
        ('[0.25, 0.5, 1.0]', '[0.25]', 'nothing to choose'),
        ('tune=values', "fields={'task.r1': 0, 'task.r2': 0}, tune=values", 'both fields and tune set'),
    ],
)
def test_unfair_tuning_is_refused(tmp_path, old, new, words):
    assert old in TUNED
    with pytest.raises(UserError, match=words):
        planning.load(write(tmp_path, TUNED.replace(old, new)))


@pytest.mark.parametrize('k', [1, 2, 3])
def test_a_row_of_tuning_that_is_the_setting_of_another_claim_is_refused(tmp_path, k):
    """Whichever row it is: task.r1 is 0.01 in the config already."""
    values = [0.5, 1.0]
    values.insert(k - 1, 0.01)
    body = TUNED.replace('[0.0, 0.5, 1.0]', str(values)).replace("Claim('b'", "Claim('c', 'x', **own),\n Claim('b'")
    words = f"row {k} of tune of claim a and claim c are the same config, .*fields {{'task.r1': 0.01}}"
    with pytest.raises(UserError, match=words):
        planning.load(write(tmp_path, body))
    same = body.replace("Claim('c', 'x',", "Claim('c', 'x', fields={'task.r1': 0.01},")
    plan = planning.load(write(tmp_path, same))  # as the message says
    assert plan.candidates['a'][k - 1].reported is plan.settings['c']
    twice = TUNED.replace("values('task.r1', [0.0, 0.5, 1.0])", "[{'task.r1': 0.5}, {'task.r1': 0.5}, {}]")
    with pytest.raises(UserError, match='row 1 of tune of claim a and row 2 of tune of claim a are the same config'):
        planning.load(write(tmp_path, twice))


def test_a_run_of_another_config_is_refused(tmp_path):
    runs = Runs(lambda trial: 5.0)
    conducted(write(tmp_path, TWO), tmp_path, runs)
    (config, *_) = tmp_path.glob('gan*/seed-1/config.json')
    config.write_text(config.read_text().replace('"batch_size": 32', '"batch_size": 33').replace('64', '65'))
    with pytest.raises(UserError, match='made with another config; differing in'):
        conducted(str(tmp_path / 'own.py'), tmp_path, runs)


def test_a_study_that_was_changed_after_its_first_run_says_so(tmp_path):
    runs = Runs(lambda trial: 5.0)
    first = conducted(write(tmp_path, TWO), tmp_path, runs).report()
    assert first.notes[0].startswith('registered 20') and first.notes[0].endswith(' before its first run')
    changed = conducted(write(tmp_path, TWO.replace("'table 1', 1.0", "'table 1', 0.5")), tmp_path, runs).report()
    assert 'and changed once since, last' in changed.notes[0] and changed.registration != first.registration
    other = planning.load(write(tmp_path, TWO.replace("'table 1', 1.0", "'table 1', 2.0")))
    rendered = gathering.Gathered(other, tmp_path, None).report()
    assert rendered.notes[0].endswith('; the file has been changed since that')


def test_first_steps_are_read_from_the_evaluations_in_training(tmp_path):
    path = write(tmp_path, f"""
def study():
    return Study('Steps', seeds=2, claims=[
        Claim('first', 'x', {GAN!r}, 'samples/modes', 'min', reach=6.0, first_step=True)])
""")
    found = conducted(path, tmp_path, Runs(lambda trial: 7.0))
    curves = {0: [3.0, 6.0, 7.0], 1: [1.0, 2.0, 5.0]}
    for seed, curve in curves.items():
        lines = [{'step': 10 * (k + 1), 'split': 'eval', 'samples/modes': value} for k, value in enumerate(curve)]
        (folder,) = tmp_path.glob(f'gan*/seed-{seed}')
        (folder / 'metrics.jsonl').write_text(''.join(json.dumps(line) + '\n' for line in lines))
    found = gathering.Gathered(planning.load(path), tmp_path, None).findings['first']
    assert found.values[0] == 20 and math.isnan(found.values[1])


@pytest.mark.parametrize(
    'name, text, words',
    [
        ('manifest.json', '{"commit": ', 'manifest.json: cannot be read as a manifest'),
        ('manifest.json', '{"starts": 3}', 'manifest.json: cannot be read as a manifest: starts is no list'),
        ('metrics.jsonl', '{"step": 1}\n', 'metrics.jsonl, line 1: not a row'),
        ('evaluation.json', '{"step": 20, "samples/modes": {"value": "5"}}', "samples/modes: '5' is no number"),
        ('evaluation.json', '{"step": 20, "samples/modes": {"value": 1%s}}' % ('0' * 400), 'a number is too large'),
        ('config.json', '{"seed": 0', 'config.json: cannot be read'),
    ],
)
def test_a_damaged_run_is_told_and_the_rest_of_the_report_is_made(tmp_path, name, text, words):
    path = write(tmp_path, TWO)
    conducted(path, tmp_path, Runs(lambda trial: 7.0 - 0.1 * trial.seed if 'r1' in trial.name else 5.0))
    (folder,) = tmp_path.glob('gan*r1*/seed-1')
    (folder / name).write_text(text)
    told = report.write(gathering.Gathered(planning.load(path), tmp_path, None), 'python')
    lines = [line for line in told.splitlines() if f'{folder.parent.name}/seed-1' in line and words in line]
    assert lines, told
    found = {one.claim.name: one for one in findings.read(tmp_path / 'own.results.json').findings}
    assert found['a'].verdict == findings.REPRODUCED and [*found['a'].seeds] == [0, 1, 2]
    only_curves = name == 'metrics.jsonl'
    assert [*found['b'].seeds] == ([0, 1, 2] if only_curves else [0, 2])
    assert found['b'].verdict == (findings.REPRODUCED if only_curves else findings.MISSING)


def test_a_damaged_run_of_the_tuning_is_told(tmp_path):
    path = write(tmp_path, TUNED)
    conducted(path, tmp_path, Runs(lambda trial: 5.0))
    runs = [path for path in tmp_path.glob('gan*/seed-*/evaluation.json') if len(path.parent.name) > 10]
    runs[0].write_text(runs[0].read_text().replace('model/nll', 'model/nil'))
    found = gathering.Gathered(planning.load(path), tmp_path, None).findings.values()
    name = f'{runs[0].parent.parent.name}/{runs[0].parent.name}'
    absent = [line for one in found for line in one.absent]
    assert any(line.startswith(f"{name}: its evaluation has no 'model/nll'") for line in absent), absent


def test_a_metric_that_no_run_has_is_named(tmp_path):
    body = TWO.replace("'samples/modes', 'max', Published", "'samples/mode', 'max', Published", 1)
    body = body.replace("Versus('a')", 'None')
    found = conducted(write(tmp_path, body), tmp_path, Runs(lambda trial: 5.0)).findings['a']
    assert found.verdict == findings.MISSING
    assert found.absent[0].endswith("its evaluation has no 'samples/mode'; did you mean samples/modes?")


@pytest.mark.parametrize(
    'body, words',
    [
        ('', 'defines no study()'),
        ('def study(folder): return 3', 'study(folder) of '),
        ('def study(): return 3', 'returns int, not aigc_jax.studies.claims.Study'),
        ("def study(): return Study('t', [])", 'Study: it has no claims'),
        (one('no.py'), 'own.py, claim a: config: there is no file'),
        (one(GAN, fields={'task.los': 1}), "has no field 'los'"),
        (one(GAN, evaluate={'eval.num': 1}), "has no field 'num'"),
        (one(GAN, fields={'num_seeds': 2}), 'give a multiple of it'),
        (
            f"def study():\n    own = dict(claim='x', config='{GAN}', better='min')\n"
            "    b = Claim('b', metric='n', expected=Versus('a'), **own)\n"
            "    return Study('t', [Claim('a', metric='m', **own), b])",
            'a has another metric',
        ),
        (
            f"def study():\n    own = dict(claim='x', config='{GAN}', better='min', metric='m')\n"
            "    return Study('t', [Claim('a', **own), Claim('b', fields={'total_steps': 40}, **own)])",
            'claim a and claim b are the same config, written in two ways',
        ),
        (one('y.py', fields={'seed': 1}), 'set seed'),
        (one('y.py').replace("'m'", "object()"), 'object'),
        ('def study(): 1 / 0', 'division by zero'),
    ],
)  # fmt: skip
def test_a_wrong_study_is_one_line(tmp_path, body, words):
    with pytest.raises(UserError) as error:
        planning.load(write(tmp_path, body))
    assert words in str(error.value) and '\n' not in str(error.value)


@pytest.mark.parametrize(
    'arguments, words',
    [
        ([], '--config: missing'),
        (['--config=own.py'], '--workdir: missing'),
        (['--config=own.py', '--workdir=w', '--config.seed=1'], 'a study sets its fields in its file'),
        (['--config=own.py', '--workdir=w', '--seed=1'], '--seed: missing --row'),
        (['--config=own.py', '--workdir=w', '--until=0.01'], "give 'p<0.01'"),
        (['--config=own.py', '--workdir=w', '--until=p<0.7'], 'between 0 and 0.5'),
        (['--config=own.py', '--workdir=w', '--render', '--row=a'], '--row: --render runs nothing'),
        (['--config=own.py', '--workdir=w', '--row=c'], "--row: own.py has no claim 'c'"),
        (['--config=own.py', '--workdir=w', '--row=a', '--seed=-1'], '--seed=-1: the seeds of own begin with 0'),
        (['--config=own.py', '--workdir=w', '--render'], 'there is no folder w'),
        (['--config=own.py', '--workdir=own.py'], 'own.py is a file'),
        (['--config=own.py', '--workdir=w', 'status'], "'status' is no flag"),
    ],
)
def test_a_mistake_on_the_command_line_is_one_line(tmp_path, monkeypatch, capsys, arguments, words):
    write(tmp_path, TWO)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        door.main(['study', *arguments])
    said = capsys.readouterr().err
    assert ended.value.code == 2 and words in said and said.count('\n') == 1 and not (tmp_path / 'w').exists()


@pytest.mark.parametrize(
    'old, new, words',
    [
        ("'samples/modes'", "'samples/moods'", f"a, metric: {LACKS} 'samples/moods'; did you mean samples/modes"),
        ('fields=fields)', "fields=fields, floors=['fake_logit'])", f"a, floors: {LACKS} 'fake_logit'; did you mean"),
    ],
)  # fmt: skip
@pytest.mark.parametrize('more', [[], ['--dry_run']])
def test_a_misspelt_metric_is_told_before_anything_starts(tmp_path, monkeypatch, capsys, old, new, words, more):
    assert old in TWO
    write(tmp_path, TWO.replace(old, new))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        door.main(['study', '--config=own.py', '--workdir=w', *more])
    said = capsys.readouterr().err
    assert ended.value.code == 2 and words in said and said.count('\n') == 1 and not (tmp_path / 'w').exists()


def test_the_metric_of_a_tuning_is_told_before_anything_starts(tmp_path):
    plan = planning.load(write(tmp_path, TUNED.replace('model/nll', 'discriminator/real_logits')))
    with pytest.raises(UserError, match='metric of its Tuning: .*did you mean discriminator/real_logit'):
        plan.check_metrics(['a', 'b'])


def test_metrics_of_the_committed_studies_are_there(command_line):
    """Names are known before the runs as they are after them."""
    plan = planning.load(f'{ROOT}/configs/studies/oracles.py')
    plan.check_metrics(plan.claims)


def test_a_number_is_compared_with_the_one_before(tmp_path):
    path = write(tmp_path, TWO)
    conducted(path, tmp_path, Runs(lambda trial: 5.0 + 0.1 * trial.seed))
    plan = planning.load(path)
    claim = plan.claims['a']
    old = again.before(plan, claim, 1, tmp_path)
    assert old.seed.value == 5.1 and old.where == str(tmp_path)
    line, code = again.words(claim, 1, old.seed, old)
    assert code == 0 and line.endswith(f'the same to the bit as in {tmp_path}')
    line, code = again.words(claim, 1, findings.Seed(5.3, 'r', 1, 'abc'), old)
    assert code == 1 and 'it is 5.1, a difference of 0.2' in line and 'numerics differ' in line
    # Somebody else has the report alone.
    report.write(gathering.Gathered(plan, tmp_path, None), 'the command')
    (tmp_path / 'own.results.json').rename(plan.results)
    other = tmp_path / 'other'
    where = [tmp_path / old.seed.run, tmp_path / again.FOLDER / old.seed.run]
    for folder, digest in zip(where, 'ab', strict=True):
        folder.mkdir(parents=True, exist_ok=True)
        start = {'step': 0, 'init_step': 5, 'init_sha256': digest}
        (folder / 'manifest.json').write_text(json.dumps({'data': {'fingerprint': 'd'}, 'starts': [start]}))
    assert again.grounds(tmp_path, old.seed, old) == ['the checkpoint of init.run']
    assert again.grounds(tmp_path, old.seed, None) == []
    line, _ = again.words(claim, 1, findings.Seed(5.3, 'r', 1, 'abc'), old, again.grounds(tmp_path, old.seed, old))
    assert line.endswith('; not the same for both: the checkpoint of init.run')
    assert again.before(plan, claim, 2, other).where == 'own.results.json'
    assert again.before(plan, claim, 7, other) is None and again.words(claim, 7, old.seed, None)[1] == 2


def test_a_number_whose_run_fails_has_no_verdict(tmp_path, monkeypatch, capsys):
    """Exit code 1 says that it is another number."""
    write(tmp_path, TWO.replace("{'total_steps': 20}", "{'total_steps': 20, 'data.name': 'npz:none.npz'}"))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        door.main(['study', '--config=own.py', '--workdir=w', '--row=a', '--seed=0'])
    out, said = capsys.readouterr()
    assert ended.value.code == 3 and not out and 'failed: ' in said and 'none.npz' in said


def test_a_study_through_the_command_line(tmp_path, monkeypatch, capsys):
    """Trained, evaluated once more, rendered again to the byte, and a number made again to the bit."""
    body = f"""
def study():
    own = dict(config={FLOW!r}, metric='samples/squared_wasserstein', better='min', fields={{'total_steps': 20,
        'eval_every_steps': 20, 'checkpoint_every_steps': 20, 'eval.transport_samples': 50}})
    return Study('Real', seeds=2, claims=[
        Claim('adaptive', 'x', expected=Published(7.0, 'nowhere', 5.0), **own),
        Claim('euler', 'x', expected=Versus('adaptive'), evaluate={EULER!r}, **own),
    ])
"""
    (tmp_path / 'a folder').mkdir()
    path, workdir = write(tmp_path / 'a folder', body), tmp_path / 'w'
    monkeypatch.chdir(tmp_path)
    flags = [f'--config={path}', f'--workdir={workdir}']

    def called(*arguments) -> str:
        """What it writes to stdout in this process, which has imported what it takes."""
        door.main(['study', *flags, *arguments])
        return capsys.readouterr().out

    assert called('--dry_run').count('aigc_jax.main') == 2 and not workdir.exists()
    places = os.pathsep.join(filter(None, [str(ROOT), os.environ.get('PYTHONPATH')]))
    monkeypatch.setenv('PYTHONPATH', places)
    words = [sys.executable, '-m', 'aigc_jax.study', *flags]
    done = subprocess.run(words, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    first = {name: (workdir / name).read_bytes() for name in report.files('own')}
    found = findings.read(workdir / 'own.results.json')
    adaptive, euler = found.findings
    assert len(adaptive.values) == len(euler.values) == 2 and adaptive.values != euler.values
    assert all(seed.numerics and seed.manifest and seed.hours > 0 for seed in euler.seeds.values())
    table = json.loads(first['report.json'])
    assert [row['name'] for row in table] == ['adaptive', 'euler']
    assert table[0]['values'] == adaptive.values and table[0]['published'] == 7.0 and table[1]['than'] == 'adaptive'
    assert table[0]['value'] == pytest.approx(sum(adaptive.values) / 2) and table[0]['verdict'] == adaptive.verdict
    assert called('--render') == done.stdout
    assert {name: (workdir / name).read_bytes() for name in report.files('own')} == first
    assert f'{euler.seeds[1].value!r}, the same to the bit as in' in called('--row=euler', '--seed=1')
