"""What a person looks at: samples/, plots/, made from one replica's state."""

import io
import pathlib

import numpy as np

from aigc_jax.core.files import atomic_write
from aigc_jax.core.types import TrainState
from aigc_jax.evaluate import Evaluator
from aigc_jax.experiment import Experiment

_POINTS_SHOWN = 2000
_TOKENS_SHOWN = 32  # of an attention map


def save_samples(path: pathlib.Path, experiment: Experiment, samples: np.ndarray, labels: np.ndarray | None) -> None:
    """`path`.npz with key samples (n, *shape) (and labels), and `path`.png, or .txt, beside it."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, samples=samples, **({} if labels is None else {'labels': labels}))
    atomic_write(path.with_suffix('.npz'), buffer.getvalue())
    from aigc_jax import plots

    dataset = experiment.dataset
    if dataset.kind == 'text':
        texts = [dataset.tokenizer.decode(_written(tokens, dataset.tokenizer.end)) for tokens in samples]
        atomic_write(path.with_suffix('.txt'), join_texts(texts))
    elif dataset.kind == 'image':
        plots.image_grid(samples, path.with_suffix('.png'))
    elif dataset.shape == (2,):
        real = experiment.examples(
            experiment.config.eval.split, np.arange(len(dataset.splits[experiment.config.eval.split]))
        )
        plots.points(path.with_suffix('.png'), real['x'][:_POINTS_SHOWN], samples, density=dataset.density)


def _written(tokens: np.ndarray, end: int | None) -> np.ndarray:
    """The tokens up to the first that ends the text, if one does."""
    ends = np.flatnonzero(tokens == end)
    return tokens[: ends[0]] if len(ends) else tokens


def join_texts(texts: list[str]) -> str:
    """Texts one after the other, a line between each two."""
    return ('\n' + 40 * '─' + '\n').join(texts) + '\n'


def draw(
    folder: pathlib.Path, name: str, experiment: Experiment, evaluator: Evaluator, state: TrainState, seed: int,
    rows: list | None,
) -> None:  # fmt: skip
    """samples/NAME.{npz,png} and, in plots/, the curves of `rows` (of metrics.jsonl), reconstructions beside
    originals, the use of codes, 2-D points over the score, or of text its loss beside the baselines and attention maps.
    rows: None for the samples alone."""
    from aigc_jax import plots, text_plots

    config, dataset = experiment.config, experiment.dataset
    n = _POINTS_SHOWN if dataset.kind == 'points' else config.eval.num_shown
    samples = evaluator.sample(state, seed, n)
    labels = np.arange(n) % experiment.task.num_classes if experiment.task.num_classes else None
    save_samples(folder / 'samples' / name, experiment, samples, labels)
    if rows is None:
        return
    plots.curves(rows, folder / 'plots' / 'curves.png')
    if dataset.kind == 'text':
        windows = dataset.splits[config.eval.split]
        read, epoch = config.batch_size * dataset.shape[0], len(dataset.splits['train'].tokens)
        names = {'eval': config.eval.split, 'final': config.eval.final_split}
        text_plots.loss_against_tokens(rows, folder / 'plots' / 'loss.png', read, epoch, names)
        tokens = windows[np.int64(0)]['tokens'][: min(_TOKENS_SHOWN, dataset.shape[0])]
        weights = evaluator.attention(state, tokens)
        if weights is not None:
            labels = [dataset.tokenizer.decode([token]) for token in tokens]
            text_plots.attention(weights, labels, folder / 'plots' / 'attention.png')
        return
    pair = evaluator.reconstruct(state, seed, config.eval.split, n)
    if dataset.kind == 'image':
        plots.image_grid(samples, folder / 'plots' / 'samples.png')
        if pair:
            plots.reconstructions(*pair, folder / 'plots' / 'reconstructions.png')
        use = evaluator.code_use(state, seed, config.eval.split)
        if use is not None:
            plots.code_use(use, folder / 'plots' / 'codes.png')
    elif dataset.shape == (2,):
        real = experiment.examples(config.eval.split, np.arange(min(n, len(dataset.splits[config.eval.split]))))['x']
        low, high = real.min(axis=0), real.max(axis=0)
        pad = 0.15 * (high - low)
        surface = evaluator.surface(state, seed, (low[0] - pad[0], high[0] + pad[0], low[1] - pad[1], high[1] + pad[1]))
        plots.points(
            folder / 'plots' / 'points.png', real, samples, pair[1] if pair else None, dataset.density, surface
        )
