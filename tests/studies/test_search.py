"""Adaptive search, by runs whose metric is a function of their config."""

import json
import math
import pathlib

import pytest

from aigc_jax import sweep as door
from aigc_jax.core.errors import UserError
from aigc_jax.runs import config as config_lib
from aigc_jax.studies import rows, search, states
from aigc_jax.studies.local import Outcome

pytest.importorskip('optuna')
ROOT = pathlib.Path(__file__).resolve().parents[2]
BODY = """
from aigc_jax.studies.space import Range
def search():
    return {'optim.model.schedule.init_value': Range(1e-5, 1e-1, log=True), 'model.latent_dim': [2, 8],
            'model.encoder.features': [(16,), (8, 8)], 'batch_size': Range(8, 16, integer=True)}
"""
STEPS = 10, 20, 40


@pytest.fixture
def config(tmp_path) -> str:
    path = tmp_path / 'own.py'
    path.write_text((ROOT / 'configs' / 'vae.py').read_text() + BODY)
    return f'{path}:smoke'


def made(config, workdir, count=14, seeds=2, metric='model/nll') -> search.Search:
    return search.Search(config, [], count, seeds, 4, metric, workdir)


class Runs:
    """Runs leave their curves and, at the end, their evaluation. value: of a config; None: it fails. after: calls of
    the launcher until it is interrupted."""

    def __init__(self, value, after: int | None = None, slow: bool = True):
        self.value, self.after, self.slow, self.ended = value, after, slow, []

    def __call__(self, trials, tell, unwanted) -> Outcome:
        for trial in trials:
            config = rows.resolved(trial)
            assert config.eval.final_split == 'valid'
            trial.folder.mkdir(parents=True, exist_ok=True)
            (trial.folder / 'config.json').write_text(config_lib.to_json(config))
            self.train(trial, config, unwanted)
            tell(trial, states.look(trial))
        if self.after is not None:
            self.after -= 1
            if self.after == 0:
                return Outcome({}, 2)
        return Outcome({}, 0)

    def train(self, trial, config, unwanted):
        value = self.value(config)
        if value is None:
            trial.log.write_text('$ the command\nerror: no luck\n[exit code 1]\n')
            return
        for step in STEPS:
            with open(trial.folder / 'metrics.jsonl', 'a') as file:
                row = {'step': step, 'split': 'eval', 'model/nll': value + config.seed + 10 / step}
                file.write(json.dumps(row) + '\n')
            if self.slow and unwanted(trial):  # else the launcher looks too late
                self.ended.append(trial.name)
                return
        row = {'value': value + config.seed, 'n': 10}
        (trial.folder / 'evaluation.json').write_text(json.dumps({'step': config.total_steps, 'model/nll': row}))


def loss(config) -> float:
    rate = math.log10(config.optim.model.schedule.init_value)
    return (rate + 3) ** 2 + (config.model.latent_dim == 2) + 0.5 * (config.model.encoder.features == (16,))


def tried(found: search.Search) -> list[tuple]:
    trials = found._study.get_trials(deepcopy=False)
    return [(trial.params, trial.state.name, trial.value) for trial in trials]


def test_a_search_is_the_same_where_it_was_interrupted_and_where_the_launcher_was_slow(config, tmp_path):
    whole, quick = Runs(loss), Runs(loss, slow=False)
    first = made(config, tmp_path / 'a')
    assert first.run(whole, lambda trial, state: None) == 0
    assert whole.ended, 'nothing was pruned'
    again = made(config, tmp_path / 'b')
    assert again.run(quick, lambda trial, state: None) == 0
    parts = [made(config, tmp_path / 'c'), made(config, tmp_path / 'c')]
    assert parts[0].run(Runs(loss, after=2), lambda trial, state: None) == 2
    assert parts[1].run(Runs(loss), lambda trial, state: None) == 0
    assert tried(first) == tried(again) == tried(parts[1]) and len(tried(first)) == 14
    assert {state for _, state, _ in tried(first)} == {'COMPLETE', 'PRUNED'}
    more = made(config, tmp_path / 'c', count=18)
    assert more.run(Runs(loss), lambda trial, state: None) == 0 and tried(more)[:14] == tried(first)


def test_it_finds_what_is_best_and_says_how_to_train_it(config, tmp_path):
    found = made(config, tmp_path / 'w', count=30, seeds=1)
    assert found.run(Runs(loss), lambda trial, state: None) == 0
    best = found.best().fields
    assert best['model.latent_dim'] == 8 and best['model.encoder.features'] == (8, 8)
    assert 2e-4 < best['optim.model.schedule.init_value'] < 5e-3
    words = found.words()
    assert f'--config.optim.model.schedule.init_value={best["optim.model.schedule.init_value"]}' in words
    assert 'the best by model/nll on the validation split' in words
    assert "'--config.model.encoder.features=(8, 8)'" in words


