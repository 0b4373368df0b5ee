"""Quantization: the values that kernels and activations take, how they are trained, and the bytes that are left."""

import copy
import json
import pathlib
import shutil

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import qwix
from ml_collections import ConfigDict
from qwix.contrib import gptq_core
from safetensors.numpy import load_file

import aigc_jax
from aigc_jax import adapt
from aigc_jax.adapt import gptq, quantize, storage
from aigc_jax.core import optim, tree
from aigc_jax.core.capabilities import CausalText
from aigc_jax.core.errors import UserError
from aigc_jax.core.types import Aux, Extra, Task, Turn
from aigc_jax.decoding import Sampling
from aigc_jax.nn.conv import Conv
from aigc_jax.reports import texts
from aigc_jax.runs import config as config_lib
from aigc_jax.runs import initial
from aigc_jax.runs import teacher as teachers
from aigc_jax.runs.experiment import Experiment
from aigc_jax.runs.folder import Run

GOLDEN = pathlib.Path(__file__).parent / 'goldens' / 'llama'
TEXT = 'a cab and a bag had a head in a bed of beech\n' * 200
DRAWS = np.random.Generator(np.random.PCG64(0))


def config(**fields) -> ConfigDict:
    return ConfigDict({name: field.default for name, field in quantize.FIELDS.items()} | {'weights': 'int8'} | fields)


def rounded(w: np.ndarray, top: float, axes: tuple[int, ...]) -> np.ndarray:
    """w on its grid: the largest |w| over `axes` is `top` steps from 0."""
    scale = np.abs(w).max(axis=axes, keepdims=True) / np.float32(top)
    return np.rint(w / scale) * scale


@pytest.mark.parametrize('kind, top', [('int8', 127), ('int4', 7)])
def test_a_kernel_has_the_values_nearest_to_it(kind, top):
    dense, window = DRAWS.normal(size=(6, 5)).astype('f4'), DRAWS.normal(size=(3, 3, 4, 5)).astype('f4')
    stacked, bias = DRAWS.normal(size=(2, 6, 5)).astype('f4'), np.ones(5, 'f4')
    own = {'dense': {'kernel': dense, 'bias': bias}, 'conv': {'kernel': window}}
    own |= {name: {'up': {'kernel': stacked}} for name in ('blocks', 'encoder_blocks')}
    found = quantize.merged({'model': own}, config(weights=kind))['model']
    near = dict(rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(found['dense']['kernel'], rounded(dense, top, (0,)), **near)
    np.testing.assert_allclose(found['conv']['kernel'], rounded(window, top, (0, 1, 2)), **near)
    for name in ('blocks', 'encoder_blocks'):
        np.testing.assert_allclose(found[name]['up']['kernel'], rounded(stacked, top, (1,)), **near)
    np.testing.assert_array_equal(found['dense']['bias'], bias)
    whole = quantize.quantized('model/dense/kernel', jnp.asarray(dense), config(weights=kind))
    assert np.abs(np.asarray(whole.qvalue).astype(int)).max() == top
    np.testing.assert_array_equal(found['dense']['kernel'], qwix.dequantize(whole))


def test_groups_of_inputs_have_scales_of_their_own():
    kernel = DRAWS.normal(size=(6, 5)).astype('f4')
    own = {'model': {'dense': {'kernel': kernel}}}
    found = quantize.merged(own, config(weights='int4', group=3))['model']['dense']['kernel']
    wanted = rounded(kernel.reshape(2, 3, 5), 7, (1,)).reshape(6, 5)
    np.testing.assert_allclose(found, wanted, rtol=1e-6, atol=1e-7)
    stored = quantize.stored(storage.whole(own), own, config(weights='int4', group=3))['model/dense/kernel']
    assert stored.bytes == 6 * 3 + 2 * 5 * 4  # of five outputs the last byte is half empty


class Net(nn.Module):
    """A dense layer behind a convolution."""

    @nn.compact
    def __call__(self, x):
        x = Conv(3, 3, name='conv')(x)
        return nn.Dense(5, name='dense')(x.reshape(x.shape[0], -1))


X = jnp.asarray(DRAWS.normal(size=(4, 2, 2, 2)), jnp.float32)
NET = Net().init(jax.random.key(0), X)['params']


def outputs(params, x=X):
    return Net().apply({'params': params}, x)


def net_task() -> Task:
    loss = lambda params, extra, batch, ctx: (jnp.sum(outputs(params['model'], batch) ** 2), Aux({}, extra))
    return Task(lambda key: ({'model': NET}, Extra({}, {})), ((Turn('model', loss),),), ())


def loss_of(task: Task, params, x=X):
    return task.rounds[0][0].loss(params, Extra({}, {}), x, None)[0]


def test_the_gradient_is_that_of_the_values():
    task, cfg = quantize.adapted(net_task(), config(weights='int4')), config(weights='int4')
    value, gradient = jax.value_and_grad(lambda p: loss_of(task, p))({'model': NET})
    on_grid = quantize.merged({'model': NET}, cfg)
    theirs, wanted = jax.value_and_grad(lambda p: loss_of(net_task(), p))(on_grid)
    near = dict(rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(value, theirs, **near)
    assert abs(value - loss_of(net_task(), {'model': NET})) > 1e-3 * value
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **near), gradient, wanted)
    assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(gradient))


