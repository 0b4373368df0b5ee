"""How good the samples of an image model are: distances to held-out images, each beside what real images score."""

import math
import pathlib

import numpy as np

from aigc_jax.core import processes, rng
from aigc_jax.core.capabilities import Samples
from aigc_jax.core.errors import UserError
from aigc_jax.core.kept import cached_method
from aigc_jax.core.types import TrainState
from aigc_jax.data import Images
from aigc_jax.metrics import images
from aigc_jax.metrics.intervals import NORMAL_95, wilson
from aigc_jax.reports import image_splits
from aigc_jax.reports.base import Report
from aigc_jax.reports.image_splits import extractor_of
from aigc_jax.reports.tables import Results
from aigc_jax.runs import manifest
from aigc_jax.runs.experiment import Experiment

K = images.NEIGHBOURS  # neighbours that the balls of precision, recall, density and coverage reach to
_STEMS = (
    'frechet', 'kernel', 'precision', 'recall', 'density', 'coverage', 'sliced_wasserstein', 'ms_ssim', 'memorization',
    'modes', 'class_kl', 'uniform_kl', 'label_accuracy',
)  # fmt: skip


class ImageSamples(Report):
    """How good samples are, set against held-out images; what depends on the data alone is computed once.

    n = eval.num_samples samples, or as many as there are training images, are set against the split, or as many of it.
    'real' is what n training images score against the same, so that it is the mark of a sampler that has learned the
    data. Samples are clipped to [0, 1]; those of a conditional model have the classes of training images. Names carry n
    and the extractor. The classifier is trained where the run's folder holds none, and kept there.
    """

    name, when, needs, switch = 'image_samples', 'final', (Samples, Images), 'extractor'
    title = 'metrics of samples'
    stems = True

    @classmethod
    def is_off(cls, experiment: Experiment) -> bool:
        return super().is_off(experiment) and isinstance(experiment.dataset.spec, Images)

    @classmethod
    def check(cls, experiment: Experiment) -> None:
        """Of eval.extractor, also where the model draws no samples."""
        config, dataset = experiment.config.eval, experiment.dataset
        if not (name := extractor_of(experiment)):
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
        if extractor := image_splits.given(experiment):
            extractor.extract(np.zeros((1, *dataset.spec.shape), np.float32))

    @classmethod
    def names(cls, experiment: Experiment) -> list[str]:
        return [f'samples/{name}' for name in _STEMS]  # n and the extractor, named with its weights

    @classmethod
    def files(cls, experiment: Experiment) -> list[pathlib.Path]:
        return [pathlib.Path(extractor_of(experiment).removeprefix('onnx:')).expanduser()]

    def __init__(self, *args):
        super().__init__(*args)
        paths, fingerprint = self.evaluator.paths, self.experiment.dataset.fingerprint
        own = not paths or manifest.trained_on(paths.manifest) in (None, fingerprint)
        if extractor_of(self.experiment) == 'classifier' and not own and not paths.extractor.exists():
            raise UserError(
                f'eval.extractor: {paths.folder} was trained on other data than these, and keeps no classifier of its '
                "own; name the extractor.npz of another run, pixels, or '' for no metrics of samples"
            )
        self._data = self.evaluator.image_splits
        self._n = min(self.config.num_samples, len(self.experiment.dataset.splits['train']))

    def measure(self, state: TrainState, seed: int, split: str) -> Results:
        n, labels = self._n, None
        if self.experiment.num_classes:
            # As often as in the data, which classes taken in turn would not be.
            train = self._data.labels('train')
            labels = train[np.random.Generator(np.random.PCG64(1)).integers(len(train), size=n)]
        samples = self.evaluator.sample(state, seed, n, labels)
        if not processes.first():  # every process samples, one measures
            return {}
        real, found, error, results = self._of_real(split), {}, math.nan, {}
        if np.isfinite(samples).all():
            found, error = self._scores(np.clip(samples, 0, 1), split, True, labels)
        perfect = images.perfect_modes(self._data.shares, n) if self._data.knows_classes else {}
        for name, mark in real.items():
            label = 'pixels' if name == 'ms_ssim' else self._data.extractor.name
            row = {'value': found.get(name, math.nan), 'real': mark, 'n': n}
            if name == 'kernel' and found:
                row |= {'ci': NORMAL_95 * error, 'over': 'samples'}
            if name == 'label_accuracy' and found:
                row |= wilson(row['value'] * n, n, 'samples')
            if name in perfect:
                row['perfect'] = perfect[name]
            results[f'samples/{name}_{n}_{label}'] = row
        return results

    def _scores(
        self, x: np.ndarray, split: str, generated: bool, labels: np.ndarray | None = None
    ) -> tuple[dict[str, float], float]:
        """({metric: value}, the kernel distance's standard error) of images (n, H, W, C); labels: those asked for."""
        data, (feature, classes) = self._data, self._data.extractor.extract(x)
        held_out = data.some(split, self._n)[0]
        kernel, error = images.kernel_distance(feature, held_out)
        found = {
            'frechet': images.frechet_distance(feature, held_out), 'kernel': kernel,
            **images.prdc(held_out, feature, K),
            'sliced_wasserstein': images.sliced_wasserstein(feature, held_out),
            'ms_ssim': images.ms_ssim_diversity(x),
            'memorization': 1.0,  # of held-out images, which stand for real ones: training images are their own nearest
        }  # fmt: skip
        if generated:
            nearest = data.nearest(feature)[0], data.some_nearest(split, self._n)
            found['memorization'] = images.memorization_ratio(*nearest)
        if data.knows_classes:
            found |= images.mode_metrics(classes, data.shares)
            if labels is not None:
                found['label_accuracy'] = float(np.mean(classes == labels))
        return found, error

    @cached_method
    def _of_real(self, split: str) -> dict[str, float]:
        """The same of training images, and the classifier's accuracy on held-out ones."""
        splits, data = self.experiment.dataset.splits, self._data
        found, _ = self._scores(data.images('train', rng.fixed_choice(len(splits['train']), self._n)), split, False)
        if data.knows_classes and self.experiment.num_classes:
            right = data.some(split, self._n)[1] == data.labels(split)[rng.fixed_choice(len(splits[split]), self._n)]
            found['label_accuracy'] = float(np.mean(right))
        return found