def test_a_setting_that_fails_is_no_end(config, tmp_path):
    found = made(config, tmp_path / 'w', count=8, seeds=1)
    lost = lambda config: math.nan if config.batch_size == 8 else loss(config)
    fails = lambda config: None if config.model.latent_dim == 2 else lost(config)
    assert found.run(Runs(fails), lambda trial, state: None) == 0
    assert {state for _, state, _ in tried(found)} >= {'COMPLETE', 'FAIL'}
    assert found.best().fields['model.latent_dim'] == 8
    none = made(config, tmp_path / 'none', count=2, seeds=1)
    assert none.run(Runs(lambda config: None), lambda trial, state: None) == 0
    assert none.best() is None and none.words() == '2 fail; none is over'


@pytest.mark.parametrize(
    'body, words',
    [
        ('', 'has no search()'),
        ('def search(): return []', 'not {field: Range or list}'),
        ("def search(): return {'task.k': 3}", 'neither a Range nor a list'),
        ("def search(): return {'task.kk': [1, 2]}", 'has no such field'),
        ("def search(): return {'seed': [1, 2]}", 'no row sets it'),
        ("def search(): return {'model.latent_dim': ['many', 'few']}", 'model.latent_dim'),
    ],
)
def test_a_wrong_space_is_one_line(tmp_path, capsys, body, words):
    path = tmp_path / 'own.py'
    path.write_text((ROOT / 'configs' / 'vae.py').read_text() + '\n\n' + body)
    with pytest.raises(SystemExit) as ended:
        door.main(['sweep', f'--config={path}:smoke', f'--workdir={tmp_path}/w', '--search=2', '--metric=model/nll'])
    said = capsys.readouterr().err
    assert ended.value.code == 2 and words in said and said.count('\n') == 1


def test_a_misspelt_metric_is_told_before_anything_starts(config, tmp_path):
    runs = Runs(loss)
    with pytest.raises(UserError, match="--metric: an evaluation of these runs will have no 'model/mll'; did you mean"):
        made(config, tmp_path / 'w', metric='model/mll').run(runs, lambda trial, state: None)
    assert not (tmp_path / 'w').exists()


@pytest.mark.parametrize('more', [[], ['--dry_run']])
def test_a_misspelt_metric_of_a_sweep_is_told_before_anything_starts(tmp_path, capsys, more):
    sweep = ['sweep', f'--config={ROOT}/configs/gan.py:ring8,smoke', f'--workdir={tmp_path}/w', '--seeds=2']
    with pytest.raises(SystemExit) as ended:
        door.main([*sweep, '--sweep.task.loss=hinge,wasserstein', '--metric=samples/mode', *more])
    out, said = capsys.readouterr()
    assert ended.value.code == 2 and out == '' and said.count('\n') == 1 and not (tmp_path / 'w').exists()
    assert "--metric: an evaluation of these runs will have no 'samples/mode'; did you mean samples/modes" in said


def test_another_search_in_the_folder_is_refused(config, tmp_path):
    found = made(config, tmp_path / 'w', count=2, seeds=1)
    found.run(Runs(loss), lambda trial, state: None)
    with pytest.raises(UserError, match=r'another search; differing: metric: model/nll there, model/elbo here; seeds:'):
        made(config, tmp_path / 'w', metric='model/elbo').run(Runs(loss), lambda trial, state: None)
    journal = tmp_path / 'w' / search.JOURNAL
    first, *rest = journal.read_bytes().splitlines(keepends=True)
    other = first.replace(b'"op_code":0', b'"op_code":99')
    for line in (b'{"op_code": 0\n', b'[1]\n', b'\xff\xfe\n', other, b'{}\n'):
        journal.write_bytes(line + b''.join(rest))
        with pytest.raises(UserError, match='cannot be read as the journal of a search'):
            made(config, tmp_path / 'w', seeds=1).run(Runs(loss), lambda trial, state: None)


def test_a_search_that_was_killed_as_it_began_its_journal_goes_on(config, tmp_path):
    made(config, tmp_path / 'a', count=2, seeds=1).run(Runs(loss), lambda trial, state: None)
    lines = (tmp_path / 'a' / search.JOURNAL).read_bytes().splitlines(keepends=True)
    (tmp_path / 'w').mkdir()
    (tmp_path / 'w' / search.JOURNAL).write_bytes(b''.join(lines[:3]))
    found = made(config, tmp_path / 'w', count=2, seeds=1)
    assert found.run(Runs(loss), lambda trial, state: None) == 0 and len(found.sweep().rows) == 2


def test_what_a_search_cannot_do_is_refused(config, tmp_path):
    with pytest.raises(UserError, match='--metric: missing'):
        search.Search(config, [('eval.best_metric', '')], 2, 1, 4, None, tmp_path)
    for override, words in ((('num_seeds', '2'), 'set it to 1'), (('eval.final_split', 'test'), 'leave it out')):
        with pytest.raises(UserError, match=words):
            search.Search(config, [override], 2, 1, 4, 'model/nll', tmp_path)


def test_a_search_through_the_command_line(config, tmp_path, capsys):
    arguments = [f'--config={config}', f'--workdir={tmp_path}/w', '--search=2', '--jobs=2', '--metric=model/nll']
    small = ['--config.total_steps=20', '--config.eval_every_steps=10', '--config.checkpoint_every_steps=20']
    door.main(['sweep', *arguments, *small])
    said = capsys.readouterr()
    assert '2 complete; the best by model/nll on the validation split: --config.' in said.err
    assert said.out.count('1/1') == 2
