"""Runs of before the fields had a version are opened with the values that they were made with.

schema_0/ holds config.json of such runs, as the configs of 23 and 24 November 2026 wrote them in their smoke variants.
"""

import json
import pathlib
import shutil

import pytest
from refusals import VAE, assert_refused

from aigc_jax.core.errors import UserError
from aigc_jax.runs import config as config_lib
from aigc_jax.runs.experiment import Experiment
from aigc_jax.runs.migrations import SCHEMA

OLD = sorted((pathlib.Path(__file__).parent / 'schema_0').glob('*.json'))
LATER = {
    'vae': {
        'model.kind': 'mlp', 'model.prior': 'normal', 'model.posterior': 'gaussian', 'model.stochastic_layers': 1,
        'task.estimator': 'standard', 'task.free_bits': 0.0, 'task.tc_weight': 0.0, 'eval.k_curve': False,
        'eval.temperature': 1.0, 'eval.ais_temperatures': 0, 'eval.interpolation': 'spherical', 'eval.extractor': '',
        'data.shape': (), 'data.augment.flip': False, 'data.augment.mixup': 0.0, 'optim.model.clip_weights': 0.0,
    },
    'gan': {
        'model.kind': 'mlp', 'task.dragan': 0.0, 'task.lecam': 0.0, 'task.augmentation': 'none', 'task.packing': 1,
        'task.top_k': 1.0, 'task.auxiliary': 0.0, 'task.unrolled_steps': 0, 'task.penalty_every': 1,
        'eval.extractor': '', 'optim.discriminator.clip_weights': 0.0, 'optim.generator.clip_weights': 0.0,
    },
    'gpt': {
        'data.code': False, 'data.fim_rate': 0.0, 'data.fim_identifiers': 0.0, 'data.dir': '', 'eval.problems': '',
        'model.scan_layers': False,
    },
    'rnn_lm': {'data.code': False, 'data.dir': '', 'eval.problems': ''},
    'vq': {'eval.temperature': 1.0, 'eval.num_samples': 10_000, 'eval.extractor': ''},
}  # fmt: skip


@pytest.mark.parametrize('path', OLD, ids=lambda path: path.stem)
def test_an_old_config_keeps_its_values_and_gets_those_it_lacked(path, tmp_path):
    shutil.copy(path, tmp_path / 'config.json')
    before = config_lib.flatten(config_lib.ConfigDict(config_lib._tuples(json.loads(path.read_text()))))
    assert 'schema' not in before
    config = config_lib.from_json(tmp_path / 'config.json')
    config_lib.check(config)
    after = config_lib.flatten(config)
    assert config.schema == SCHEMA
    assert after['init.run'] == before.pop('init_from') == '' and after['init.average']
    assert {name: after[name] for name in before} == before
    for name, value in LATER[path.stem].items():
        assert name not in before and after[name] == value, name
    assert Experiment(config).abstract_state.params
    # Brought up once, it is a config of today.
    (tmp_path / 'config.json').write_text(config_lib.to_json(config))
    assert config_lib.flatten(config_lib.from_json(tmp_path / 'config.json')) == after


def test_a_run_that_began_from_another_took_its_parameters_themselves(tmp_path):
    fields = json.loads((OLD[0].parent / 'vae.json').read_text()) | {'init_from': 'runs/first'}
    (tmp_path / 'config.json').write_text(json.dumps(fields))
    init = config_lib.from_json(tmp_path / 'config.json').init
    assert init.to_dict() == {'run': 'runs/first', 'step': '', 'average': False}


def test_text_of_before_its_samples_were_measured_has_no_such_metrics(tmp_path):
    fields = json.loads((OLD[0].parent / 'gpt.json').read_text())
    del fields['eval']['num_samples']
    (tmp_path / 'config.json').write_text(json.dumps(fields))
    config = config_lib.from_json(tmp_path / 'config.json')
    config_lib.check(config)
    assert config.eval.num_samples == 0


def old_form(folder: pathlib.Path) -> None:
    """Takes from config.json what came after the first runs."""
    fields = json.loads((folder / 'config.json').read_text())
    del fields['schema'], fields['data']['shape'], fields['data']['augment'], fields['eval']['extractor']
    del fields['optim']['model']['clip_weights'], fields['task']['estimator'], fields['model']['prior']
    del fields['model']['kind'], fields['eval']['also_each'], fields['eval']['interpolation']
    (folder / 'config.json').write_text(json.dumps(fields))


def test_an_old_run_is_evaluated_and_resumed_as_it_was(runner, smoke, tmp_path):
    now, old = (shutil.copytree(smoke('vae'), tmp_path / name) for name in ('now', 'old'))
    old_form(old)
    for folder in (now, old):
        code, _, err = runner(f'--workdir={folder}', '--mode=evaluate')
        assert code == 0, err
        code, _, err = runner(VAE, f'--workdir={folder}', '--config.total_steps=60')
        assert code == 0, err
    assert (now / 'metrics.jsonl').read_bytes() == (old / 'metrics.jsonl').read_bytes()
    assert (now / 'evaluation.json').read_bytes() == (old / 'evaluation.json').read_bytes()
    assert json.loads((old / 'config.json').read_text())['schema'] == SCHEMA  # as it goes on with more steps


@pytest.mark.parametrize('version', [SCHEMA + 1, -1, 'new', None, 0.5, True])
def test_a_run_of_another_version(runner, smoke, tmp_path, version):
    folder = shutil.copytree(smoke('vae'), tmp_path / 'run')
    fields = json.loads((folder / 'config.json').read_text())
    (folder / 'config.json').write_text(json.dumps(fields | {'schema': version}))
    answer = runner(f'--workdir={folder}', '--mode=evaluate')
    assert_refused(answer, f'config.json: schema is {version!r}; this version of aigc_jax reads 0 to {SCHEMA}')


def test_a_run_that_lacks_a_field_is_refused(tmp_path, smoke):
    """Its default need not be what the run had."""
    fields = json.loads((smoke('vae') / 'config.json').read_text())
    del fields['task']['beta']
    (tmp_path / 'config.json').write_text(json.dumps(fields))
    with pytest.raises(UserError, match=r'^task\.beta: this field is missing; task has name, likelihood, k, beta'):
        config_lib.check(config_lib.from_json(tmp_path / 'config.json'))