def test_activations_take_their_values_too():
    """The products of whole numbers, as qwix multiplies them, give what the model computes."""
    task = quantize.adapted(net_task(), config(activations='int8'))
    params = quantize.merged({'model': NET}, config())['model']
    to_grid = lambda x, axes: jnp.asarray(rounded(np.asarray(x), 127, axes))
    hidden = Conv(3, 3).apply({'params': params['conv']}, to_grid(X, (1, 2, 3))).reshape(4, -1)
    like = dict(calibration_method=f'absmax,{127.5 / 127}')
    rows = qwix.quantize(hidden, jnp.int8, channelwise_axes=[0], **like)
    columns = qwix.quantize(NET['dense']['kernel'], jnp.int8, channelwise_axes=[1], **like)
    wanted = qwix.dot_general(rows, columns, (((1,), (0,)), ((), ()))) + NET['dense']['bias']
    np.testing.assert_allclose(loss_of(task, {'model': NET}), jnp.sum(wanted**2), rtol=1e-4)
    weights_alone = loss_of(quantize.adapted(net_task(), config()), {'model': NET})
    assert abs(weights_alone - jnp.sum(wanted**2)) > 2e-4 * weights_alone


def test_only_the_inputs_of_quantized_kernels_are_rounded():
    task = quantize.adapted(net_task(), config(activations='int8', targets='conv'))
    params = quantize.merged({'model': NET}, config(targets='conv'))['model']
    wanted = outputs(params, jnp.asarray(rounded(np.asarray(X), 127, (1, 2, 3))))
    np.testing.assert_allclose(loss_of(task, {'model': NET}), jnp.sum(wanted**2), rtol=1e-5)


@pytest.mark.parametrize('kind', ['int8', 'int4'])
def test_a_file_holds_whole_numbers(kind):
    params, cfg = {'model': NET}, config(weights=kind)
    tensors = dict(quantize.packed(params, cfg))
    kernel = tensors[f'model/dense/kernel.{kind}']
    assert kernel.dtype == (np.int8 if kind == 'int8' else np.uint8) and 'model/dense/kernel' not in tensors
    assert kernel.shape == (12, 5 if kind == 'int8' else 3)  # of five outputs the last byte is half empty
    found, wanted = quantize.unpacked(tensors), tree.flatten(quantize.merged(params, cfg))
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        np.testing.assert_array_equal(found[name], value)
    sizes = quantize.stored(storage.whole(params), params, cfg)
    assert sizes['model/dense/kernel'].bytes == kernel.nbytes + 4 * 5 and sizes['model/dense/bias'].bytes == 20
    assert sum(one.bytes for one in sizes.values()) == sum(tensor.nbytes for tensor in tensors.values())


def test_gptq_keeps_the_outputs_nearer(group=4):
    cfg = config(weights='int4', method='gptq', group=group, targets='dense')
    task, x = net_task(), jnp.asarray(DRAWS.normal(size=(256, 2, 2, 2)), jnp.float32)
    x = x * jnp.linspace(0.1, 3, 2)  # what a layer reads often matters more
    params = gptq.calibrated(task, {'model': NET}, Extra({}, {}), [(x, None)], cfg)
    found, nearest = (
        quantize.merged(own, one)
        for own, one in ((params, cfg), ({'model': NET}, config(weights='int4', group=group, targets='dense')))
    )
    error = lambda own: float(jnp.sum((outputs(own, x) - outputs(NET, x)) ** 2))
    assert error(found['model']) < 0.8 * error(nearest['model'])
    # On a grid all the same: a file of whole numbers and scales is the same kernel.
    back = quantize.unpacked(dict(quantize.packed(params, cfg)))
    np.testing.assert_array_equal(back['model/dense/kernel'], found['model']['dense']['kernel'])
    assert set(found['model']) == {'conv', 'dense'}


