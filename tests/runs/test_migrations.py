"""Runs of before the fields had a version are opened with the values that they were made with.

schema_0/ holds config.json of such runs, as the configs of 23 and 24 November 2026 wrote them in their smoke variants.
schema_1/ holds those of 27 November, before `sample`; some fields of `eval` that it has now are not the defaults there.
schema_2/ holds those of the language models of before pre-training.
"""

import json
import pathlib
import shutil

import pytest
from refusals import GAN, VAE, assert_refused

from aigc_jax.core.errors import UserError
from aigc_jax.runs import config as config_lib
from aigc_jax.runs.experiment import Experiment
from aigc_jax.runs.migrations import SCHEMA

OLD = sorted((pathlib.Path(__file__).parent / 'schema_0').glob('*.json'))
LATER = {
    'vae': {
        'model.kind': 'mlp', 'model.prior': 'normal', 'model.posterior': 'gaussian', 'model.stochastic_layers': 1,
        'task.estimator': 'standard', 'task.free_bits': 0.0, 'task.tc_weight': 0.0, 'eval.k_curve': False,
        'sample.temperature': 1.0, 'eval.ais_temperatures': 0, 'eval.interpolation': 'spherical', 'eval.extractor': '',
        'data.shape': (), 'data.augment.flip': False, 'data.augment.mixup': 0.0, 'optim.model.clip_weights': 0.0,
    },
    'gan': {
        'model.kind': 'mlp', 'task.dragan': 0.0, 'task.lecam': 0.0, 'task.augmentation': 'none', 'task.packing': 1,
        'task.top_k': 1.0, 'task.auxiliary': 0.0, 'task.unrolled_steps': 0, 'task.penalty_every': 1,
        'eval.extractor': '', 'optim.discriminator.clip_weights': 0.0, 'optim.generator.clip_weights': 0.0,
    },
    'gpt': {
        'data.code': False, 'data.fim_rate': 0.0, 'data.fim_identifiers': 0.0, 'data.dir': '', 'eval.problems': '',
        'model.scan_layers': False, 'sample.temperature': 1.0, 'sample.top_k': 0, 'sample.top_p': 1.0,
        'data.special': (), 'data.sentinels': 0,
    },
    'rnn_lm': {'data.code': False, 'data.dir': '', 'eval.problems': ''},
    'vq': {'sample.temperature': 1.0, 'eval.num_samples': 10_000, 'eval.extractor': ''},
}  # fmt: skip


