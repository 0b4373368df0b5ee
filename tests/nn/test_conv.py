"""Convolution as matrix products against the native one, and the layers and networks made of it."""

import pathlib

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from aigc_jax.core import rng, tree
from aigc_jax.core.capabilities import Samples
from aigc_jax.core.errors import UserError
from aigc_jax.core.types import Extra
from aigc_jax.nn import conv, convnets, mlp
from aigc_jax.runs import config as config_lib
from aigc_jax.runs.experiment import Experiment
from aigc_jax.runs.folder import Run

CONFIGS = pathlib.Path(__file__).parents[2] / 'configs'


def draw(*shape):
    return jnp.asarray(np.random.default_rng(sum(shape)).normal(size=shape), jnp.float32)


@pytest.mark.parametrize('function, size, stride, groups', [
    (conv.conv, 1, 1, 1), (conv.conv, 3, 1, 1), (conv.conv, 4, 2, 1), (conv.conv, 5, 2, 1), (conv.conv, 3, 1, 4),
    (conv.conv, 4, 2, 2), (conv.conv_transpose, 2, 2, None), (conv.conv_transpose, 4, 2, None),
    (conv.conv_transpose, 6, 3, None),
])  # fmt: skip
def test_products_are_the_native_convolution_with_its_gradients(monkeypatch, function, size, stride, groups):
    x, kernel = draw(2, 12, 12, 8), draw(size, size, 8 // (groups or 1), 12)
    arguments = (stride,) if groups is None else (stride, groups)
    found = []
    for native in (True, False):
        monkeypatch.setattr(conv, 'native', lambda native=native: native)
        y, pull = jax.vjp(lambda x, kernel: function(x, kernel, *arguments), x, kernel)
        found.append((y, *pull(jnp.cos(y))))
    for theirs, ours in zip(*found, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=2e-4)


@pytest.mark.parametrize('size', [2, 3])
def test_sides_that_are_not_even(monkeypatch, size):
    """The products give two rows and two columns at a time."""
    x, kernel = draw(2, 7, 9, 3), draw(size, size, 3, 4)
    found = []
    for native in (True, False):
        monkeypatch.setattr(conv, 'native', lambda native=native: native)
        found.append(conv.conv(x, kernel))
    assert found[0].shape == (2, 7, 9, 4)
    np.testing.assert_allclose(*found, atol=2e-5)


def test_the_transposed_convolution_is_the_gradient_of_the_other():
    x, g, kernel = draw(2, 8, 8, 3), draw(2, 4, 4, 5), draw(4, 4, 3, 5)
    _, pull = jax.vjp(lambda x: conv.conv(x, kernel, 2), x)
    turned = kernel[::-1, ::-1].swapaxes(2, 3)
    np.testing.assert_allclose(conv.conv_transpose(g, turned, 2), pull(g)[0], atol=1e-4)


def test_resampling():
    x = draw(2, 4, 6, 3)
    np.testing.assert_array_equal(conv.downsample(conv.upsample(x)), x)
    assert conv.upsample(x)[0, 3, 5, 1] == x[0, 1, 2, 1]
    np.testing.assert_allclose(conv.blur(jnp.ones((1, 4, 4, 1))), 1.0)
    spike = jnp.zeros((1, 5, 5, 1)).at[0, 2, 2, 0].set(16.0)
    np.testing.assert_allclose(conv.blur(spike)[0, 1:4, 1:4, 0], np.outer([1, 2, 1], [1, 2, 1]))


def test_attention_is_over_the_maxima_of_four_places():
    """Zhang et al. 2019, their code: φ and g are pooled by the maximum, θ is not. By hand, on one channel."""
    x = draw(2, 4, 6, 1)
    module, w = conv.SelfAttention(), dict(zip(('query', 'key', 'value', 'out'), (0.7, -1.3, 0.9, 1.1), strict=True))
    params = {f'Conv_{i}': {'kernel': np.full((1, 1, 1, 1), value)} for i, value in enumerate(w.values())}
    y = module.apply({'params': {**params, 'gamma': jnp.float32(0.5)}}, x, False)
    pool = lambda x: np.asarray(x).reshape(2, 2, 2, 3, 2).max((2, 4)).reshape(2, 6)
    scores = np.einsum('nq,nk->nqk', w['query'] * np.asarray(x).reshape(2, -1), pool(w['key'] * x))
    weights = np.exp(scores) / np.exp(scores).sum(-1, keepdims=True)
    found = np.einsum('nqk,nk->nq', weights, pool(w['value'] * x)).reshape(x.shape)
    np.testing.assert_allclose(y, x + 0.5 * w['out'] * found, rtol=1e-4, atol=1e-5)


def test_minibatch_deviation_is_that_of_neighbours():
    x = draw(6, 2, 2, 5)
    found = conv.minibatch_deviation(x, 3)
    assert found.shape == (6, 2, 2, 6)
    np.testing.assert_allclose(found[..., :5], x)
    np.testing.assert_allclose(found[3:, ..., 5], np.asarray(x[3:]).std(0).mean(), rtol=1e-5)


def test_spectral_normalization_divides_by_the_largest_singular_value():
    layer = conv.Conv(8, 3)

    class Normalized(nn.Module):
        @nn.compact
        def __call__(self, x, train):
            return conv.maybe_spectral(layer.clone(), True)(x, train)

    module, x = Normalized(), draw(1, 6, 6, 4)
    variables = module.init(jax.random.key(0), x, False)
    stats = {'batch_stats': variables['batch_stats']}
    apply = jax.jit(
        lambda stats: module.apply({'params': variables['params'], **stats}, x, True, mutable=['batch_stats'])
    )
    for _ in range(200):
        y, stats = apply(stats)
    params = jax.tree.leaves(variables['params'], is_leaf=lambda t: 'kernel' in t)[0]
    largest = np.linalg.svd(params['kernel'].reshape(-1, 8), compute_uv=False)[0]
    np.testing.assert_allclose(y, conv.conv(x, params['kernel'] / largest), rtol=1e-4, atol=1e-4)


def test_a_class_has_its_own_normalization():
    module, x = conv.Normalize('batch'), draw(64, 4, 4, 3) * 3 + 1
    condition = jax.nn.one_hot(jnp.arange(64) % 2, 2)
    variables = module.init(jax.random.key(0), x, condition, True)
    table = np.zeros((2, 6), np.float32)
    table[1] = [1, 1, 1, 5, 5, 5]  # scale − 1 and shift of the second class
    y, _ = module.apply(
        {'params': {'Dense_0': {'kernel': table}}, 'batch_stats': variables['batch_stats']},
        x, condition, True, mutable=['batch_stats'],
    )  # fmt: skip
    plain = (x - x.mean((0, 1, 2))) / x.std((0, 1, 2))
    at_first, _ = module.apply(variables, x, condition, True, mutable=['batch_stats'])
    np.testing.assert_allclose(at_first, plain, atol=1e-3)
    np.testing.assert_allclose(y[::2], plain[::2], atol=1e-3)
    np.testing.assert_allclose(y[1::2], 2 * plain[1::2] + 5, atol=2e-3)


@pytest.mark.parametrize('block', convnets.BLOCKS)
def test_networks_halve_and_double(block):
    fields = dict(features=(8, 16), block=block, norm='group', activation='silu', attention=4, depth=2)
    x = draw(3, 16, 8, 2)
    c = jax.nn.one_hot(jnp.arange(3), 4)
    down = convnets.Discriminator(**fields, deviation=3)
    assert jax.eval_shape(lambda: down.init_with_output(jax.random.key(0), x, c)[0]).shape == (3,)
    up = convnets.Generator(**{**fields, 'features': (16, 8)}, shape=(16, 8, 2), bounded=True)
    y, variables = jax.jit(up.init_with_output)(jax.random.key(0), draw(3, 5), c)
    assert y.shape == (3, 16, 8, 2) and abs(y).max() <= 1
    assert 'attention' in str(jax.tree_util.tree_structure(variables['params']))


@pytest.mark.parametrize('classes', [2, 10, 1000])
def test_what_a_class_adds_does_not_depend_on_their_number(classes):
    """The variance at the start: 2 / features times the features' squared length in the projection (Miyato & Koyama's
    code); of a layer that reads x and the class side by side, 1."""
    labels = np.random.default_rng(0).integers(0, classes, 512)
    c, key = jax.nn.one_hot(labels, classes), jax.random.key(0)
    net = convnets.Discriminator(features=(8, 16), block='plain', norm='none', activation='leaky_relu_0.2')
    x = draw(512, 8, 8, 1)
    params = jax.jit(net.init)(key, x, c)['params']
    told, untold = jax.jit(lambda: (net.apply({'params': params}, x, c), net.apply({'params': params}, x)))()
    inner = lambda net, params, *inputs: net.apply(
        {'params': params}, *inputs, capture_intermediates=True, mutable='intermediates'
    )[1]['intermediates']
    features = jax.jit(lambda: inner(net, params, x)['_Block_1']['__call__'][0])()
    expected = np.sqrt(2 * np.mean(np.sum(features**2, (1, 2, 3))) / features[0].size)
    np.testing.assert_allclose(np.std(told - untold), expected, rtol=0.2 if classes > 2 else 0.5)  # of few draws
    for inputs in (2, 64):
        z = draw(512, inputs)
        out = mlp.MLP((), 2048, 'relu', 'zeros').init_with_output(key, z, c)[0]
        np.testing.assert_allclose(np.std(out), 1, rtol=0.15)
        decoder = convnets.Decoder(features=(64,), block='plain', norm='none', activation='relu', shape=(8, 8, 1))
        params = jax.jit(decoder.init)(key, z, c)['params']
        out = jax.jit(lambda p=params, z=z, net=decoder: inner(net, p, z, c)['dense']['__call__'][0])()
        np.testing.assert_allclose(np.std(out), 1, rtol=0.15)


@pytest.mark.parametrize('block', convnets.BLOCKS)
def test_a_discriminator_sees_the_finest_detail_and_what_is_dark(block):
    net = convnets.Discriminator(features=(8,), block=block, norm='none', activation='relu')
    x = -1 - abs(draw(2, 8, 8, 1))
    params = jax.jit(net.init)(jax.random.key(0), x)
    # The last convolution of a modern block begins as 0.
    params = jax.tree.map(lambda p: p if p.any() else draw(*p.shape), params)
    logits = jax.jit(lambda x: net.apply(params, x))
    checkerboard = (-1.0) ** np.indices((8, 8)).sum(0)[:, :, None]
    assert (abs(logits(x + 5 * checkerboard) - logits(x)) > 0.1).all()
    assert (abs(logits(x) - 2 * logits(x / 2)) > 1e-3).all()  # not linear where all is below 0


@pytest.fixture(scope='module')
def sngan():
    fields = [('data.name', 'digits'), ('task.n_critic', '1'), ('steps_per_call', '1')]  # a tenth of the program
    return Experiment(config_lib.load(f'{CONFIGS / "gan.py"}:sngan,smoke', fields))


def test_statistics_of_a_player_are_renewed_in_its_turns(sngan):
    state, task = sngan.create_state(), sngan.task
    batch = {'x': draw(8, 8, 8, 1)}
    ctx = rng.context(0, 'train', 0, jnp.arange(8))
    turns = {turn.player: turn.loss for turns in task.rounds for turn in turns}
    extra = Extra(state.stats, state.carry)
    assert state.stats.keys() == {'discriminator', 'generator'}
    changed = lambda new, player: any(
        not np.array_equal(a, b)
        for a, b in zip(jax.tree.leaves(new.stats[player]), jax.tree.leaves(extra.stats[player]), strict=True)
    )
    turns = {player: jax.jit(loss) for player, loss in turns.items()}
    _, (_, after, *_) = turns['generator'](state.params, extra, batch, ctx)
    assert changed(after, 'generator') and not changed(after, 'discriminator')
    _, (_, after, *_) = turns['discriminator'](state.params, extra, batch, ctx)
    assert changed(after, 'discriminator')


def test_statistics_resume(sngan, assert_same_bits, tmp_path):
    call, feeds, data = sngan.train_call(), sngan.feeds(0), sngan.resident_data()
    state, _ = call(sngan.create_state(), sngan.seed_array, data, next(feeds))
    checkpoints = Run(tmp_path).checkpoints(sngan.config, read_only=False)
    checkpoints.save(sngan.config.steps_per_call, state, None)
    restored = checkpoints.restore(checkpoints.latest(), sngan.abstract_state)
    checkpoints.close()
    feed = next(feeds)
    ends = [call(begin, sngan.seed_array, data, feed)[0] for begin in (jax.tree.map(jnp.copy, state), restored)]
    whole, resumed = ({name: np.asarray(leaf) for name, leaf in tree.flatten(end).items()} for end in ends)
    assert_same_bits(whole, resumed)
    assert any(name.startswith('stats/') for name in whole)


@pytest.mark.parametrize('fields, message', [
    ([('model.generator.features', '(8, 8, 8, 8)')], 'model.generator.features'),
    ([('model.generator.block', 'dense')], 'model.generator.block'),
    ([('model.kind', 'convolution')], 'model.kind'),
    ([('model.generator.depth', '0')], 'model.generator.depth: 0; it is 1 or more'),
    ([('model.discriminator.attention', '3')], 'model.discriminator.attention: 3; its sides are 4, and'),
    ([('model.generator.attention', '3')], 'model.generator.attention: 3; its sides are 8, 4, and'),
    ([('model.discriminator.block', 'modern')], 'model.discriminator.spectral: a modern block'),
    ([('model.generator.block', 'modern')], 'model.generator.norm: a modern block has none'),
    ([('model.discriminator.deviation', '1')], 'deviation: 1; a deviation is of 2 examples or more'),
    ([('data.name', 'ring8'), ('data.scale', 'unit')], 'model.kind'),
])  # fmt: skip
def test_bad_fields(fields, message):
    with pytest.raises(UserError, match=message):
        Experiment(config_lib.load(f'{CONFIGS / "gan.py"}:sngan,smoke', [('data.name', 'digits'), *fields]))


def test_the_deviation_is_of_whole_groups_while_training():
    """Other groups under pmap or with smaller parts would be another model."""
    for micro_batches, fits in ((1, True), (4, False)):
        fields = [('model.discriminator.deviation', '8'), ('batch_size', '16'), ('micro_batches', str(micro_batches))]
        experiment = Experiment(
            config_lib.load(f'{CONFIGS / "gan.py"}:dcgan,smoke', [('data.name', 'digits'), *fields])
        )
        shapes = experiment.abstract_state, experiment.seed_array, experiment.resident_data(), next(experiment.feeds(0))
        if fits:
            experiment.train_call().lower(*shapes)
            continue
        with pytest.raises(UserError, match='deviation: 8; it must divide the 4 that D sees at once'):
            experiment.train_call().lower(*shapes)


def test_a_vae_takes_no_statistics():
    for fields in ([('model.encoder.norm', 'batch')], [('model.decoder.spectral', 'True')]):
        with pytest.raises(UserError, match='coder'):
            Experiment(config_lib.load(f'{CONFIGS / "vae.py"}:conv,smoke', fields))


@pytest.mark.parametrize('variant', ['dcgan', 'rpgan', 'sngan', 'r3gan'])
def test_every_network_takes_colour_of_32_by_32(tmp_path, variant):
    """The shape of CIFAR-10, conditional, at the variant's own size: losses and samples have their shapes."""
    x = np.random.default_rng(0).integers(0, 256, (40, 32, 32, 3)).astype(np.uint8)
    np.savez(tmp_path / 'a.npz', x_train=x, y_train=np.arange(40) % 10, x_test=x, y_test=np.arange(40) % 10)
    fields = [('data.name', f'npz:{tmp_path}/a.npz'), ('data.valid_examples', '5'), ('batch_size', '4')]
    fields += [('model.conditional', 'True'), ('eval.extractor', '')]
    experiment = Experiment(config_lib.load(f'{CONFIGS / "gan.py"}:{variant}', fields))
    task, ctx = experiment.task, rng.context(0, 'test', 0, jnp.arange(4))
    examples = experiment.examples('train', np.arange(4))

    def everything():
        params, extra = task.init(rng.stream(0, 'init'))
        batch = experiment.train_preprocess(examples, ctx)
        losses = [turn.loss(params, extra, batch, ctx)[0] for turns in task.rounds for turn in turns]
        return losses, task.get(Samples).draw(params, extra, ctx, jnp.arange(4))

    losses, samples = jax.eval_shape(everything)
    assert {loss.shape for loss in losses} == {()} and samples.shape == (4, 32, 32, 3)