@pytest.mark.parametrize('group', [5, 10])
def test_gptq_is_that_of_qwix(group):
    """In blocks of 4, the last of which is not whole, with an input that is always 0. A group begins within a block."""
    kernel, x = DRAWS.normal(size=(10, 5)).astype('f4'), DRAWS.normal(size=(50, 10)).astype('f4')
    x = (x @ DRAWS.normal(size=(10, 10)).astype('f4')) * (np.arange(10) != 7)
    how = gptq_core.qarray.HowToQuantize(
        qtype=jnp.int4, channelwise_axes=[0], tiled_axes={1: group}, calibration_method=quantize.calibration('int4')
    )
    wanted, _ = gptq_core.quantize_weight(jnp.asarray(kernel.T), jnp.asarray(x.T @ x), how, blocksize=4)
    whole, scales = gptq.rounded(kernel, x.T @ x, 'int4', group, block=4)
    plain = quantize.quantized('model/dense/kernel', jnp.asarray(kernel), config(weights='int4', group=group)).qvalue
    whole, wanted_whole, nearest = (np.asarray(one).astype('i1') for one in (whole, wanted.qvalue.T, plain))
    np.testing.assert_array_equal(whole, wanted_whole)
    np.testing.assert_allclose(scales, wanted.scale.T, rtol=1e-5)
    assert (whole != nearest).any()


