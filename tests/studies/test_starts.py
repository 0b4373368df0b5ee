"""Claims whose runs start from the runs of another claim, as a fine-tuning starts from a pre-training."""

import json
import pathlib
import shutil
import subprocess
import sys

import pytest
from test_study import FLOW, ROOT, Runs, write

from aigc_jax.core.errors import UserError
from aigc_jax.studies import again, gathering, planning, registration, rows, states
from aigc_jax.studies.claims import Claim, Study
from aigc_jax.studies.conduct import Conduct

BODY = f"""
def study():
    short = {{'total_steps': 20}}
    return Study('Pre-training', seeds=2, claims=[
        Claim('tuned', 'it helps', {FLOW!r}, 'model/nll', 'min', Versus('scratch'), start='pre',
              fields=short),
        Claim('scratch', 'from nothing', {FLOW!r}, 'model/nll', 'min', fields=short),
        Claim('pre', 'before', {FLOW!r}, 'model/nll', 'min'),
    ])
"""


def conduct(plan, workdir, launch, claims) -> Conduct:
    return Conduct(plan, workdir, claims, None, None, launch, 10, lambda words: None)


@pytest.fixture
def plan(tmp_path):
    return planning.load(write(tmp_path, BODY))


def test_a_run_waits_for_the_one_that_it_starts_from(plan, tmp_path):
    """--row=tuned trains what it starts from, too; each seed starts from the run of its own seed."""
    launch = Runs(lambda trial: 1.0)
    assert conduct(plan, tmp_path, launch, ['tuned']).run() == 0
    pre, tuned, scratch = (plan.settings[name].row.name for name in ('pre', 'tuned', 'scratch'))
    first = [f'{name}/seed-{seed}' for seed in (0, 1) for name in (pre, scratch)]
    assert launch.begun == [*first, f'{tuned}/seed-0', f'{tuned}/seed-1']
    assert len({pre, tuned, scratch}) == 3
    config = json.loads((tmp_path / tuned / 'seed-1' / 'config.json').read_text())
    assert config['init']['run'] == str(tmp_path / pre / 'seed-1')
    assert not conduct(plan, tmp_path, launch, ['tuned']).todo()[0]


def test_the_folder_of_a_study_may_move(plan, tmp_path):
    conduct(plan, tmp_path / 'here', Runs(lambda trial: 1.0), ['tuned', 'scratch', 'pre']).run()
    shutil.move(tmp_path / 'here', tmp_path / 'there')
    found = gathering.Gathered(plan, tmp_path / 'there', None)
    assert {name: len(one.seeds) for name, one in found.findings.items()} == {'tuned': 2, 'scratch': 2, 'pre': 2}
    (pair,) = plan.trials_of(plan.claims['tuned'], [1], tmp_path / 'there')
    text = (pair.trained.folder / 'config.json').read_text()
    other = text.replace('/seed-1"', '/seed-0"')  # another run than its own
    assert text != other
    (pair.trained.folder / 'config.json').write_text(other)
    assert states.look(pair.trained).kind == states.OTHER


def test_where_the_start_fails_nothing_starts(plan, tmp_path):
    launch = Runs(lambda trial: None if plan.settings['pre'].row.name in trial.name and trial.seed == 0 else 1.0)
    found = conduct(plan, tmp_path, launch, ['tuned'])
    found.run()
    tuned = plan.settings['tuned'].row.name
    assert [name for name in launch.begun if name.startswith(tuned)] == [f'{tuned}/seed-1']
    assert set(found.gathered().findings['tuned'].seeds) == {1}


def test_one_number_again_starts_from_the_run_that_is_there(plan, tmp_path):
    conduct(plan, tmp_path, Runs(lambda trial: 1.0), ['tuned']).run()
    trained = again.trials(plan, plan.claims['tuned'], 1, tmp_path).trained
    assert trained.folder.is_relative_to(tmp_path / 'again')
    source = tmp_path / plan.settings['pre'].row.name / 'seed-1'
    assert dict(rows.overrides_of(trained))['init.run'] == str(source)
    source.rename(tmp_path / 'away')
    with pytest.raises(UserError, match='which is not there; run the study with --row=tuned first'):
        again.trials(plan, plan.claims['tuned'], 1, tmp_path)


