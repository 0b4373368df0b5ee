"""How good the samples of an image model are: distances to held-out images, each beside what real images score."""

import functools
import math
import pathlib
from collections.abc import Iterator

import jax
import numpy as np

from aigc_jax.core import processes, rng
from aigc_jax.core.capabilities import Samples
from aigc_jax.core.errors import UserError, near
from aigc_jax.core.kept import cached_method
from aigc_jax.core.types import TrainState
from aigc_jax.data import Images
from aigc_jax.metrics import features, images
from aigc_jax.metrics.features import Classifier, Extractor
from aigc_jax.metrics.intervals import NORMAL_95, wilson
from aigc_jax.reports.base import Report
from aigc_jax.reports.tables import Results
from aigc_jax.runs import manifest
from aigc_jax.runs.experiment import Experiment

K = images.NEIGHBOURS  # neighbours that the balls of precision, recall, density and coverage reach to
_NAMES = ('classifier', 'pixels', 'onnx:FILE')
_STEMS = (
    'frechet', 'kernel', 'precision', 'recall', 'density', 'coverage', 'sliced_wasserstein', 'ms_ssim', 'memorization',
    'modes', 'class_kl', 'uniform_kl', 'label_accuracy',
)  # fmt: skip
_CHUNK = 5000  # images that are gone through at once
_MOST_TRAINED = 100_000  # images that the classifier is trained on


def wanted(experiment: Experiment) -> str:
    """eval.extractor, where the data are images; '' for none."""
    return experiment.config.eval.extractor if isinstance(experiment.dataset.spec, Images) else ''


def check(experiment: Experiment) -> None:
    """Raises UserError for an eval.extractor that there is not, or that does not fit the data."""
    config, dataset = experiment.config.eval, experiment.dataset
    if not (name := wanted(experiment)):
        return
    if config.final_split == 'train':
        raise UserError(
            "eval.final_split: samples are compared with images held out, which train's are not; or set "
            "eval.extractor to ''"
        )
    counts = len(dataset.splits['train']), len(dataset.splits[config.final_split]), config.num_samples
    if min(counts) <= K:
        raise UserError(
            f'eval.extractor: metrics of samples want more than {K} images of each kind; there are {counts[0]} to '
            f"train on, {counts[1]} held out, {counts[2]} samples (eval.num_samples); '' leaves these metrics out"
        )
    if name == 'classifier' and not dataset.num_classes:
        raise UserError(
            f'eval.extractor: {experiment.config.data.name} has no labels to train a classifier with; '
            "set it to auto, pixels, the extractor.npz of another run, or '' for no metrics of samples"
        )
    if extractor := _given(experiment):
        extractor.extract(np.zeros((1, *dataset.spec.shape), np.float32))


def _given(experiment: Experiment) -> Extractor | None:
    """The extractor that eval.extractor names, where it is not to be trained here."""
    name = wanted(experiment)
    if name in ('', 'classifier'):
        return None
    if name == 'pixels':
        return features.PIXELS
    if name.startswith('onnx:'):
        return features.onnx(pathlib.Path(name.removeprefix('onnx:')).expanduser())
    path = pathlib.Path(name).expanduser()
    if not path.exists() and path.suffix != '.npz':
        raise UserError(f'eval.extractor: {name!r}{near(name, _NAMES)}, or the extractor.npz of another run')
    return _fitted(Classifier.load(path).extractor, experiment)


def _fitted(classifier: Extractor, experiment: Experiment) -> Extractor:
    return features.by_channel(classifier) if experiment.dataset.spec.stacked else classifier


