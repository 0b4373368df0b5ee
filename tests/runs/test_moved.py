"""A run goes on, and is opened, where what its config names lies elsewhere now, and with nothing else."""

import json
import shutil

import pytest

import aigc_jax
from aigc_jax.core.errors import UserError
from aigc_jax.runs import config as config_lib
from aigc_jax.runs import initial, moved
from aigc_jax.runs.folder import Run
from aigc_jax.training.trainer import train

TEXT = 'a cab and a bag had a head in a bed of beech\n' * 40
FIELDS = {
    'total_steps': 1, 'steps_per_call': 1, 'log_every_steps': 1, 'eval_every_steps': 1, 'checkpoint_every_steps': 1,
    'batch_size': 4, 'data.tokenizer': 'char', 'data.block': 12, 'data.eval_stride': 12, 'eval.ngram_order': 1,
    'eval.num_samples': 0, 'eval.num_shown': 1, 'eval.best_metric': '', 'model.layers': 1, 'model.width': 8,
}  # fmt: skip


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """With a finished `run` on a text, which lies at `here` and at `elsewhere`."""
    folder = tmp_path_factory.mktemp('moved')
    for place in ('here', 'elsewhere'):
        (folder / place).mkdir()
        (folder / place / 'Übung 1.txt').write_text(TEXT)
    train(config(folder / 'here'), Run(folder / 'run'))
    return folder


def config(place, **fields):
    fields = {**FIELDS, 'data.name': f'text:{place}/Übung 1.txt', **fields}
    return config_lib.load('configs/gpt.py:smoke', [(name, str(value)) for name, value in fields.items()])


def test_data_at_another_place_are_the_same_and_other_data_are_refused(folder, tmp_path):
    shutil.copytree(folder / 'run', tmp_path / 'run')
    run = Run(tmp_path / 'run')
    assert train(config(folder / 'elsewhere'), run).step == 1
    (tmp_path / 'Übung 1.txt').write_text(TEXT.replace('beech', 'a bed'))
    with pytest.raises(UserError, match=rf'^data.name: text:{tmp_path}/Übung 1.txt.* what this run was trained on'):
        train(config(tmp_path), run)
    for kind in ('jsonl:', 'code:'):  # reads the same file in another way
        with pytest.raises(UserError, match='another config; differing: data.name'):
            train(config(folder, **{'data.name': f'{kind}{folder}/elsewhere/Übung 1.txt'}), run)
    run.paths.manifest.unlink()
    with pytest.raises(UserError, match='another config; differing: data.name'):
        train(config(folder / 'elsewhere'), run)


def test_where_data_are_gone_the_mend_is_named(folder, tmp_path):
    shutil.copytree(folder / 'run', tmp_path / 'run')
    path = tmp_path / 'run' / 'config.json'
    path.write_text(path.read_text().replace('here/', 'gone/'))
    mend = r'; where these data lie elsewhere now, add --config.data.name=text:NEW_PLACE$'
    gone = [
        lambda: aigc_jax.open(tmp_path / 'run'), lambda: aigc_jax.evaluate(tmp_path / 'run'),
        lambda: aigc_jax.export(tmp_path / 'run', tmp_path / 'out'),
        lambda: train(config(folder / 'gone', total_steps=2), Run(tmp_path / 'run')),
    ]  # fmt: skip
    for call in gone:
        with pytest.raises(UserError, match=f'gone/Übung 1.txt: cannot be read: .*{mend}') as error:
            call()
        assert '\n' not in str(error.value)
    moved = {'data.name': f'text:{folder}/elsewhere/Übung 1.txt'}
    assert aigc_jax.open(tmp_path / 'run', overrides=moved).step == 1
    with pytest.raises(UserError, match='cannot be read: [^;]*$'):  # the new name is wrong: nothing has moved
        aigc_jax.open(tmp_path / 'run', overrides={'data.name': 'text:/nowhere'})
    several = f'text:train={folder}/here/Übung 1.txt,valid=/gone'
    path.write_text(path.read_text().replace(f'text:{folder}/gone', several))
    with pytest.raises(UserError, match='add --config.data.name=text:train=NEW_PLACE,valid=NEW_PLACE$'):
        aigc_jax.open(tmp_path / 'run')


@pytest.mark.parametrize('field, names', [('init.run', 'init'), ('prune.run', 'prune')])
def test_the_run_that_a_run_began_with_may_lie_elsewhere(folder, field, names, tmp_path):
    """Told by its digest: as the manifest has it."""
    shutil.copytree(folder / 'run', tmp_path / 'run')
    shutil.copytree(folder / 'run', tmp_path / 'moved')
    run = Run(tmp_path / 'run')
    saved, manifest = (json.loads(path.read_text()) for path in (run.paths.config, run.paths.manifest))
    group, name = field.split('.')
    saved[group][name] = str(tmp_path / 'gone')
    run.paths.config.write_text(json.dumps(saved))
    taken = {'step': 1, 'sha256': initial.digest_of(folder / 'run', 1), 'config': initial.said(folder / 'run')}
    manifest['starts'][0] |= {f'{names}_{what}': value for what, value in taken.items()}
    run.paths.manifest.write_text(json.dumps(manifest))
    assert moved.fields(config(folder / 'here', **{field: tmp_path / 'moved'}), run) == {field}
    told = tmp_path / 'moved' / 'config.json'
    before = told.read_text()
    told.write_text(before.replace('"ema_decay": 0.0', '"ema_decay": 0.5'))
    assert told.read_text() != before
    for other in ('moved', 'nowhere'):
        assert not moved.fields(config(folder / 'here', **{field: tmp_path / other}), run)
    with pytest.raises(UserError, match=f'another config; differing: {field}'):
        train(config(folder / 'here', **{field: tmp_path / 'nowhere'}), run)
