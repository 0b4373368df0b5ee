"""Extractors, and the metrics of images in a run: metrics/features.py, reports/image_samples.py."""

import base64
import dataclasses
import json
import pathlib
import re
import shutil

import numpy as np
import pytest
from refusals import assert_refused, snapshot

from aigc_jax.core.errors import UserError
from aigc_jax.data import Arrays
from aigc_jax.data.dataset import from_arrays
from aigc_jax.metrics import features
from aigc_jax.plots import images as plots_images
from aigc_jax.reports import image_splits, pictures
from aigc_jax.reports.evaluator import Evaluator
from aigc_jax.reports.image_samples import ImageSamples
from aigc_jax.reports.tables import table
from aigc_jax.runs import config as config_lib
from aigc_jax.runs.experiment import Experiment
from aigc_jax.runs.folder import Run
from aigc_jax.runs.paths import Paths
from aigc_jax.training.trainer import train

CONFIGS = pathlib.Path(__file__).parents[2] / 'configs'
# The mean of each 2 × 2 pixels of float (n, 3, 4, 4), (n, 12); uint8 (n, 4, 4, 1 to 3) as float, (n, 12 C): made with
# onnx.helper of AveragePool and Flatten, and of Cast and Flatten.
POOL = (
    'CAg6hgEKPAoBeBIBcCILQXZlcmFnZVBvb2wqFQoMa2VybmVsX3NoYXBlQAJAAqABByoQCgdzdHJpZGVzQAJAAqABBwoPCgFwEgF5IgdGbGF0dGVu'
    'EgFnWhwKAXgSFwoVCAESEQoDEgFuCgIIAwoCCAQKAggEYhQKAXkSDwoNCAESCQoDEgFuCgIIDEIECgAQDQ=='
)
BYTES = (
    'CAg6YQoXCgF4EgFjIgRDYXN0KgkKAnRvGAGgAQIKDwoBYxIBeSIHRmxhdHRlbhIBZ1ocCgF4EhcKFQgCEhEKAxIBbgoCCAQKAggECgIIA2IUCgF5'
    'Eg8KDQgBEgkKAxIBbgoCCAxCBAoAEA0='
)
SQUARE = (  # x · x, float (n, 1, h, w) of any h and w
    'CAg6VgoRCgF4CgF4EgF5IgZNYXRNdWwSAWdaHgoBeBIZChcIARITCgMSAW4KAggBCgMSAWgKAxIBd2IeCgF5EhkKFwgBEhMKAxIB'
    'bgoCCAEKAxIBaAoDEgF3QgQKABAN'
)
CONSTANT = 'CAg6NgokEgF5IghDb25zdGFudCoVCgt2YWx1ZV9mbG9hdBUAAIA/oAEBEgFnYgsKAXkSBgoECAESAEIECgAQDQ=='  # no inputs


def bars(n, seed, side=8):
    """Images of one bright row in noise, and which it is."""
    random = np.random.default_rng(seed)
    x, label = 0.3 * random.random((n, side, side, 1), np.float32), random.integers(side, size=n)
    x[np.arange(n), label] += 0.6
    return x, label


@pytest.fixture(scope='module')
def classifier():
    return features.train_classifier(*bars(600, 0), 8)


@pytest.fixture(scope='module')
def run(tmp_path_factory):
    """A conditional GAN on the digits with every metric of images."""
    folder = tmp_path_factory.mktemp('images') / 'run'
    config = config_lib.load(
        f'{CONFIGS / "gan.py"}:smoke', [('model.conditional', 'True'), ('eval.extractor', 'classifier')]
    )
    train(config, Run(folder))
    return folder


def test_the_classifier_learns_and_is_a_function_of_the_data(classifier, tmp_path):
    x, label = bars(300, 1)
    extractor = classifier.extractor
    feature, classes = extractor.extract(x)
    assert feature.shape == (300, 128) and (classes == label).mean() > 0.99
    again = features.train_classifier(*bars(600, 0), 8)
    assert again.extractor.name == extractor.name
    classifier.save(tmp_path / 'extractor.npz')
    loaded = features.Classifier.load(tmp_path / 'extractor.npz').extractor
    assert loaded.name == extractor.name and loaded.num_classes == 8
    np.testing.assert_array_equal(loaded.extract(x)[0], feature)
    changed = dict(classifier.weights, **{'out/bias': np.nextafter(classifier.weights['out/bias'], 9)})
    assert dataclasses.replace(classifier, weights=changed).extractor.name != extractor.name
    with pytest.raises(UserError, match='takes images'):
        extractor.extract(x[:, :7])


