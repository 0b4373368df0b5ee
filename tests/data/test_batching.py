"""The index stream, resident and streamed batches, and what a model sees of examples."""

import dataclasses
import pathlib
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from aigc_jax import data
from aigc_jax.core import rng
from aigc_jax.core.capabilities import Measures
from aigc_jax.core.errors import UserError
from aigc_jax.data import batching
from aigc_jax.data.specs import binarize_static
from aigc_jax.reports.evaluation import Evaluation
from aigc_jax.reports.evaluator import Evaluator
from aigc_jax.runs import config as config_lib
from aigc_jax.runs.experiment import Experiment


@pytest.fixture(scope='module')
def digits():
    return data.load(ConfigDict({'name': 'digits', 'dir': '', 'num_examples': 100, 'valid_examples': 100}))


def test_each_epoch_is_another_permutation_and_drops_nothing():
    stream = batching.IndexStream(10, seed=0)
    epochs = stream[np.arange(30)].reshape(3, 10)
    assert (np.sort(epochs, axis=1) == np.arange(10)).all()
    assert (epochs[0] != epochs[1]).any() and (epochs[1] != epochs[2]).any()
    assert (batching.IndexStream(10, seed=1)[np.arange(10)] != epochs[0]).any()


def test_the_stream_is_random_access():
    stream = batching.IndexStream(7, seed=3)
    row = stream[np.arange(70)]
    places = np.random.default_rng(0).integers(0, 70, 200)
    np.testing.assert_array_equal(stream[places], row[places])


def test_places_do_not_depend_on_how_steps_are_cut_into_calls_or_rows_over_processes():
    whole = batching.places(0, 6, 2, 8, range(8))
    assert (whole.ravel() == np.arange(6 * 2 * 8)).all()
    np.testing.assert_array_equal(whole[2:4], batching.places(2, 2, 2, 8, range(8)))
    halves = [batching.places(0, 6, 2, 8, rows) for rows in (range(4), range(4, 8))]
    np.testing.assert_array_equal(whole, np.concatenate(halves, axis=2))


@pytest.mark.parametrize('seeds, rows', [([0], range(16)), ([0], range(4, 8)), ([0, 1, 2], range(16))])
def test_streamed_by_grain_equals_resident(digits, seeds, rows):
    source, shape = digits.splits['train'], (3, 2, 16, rows)  # steps a call, rounds, batch size
    streams = [batching.IndexStream(len(source), seed) for seed in seeds]
    start, total = 30, 63  # begins in the middle and crosses the end of an epoch (1437 / 32 = 44.9 steps)
    indices = batching.resident_feed(streams, start, *shape)
    streamed = list(batching.streamed_feed(source, streams, start, total, *shape))
    assert len(streamed) == (total - start) // 3
    for batch in streamed:
        expected = source.gather(jax.tree.map(jnp.asarray, source.arrays), jnp.asarray(next(indices)))
        for name in ('x', 'label'):
            assert batch[name].dtype == source.arrays[name].dtype
            np.testing.assert_array_equal(batch[name], expected[name])


class Counted:
    """Examples that are read one by one, unless the source says otherwise."""

    def __init__(self, source):
        self._source, self.reads = source, 0

    def __len__(self):
        return len(self._source)

    def __getitem__(self, index):
        self.reads += 1
        return self._source[index]


class CountedArrays(Counted):
    """In memory."""

    resident = {}

    def gather(self, data, index):
        raise AssertionError


@pytest.mark.parametrize('kind, reads', [(Counted, 3 * 2 * 2 * 16), (CountedArrays, 3 * 2 * 2)])
def test_a_round_is_read_at_once_where_examples_are_rows_of_an_array(digits, kind, reads):
    source, stream = kind(digits.splits['train']), batching.IndexStream(1437, 0)
    batches = list(batching.streamed_feed(source, [stream], 0, 6, 3, 2, 16, range(16)))
    assert len(batches) == 2 and batches[0]['x'].shape == (3, 2, 16, 8, 8, 1)
    assert source.reads <= reads + 1  # Grain may look at one


def test_no_more_than_eight_calls_are_read_ahead(digits):
    source = Counted(digits.splits['train'])
    feeds = batching.streamed_feed(source, [batching.IndexStream(1437, 0)], 0, 600, 3, 2, 16, range(16))
    next(feeds)
    reads = -1
    while source.reads > reads:
        reads = source.reads
        time.sleep(0.2)
    assert source.reads <= (1 + 8) * 3 * 2 * 16 + 1  # Grain may look at one


def test_a_streamed_file_trains_as_a_resident_one_and_what_is_held_in_memory_is_said(tmp_path, capsys):
    images = np.random.default_rng(0).integers(0, 256, (200, 8, 8), np.uint8)
    np.savez(tmp_path / 'raw.npz', images=images)
    np.savez_compressed(tmp_path / 'small.npz', images=images)
    feeds = {}
    for name, stream in (('raw', True), ('small', True), ('raw', False)):
        overrides = [('data.name', f'npz:{tmp_path}/{name}.npz'), ('data.stream', str(stream))]
        experiment = Experiment(config_lib.load('configs/vae.py:smoke', overrides))
        feed = next(experiment.feeds(10))
        feeds[name, stream] = feed['x'] if stream else experiment.examples('train', np.asarray(feed))['x']
        said = 'is held in memory whole' in capsys.readouterr().err
        assert said == (stream and name == 'small')
    np.testing.assert_array_equal(feeds['raw', True], feeds['raw', False])
    np.testing.assert_array_equal(feeds['small', True], feeds['raw', False])