def test_gptq_says_what_it_cannot_see():
    class Hidden(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.remat(nn.Dense)(3, name='dense')(x)

    x = jnp.ones((4, 6))
    params = {'model': Hidden().init(jax.random.key(0), x)['params']}
    loss = lambda p, extra, batch, ctx: (jnp.sum(Hidden().apply({'params': p['model']}, batch)), Aux({}, extra))
    task = Task(lambda key: (params, Extra({}, {})), ((Turn('model', loss),),), ())
    with pytest.raises(UserError, match='quantize.method: gptq .* model.remat'):
        gptq.calibrated(task, params, Extra({}, {}), [(x, None)], config(method='gptq'))


@pytest.mark.parametrize('fields, words', [
    (dict(targets='keys'), "quantize.targets: 'keys' matches no kernel; there are model/conv/kernel, model/dense"),
    (dict(targets='('), r"quantize.targets: '\(' is no regular expression"),
    (dict(group=5), 'quantize.group: 5 does not divide 2, the inputs of model/conv/kernel'),
    (dict(weights='', activations='int8'), 'quantize.activations: int8, but no weights are quantized'),
    (dict(weights='', group=8), 'quantize.group: 8, but no weights are quantized'),
])  # fmt: skip
def test_mistakes_are_named(fields, words):
    with pytest.raises(UserError, match=words):
        quantize.adapted(net_task(), config(**fields))


def test_activations_of_layers_of_one_name_are_quantized_together():
    task = net_task()
    both = Task(lambda key: ({'model': NET, 'other': NET}, Extra({}, {})), task.rounds, ())
    changed = quantize.adapted(both, config(activations='int8', targets='model/'))
    with pytest.raises(UserError, match='matches model/conv/kernel and not other/conv/kernel; match both, or neither'):
        loss_of(changed, {'model': NET, 'other': NET})


@pytest.mark.parametrize('fields, words', [
    ([('total_steps', '0')], 'total_steps: 0, but init.run names no model'),
    ([('quantize.method', 'gptq'), ('init.run', 'x')], r'quantize.method: .* set quantize.weights, total_steps=0'),
])  # fmt: skip
def test_runs_that_make_no_sense_are_refused(fields, words):
    with pytest.raises(UserError, match=words):
        config_lib.check(config_lib.resolved(config_lib.load('configs/gpt.py:smoke', fields)))


# Runs, of a checkpoint of Hugging Face

FIELDS = [
    ('init.run', str(GOLDEN)), ('data.block', '32'), ('eval.ngram_order', '1'), ('eval.model_bytes', 'True'),
    ('optim.model.name', 'adam'), ('optim.model.options', '{}'), ('optim.model.learning_rate_rules', '()'),
    ('optim.model.schedule', "{'name': 'constant_schedule', 'value': 1e-2}"), ('quantize.weights', 'int4'),
    ('model.scan_layers', 'False'),
]  # fmt: skip
TRAINED = [('quantize.activations', 'int8'), ('optim.model.ema_decay', '0.9'), ('total_steps', '20')]
QUERY = [('quantize.targets', 'query')]
EVERY = [(f'{name}_every_steps', '10') for name in ('log', 'eval', 'checkpoint')]


def trained(folder: pathlib.Path, *fields: tuple[str, str], into: pathlib.Path | None = None) -> pathlib.Path:
    """The run, `into` or folder/run, on the text of the folder."""
    (folder / 'text.txt').write_text(TEXT)
    own = dict([*FIELDS, *EVERY, ('data.name', f'text:{folder}/text.txt'), *fields])
    aigc_jax.train('configs/gpt.py:smoke', run := into or folder / 'run', own)
    return run


@pytest.fixture(scope='module')
def aware(tmp_path_factory):
    return trained(tmp_path_factory.mktemp('aware'), *TRAINED)


def rows(run: pathlib.Path) -> list[dict]:
    return [json.loads(line) for line in (run / 'metrics.jsonl').read_text().splitlines()]


def test_a_quantized_model_learns(aware):
    losses = [row['model/loss'] for row in rows(aware) if row['split'] == 'train']
    assert losses[-1] < losses[0] - 0.5


def test_an_interrupted_run_is_the_uninterrupted_one(aware, tmp_path):
    shutil.copytree(aware, tmp_path / 'run')
    shutil.rmtree(tmp_path / 'run' / 'checkpoints' / '20')
    own = aigc_jax.open(trained(aware.parent, *TRAINED, into=tmp_path / 'run')).state.params
    jax.tree.map(np.testing.assert_array_equal, own, aigc_jax.open(aware).state.params)


def test_eight_devices_train_the_same(runner8, aware, tmp_path):
    (tmp_path / 'text.txt').write_text(TEXT)
    own = dict([*FIELDS, *EVERY, ('data.name', f'text:{tmp_path}/text.txt'), *TRAINED])
    own |= {'parallel.mesh.fsdp': '8', 'parallel.rules': "(('.*', 'fsdp'),)"}
    fields = [f'--config.{name}={value}' for name, value in own.items()]
    code, _, err = runner8('--config=configs/gpt.py:smoke', *fields, f'--workdir={tmp_path}/run')
    assert code == 0, err
    for here, there in zip(rows(tmp_path / 'run'), rows(aware), strict=True):
        if here['split'] == 'train':
            assert here['model/loss'] == pytest.approx(there['model/loss'], rel=1e-2)


def test_beams_of_rounded_weights_and_activations(aware):
    """Of prompts of unequal length: each as alone, with the likelihood of a forward pass."""
    run = aigc_jax.open(aware)
    model, how = run.experiment.task.get(CausalText), Sampling(beam_size=3, length_penalty=1.0)
    write = lambda *prompts: texts.writer(run.experiment, how, 8).generate(run.state, prompts, 1, 0)
    found = write('a cab and a bag', 'a')
    assert found[1].tokens.tolist() == write('a')[0].tokens.tolist()
    params, extra = optim.averaged(run.state.params, run.state.opt), Extra(run.state.stats, run.state.carry)
    forward = jax.jit(lambda tokens: jax.nn.log_softmax(model.decode(params, extra, tokens, None)[0][0]))
    for text in found:
        read = np.concatenate([run.tokenizer.before_prompt, run.tokenizer.encode(text.prompt), text.tokens]).astype(int)
        log_p = np.asarray(forward(np.pad(read, (0, 32 - len(read)))[None]))[np.arange(len(read) - 1), read[1:]]
        assert text.nats == pytest.approx(-log_p[-len(text.tokens) :].sum(), rel=1e-3)


@pytest.fixture(scope='module')
def rounded_runs(tmp_path_factory):
    found = {}
    for method in ('rtn', 'gptq'):
        found[method] = trained(
            tmp_path_factory.mktemp(method), ('total_steps', '0'), *QUERY, ('quantize.method', method)
        )
    return found


@pytest.mark.parametrize('method', ['rtn', 'gptq'])
def test_a_run_without_steps_evaluates_what_it_begins_with(rounded_runs, method, tmp_path):
    run = rounded_runs[method]
    assert [(row['step'], row['split']) for row in rows(run)] == [(0, 'eval'), (0, 'final')]
    before = (run / 'metrics.jsonl').read_bytes(), (run / 'evaluation.json').read_bytes()
    trained(run.parent, ('total_steps', '0'), *QUERY, ('quantize.method', method))  # it is finished
    assert before == ((run / 'metrics.jsonl').read_bytes(), (run / 'evaluation.json').read_bytes())
    opened, dense = aigc_jax.open(run), aigc_jax.from_pretrained(GOLDEN)
    params = tree.flatten(adapt.merged(opened.state.params, opened.config))
    if method == 'rtn':
        for name, value in tree.flatten(
            quantize.merged(dense.state.params, config(weights='int4', targets='query'))
        ).items():
            np.testing.assert_array_equal(params[name], value)
    aigc_jax.export(opened, tmp_path / 'out', 'safetensors')
    back = quantize.unpacked(load_file(tmp_path / 'out' / 'model.safetensors'))
    assert back.keys() == params.keys()
    for name, value in params.items():
        np.testing.assert_array_equal(back[name], value)
    aigc_jax.export(opened, tmp_path / 'hf')
    texts = ['a cab', 'a bed of']
    np.testing.assert_allclose(
        aigc_jax.from_pretrained(tmp_path / 'hf').log_prob(texts), opened.log_prob(texts), rtol=1e-5
    )


def test_the_evaluation_tells_the_bytes(rounded_runs):
    found = json.loads((rounded_runs['gptq'] / 'evaluation.json').read_text())['model/bytes']['value']
    shapes = {name: leaf.shape for name, leaf in tree.flatten(aigc_jax.from_pretrained(GOLDEN).state.params).items()}
    kernels = {name: shape for name, shape in shapes.items() if name.endswith('query/kernel')}
    count = lambda sizes: sum(map(np.prod, sizes))
    rest = count(shape for name, shape in shapes.items() if name not in kernels)
    scales = sum(shape[-1] for shape in kernels.values())
    assert found == count(kernels.values()) / 2 + 4 * (rest + scales)


def with_fields(run: pathlib.Path, **fields) -> tuple[Experiment, dict[str, np.ndarray]]:
    """What a run with other fields is made of, and the parameters of this one."""
    experiment, state = Run(run).open()
    config = copy.deepcopy(experiment.config)
    config.update_from_flattened_dict(fields)
    return Experiment(config, dataset=experiment.dataset), tree.flatten(state.params)


def test_gptq_sees_no_dropout(rounded_runs):
    experiment, wanted = with_fields(rounded_runs['gptq'], **{'model.dropout': 0.5})
    (params, _), _ = initial.model(experiment)
    for name, leaf in tree.flatten(params).items():
        np.testing.assert_array_equal(leaf, wanted[name], err_msg=name)


def test_a_model_that_gptq_rounded_is_a_teacher_as_it_is(rounded_runs, tmp_path):
    run = rounded_runs['gptq']
    experiment, wanted = with_fields(run, **{'quantize.weights': '', 'quantize.method': 'rtn', 'distill.run': str(run)})
    own = tree.flatten(teachers.load(experiment, Run(tmp_path), None).params)
    assert own.keys() == wanted.keys() and any('quantize' in name for name in own)
    for name, leaf in own.items():
        np.testing.assert_array_equal(leaf, wanted[name], err_msg=name)


def test_layers_in_a_loop_compute_the_same():
    """Stacked kernels have the scales of single ones, and what goes into the loop's layers is rounded, too."""
    own = {'quantize.weights': 'int4', 'quantize.activations': 'int8'}
    found = [
        aigc_jax.from_pretrained(GOLDEN, fields).log_prob(['a cab', 'a bed of'])
        for fields in ({}, own, own | {'model.scan_layers': True})
    ]
    np.testing.assert_allclose(found[1], found[2], rtol=1e-5)
    assert np.abs(found[0] - found[1]).min() > 1e-3
