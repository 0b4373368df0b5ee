"""What aigc_jax.load gives, on raw data: the run's own preprocessing, or an error."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from vaes import context, make, start

import aigc_jax
from aigc_jax.core.capabilities import LatentSpace, Measures, Reconstructs, Samples, ScalarField, SplitStatistic
from aigc_jax.core.errors import UserError
from aigc_jax.runs import raw


@pytest.fixture(scope='module')
def grey():
    """(experiment, its task on raw data, params, extra, 4 images as the set stores them), of data.scale=symmetric."""
    experiment = make(task__likelihood='gaussian', data__scale='symmetric')
    return experiment, raw.task_of(experiment), *start(experiment), experiment.examples('test', np.arange(4))['x']


def test_raw_images_are_evaluated_as_the_run_evaluates_them(smoke):
    config, task, state = aigc_jax.load(smoke('vae'))
    experiment = make()
    x, ctx, extra = experiment.examples('test', np.arange(6))['x'], context(6), ((), ())
    theirs = experiment.task.get(Measures).per_example(state.params, extra, experiment.preprocess({'x': x}, ctx), ctx)
    for form in (x, x.astype(np.int64), x / 16, jnp.asarray(x / np.float32(16))):
        ours = task.get(Measures).per_example(state.params, extra, {'x': form}, ctx)
        np.testing.assert_allclose(ours['model/nll'], theirs['model/nll'], rtol=1e-5)
    for form in (x.astype(np.float32), x[..., 0], x[0], x * 15, -x.astype(int), x / 16 + np.nan, x > 8):
        with pytest.raises(UserError, match=r'wants \(n, 8, 8, 1\), whole numbers 0 to 16 or floats in \[0, 1\]'):
            task.get(Measures).per_example(state.params, extra, {'x': form}, ctx)


def test_what_goes_in_and_comes_out_is_in_the_datas_own_units(grey):
    experiment, task, params, extra, x = grey
    ctx = context(4)
    seen = experiment.preprocess({'x': x}, ctx)
    assert np.min(seen['x']) == -1
    theirs = experiment.task.get(Reconstructs).reconstruct(params, extra, seen, ctx) / 2 + 0.5
    np.testing.assert_allclose(task.get(Reconstructs).reconstruct(params, extra, {'x': x}, ctx), theirs, atol=1e-5)
    theirs = experiment.task.get(LatentSpace).encode(params, extra, seen, ctx)
    np.testing.assert_allclose(task.get(LatentSpace).encode(params, extra, {'x': x}, ctx), theirs, atol=1e-5)
    z = task.get(LatentSpace).encode(params, extra, {'x': x}, ctx)
    middle = experiment.task.get(LatentSpace).decode(params, extra, z, None) / 2 + 0.5
    np.testing.assert_allclose(task.get(LatentSpace).decode(params, extra, z, None), middle, atol=1e-6)
    drawn = experiment.task.get(Samples).draw(params, extra, ctx, None) / 2 + 0.5
    np.testing.assert_allclose(task.get(Samples).draw(params, extra, ctx, None), drawn, atol=1e-6)
    score = task.get(ScalarField).value(params, extra, x / 16, ctx)
    np.testing.assert_allclose(score, experiment.task.get(ScalarField).value(params, extra, seen['x'], ctx), rtol=1e-4)
    loss = lambda task, batch: task.rounds[0][0].loss(params, extra, batch, ctx)[0]
    np.testing.assert_allclose(loss(task, {'x': x}), loss(experiment.task, seen), rtol=1e-5)
    functions = [task.get(LatentSpace).encode, task.get(SplitStatistic).collect, task.get(Reconstructs).reconstruct]
    for function in (*functions, task.rounds[0][0].loss):
        with pytest.raises(UserError, match='float32 from 0.0 to 16.0'):
            function(params, extra, {'x': x.astype(np.float32)}, ctx)
    with pytest.raises(UserError, match='wants'):
        task.get(ScalarField).value(params, extra, x.astype(np.float32), ctx)


def test_inside_jit_an_image_out_of_range_becomes_nan(grey):
    _, task, params, extra, x = grey
    encode = jax.jit(lambda x: task.get(LatentSpace).encode(params, extra, {'x': x}, context(4)))
    levels = x.astype(np.float32) / 16
    levels[1, 0, 0, 0] = 200
    codes = encode(levels)
    assert np.isnan(codes[1]).all() and np.isfinite(codes[np.array([0, 2, 3])]).all()
    with pytest.raises(UserError, match='wants'):
        jax.eval_shape(lambda x: task.get(LatentSpace).encode(params, extra, {'x': x}, context(4)), x[..., 0])


def test_labels_of_a_conditional_run_are_wanted():
    experiment = make(model__conditional=True)
    task, (params, extra) = raw.task_of(experiment), start(experiment)
    batch, ctx = experiment.examples('test', np.arange(4)), context(4)
    assert np.isfinite(task.get(LatentSpace).encode(params, extra, batch, ctx)).all()
    for labels in (None, batch['label'][:3], batch['label'] + 10, batch['label'] - 10, batch['label'] / 1.0):
        with pytest.raises(UserError, match=r'wants \(4,\) whole numbers 0 to 9'):
            task.get(LatentSpace).encode(params, extra, {'x': batch['x'], 'label': labels}, ctx)
        with pytest.raises(UserError, match=r'wants \(4,\) whole numbers 0 to 9'):
            task.get(Samples).draw(params, extra, ctx, labels)


def test_binarized_images_are_binary():
    """Static binarization draws the images of its own set, so others must come binarized; the dynamic draws them."""
    for how, message in (('static', 'the numbers 0 and 1'), ('dynamic', 'whole numbers 0 to 16')):
        experiment = make(data__binarize=how)
        task, (params, extra) = raw.task_of(experiment), start(experiment)
        x, ctx = experiment.dataset.splits['test'][np.arange(4)]['x'], context(4)
        ones = task.get(LatentSpace).encode(params, extra, {'x': (x > 8).astype(np.float32)}, ctx)
        assert np.isfinite(ones).all()
        with pytest.raises(UserError, match=message):
            task.get(LatentSpace).encode(params, extra, {'x': x * 15}, ctx)
    seen = experiment.preprocess({'x': x}, ctx)
    assert set(np.unique(seen['x'])) == {0, 1}
    for form in (x, x / np.float32(16)):
        of_model = experiment.task.get(LatentSpace).encode(params, extra, seen, ctx)
        np.testing.assert_array_equal(task.get(LatentSpace).encode(params, extra, {'x': form}, ctx), of_model)


def test_points_are_scaled():
    experiment = make('points,smoke', data__name='grid25', data__scale='standard')
    task, (params, extra) = raw.task_of(experiment), start(experiment)
    x, ctx = experiment.examples('test', np.arange(50))['x'], context(50)
    seen = experiment.preprocess({'x': x}, ctx)
    assert np.abs(x).max() > 3.5 > 2 > np.abs(seen['x']).max()
    of_model = experiment.task.get(LatentSpace).encode(params, extra, seen, ctx)
    np.testing.assert_allclose(task.get(LatentSpace).encode(params, extra, {'x': x}, ctx), of_model, atol=1e-5)
    with pytest.raises(UserError, match=r'\(n, 2\), floats$'):
        task.get(LatentSpace).encode(params, extra, {'x': x + np.inf}, ctx)
