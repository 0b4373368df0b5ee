"""Classes of images, told by the networks of nn/networks.py."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from aigc_jax.core import rng, tree
from aigc_jax.core.capabilities import Measures, SplitStatistic
from aigc_jax.core.errors import UserError
from aigc_jax.core.types import Extra
from aigc_jax.reports.trained import Trained
from aigc_jax.runs import config as config_lib
from aigc_jax.runs.experiment import Experiment

CONV = 'configs/classify.py:conv,smoke'


def experiment(config='configs/classify.py:smoke', **fields):
    text = lambda value: value if isinstance(value, str) else repr(value)
    texts = [(name.replace('__', '.'), text(value)) for name, value in fields.items()]
    return Experiment(config_lib.load(config, texts))


def batch_of(own, n=12):
    ctx = rng.context(0, 'train', 0, jnp.arange(n))
    return own.preprocess(own.examples('train', np.arange(n)), ctx), ctx


def test_the_loss_and_the_metrics_are_those_of_numpy():
    own = experiment(task__label_smoothing=0.1)
    params, extra = own.task.init(rng.stream(0, 'init'))
    batch, ctx = batch_of(own)
    layers = [params['model']['mlp'][f'Dense_{k}'] for k in (0, 1)]
    layers = [{name: np.asarray(x, np.float64) for name, x in layer.items()} for layer in layers]
    hidden = np.asarray(batch['x'], np.float64).reshape(12, -1) @ layers[0]['kernel'] + layers[0]['bias']
    logits = np.maximum(hidden, 0) @ layers[1]['kernel'] + layers[1]['bias']
    log_p = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    nats = -log_p[np.arange(12), batch['label']]
    value, aux = own.task.rounds[0][0].loss(params, extra, batch, ctx)
    assert float(value) == pytest.approx(0.9 * nats.mean() - 0.1 * log_p.mean(), rel=1e-5)
    assert float(aux.metrics['nats']) == pytest.approx(nats.mean(), rel=1e-5) and aux.weight == 12
    found = own.task.get(Measures).per_example(params, extra, batch, ctx)
    np.testing.assert_allclose(found['nats'], nats, rtol=1e-5)
    np.testing.assert_array_equal(found['accuracy'], logits.argmax(1) == batch['label'])
    trained = Trained(None, own, own.create_state(jax.tree.map(np.array, params)))
    for told, own_logits in zip(trained.classify(own.examples('train', np.arange(12))['x']), logits, strict=True):
        assert str(told) == str(own_logits.argmax()) and list(told.shares.values())[0] == pytest.approx(
            np.exp(own_logits.max()) / np.exp(own_logits).sum(), rel=1e-4
        )
    statistic = own.task.get(SplitStatistic)
    summary = statistic.summarize(jax.device_get(statistic.collect(params, extra, batch, ctx)))
    assert 0 <= summary['macro_f1'] <= 1
    assert summary['most_frequent/accuracy'] == np.bincount(np.asarray(batch['label'])).max() / 12


def test_lenet_has_the_weights_and_the_initialization_of_the_paper():
    """266,200 weights (266 K in figure 2 of Frankle & Carbin 2019), variance 2 / (inputs + outputs)."""
    own = experiment(model__classifier__features=(300, 100), model__classifier__kernel_init='glorot_normal')
    params = jax.device_get(own.task.init(rng.stream(0, 'init'))[0])
    kernels = {name: leaf for name, leaf in tree.flatten(params).items() if name.endswith('kernel')}
    assert sum(leaf.size for leaf in kernels.values()) == 64 * 300 + 300 * 100 + 100 * 10
    for leaf in kernels.values():
        assert leaf.std() == pytest.approx(math.sqrt(2 / sum(leaf.shape)), rel=0.05)


def test_a_convolutional_one_renews_its_statistics_in_training_alone():
    own = experiment(CONV, batch_size=16)
    params, extra = own.task.init(rng.stream(0, 'init'))
    batch, ctx = batch_of(own)
    value, aux = own.task.rounds[0][0].loss(params, extra, batch, ctx)
    assert math.isfinite(value) and aux.extra.stats.keys() == extra.stats.keys() == {'model'}
    changed = jax.tree.map(lambda a, b: bool((a != b).any()), aux.extra.stats, extra.stats)
    assert all(jax.tree.leaves(changed))
    measure = own.task.get(Measures).per_example
    first = measure(params, extra, batch, ctx)['nats']
    alone = measure(params, extra, jax.tree.map(lambda x: x[:1], batch), ctx)['nats']
    np.testing.assert_allclose(first[0], alone[0], rtol=1e-5)  # of no other example of the batch
    assert (measure(params, Extra(aux.extra.stats, {}), batch, ctx)['nats'] != first).any()


@pytest.mark.parametrize('fields, words', [
    (dict(data__augment__mixup=0.5), 'data.augment.mixup: a mixed example has no class'),
    (dict(data__name='moons'), 'classify reads images, labelled or tagged texts; moons holds points'),
    (dict(model__kind='conv'), 'model.classifier'),
    (dict(model__classifier__kernel_init='he'), 'model.classifier.kernel_init'),
])  # fmt: skip
def test_mistakes_are_named(fields, words):
    with pytest.raises(UserError) as error:
        experiment(**fields)
    assert words in str(error.value) and '\n' not in str(error.value)


def test_images_without_classes_are_refused(tmp_path):
    np.savez(tmp_path / 'x.npz', x=np.zeros((200, 8, 8, 1), np.uint8))
    with pytest.raises(UserError, match='classify tells classes; the images of .* have none'):
        experiment(data__name=f'npz:{tmp_path}/x.npz')