def preprocess(dataset, x, binarize='none', scale='unit', step=0):
    cfg = ConfigDict({'name': 'any', 'binarize': binarize, 'scale': scale})
    run = dataset.spec.preprocess(cfg, dataset.scaling(cfg))
    return run({'x': x}, rng.context(0, 'train', step, jnp.arange(len(x))))['x']


def test_scales(digits):
    x = digits.splits['train'].arrays['x'][:50]
    unit, symmetric = preprocess(digits, x), preprocess(digits, x, scale='symmetric')
    assert unit.dtype == jnp.float32 and unit.min() == 0 and unit.max() == 1
    np.testing.assert_allclose(unit, x / 16)
    np.testing.assert_allclose(symmetric, x / 8 - 1.0)
    points = data.load(ConfigDict({'name': 'ring8', 'dir': '', 'num_examples': 100, 'valid_examples': 0}))
    x = points.splits['train'].arrays['x']
    np.testing.assert_array_equal(preprocess(points, x, scale='symmetric'), x)


def test_standard_points_keep_their_shape_and_come_back():
    points = data.load(ConfigDict({'name': 'grid25', 'dir': '', 'num_examples': 5000, 'valid_examples': 100}))
    x = points.splits['train'].arrays['x']
    standard = np.asarray(preprocess(points, x, scale='standard'), np.float64)
    np.testing.assert_allclose(standard.mean(0), 0, atol=1e-6)
    assert standard.var() == pytest.approx(1, abs=1e-6)
    assert np.ptp(standard[:, 0]) / np.ptp(standard[:, 1]) == pytest.approx(np.ptp(x[:, 0]) / np.ptp(x[:, 1]), rel=1e-5)
    np.testing.assert_allclose(points.scaling(ConfigDict({'scale': 'standard'})).to_data(standard), x, atol=1e-6)


def test_dynamic_binarization_draws_anew_with_the_right_mean(digits):
    x = np.broadcast_to(np.array([0, 4, 8, 12, 16], np.uint8).repeat(2)[:, None, None, None], (10, 100, 100, 1))
    first, second = (preprocess(digits, x, 'dynamic', step=step) for step in (0, 1))
    assert set(np.unique(first)) == {0.0, 1.0}
    np.testing.assert_allclose(first.mean((1, 2, 3)).reshape(5, 2).mean(1), [0, 0.25, 0.5, 0.75, 1], atol=0.015)
    changed = (first != second).mean((1, 2, 3)).reshape(5, 2).mean(1)
    np.testing.assert_allclose(changed, [0, 0.375, 0.5, 0.375, 0], atol=0.02)  # 2 p (1 − p)
    assert (first[2] != first[3]).any()  # no two examples share their draws


def test_held_out_images_are_binarized_alike_whatever_the_seed():
    """Runs with different seeds, and the replicas of one, are evaluated on the same data, bit for bit."""
    path = pathlib.Path(__file__).parents[2] / 'configs' / 'vae.py'

    def make(**more):
        fields = {'data.binarize': 'dynamic', 'task.likelihood': 'bernoulli', 'eval.batch_size': 50, **more}
        fields['eval.best_metric'] = ''  # of which `project` has none
        return Experiment(config_lib.load(f'{path}:smoke', [(name, str(value)) for name, value in fields.items()]))

    def seen(seed, **more):
        """What `evaluate` gets for each replica, as bytes, and the originals of the pictures."""
        experiment, found = make(seed=seed, **more), []
        weights = np.random.default_rng(0).normal(size=experiment.dataset.spec.shape)
        project = lambda params, extra, batch, ctx: {'x': (batch['x'] * weights).sum((1, 2, 3))}
        others = [one for one in experiment.task.capabilities if not isinstance(one, Measures)]
        experiment.task = dataclasses.replace(experiment.task, capabilities=(Measures(project), *others))
        evaluator, state = Evaluator(experiment), experiment.create_state()
        for k, own in enumerate(experiment.seeds):
            replica = experiment.replica(state, k)
            x, _ = evaluator.reconstruct(replica, own, 'valid', 60)
            found.append((Evaluation(evaluator).each(replica, own, 'valid')['x'], x.tobytes()))
        return found, x

    (zero, x), (one, _), (replicas, _) = seen(0), seen(1), seen(5, num_seeds=2)
    assert zero == one and replicas == 2 * zero
    assert set(np.unique(x)) == {0.0, 1.0}
    experiment = make()
    grey = experiment.examples('valid', np.arange(60))['x'] / 16
    assert 0.01 < (x != (grey > 0.5)).mean() < 0.3  # drawn, not cut at a half
    contexts = [rng.context(seed, 'train', 0, jnp.arange(60)) for seed in (0, 1)]
    first, second = (experiment.train_preprocess({'x': grey * 16}, ctx)['x'] for ctx in contexts)
    assert (first != second).any()  # training keeps its draws


def test_static_binarization_is_drawn_once(digits):
    x = digits.splits['train'].arrays['x']
    fixed = binarize_static(x, 16, 'train')
    np.testing.assert_array_equal(fixed, binarize_static(x, 16, 'train'))
    assert set(np.unique(fixed)) == {0, 1} and fixed.mean() == pytest.approx(x.mean() / 16, abs=0.005)
    assert (fixed != binarize_static(x, 16, 'valid')).any()


def test_threshold(digits):
    x = np.arange(17, dtype=np.uint8).reshape(1, 17, 1, 1)
    np.testing.assert_array_equal(preprocess(digits, x, 'threshold').ravel(), [0] * 9 + [1] * 8)


@pytest.mark.parametrize('fields, message', [({'binarize': 'dynamics'}, 'dynamic'), ({'scale': 'units'}, 'unit')])
def test_unknown_names_list_the_near_ones(fields, message):
    with pytest.raises(UserError, match=f'did you mean.*{message}'):
        data.load(ConfigDict({'name': 'digits', **fields}))