@pytest.mark.parametrize('change, words', [
    (("start='pre'", "start='pro'"), "tuned: start='pro', which is no claim"),
    (("'before', ", "'before', start='tuned', config="), 'it starts from'),
    (('fields=short),', "fields={'init.run': 'x'}),"), 'leave out one'),
    (("'min'),\n    ])", "'min', fields={'num_seeds': 2}),\n    ])"), 'which have num_seeds=2'),
])  # fmt: skip
def test_mistakes_are_named(tmp_path, change, words):
    body = BODY.replace(*change, 1).replace("config='" + FLOW, f"config='{FLOW}").replace(
        f"start='tuned', config={FLOW!r}, 'model/nll', 'min'",
        f"{FLOW!r}, 'model/nll', 'min', start='tuned'",
    )  # fmt: skip
    assert body != BODY
    with pytest.raises(UserError) as caught:
        planning.load(write(tmp_path, body))
    assert words in str(caught.value)


def test_each_round_is_pruned_by_the_run_of_the_round_before(tmp_path):
    """A chain of starts: --row=second trains both rounds before it, in their order."""
    body = f"""
def study():
    row = lambda name, keep, **more: Claim(
        name, 'x', {FLOW!r}, 'model/nll', 'min', into='prune.run', fields={{'prune.keep': keep}}, **more)
    return Study('Rounds', seeds=1, claims=[
        row('second', 0.25, start='first'), row('first', 0.5, start='dense'),
        Claim('dense', 'x', {FLOW!r}, 'model/nll', 'min'),
    ])
"""
    plan, launch = planning.load(write(tmp_path, body)), Runs(lambda trial: 1.0)
    assert conduct(plan, tmp_path, launch, ['second']).run() == 0
    names = [plan.settings[name].row.name for name in ('dense', 'first', 'second')]
    assert launch.begun == [f'{name}/seed-0' for name in names] and len(set(names)) == 3
    for before, name in zip(names, names[1:], strict=False):
        config = json.loads((tmp_path / name / 'seed-0' / 'config.json').read_text())
        assert config['prune']['run'] == str(tmp_path / before / 'seed-0') and not config['init']['run']
    shutil.move(tmp_path / names[0], tmp_path / 'there' / names[0])
    shutil.move(tmp_path / names[1], tmp_path / 'there' / names[1])
    (pair,) = plan.trials_of(plan.claims['first'], [0], tmp_path / 'there')
    assert states.look(pair.trained).kind == states.DONE
    with pytest.raises(UserError, match="into='init.step'; it is init.run or prune.run"):
        planning.load(write(tmp_path, body.replace("into='prune.run'", "into='init.step'")))


def test_a_study_without_starts_is_registered_as_before():
    registered = registration.digest(Study('t', [Claim('a', 'x', 'c.py', 'm', 'min')]))
    assert registered == 'b3b6b92b72fc62ea757f68f8e44e65d94f7c057e635770015293d57585256617'


def test_a_study_of_two_stages_through_the_command_line(tmp_path):
    """The second stage begins where the first one ended, after its 40 steps."""
    path = write(tmp_path, BODY.replace('seeds=2', 'seeds=1').replace("Versus('scratch')", 'None'))
    flags = f'--config={path}', f'--workdir={tmp_path}/study', '--row=tuned', '--jobs=1'
    words = [sys.executable, '-m', 'aigc_jax.study', *flags]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    plan = planning.load(path)
    folders = [pathlib.Path(tmp_path / 'study' / plan.settings[name].row.name) for name in ('pre', 'tuned')]
    made = json.loads((folders[1] / 'seed-0' / 'manifest.json').read_text())
    assert made['starts'][0]['init_step'] == 40 and (folders[0] / 'seed-0' / 'evaluation.json').exists()
    assert 'tuned' in (tmp_path / 'study' / 'report.md').read_text()
