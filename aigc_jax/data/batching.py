"""From a dataset to batches: one index stream for resident and streamed data.

Which examples a step sees is a function of (seed, step) alone: the examples of a run are one long row of
epochs, each a permutation of the training split, and step s takes places s·R·B … (s+1)·R·B − 1 of it
(R rounds of B examples). No iterator is ever saved, no remainder of an epoch is dropped.
"""

import functools
from collections.abc import Iterator

import jax
import numpy as np

from aigc_jax.core.errors import UserError
from aigc_jax.core.types import Batch, Tree
from aigc_jax.data.splits import Mapped, Resident

_CALLS_AHEAD = 8  # that are read while the devices compute, each by a thread of its own


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


def streamed_feed(
    source, streams, step: int, total_steps: int, steps_per_call: int, rounds: int, batch_size: int, rows: range
) -> Iterator[Tree]:
    """Feeds of examples read by Grain: {name: (K, R, rows, …)}, a leading axis where there are replicas."""
    import grain.python as grain

    per_step = rounds * len(rows)
    # An array gives a whole round at once. Other sources read and decode single examples.
    group = len(rows) if isinstance(source, (Mapped, Resident)) else 1
    shape, axes = (steps_per_call, rounds, len(rows)), 2 if group > 1 else 1
    options = grain.ReadOptions(num_threads=_CALLS_AHEAD, prefetch_buffer_size=_CALLS_AHEAD)

    def one(stream):
        def read(item: int) -> dict[str, np.ndarray]:
            turn, row = divmod(item * group, len(rows))  # this process's examples run through (step, round, row)
            index = stream[np.int64(turn) * batch_size + rows.start + row + np.arange(group)]
            return source[index if group > 1 else int(index[0])]

        items = grain.MapDataset.range(step * per_step // group, total_steps * per_step // group)
        return iter(items.map(read).batch(steps_per_call * per_step // group).to_iter_dataset(options))

    for batches in zip(*map(one, streams), strict=True):
        batches = [{k: v.reshape(*shape, *v.shape[axes:]) for k, v in batch.items()} for batch in batches]
        yield batches[0] if len(batches) == 1 else jax.tree.map(lambda *leaves: np.stack(leaves), *batches)
