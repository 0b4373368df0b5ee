"""What depends on the splits of images alone, computed once: the extractor, features, neighbours, shares of classes."""

import functools
import pathlib
from collections.abc import Iterator

import jax
import numpy as np

from aigc_jax.core import rng
from aigc_jax.core.errors import UserError, near
from aigc_jax.core.kept import cached_method
from aigc_jax.data import Images
from aigc_jax.metrics import features, images
from aigc_jax.metrics.features import Classifier, Extractor
from aigc_jax.runs.experiment import Experiment
from aigc_jax.runs.paths import Paths

_NAMES = ('classifier', 'pixels', 'onnx:FILE')
_CHUNK = 5000  # images that are gone through at once
_MOST_TRAINED = 100_000  # images that the classifier is trained on


def extractor_of(experiment: Experiment) -> str:
    """eval.extractor, where the data are images; '' for none."""
    return experiment.config.eval.extractor if isinstance(experiment.dataset.spec, Images) else ''


def given(experiment: Experiment) -> Extractor | None:
    """The extractor that eval.extractor names, where it is not to be trained here. Raises UserError."""
    name = extractor_of(experiment)
    if name in ('', 'classifier'):
        return None
    if name == 'pixels':
        return features.PIXELS
    if name.startswith('onnx:'):
        return features.onnx(pathlib.Path(name.removeprefix('onnx:')).expanduser())
    path = pathlib.Path(name).expanduser()
    if not path.exists() and path.suffix != '.npz':
        raise UserError(f'eval.extractor: {name!r}{near(name, _NAMES)}, or the extractor.npz of another run')
    return _fitted(Classifier.load(path), experiment)


def _fitted(classifier: Classifier, experiment: Experiment) -> Extractor:
    extractor = classifier.extractor
    return features.by_channel(extractor) if experiment.dataset.spec.stacked else extractor


class ImageSplits:
    """Images are those that a model is given, in [0, 1], (n, H, W, C) float32.

    paths: of the run's folder, where the classifier is kept once it is trained; None: it is not kept.
    """

    def __init__(self, experiment: Experiment, paths: Paths | None):
        self._experiment, self._dataset, self._paths = experiment, experiment.dataset, paths
        self._kept: dict[int, np.ndarray] = {}  # features of training images, by the first one's place

    @functools.cached_property
    def extractor(self) -> Extractor:
        """That of eval.extractor; raw pixels where it names none."""
        if extractor_of(self._experiment) != 'classifier':
            return given(self._experiment) or features.PIXELS
        path, dataset = self._paths and self._paths.extractor, self._dataset
        if path and path.exists():
            return _fitted(Classifier.load(path), self._experiment)
        places = rng.fixed_choice(len(dataset.splits['train']), _MOST_TRAINED)
        x, labels, num_classes = self.images('train', places), self.labels('train')[places], dataset.num_classes
        if dataset.spec.stacked:
            labels, num_classes = _digits(labels, x.shape[3]).ravel(), features.DIGITS
            x = features.split_channels(x)
        classifier = features.train_classifier(x, labels, num_classes)
        if path:
            classifier.save(path)
        return _fitted(classifier, self._experiment)

    def images(self, split: str, index: np.ndarray) -> np.ndarray:
        return np.asarray(self._to_images(self._experiment.examples(split, index)['x'], index.astype(np.int32)))

    @functools.cached_property
    def _to_images(self):
        def to_images(x, index):
            batch = self._experiment.preprocess({'x': x}, rng.context(0, 'eval', 0, index))
            return self._experiment.scaling.to_data(batch['x'])

        return jax.jit(to_images)

    def labels(self, split: str) -> np.ndarray:
        return np.concatenate([self._experiment.examples(split, chunk)['label'] for chunk in self._chunks(split)])

    @cached_method
    def some(self, split: str, n: int) -> tuple[np.ndarray, np.ndarray | None]:
        """(features, classes) of n images of a split, those of rng.fixed_choice."""
        return self.extractor.extract(self.images(split, rng.fixed_choice(len(self._dataset.splits[split]), n)))

    @cached_method
    def some_nearest(self, split: str, n: int) -> np.ndarray:
        """The distance of each of `some` to the nearest training image."""
        return self.nearest(self.some(split, n)[0])[0]

    def nearest(self, feature: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(distance, place) of the nearest training image, (n,) each."""
        best, place = np.full(len(feature), np.inf), np.zeros(len(feature), np.int64)
        for chunk in self._chunks('train'):
            distance, index = images.nearest(feature, self._of_training(chunk))
            place = np.where(distance < best, chunk[index], place)
            best = np.minimum(best, distance)
        return best, place

    def neighbours(self, samples: np.ndarray) -> np.ndarray:
        """The training image nearest to each sample (n, H, W, C), in the extractor's space."""
        feature, _ = self.extractor.extract(np.clip(np.nan_to_num(samples), 0, 1))
        return self.images('train', self.nearest(feature)[1])

    @functools.cached_property
    def knows_classes(self) -> bool:
        """Whether the extractor's classes are those of the data."""
        dataset = self._dataset
        return self.extractor.num_classes == (features.DIGITS if dataset.spec.stacked else dataset.num_classes) > 0

    @functools.cached_property
    def shares(self) -> np.ndarray:
        """Of the classes in the training split; of stacked images the products of the single ones' shares."""
        dataset, labels = self._dataset, self.labels('train')
        if dataset.spec.stacked:
            single = np.bincount(_digits(labels, dataset.spec.shape[2]).ravel(), minlength=features.DIGITS)
            return functools.reduce(np.kron, [single / single.sum()] * dataset.spec.shape[2])
        return np.bincount(labels, minlength=dataset.num_classes) / len(labels)

    def _of_training(self, chunk: np.ndarray) -> np.ndarray:
        """The features of training images, kept but for raw pixels, which take more room than they cost time."""
        if (start := int(chunk[0])) in self._kept:
            return self._kept[start]
        feature, _ = self.extractor.extract(self.images('train', chunk))
        if self.extractor is not features.PIXELS:
            self._kept[start] = feature
        return feature

    def _chunks(self, split: str) -> Iterator[np.ndarray]:
        """All places of a split, in parts."""
        for start in range(0, n := len(self._dataset.splits[split]), _CHUNK):
            yield np.arange(start, min(start + _CHUNK, n))


def _digits(labels: np.ndarray, channels: int) -> np.ndarray:
    """(n,) Σ_c 10^(C−1−c) · label_c -> (n, C)."""
    return labels[:, None] // features.DIGITS ** np.arange(channels - 1, -1, -1) % features.DIGITS
