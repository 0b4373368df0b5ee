"""From a dataset to batches: one index stream for resident and streamed data, and what happens on the device.

Which examples a step sees is a function of (seed, step) alone: the examples of a run are one long row of
epochs, each a permutation of the training split, and step s takes places s·R·B … (s+1)·R·B − 1 of it
(R rounds of B examples). No iterator is ever saved, no remainder of an epoch is dropped.
"""

import functools
from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from aigc_jax.core import rng
from aigc_jax.core.errors import UserError, near
from aigc_jax.core.types import Array, Batch, Tree
from aigc_jax.data import augment, infilling
from aigc_jax.data.dataset import Dataset, Mapped, materialize

BINARIZE = ('none', 'static', 'dynamic', 'threshold')
SCALES = ('unit', 'symmetric', 'standard')
PREFETCHED_CALLS = 2


class IndexStream:
    """Places in the row of epochs -> indices into the training split."""

    def __init__(self, num_examples: int, seed: int):
        self._num_examples = num_examples
        self._permutation = functools.lru_cache(maxsize=2)(self._permute)
        self._seed = seed % 2**64

    def _permute(self, epoch: int) -> np.ndarray:
        # Not jax.random.permutation, which sorts 8 times slower and on the cores that train. NumPy promises that
        # the raw bits of a bit generator never change; of a Generator's permutation it does not.
        bits = np.random.Philox(key=[self._seed, epoch]).random_raw(self._num_examples)
        return np.argsort(bits, kind='stable').astype(np.int32)

    def __getitem__(self, places: np.ndarray) -> np.ndarray:
        """int32 indices of the same shape as `places`."""
        epochs, offsets = np.divmod(places, self._num_examples)
        indices = np.empty(places.shape, np.int32)
        for epoch in np.unique(epochs):
            here = epochs == epoch
            indices[here] = self._permutation(int(epoch))[offsets[here]]
        return indices


class ContiguousStream:
    """Places -> indices such that row b of a batch reads on where row b of the batch before ended.

    Row b has the windows b · L … (b + 1) · L − 1, L = num_windows // batch_size, and begins anew after them.
    """

    def __init__(self, num_windows: int, batch_size: int):
        if num_windows < batch_size:
            raise UserError(
                f'batch_size: {batch_size} rows, but the training text has {num_windows} windows of data.block tokens; '
                f'set batch_size to {max(num_windows, 1)} or less, or a smaller data.block'
            )
        self.length, self._batch_size = num_windows // batch_size, batch_size

    def __getitem__(self, places: np.ndarray) -> np.ndarray:
        turn, row = np.divmod(places, self._batch_size)
        return (row * self.length + turn % self.length).astype(np.int32)


def places(step: int, steps: int, rounds: int, batch_size: int, rows: range) -> np.ndarray:
    """(steps, rounds, len(rows)) int64: the places that these rows of each round take from `step` on."""
    first = np.arange(step * rounds, (step + steps) * rounds).reshape(steps, rounds, 1) * batch_size
    return first + np.arange(rows.start, rows.stop)


def resident_feed(streams, step: int, steps_per_call: int, rounds: int, batch_size: int, rows: range) -> Iterator[Tree]:
    """Endless feeds of indices for `Source.gather`: (K, R, rows) int32, a leading axis where there are replicas."""
    while True:
        where = places(step, steps_per_call, rounds, batch_size, rows)
        indices = [stream[where] for stream in streams]
        yield indices[0] if len(indices) == 1 else np.stack(indices)
        step += steps_per_call


def gather_streamed(data: Tree, batch: Batch) -> Batch:
    return batch


class _Ordered:
    """A random-access source for Grain, in the order of the run: item i is the i-th group of this process's examples.

    group: how many examples an item has: 1, without an axis, or all of a round.
    """

    def __init__(self, source, streams, batch_size: int, rows: range, num_places: int, group: int):
        self._args = (source, streams, batch_size, rows, num_places, group)

    def __len__(self) -> int:
        _, streams, _, _, num_places, group = self._args
        return len(streams) * num_places // group

    def __getitem__(self, item: int) -> dict[str, np.ndarray]:
        source, streams, batch_size, rows, num_places, group = self._args
        # Places run through (replica, step, round, row).
        replica, place = divmod(int(item) * group, num_places)
        turn, row = divmod(place, len(rows))
        index = streams[replica][np.int64(turn) * batch_size + rows.start + row + np.arange(group)]
        return source[index if group > 1 else int(index[0])]


