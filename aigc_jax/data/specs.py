"""The kinds of data, and what a model sees of each: `dataset.spec` is Images, Points, Tokens, Pairs,
Labelled or Tagged.

`stored` is how a Source holds examples, `data units` are what a user reads and writes (images in [0, 1], points as they
are), `model units` are what the networks see, by data.scale.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from aigc_jax.core import rng
from aigc_jax.core.errors import UserError
from aigc_jax.core.types import Array, Batch
from aigc_jax.data import augment, infilling
from aigc_jax.data.gaussian_mixture import Mixture
from aigc_jax.data.splits import Arrays, Source, materialize
from aigc_jax.data.tokenizers import Tokenizer

BINARIZE = ('none', 'static', 'dynamic', 'threshold')
SCALES = ('unit', 'symmetric', 'standard')
NO_TAG = -1
_ROUNDING = 1e-4  # that a user's floats may leave [0, 1] by

Preprocess = Callable[[Batch, rng.Context], Batch]  # (batch, ctx) -> batch, inside the compiled step


class Scaling(NamedTuple):
    """Between data units and model units, (data − offset) / factor."""

    offset: np.ndarray | float = 0.0
    factor: np.ndarray | float | None = None  # None: as they are

    def to_model(self, x: Array) -> Array:
        return x if self.factor is None else (x - self.offset) / self.factor

    def to_data(self, x: Array) -> Array:
        return x if self.factor is None else x * self.factor + self.offset


class Spec:
    """What every kind of data has; here is what holds of data that are read as stored.

    cfg, everywhere: the config's `data`, which has all its fields and was checked (declarations.py).
    """

    words: ClassVar[str]  # for messages
    shape: tuple[int, ...]  # of one example
    contiguous = False  # each row of a batch reads on where the row of the batch before ended

    def scaling(self, cfg, train: Source) -> Scaling:
        """Between data units and model units, by data.scale; train: the training split. Raises UserError."""
        return Scaling()

    def draws_splits(self, cfg) -> bool:
        """Whether a split is drawn as a whole, so that it must be in memory: see `in_memory`."""
        return False

    def in_memory(self, cfg, split: str, source: Source) -> Source:
        """The split of this name in memory, as a run reads it."""
        return materialize(source)

    def preprocess(self, cfg, scaling: Scaling, transform: Preprocess | None = None) -> Preprocess:
        """preprocess(batch, ctx) -> the stored batch as the model sees it. Raises UserError for fields that do not fit.

        transform(batch, ctx) -> batch: of x in data units, before images are binarized.
        """
        return lambda batch, ctx: batch

    def eval_preprocess(self, cfg, scaling: Scaling) -> Preprocess:
        """As `preprocess`, of examples that are looked at: each is drawn once, by its place in its split (ctx.index)
        alone. All runs are evaluated on the same data, whatever their seed, and so are the replicas of one."""
        preprocess = self.preprocess(cfg, scaling)
        return lambda batch, ctx: preprocess(batch, rng.context(0, 'eval', 0, ctx.index))

    def train_preprocess(self, cfg, scaling: Scaling, rows: int) -> Preprocess:
        """As `preprocess`, with what the examples of a training step go through besides.

        rows: examples on one device and of one micro-batch.
        """
        return self.preprocess(cfg, scaling)

    def from_raw(self, cfg, scaling: Scaling) -> Preprocess:
        """As `eval_preprocess`, of a batch that a user gives: raises UserError for an x that these data cannot be.

        Inside jit and grad, where values cannot be read, an example out of range becomes NaN instead.
        """
        return self.eval_preprocess(cfg, scaling)


@dataclasses.dataclass(frozen=True)
class Images(Spec):
    """x: uint8 (H, W, C) in 0..levels, or float32 in [0, 1].

    Attributes:
      shape: (H, W, C).
      levels: the white of whole numbers (digits 16, most 255, binary 1); 0: x holds floats.
      stacked: the channels are independent images, and a label is made of theirs.
    """

    shape: tuple[int, int, int]
    levels: int
    stacked: bool = False
    words: ClassVar[str] = 'images'

    def scaling(self, cfg, train: Source) -> Scaling:
        """data.scale: 'unit', as they are; 'symmetric', in [−1, 1]."""
        if cfg.scale == 'standard':
            raise UserError('data.scale: standard is for points; images have unit and symmetric')
        return Scaling(0.5, 0.5) if cfg.scale == 'symmetric' else Scaling()

    def to_data(self, x: Array) -> Array:
        """Stored -> data units: float32 in [0, 1]."""
        x = x.astype(jnp.float32)
        return x / self.levels if self.levels > 1 else x

    def draws_splits(self, cfg) -> bool:
        return cfg.binarize == 'static'

    def in_memory(self, cfg, split: str, source: Source) -> Source:
        """data.binarize=static draws the bits of all its images at once."""
        source = materialize(source)
        if not self.draws_splits(cfg):
            return source
        arrays = dict(source.arrays)
        return Arrays(**{**arrays, 'x': binarize_static(arrays['x'], self.levels, split)})

    def preprocess(self, cfg, scaling: Scaling, transform: Preprocess | None = None) -> Preprocess:
        """data.binarize: 'none'; 'threshold': x > ½; 'static': each pixel drawn once for the whole run and every seed,
        a function of its split and place (see `in_memory`); 'dynamic': drawn anew for each `ctx`, in training whenever
        it is seen (Salakhutdinov & Murray 2008; Burda et al. 2016, section 5)."""
        how, levels = cfg.binarize, 1 if cfg.binarize == 'static' else self.levels  # static has left 0 and 1
        stored = dataclasses.replace(self, levels=levels)

        def preprocess(batch: Batch, ctx: rng.Context) -> Batch:
            x = stored.to_data(batch['x'])
            if transform:
                batch = transform({**batch, 'x': x}, ctx)
                x = batch['x']
            if how == 'dynamic' and levels != 1:
                x = (ctx.uniform('binarize', x.shape[1:]) < x).astype(jnp.float32)
            if how == 'threshold':
                x = (x > 0.5).astype(jnp.float32)
            return {**batch, 'x': scaling.to_model(x)}

        return preprocess

    def train_preprocess(self, cfg, scaling: Scaling, rows: int) -> Preprocess:
        """With data.augment."""
        augment.check(cfg, self.shape, self.levels == 1, rows)
        transform = augment.make_transform(cfg, self.shape) if augment.is_on(cfg) else None
        return self.preprocess(cfg, scaling, transform)

    def from_raw(self, cfg, scaling: Scaling) -> Preprocess:
        """Whole numbers 0..levels, as the set stores them, or floats in [0, 1]; 0 and 1 alone where its own are."""
        binary = self.levels == 1 or self.draws_splits(cfg)  # static draws the images of its own set alone
        whole, floats = (
            spec.eval_preprocess(cfg, scaling) for spec in (self, dataclasses.replace(self, levels=0))
        )
        has_whole, words = bool(self.levels) or binary, 'floats in [0, 1]'
        if has_whole:
            words = 'the numbers 0 and 1' if binary else f'whole numbers 0 to {self.levels} or {words}'

        def fits(x: Array) -> Array:
            if binary:
                return (x == 0) | (x == 1)
            if jnp.issubdtype(x.dtype, jnp.integer):
                return (x >= 0) & (x <= self.levels)
            return (x >= -_ROUNDING) & (x <= 1 + _ROUNDING)

        def read(batch: Batch, ctx: rng.Context) -> Batch:
            return (whole if jnp.issubdtype(batch['x'].dtype, jnp.integer) else floats)(batch, ctx)

        mend = '' if binary else '; numpy.clip(x, 0, 1) cuts it to them'
        return RawReader(read, fits, self.shape, has_whole, words, cfg.name, mend)


@dataclasses.dataclass(frozen=True)
class Points(Spec):
    """x: float32 (dim,). density: the true one, where it is known."""

    dim: int
    density: Mixture | None = None
    words: ClassVar[str] = 'points'

    @property
    def shape(self) -> tuple[int]:
        return (self.dim,)

    def scaling(self, cfg, train: Source) -> Scaling:
        """data.scale: 'unit' and 'symmetric', as they are; 'standard', zero mean and, over all coordinates together so
        that shapes stay, unit variance of the training split."""
        if cfg.scale != 'standard':
            return Scaling()
        x = materialize(train).arrays['x'].astype(np.float64)
        mean = x.mean(axis=0)
        deviation = np.sqrt(np.square(x - mean).mean())
        return Scaling(mean.astype(np.float32), np.float32(deviation or 1.0))

    def to_data(self, x: Array) -> Array:
        """Stored -> data units, float32, which are the same."""
        return x.astype(jnp.float32)

    def preprocess(self, cfg, scaling: Scaling, transform: Preprocess | None = None) -> Preprocess:
        if cfg.binarize != 'none':
            raise UserError(f'data.binarize: {cfg.binarize} is for images; {cfg.name} holds points: set it to none')
        return lambda batch, ctx: {**batch, 'x': scaling.to_model(self.to_data(batch['x']))}

    def train_preprocess(self, cfg, scaling: Scaling, rows: int) -> Preprocess:
        augment.check(cfg, None, False, rows)
        return self.preprocess(cfg, scaling)

    def from_raw(self, cfg, scaling: Scaling) -> Preprocess:
        """Floats, none of them NaN or infinite."""
        fits = lambda x: abs(x) < np.inf
        return RawReader(self.eval_preprocess(cfg, scaling), fits, self.shape, False, 'floats', cfg.name)


class Text(Spec):
    """What the kinds of text have: their tokenizer is saved with a run."""

    tokenizer: Tokenizer


@dataclasses.dataclass(frozen=True)
class Tokens(Text):
    """Windows of one row of tokens: `tokens` int32 (block + 1,), see sources/text.py.

    Attributes:
      block: tokens of a training window; those of the other splits may be longer.
      tokenizer: between text and tokens.
      contiguous: see Spec; else the order is shuffled.
    """

    block: int
    tokenizer: Tokenizer
    contiguous: bool = False
    words: ClassVar[str] = 'text'

    @property
    def shape(self) -> tuple[int]:
        return (self.block,)

    def train_preprocess(self, cfg, scaling: Scaling, rows: int) -> Preprocess:
        """With infilling, data.fim_rate."""
        return infilling.make_transform(cfg, self.tokenizer) if cfg.fim_rate else self.preprocess(cfg, scaling)


@dataclasses.dataclass(frozen=True)
class Pairs(Text):
    """A source and what is to be written for it: `source` int32 (block,) and `target` int32 (target_block,), with
    `source_length` and `target_length` (); behind its length a row holds the tokenizer's `filler`. See rows.mask.

    Each is framed by the tokenizer's own special tokens, and a target ends with the token that ends what is written. A
    decoder's inputs, the target one further on, are the task's to make.

    Attributes:
      block, target_block: most tokens of a source and of a target; longer ones were cut, with a note.
      tokenizer: between text and tokens, of both.
    """

    block: int
    target_block: int
    tokenizer: Tokenizer
    words: ClassVar[str] = 'pairs of texts'

    @property
    def shape(self) -> tuple[int]:
        return (self.block + self.target_block,)


@dataclasses.dataclass(frozen=True)
class Labelled(Text):
    """A text and its class: `tokens` int32 (block,) with `tokens_length` (), framed and filled as those of Pairs, and
    `label` int32 (). The classes are those of Dataset.num_classes. Of two texts there is `types` int32 (block,), 0 and,
    from the second one on, 1.

    Attributes:
      columns: the name of the text, or the names of both, in their order; (): not known, as of a checkpoint.
    """

    block: int
    tokenizer: Tokenizer
    columns: tuple[str, ...] = ()
    words: ClassVar[str] = 'labelled texts'

    @property
    def shape(self) -> tuple[int]:
        return (self.block,)


@dataclasses.dataclass(frozen=True)
class Tagged(Text):
    """A text and a class for each of its tokens: as Labelled, but for `tags` int32 (block,) in the place of `label`.

    A tag is NO_TAG where there is nothing to tell: of special tokens, and of what follows the first token of a word.

    Attributes:
      of_words: a tag is of a word, which white space divides, and stands at its first token; else each token has one.
    """

    block: int
    tokenizer: Tokenizer
    of_words: bool = True
    words: ClassVar[str] = 'tagged texts'

    @property
    def shape(self) -> tuple[int]:
        return (self.block,)


class RawReader:
    """read(batch, ctx) -> the batch as a model sees it, of raw examples of a user.

    What is no such batch raises UserError. Inside jit and grad, where values cannot be read, an example out of range
    becomes NaN instead.
    """

    def __init__(
        self, read: Preprocess, fits: Callable[[Array], Array], shape: tuple[int, ...], has_whole: bool, words: str,
        name: str, mend: str = '',
    ):  # fmt: skip
        """fits(x) tells which numbers may be there, has_whole whether whole ones may; mend: how floats get there."""
        self._mend, self._read, self._fits, self._shape, self._has_whole = mend, read, fits, shape, has_whole
        self._wanted = f'; this run ({name}) wants (n, {", ".join(map(str, shape))}), {words}'

    def check(self, x: Array) -> Array:
        """Which numbers of x may be there, of its shape: all, unless x is a tracer."""
        whole, floats = jnp.issubdtype(x.dtype, jnp.integer), jnp.issubdtype(x.dtype, jnp.floating)
        if x.shape[1:] != self._shape or not (whole and self._has_whole or floats):
            raise UserError(f'x: {x.shape} {x.dtype}{self._wanted}')
        good = self._fits(x)
        if not isinstance(x, jax.core.Tracer) and not good.all():
            # Of samples that leave their range by little; whole numbers stored as floats are another mistake.
            mend = self._mend if floats and -1 <= x.min() and x.max() <= 2 else ''
            raise UserError(f'x: {x.dtype} from {x.min()} to {x.max()}{self._wanted}{mend}')
        return good

    def __call__(self, batch: Batch, ctx: rng.Context) -> Batch:
        traced = isinstance(batch['x'], jax.core.Tracer)
        x = batch['x'] if traced else np.asarray(batch['x'])
        good = self.check(x)
        found = self._read({**batch, 'x': x}, ctx)
        if traced:
            every = jnp.all(good, axis=tuple(range(1, x.ndim)), keepdims=True)
            found = {**found, 'x': jnp.where(every, found['x'], jnp.nan)}
        return found


def binarize_static(x: np.ndarray, levels: int, name: str) -> np.ndarray:
    """(N, …) intensities -> (N, …) uint8 of 0 and 1, drawn with P(1) = intensity; a function of `name` and place."""
    if levels == 1:
        return x
    draws = np.random.Generator(np.random.PCG64([int.from_bytes(name.encode(), 'little')])).random(x.shape, np.float32)
    return (draws < x.astype(np.float32) / (levels or 1)).astype(np.uint8)