class ImageSamples(Report):
    """How good samples are, set against held-out images; what depends on the data alone is computed once.

    n = eval.num_samples samples, or as many as there are training images, are set against the split, or as many of it.
    'real' is what n training images score against the same, so that it is the mark of a sampler that has learned the
    data. Samples are clipped to [0, 1]; those of a conditional model have the classes of training images. Names carry n
    and the extractor. The classifier is trained where the run's folder holds none, and kept there.
    """

    name, when, needs, switch = 'image_samples', 'final', (Samples,), 'extractor'

    @classmethod
    def applies(cls, experiment: Experiment) -> bool:
        return super().applies(experiment) and bool(wanted(experiment))

    @classmethod
    def is_off(cls, experiment: Experiment) -> bool:
        return super().is_off(experiment) and isinstance(experiment.dataset.spec, Images)

    @classmethod
    def check(cls, experiment: Experiment) -> None:
        check(experiment)

    @classmethod
    def names(cls, experiment: Experiment) -> list[str]:
        return [f'samples/{name}' for name in _STEMS]  # then come n and the extractor, whose name tells its weights

    def __init__(self, *args):
        super().__init__(*args)
        paths, fingerprint = self.paths, self.experiment.dataset.fingerprint
        own = not paths or manifest.trained_on(paths.manifest) in (None, fingerprint)
        if wanted(self.experiment) == 'classifier' and not own and not paths.extractor.exists():
            raise UserError(
                f'eval.extractor: {paths.folder} was trained on other data than these, and keeps no classifier of its '
                "own; name the extractor.npz of another run, pixels, or '' for no metrics of samples"
            )
        self._kept: dict[int, np.ndarray] = {}  # features of training images, by the first one's place

    @classmethod
    def files(cls, experiment: Experiment) -> list[pathlib.Path]:
        return [pathlib.Path(wanted(experiment).removeprefix('onnx:')).expanduser()]

    def title(self, split: str) -> str:
        return 'metrics of samples'

    @functools.cached_property
    def extractor(self) -> Extractor:
        """That of eval.extractor; raw pixels where it names none."""
        if wanted(self.experiment) != 'classifier':
            return _given(self.experiment) or features.PIXELS
        path = self.paths.extractor if self.paths else None
        if path and path.exists():
            return _fitted(Classifier.load(path).extractor, self.experiment)
        dataset = self.experiment.dataset
        places = rng.fixed_choice(len(dataset.splits['train']), _MOST_TRAINED)
        x, labels, num_classes = self._real('train', places), self._labels('train')[places], dataset.num_classes
        if dataset.spec.stacked:
            labels, num_classes = _digits(labels, x.shape[3]).ravel(), features.DIGITS
            x = features.split_channels(x)
        classifier = features.train_classifier(x, labels, num_classes)
        if path:
            classifier.save(path)
        return _fitted(classifier.extractor, self.experiment)

    def measure(self, state: TrainState, seed: int, split: str) -> Results:
        n, labels = self._n, None
        if self.experiment.num_classes:
            # As often as in the data, which classes taken in turn would not be.
            train = self._labels('train')
            labels = train[np.random.Generator(np.random.PCG64(1)).integers(len(train), size=n)]
        samples = self.evaluator.sample(state, seed, n, labels)
        if not processes.first():  # every process samples, one measures
            return {}
        real, found = self._of_real(split), {}
        if np.isfinite(samples).all():
            found = self._scores(np.clip(samples, 0, 1), split, True, labels)
        results = {}
        for name, mark in real.items():
            value, error = found.get(name, (math.nan, None))
            label = 'pixels' if name == 'ms_ssim' else self.extractor.name
            row = results[f'samples/{name}_{n}_{label}'] = {'value': value, 'real': mark[0], 'n': n}
            if error is not None:
                row |= {'ci': NORMAL_95 * error, 'over': 'samples'}
            if name == 'label_accuracy' and found:
                row |= wilson(value * n, n, 'samples')
            if name in self._perfect:
                row['perfect'] = self._perfect[name]
        return results

    def neighbours(self, samples: np.ndarray) -> np.ndarray:
        """The training image nearest to each sample (n, H, W, C), in the extractor's space."""
        _, index = self._nearest(self.extractor.extract(np.clip(np.nan_to_num(samples), 0, 1))[0])
        return self._real('train', index)

    def _scores(
        self, x: np.ndarray, split: str, generated: bool, labels: np.ndarray | None = None
    ) -> dict[str, tuple]:
        """{metric: (value, standard error or None)} of images (n, H, W, C); labels: those asked for."""
        feature, classes = self.extractor.extract(x)
        held_out, found = self._held_out(split)[0], {}
        found['frechet'] = images.frechet_distance(feature, held_out), None
        found['kernel'] = images.kernel_distance(feature, held_out)
        found |= {name: (value, None) for name, value in images.prdc(held_out, feature, K).items()}
        found['sliced_wasserstein'] = images.sliced_wasserstein(feature, held_out), None
        found['ms_ssim'] = images.ms_ssim_diversity(x), None
        ratio = 1.0  # of held-out images, which stand for real ones: those trained on are their own nearest
        if generated:
            ratio = images.memorization_ratio(self._nearest(feature)[0], self._held_out_nearest(split))
        found['memorization'] = ratio, None
        if self._knows_classes:
            found |= {name: (value, None) for name, value in images.mode_metrics(classes, self._shares).items()}
            if labels is not None:
                found['label_accuracy'] = float(np.mean(classes == labels)), None
        return found

    @cached_method
    def _of_real(self, split: str) -> dict[str, tuple]:
        """The same of training images, and the classifier's accuracy on held-out ones."""
        x = self._real('train', rng.fixed_choice(len(self.experiment.dataset.splits['train']), self._n))
        found = self._scores(x, split, False)
        if self._knows_classes and self.experiment.num_classes:
            places = rng.fixed_choice(len(self.experiment.dataset.splits[split]), self._n)
            right = self._held_out(split)[1] == self._labels(split)[places]
            found['label_accuracy'] = float(np.mean(right)), None
        return found

    @functools.cached_property
    def _n(self) -> int:
        return min(self.experiment.config.eval.num_samples, len(self.experiment.dataset.splits['train']))

    @cached_method
    def _held_out(self, split: str) -> tuple[np.ndarray, np.ndarray | None]:
        """(features, classes) of a split."""
        count = len(self.experiment.dataset.splits[split])
        return self.extractor.extract(self._real(split, rng.fixed_choice(count, self._n)))

    @cached_method
    def _held_out_nearest(self, split: str) -> np.ndarray:
        return self._nearest(self._held_out(split)[0])[0]

    @functools.cached_property
    def _knows_classes(self) -> bool:
        """Whether the extractor's classes are those of the data."""
        dataset = self.experiment.dataset
        return self.extractor.num_classes == (features.DIGITS if dataset.spec.stacked else dataset.num_classes) > 0

    @functools.cached_property
    def _shares(self) -> np.ndarray:
        """Of the classes in the training split; of stacked images the products of the single ones' shares."""
        dataset, labels = self.experiment.dataset, self._labels('train')
        if dataset.spec.stacked:
            single = np.bincount(_digits(labels, dataset.spec.shape[2]).ravel(), minlength=features.DIGITS)
            return functools.reduce(np.kron, [single / single.sum()] * dataset.spec.shape[2])
        return np.bincount(labels, minlength=dataset.num_classes) / len(labels)

    @functools.cached_property
    def _perfect(self) -> dict[str, float]:
        return images.perfect_modes(self._shares, self._n) if self._knows_classes else {}

    def _nearest(self, feature: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(distance, place) of the nearest training image, (n,) each."""
        best, place = np.full(len(feature), np.inf), np.zeros(len(feature), np.int64)
        for chunk in self._chunks('train'):
            distance, index = images.nearest(feature, self._of_training(chunk))
            place = np.where(distance < best, chunk[index], place)
            best = np.minimum(best, distance)
        return best, place

    def _of_training(self, chunk: np.ndarray) -> np.ndarray:
        """The features of training images, kept but for raw pixels, which take more room than they cost time."""
        if (start := int(chunk[0])) in self._kept:
            return self._kept[start]
        feature = self.extractor.extract(self._real('train', chunk))[0]
        if self.extractor is not features.PIXELS:
            self._kept[start] = feature
        return feature

    def _chunks(self, split: str) -> Iterator[np.ndarray]:
        """All places of a split, in parts."""
        for start in range(0, n := len(self.experiment.dataset.splits[split]), _CHUNK):
            yield np.arange(start, min(start + _CHUNK, n))

    def _real(self, split: str, index: np.ndarray) -> np.ndarray:
        """Images as a model is given them, in [0, 1], (n, H, W, C) float32."""
        return np.asarray(self._to_images(self.experiment.examples(split, index)['x'], index.astype(np.int32)))

    @functools.cached_property
    def _to_images(self):
        def to_images(x, index):
            batch = self.experiment.preprocess({'x': x}, rng.context(0, 'eval', 0, index))
            return self.experiment.scaling.to_data(batch['x'])

        return jax.jit(to_images)

    def _labels(self, split: str) -> np.ndarray:
        return np.concatenate([self.experiment.examples(split, chunk)['label'] for chunk in self._chunks(split)])


def _digits(labels: np.ndarray, channels: int) -> np.ndarray:
    """(n,) Σ_c 10^(C−1−c) · label_c -> (n, C)."""
    return labels[:, None] // features.DIGITS ** np.arange(channels - 1, -1, -1) % features.DIGITS