def streamed_feed(
    source, streams, step: int, total_steps: int, steps_per_call: int, rounds: int, batch_size: int, rows: range
) -> Iterator[Tree]:
    """Feeds of examples read by Grain: {name: (K, R, rows, …)}, a leading axis where there are replicas."""
    import grain.python as grain

    per_step = rounds * len(rows)
    num_places = total_steps * per_step
    # An array gives a whole round at once. Other sources read and decode single examples, in several threads.
    group = len(rows) if isinstance(source, Mapped) or hasattr(source, 'gather') else 1
    ordered = _Ordered(source, streams, batch_size, rows, num_places, group)
    shape, axes = (steps_per_call, rounds, len(rows)), 2 if group > 1 else 1
    items = steps_per_call * per_step // group  # in a call
    options = grain.ReadOptions(num_threads=8, prefetch_buffer_size=PREFETCHED_CALLS * items)

    def one(replica):
        start, stop = (place // group for place in (replica * num_places + step * per_step, (replica + 1) * num_places))
        dataset = grain.MapDataset.source(ordered)[start:stop].batch(items)
        return iter(dataset.to_iter_dataset(options))

    for batches in zip(*map(one, range(len(streams))), strict=True):
        batches = [{k: v.reshape(*shape, *v.shape[axes:]) for k, v in batch.items()} for batch in batches]
        yield batches[0] if len(batches) == 1 else jax.tree.map(lambda *leaves: np.stack(leaves), *batches)


class Scaling(NamedTuple):
    """Between data units and what a model sees, (data − offset) / factor. Integer levels lie in [0, 1] as data."""

    offset: np.ndarray | float = 0.0
    factor: np.ndarray | float | None = None  # None: as they are

    def to_model(self, x: Array) -> Array:
        return x if self.factor is None else (x - self.offset) / self.factor

    def to_data(self, x: Array) -> Array:
        return x if self.factor is None else x * self.factor + self.offset


def make_scaling(dataset: Dataset, scale: str) -> Scaling:
    """'unit': as the data are, images in [0, 1]; 'symmetric': images in [−1, 1]; 'standard', for points: zero mean
    and, over all coordinates together so that shapes stay, unit variance of the training split."""
    if dataset.kind == 'text':
        return Scaling()
    if scale not in SCALES:
        raise UserError(f'data.scale: {scale!r}{near(scale, SCALES)}')
    if scale == 'standard':
        if dataset.kind == 'image':
            raise UserError('data.scale: standard is for points; images have unit and symmetric')
        x = materialize(dataset.splits['train']).arrays['x'].astype(np.float64)
        mean = x.mean(axis=0)
        deviation = np.sqrt(np.square(x - mean).mean())
        return Scaling(mean.astype(np.float32), np.float32(deviation or 1.0))
    return Scaling(0.5, 0.5) if scale == 'symmetric' and dataset.kind == 'image' else Scaling()


def make_preprocess(
    dataset: Dataset, binarize: str, scaling: Scaling, transform: Callable[[Batch, rng.Context], Batch] | None = None
) -> Callable[[Batch, rng.Context], Batch]:
    """preprocess(batch, ctx) -> batch with x float32 as the model sees it, on the device.

    binarize: 'none'; 'threshold': x > ½; 'static': each pixel drawn once for the whole run and every seed,
        a function of the pixel's own image (see `binarize_static`); 'dynamic': drawn anew for each `ctx`, in training
        whenever it is seen (Salakhutdinov & Murray 2008; Burda et al. 2016, section 5).
    transform(batch, ctx) -> batch: of the intensities, before they are binarized.
    """
    if dataset.kind == 'text':
        return lambda batch, ctx: batch
    if binarize not in BINARIZE:
        raise UserError(f'data.binarize: {binarize!r}{near(binarize, BINARIZE)}')
    if binarize != 'none' and dataset.kind != 'image':
        raise UserError(f'data.binarize: {binarize} is for images; these data are {dataset.kind}: set it to none')

    def preprocess(batch: Batch, ctx: rng.Context) -> Batch:
        x = batch['x'].astype(jnp.float32)
        if dataset.levels > 1 and binarize != 'static':  # which has left 0 and 1
            x = x / dataset.levels
        if transform:
            batch = transform({**batch, 'x': x}, ctx)
            x = batch['x']
        if binarize == 'dynamic' and dataset.levels != 1:
            x = (ctx.uniform('binarize', x.shape[1:]) < x).astype(jnp.float32)
        if binarize == 'threshold':
            x = (x > 0.5).astype(jnp.float32)
        return {**batch, 'x': scaling.to_model(x)}

    return preprocess


def make_eval_preprocess(dataset: Dataset, binarize: str, scaling: Scaling) -> Callable[[Batch, rng.Context], Batch]:
    """As `make_preprocess`, of examples that are looked at: each is drawn once, by its place in its split (ctx.index)
    alone. All runs are evaluated on the same data, whatever their seed, and so are the replicas of one."""
    preprocess = make_preprocess(dataset, binarize, scaling)
    return lambda batch, ctx: preprocess(batch, rng.context(0, 'eval', 0, ctx.index))


def make_train_preprocess(dataset: Dataset, cfg, scaling: Scaling, rows: int):
    """What happens to the examples of a training step: as `make_preprocess`, with what `cfg`, config.data, has besides:
    augmentation of images, infilling of text. rows: examples on one device and of one micro-batch."""
    transform = None
    if dataset.kind != 'text' and 'augment' in cfg:
        augment.check(cfg, dataset, rows)
        transform = augment.make_transform(cfg, dataset) if augment.is_on(cfg) else None
    preprocess = make_preprocess(dataset, cfg.get('binarize'), scaling, transform)
    if dataset.kind != 'text' or not infilling.rate(cfg):
        return preprocess
    infill = infilling.make_transform(cfg, dataset.tokenizer)
    return lambda batch, ctx: infill(preprocess(batch, ctx), ctx)


def binarize_static(x: np.ndarray, levels: int, name: str) -> np.ndarray:
    """(N, …) intensities -> (N, …) uint8 of 0 and 1, drawn with P(1) = intensity; a function of `name` and place."""
    if levels == 1:
        return x
    draws = np.random.Generator(np.random.PCG64([int.from_bytes(name.encode(), 'little')])).random(x.shape, np.float32)
    return (draws < x.astype(np.float32) / (levels or 1)).astype(np.uint8)