def test_any_number_of_images_is_taken_in_chunks(classifier, monkeypatch):
    x, _ = bars(17, 2)
    whole = classifier.extractor.extract(x)
    monkeypatch.setattr(features, '_CHUNK', 5)
    for a, b in zip(whole, classifier.extractor.extract(x), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


@pytest.mark.parametrize('shape', [(28, 28, 1), (32, 32, 3), (9, 6, 2)])
def test_the_network_takes_any_size(shape):
    params = features._init(shape, 10)
    x = np.random.default_rng(0).random((2, *shape), np.float32)
    hidden, classes = features._outputs(params, x)
    assert hidden.shape == (2, 128) and classes.shape == (2,) and (np.asarray(hidden) > 0).any()


def test_the_layers_are_convolutions():
    """Of 2 × 2 pixels taken as channels, written with XLA's own convolution."""
    import jax

    params = features._init((16, 16, 1), 3)
    x = np.random.default_rng(0).random((4, 16, 16, 1), np.float32)
    y = x - 0.5
    kernel = np.asarray(params['conv0/kernel']).reshape(3, 3, 2, 2, 1, 16)  # place in the 3 × 3, then in the 2 × 2
    kernel = kernel.transpose(0, 2, 1, 3, 4, 5).reshape(6, 6, 1, 16)
    y = jax.lax.conv_general_dilated(y, kernel, (2, 2), [(2, 2)] * 2, dimension_numbers=('NHWC', 'HWIO', 'NHWC'))
    y = np.maximum(y + params['conv0/bias'], 0).reshape(4, -1)
    want = np.maximum(y @ params['hidden/kernel'] + params['hidden/bias'], 0)
    np.testing.assert_allclose(features._outputs(params, x)[0], want, atol=1e-5)


def test_stacked_images_are_classified_channel_by_channel(classifier):
    x, label = bars(60, 3)
    stacked = np.moveaxis(x.reshape(20, 3, 8, 8), 1, -1)
    one = classifier.extractor
    feature, classes = features.by_channel(one).extract(stacked)
    np.testing.assert_array_equal(feature, one.extract(x)[0].reshape(20, 384))
    np.testing.assert_array_equal(classes, one.extract(x)[1].reshape(20, 3) @ [100, 10, 1])
    np.testing.assert_array_equal(features.split_channels(stacked), x)
    np.testing.assert_array_equal(image_splits._digits(np.array([507, 42]), 3), [[5, 0, 7], [0, 4, 2]])


@pytest.mark.parametrize('graph, layout', [(POOL, 'float'), (BYTES, 'uint8')])
def test_an_onnx_network(tmp_path, graph, layout):
    pytest.importorskip('onnxruntime')
    path = tmp_path / 'network.onnx'
    path.write_bytes(base64.b64decode(graph))
    x = np.random.default_rng(0).random((250, 4, 4, 3), np.float32)
    extractor = features.onnx(path)
    feature, classes = extractor.extract(x)
    assert classes is None and extractor.name.startswith('onnx-')
    if layout == 'float':
        want = x.reshape(250, 2, 2, 2, 2, 3).mean(axis=(2, 4)).transpose(0, 3, 1, 2).reshape(250, 12)
        np.testing.assert_allclose(feature, want, atol=1e-6)
        grey = extractor.extract(np.full((3, 8, 8, 1), 0.25, np.float32))[0]  # resized, and its channel repeated
        np.testing.assert_allclose(grey, np.full((3, 12), 0.25), atol=1e-6)
    else:
        np.testing.assert_array_equal(feature, np.rint(255 * x).reshape(250, 48))
    with pytest.raises(UserError, match='2'):
        extractor.extract(np.zeros((3, 4, 4, 2), np.float32))
    (tmp_path / 'bad.onnx').write_bytes(b'no network')
    with pytest.raises(UserError, match='bad.onnx is no ONNX network'):
        features.onnx(tmp_path / 'bad.onnx')
    path.write_bytes(base64.b64decode(SQUARE))
    assert features.onnx(path).extract(np.zeros((3, 4, 4, 1), np.float32))[0].shape == (3, 16)
    with pytest.raises(UserError, match='network.onnx: fails for images of \\(4, 5, 1\\): '):
        features.onnx(path).extract(np.zeros((3, 4, 5, 1), np.float32))
    path.write_bytes(base64.b64decode(CONSTANT))
    with pytest.raises(UserError, match='network.onnx: one input of images is wanted, float or uint8; it has nothing'):
        features.onnx(path)


def metrics(results) -> dict[str, dict]:
    """By the metric's own name, without count and extractor."""
    return {name.removeprefix('samples/').rsplit('_', 2)[0]: found for name, found in results.items()}


def test_a_run_measures_its_samples_beside_real_images(run):
    written = json.loads((run / 'evaluation.json').read_text())
    name = features.Classifier.load(run / 'extractor.npz').extractor.name
    assert f'samples/frechet_200_{name}' in written and 'samples/ms_ssim_200_pixels' in written
    found = metrics({name: value for name, value in written.items() if name.startswith('samples/')})
    assert found.keys() == {
        'frechet', 'kernel', 'precision', 'recall', 'density', 'coverage', 'sliced_wasserstein', 'memorization',
        'ms_ssim', 'modes', 'class_kl', 'uniform_kl', 'label_accuracy',
    }  # fmt: skip
    for one in found.values():
        assert one['n'] == 200 and np.isfinite([one['value'], one['real']]).all()
    assert found['kernel']['ci'] > 0 and abs(found['kernel']['real']) < 0.05 < found['kernel']['value']
    assert found['frechet']['real'] < found['frechet']['value'] / 5  # 40 steps make no digits
    assert found['coverage']['real'] > 0.8 > found['coverage']['value']
    assert found['label_accuracy']['real'] > 0.95
    assert found['modes']['perfect'] == pytest.approx(10, abs=0.01)
    assert found['class_kl']['perfect'] == 9 / 400
    final = [json.loads(line) for line in (run / 'metrics.jsonl').read_text().splitlines()][-1]
    assert final['split'] == 'final' and final[f'samples/frechet_200_{name}'] == found['frechet']['value']


def test_evaluating_again_uses_the_same_extractor(run, runner):
    before = json.loads((run / 'evaluation.json').read_text())
    code, out, err = runner('--mode=evaluate', f'--workdir={run}')
    assert code == 0, err
    assert json.loads((run / 'evaluation.json').read_text()) == before
    assert 'real images' in out
    lines = out.splitlines()[1:]
    # The values stand below each other, and so does what they are over.
    assert len({re.search(r' (over \d|\(n=)', line).start() for line in lines}) == 1 and max(map(len, before)) < 60
    code, out, err = runner('--mode=evaluate', f'--workdir={run}', '--config.eval.extractor=')
    assert code == 0 and 'frechet' not in out


def test_training_images_are_not_held_out(run):
    with pytest.raises(UserError, match='eval.final_split: samples are compared with images held out'):
        ImageSamples.check(Run(run).open(overrides=[('eval.final_split', 'train')])[0])


def test_no_classifier_of_other_data_is_kept(run, runner, tmp_path):
    other = tmp_path / 'other'
    shutil.copytree(run, other)
    (other / 'extractor.npz').unlink()
    rng = np.random.default_rng(0)
    arrays = {f'x_{split}': rng.integers(0, 256, (300, 8, 8)).astype(np.uint8) for split in ('train', 'test')}
    arrays |= {f'y_{split}': np.arange(300) % 10 for split in ('train', 'test')}
    np.savez(tmp_path / 'noise.npz', **arrays)
    before = snapshot(other)
    arguments = '--mode=evaluate', f'--workdir={other}', f'--config.data.name=npz:{tmp_path / "noise.npz"}'
    arguments += ('--config.data.valid_examples=50',)
    assert_refused(runner(*arguments), 'eval.extractor', 'was trained on other data')
    assert snapshot(other) == before


def test_a_run_of_before_opens_and_is_measured(run, tmp_path, runner):
    old = tmp_path / 'old'
    shutil.copytree(run, old)
    (old / 'extractor.npz').unlink()
    config = json.loads((old / 'config.json').read_text())
    del config['eval']['extractor'], config['schema'], config['init']
    (old / 'config.json').write_text(json.dumps(config))
    code, out, err = runner('--mode=evaluate', f'--workdir={old}')
    assert code == 0 and 'frechet' not in out, err
    code, out, err = runner('--mode=evaluate', f'--workdir={old}', f'--config.eval.extractor={run / "extractor.npz"}')
    assert code == 0 and 'frechet_200_classifier-' in out, err
    assert not (old / 'extractor.npz').exists()
    ours, theirs = (config_lib.from_json(folder / 'config.json') for folder in (run, old))
    assert config_lib.differing(ours, theirs) == ["eval.extractor: 'classifier' now, '' there"]
    ours.eval.extractor = ''
    assert not config_lib.differing(ours, theirs)


def test_training_images_score_as_real_ones(run, monkeypatch):
    """Samples that are the very training images: their nearest neighbours are themselves, and memorization is 0."""
    experiment, state = Run(run).open(overrides=[('eval.extractor', 'pixels'), ('eval.num_samples', '150')])
    given = experiment.examples('train', np.arange(150))
    evaluator = Evaluator(experiment, Paths(run))
    monkeypatch.setattr(evaluator, 'sample', lambda state, seed, n, labels: (given['x'] / 16).astype(np.float32))
    measured = ImageSamples(evaluator)
    results = measured.measure(state, 0, 'test')
    found = metrics(results)
    assert 'samples/frechet_150_pixels' in results and 'modes' not in found
    assert found['memorization']['value'] == pytest.approx(0, abs=1e-3)
    assert found['precision']['value'] == pytest.approx(found['precision']['real'], abs=0.1)
    nearest = evaluator.image_splits.neighbours(given['x'][:9] / 16)
    np.testing.assert_array_equal(nearest, given['x'][:9].astype(np.float32) / 16)
    monkeypatch.setattr(evaluator, 'sample', lambda state, seed, n, labels: np.full((150, 8, 8, 1), np.nan))
    lost = metrics(measured.measure(state, 0, 'test'))
    assert all(np.isnan(one['value']) and np.isfinite(one['real']) for one in lost.values())
    assert 'nan' in table(measured.measure(state, 0, 'test'))


def test_a_stacked_set_has_modes_of_all_channels(run, monkeypatch, tmp_path):
    experiment, state = Run(run).open(overrides=[('eval.num_samples', '300')])
    draw, splits = np.random.default_rng(0), {}
    for split, n in (('train', 1200), ('valid', 50), ('test', 100)):
        one = experiment.examples(split, draw.integers(len(experiment.dataset.splits[split]), size=3 * n))
        x, label = np.moveaxis(one['x'].reshape(n, 3, 8, 8), 1, -1), one['label'].reshape(n, 3) @ [100, 10, 1]
        splits[split] = Arrays(x=x, label=label)
    stacked = from_arrays(splits, levels=16, num_classes=1000, licence='')
    experiment.dataset = dataclasses.replace(stacked, spec=dataclasses.replace(stacked.spec, stacked=True))
    vars(experiment).pop('__split_results', None)  # what cached_method keeps
    evaluator = Evaluator(experiment, Paths(tmp_path))
    monkeypatch.setattr(evaluator, 'sample', lambda state, seed, n, labels: splits['train'].arrays['x'][:n] / 16.0)
    measured = ImageSamples(evaluator)
    found = metrics(measured.measure(state, 0, 'test'))
    assert features.Classifier.load(tmp_path / 'extractor.npz').shape == (8, 8, 1)
    want = len(np.unique(splits['train'].arrays['label'][:300]))
    assert found['modes']['value'] == pytest.approx(want, abs=3)
    assert found['class_kl']['perfect'] == pytest.approx(999 / 600)
    shares = evaluator.image_splits.shares
    assert shares.shape == (1000,) and shares.sum() == pytest.approx(1)


@pytest.mark.parametrize(
    'name, words',
    [
        ('classifer', ['did you mean classifier', 'extractor.npz of another run']),
        ('classifier:x', ['did you mean classifier']),
        ('nowhere/extractor.npz', ['no file nowhere/extractor.npz']),
        ('{tmp}/torn.npz', ['torn.npz is not the extractor.npz of a run']),
        ('{tmp}/other.npz', ['takes images of (28, 28, 1)', '(8, 8, 1)']),
        ('onnx:nowhere.onnx', ['nowhere.onnx']),
    ],
)
def test_a_wrong_extractor_is_refused_before_training(tmp_path, name, words):
    (tmp_path / 'torn.npz').write_bytes(b'PK\x03\x04 torn')
    weights = {key: np.asarray(value) for key, value in features._init((28, 28, 1), 10).items()}
    features.Classifier(weights, (28, 28, 1)).save(tmp_path / 'other.npz')
    if name.startswith('onnx:'):
        pytest.importorskip('onnxruntime')
    config = config_lib.load(f'{CONFIGS / "vae.py"}:smoke', [('eval.extractor', name.format(tmp=tmp_path))])
    with pytest.raises(UserError) as refusal:
        train(config, Run(tmp_path / 'run'))
    assert not (tmp_path / 'run').exists()
    assert all(word in str(refusal.value) for word in ['eval.extractor', *words]), refusal.value


def test_what_the_data_do_not_allow_is_refused(tmp_path):
    x = np.random.default_rng(0).integers(256, size=(40, 8, 8, 1), dtype=np.uint8)
    np.savez(tmp_path / 'images.npz', x_train=x, x_test=x[:4])
    data = [('data.name', f'npz:{tmp_path}/images.npz'), ('data.valid_examples', '9')]
    for name, words in (('classifier', 'pixels'), ('pixels', 'more than 5')):
        fields = [('eval.extractor', name), *data, *([('eval.final_split', 'valid')] if name == 'classifier' else [])]
        experiment = Experiment(config_lib.load(f'{CONFIGS / "vae.py"}:smoke', fields))
        with pytest.raises(UserError, match=words):
            ImageSamples.check(experiment)


def test_pictures_of_neighbours_and_of_training_time(run, figure, monkeypatch):
    rows, pairs = {}, []
    draw_rows = plots_images.image_rows

    def image_rows(drawn, path, *more, **fields):
        rows[path.name] = drawn
        draw_rows(drawn, path, *more, **fields)

    monkeypatch.setattr(plots_images, 'image_rows', image_rows)
    monkeypatch.setattr(plots_images, 'image_pairs', lambda *a, **k: pairs.append(a))
    assert (run / 'plots' / 'neighbours.png').stat().st_size > 500
    experiment, state = Run(run).open()
    evaluator = Evaluator(experiment, Paths(run))
    pictures.draw(evaluator, '00000040', state, 0, [], final=True)
    assert [label for label, _ in rows['progress.png']] == ['step 20', 'step 40']
    for (_, shown), step in zip(rows['progress.png'], (20, 40), strict=True):
        # As many of each class as there is room for: of 12, the first 10, which have the classes 0 to 9.
        np.testing.assert_array_equal(shown, np.load(run / 'samples' / f'{step:08d}.npz')['samples'][:10])
    assert [text.get_text() for text in figure[-1].texts] == ['step 20', *map(str, range(10)), 'step 40']
    samples, training, path, _, classes = pairs[-1]
    assert path == run / 'plots' / 'neighbours.png'
    drawn = np.load(run / 'samples' / '00000040.npz')
    assert list(drawn['labels']) == [i % 10 for i in range(16)]  # a sample's place is its own, whatever is drawn
    order = sorted(range(16), key=lambda i: i % 10)
    assert classes == [str(i % 10) for i in order]
    np.testing.assert_array_equal(samples, drawn['samples'][order])
    train = experiment.examples('train', np.arange(1437))['x'] / 16
    ours, theirs = (evaluator.image_splits.extractor.extract(x.astype(np.float32))[0] for x in (samples, train))
    nearest = np.linalg.norm(ours[:, None] - theirs, axis=-1).argmin(axis=1)
    np.testing.assert_allclose(training, train[nearest], atol=1e-6)


def test_some_of_many_evaluations_are_shown(tmp_path):
    for step in range(10, 400, 10):
        for name in (f'{step:08d}', f'{step:08d}_seed1', f'{step:08d}_sample0'):
            np.savez(tmp_path / f'{name}.npz', samples=np.full((20, 8, 8, 1), step + (0.5 if 'seed' in name else 0)))
    shown = pictures._over_time(tmp_path, '00000300')
    assert len(shown) == 10 and shown[0][0] == 'step 10' and shown[-1][0] == 'step 300'
    assert shown[-1][1].shape == (12, 8, 8, 1) and (shown[-1][1] == 300).all()
    assert (pictures._over_time(tmp_path, '00000300_seed1')[-1][1] == 300.5).all()