SAMPLING = {
    'sample.repetition_penalty': 1.0, 'sample.temperature': 1.0, 'sample.top_k': 0, 'sample.top_p': 1.0,
    'sample.min_p': 0.0,
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


# Of a Transformer, since BERT, T5 and Llama are built of its block.
BLOCK = {
    'head_width': 0, 'norm_epsilon': 0.0, 'qk_scale': False, 'qkv_bias': False, 'rope_theta': 10_000.0,
    'rope_scaling': (),
}  # fmt: skip


QUANTIZE = {
    'weights': '', 'activations': '', 'group': 0, 'targets': '.*', 'method': 'rtn', 'examples': 128,
}  # fmt: skip
DISTILL = {'run': '', 'step': '', 'average': True, 'weight': 0.5, 'temperature': 2.0}  # the same
ADAPT = {'name': '', 'rank': 8, 'alpha': 16.0, 'targets': '(query|value)/kernel'}  # of any run, since then
PRUNE = {
    'keep': 1.0, 'targets': '.*', 'rules': (), 'scope': 'layer', 'run': '', 'step': '', 'redrawn': False,
    'begin': 0, 'end': 0, 'every': 100,
}  # fmt: skip


@pytest.mark.parametrize('name, where', [('gpt', 'model'), ('vq', 'model.prior')])
def test_a_transformer_of_before_pretraining_is_the_same_one(name, where, tmp_path):
    shutil.copy(OLD[0].parent.parent / 'schema_2' / f'{name}.json', tmp_path / 'config.json')
    fields = json.loads((tmp_path / 'config.json').read_text())
    before = config_lib.flatten(config_lib.ConfigDict(config_lib._tuples(fields)))
    assert before.pop('schema') == 2
    config = config_lib.from_json(tmp_path / 'config.json')
    config_lib.check(config)
    after = config_lib.flatten(config)
    assert after.pop('schema') == SCHEMA
    assert {field: after[field] for field in before} == before
    assert {field: after[f'{where}.{field}'] for field in BLOCK} == BLOCK
    if name == 'gpt':
        assert after['data.special'] == () and after['data.sentinels'] == 0 and not after['data.number_identifiers']
    assert Experiment(config).abstract_state.params


def test_an_encoder_decoder_of_before_tagging_has_none(tmp_path):
    now = config_lib.load(f'{OLD[0].parents[3]}/configs/t5.py:smoke,identifier_aware', [])
    fields = now.to_dict() | {'schema': 4}
    del fields['task']['tagging_share']
    (tmp_path / 'config.json').write_text(json.dumps(fields))
    assert config_lib.differing(config_lib.from_json(tmp_path / 'config.json'), now) == []
    assert now.task.tagging_share == 0 and now.schema == SCHEMA


def test_a_prefix_language_model_of_before_is_told_that_windows_are_cut_otherwise(tmp_path, capsys):
    fields = config_lib.load(f'{OLD[0].parents[3]}/configs/t5.py:smoke,prefix', []).to_dict() | {'schema': 5}
    del fields['init']['rename']
    (tmp_path / 'config.json').write_text(json.dumps(fields))
    assert config_lib.from_json(tmp_path / 'config.json').init.rename == ()
    assert capsys.readouterr().err.count('note: task.objective: prefix cut each window in the middle') == 1


@pytest.mark.parametrize('name', [
    'bert.py:smoke', 'bert.py:smoke,electra', 'finetune_classify.py:smoke', 't5.py:smoke',
])  # fmt: skip
def test_a_model_of_before_its_layers_could_be_in_a_loop_has_them_one_by_one(name, tmp_path):
    now = config_lib.load(f'{OLD[0].parents[3]}/configs/{name}', [])
    fields = now.to_dict() | {'schema': 5}
    assert fields['model'].pop('scan_layers') is False
    (tmp_path / 'config.json').write_text(json.dumps(fields))
    assert config_lib.differing(config_lib.from_json(tmp_path / 'config.json'), now) == []


def test_a_classifier_of_images_of_before_that_gets_no_such_field(tmp_path):
    now = config_lib.load(f'{OLD[0].parents[3]}/configs/classify.py:smoke', [])
    (tmp_path / 'config.json').write_text(json.dumps(now.to_dict() | {'schema': 5}))
    assert config_lib.differing(config_lib.from_json(tmp_path / 'config.json'), now) == []


MOVED = {
    'flow': {
        'eval.solver': 'sample.solver', 'eval.steps': 'sample.steps', 'eval.tolerance': 'sample.tolerance',
        'eval.guidance': 'sample.guidance',
    },
    'vae': {'eval.temperature': 'sample.temperature'},
    'vq': {'eval.temperature': 'sample.temperature'},
    'gan': {},
    'gpt': {},
}  # fmt: skip
FLOW = '--config=configs/flow.py:smoke'


@pytest.mark.parametrize('name', MOVED)
def test_what_says_how_samples_are_drawn_has_moved(name, tmp_path):
    path = OLD[0].parent.parent / 'schema_1' / f'{name}.json'
    shutil.copy(path, tmp_path / 'config.json')
    before = config_lib.flatten(config_lib.ConfigDict(config_lib._tuples(json.loads(path.read_text()))))
    assert before.pop('schema') == 1 and not any(field.startswith('sample') for field in before)
    config = config_lib.from_json(tmp_path / 'config.json')
    config_lib.check(config)
    after = config_lib.flatten(config)
    assert after.pop('schema') == SCHEMA
    expected = {MOVED[name].get(field, field): value for field, value in before.items()}
    if name == 'flow':  # one tolerance was that of both
        assert expected['sample.solver'] == 'mean_flow' and expected['sample.guidance'] == 2.0
        expected['eval.nll_tolerance'] = before['eval.tolerance']
    if name == 'vae':
        assert after['sample.temperature'] == 0.7
    if name != 'gpt':  # as many as there were samples, and no more than 2000
        expected['eval.transport_samples'] = 200
    blocks = {'gpt': 'model', 'vq': 'model.prior'}
    added = {'gan': {'sample': {}}, 'flow': {}, 'vae': {}}.get(name, SAMPLING)
    added = added | {f'adapt.{field}': value for field, value in ADAPT.items()}
    added = added | {'init.drawn': '', 'init.unused': '', 'init.rename': ()}
    added = added | {f'prune.{field}': value for field, value in PRUNE.items()}
    added = added | {f'distill.{field}': value for field, value in DISTILL.items()}
    added = added | {f'optim.{player}.layer_decay': 1.0 for player in config.optim}
    added = added | {f'quantize.{field}': value for field, value in QUANTIZE.items()} | {'eval.model_bytes': False}
    if name in blocks:
        added = added | {f'{blocks[name]}.{field}': value for field, value in BLOCK.items()}
    if name == 'gpt':
        added = added | {
            'data.special': (), 'data.sentinels': 0, 'data.number_identifiers': False, 'model.vocab_size': 0,
        }  # fmt: skip
    assert {field: (dict(v) if field == 'sample' else v) for field, v in after.items()} == {**added, **expected}
    assert Experiment(config).abstract_state.params
    (tmp_path / 'config.json').write_text(config_lib.to_json(config))
    assert config_lib.flatten(config_lib.from_json(tmp_path / 'config.json')) == {**after, 'schema': SCHEMA}


OLD_NAMES = {
    'solver': ([FLOW, '--config.eval.solver=euler'], "eval has no field 'solver'; did you mean sample.solver?"),
    'tolerance': ([FLOW, '--config.eval.tolerance=1e-4'], 'did you mean sample.tolerance, nll_tolerance?'),
    'of a VAE': ([VAE, '--config.eval.temperature=0.5'], 'did you mean distill.temperature, sample.temperature'),
    'in a file': (['--config={}/mine.py:slow'], 'eval.steps: eval has no such field; did you mean sample.steps?'),
    'of no sampler': ([GAN, '--config.sample.temprature=0.5'], "sample has no field 'temprature'; there is none"),
}  # fmt: skip


@pytest.mark.parametrize('arguments, words', OLD_NAMES.values(), ids=OLD_NAMES)
def test_an_old_name_is_refused_with_the_new_one(runner, tmp_path, arguments, words):
    flow = OLD[0].parents[3] / 'configs' / 'flow.py'
    (tmp_path / 'mine.py').write_text(flow.read_text() + "VARIANTS['slow'] = {'eval.steps': 100}\n")
    answer = runner(*(argument.format(tmp_path) for argument in arguments), f'--workdir={tmp_path}/run')
    assert_refused(answer, words)
    assert not (tmp_path / 'run').exists()


def test_a_run_that_began_from_another_took_its_parameters_themselves(tmp_path):
    fields = json.loads((OLD[0].parent / 'vae.json').read_text()) | {'init_from': 'runs/first'}
    (tmp_path / 'config.json').write_text(json.dumps(fields))
    init = config_lib.from_json(tmp_path / 'config.json').init.to_dict()
    assert init == dict(run='runs/first', step='', average=False, rename=(), drawn='', unused='')


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
    del fields['sample'], fields['model']['kind'], fields['eval']['also_each'], fields['eval']['interpolation']
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
