"""What a model is to the rest of the project: a `Task` of pure functions over a `TrainState` of arrays."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax

Array = jax.Array
Tree = Any  # a pytree of arrays
Batch = Mapping[str, Array]  # every leaf has the batch axis first


class TrainState(NamedTuple):
    """Everything that training changes, arrays only; no key and no iterator lives here (see core/rng.py).

    step: () int32, optimizer steps done.
    params, opt: {player: tree}.
    stats: {name: tree} of what all examples share (batch statistics, codebooks); averaged over devices.
    carry: what has a batch axis (recurrent state between blocks); sharded over devices, never averaged.
    """

    step: Array
    params: dict[str, Tree]
    opt: dict[str, Tree]
    stats: Tree
    carry: Tree


class Extra(NamedTuple):
    """The part of the state that a loss reads and renews beside the parameters (see TrainState)."""

    stats: Tree
    carry: Tree


Metrics = dict[str, Array]
Loss = Callable[[dict[str, Tree], Extra, Batch, Any], tuple[Array, tuple[Metrics, Extra]]]


@dataclasses.dataclass(frozen=True)
class Turn:
    """One player's update.

    loss(params, extra, batch, ctx) -> (scalar, (metrics, extra)): a mean over the examples (or tokens) of
        `batch`; differentiated with respect to params[player] alone; ctx is a `rng.Context`.
    weight(batch) -> scalar: how many examples (or tokens) that mean is over, for micro-batches and devices
        that hold unequal numbers of them. None: the examples of the batch.
    """

    player: str
    loss: Loss
    weight: Callable[[Batch], Array] | None = None


class Diagnostic(NamedTuple):
    """What the final evaluation says of a split as a whole, beyond means over its examples.

    collect(params, extra, batch, ctx) -> {name: (n, …)}, of each example, on the device.
    summarize({name: (N, …)}) -> {metric: a number, or (N,) of which the mean is reported}, on the host.
    most: how many examples of the split are looked at, drawn by rng.fixed_choice; 0: all.
    """

    collect: Callable[..., dict[str, Array]]
    summarize: Callable[[dict[str, Any]], dict[str, Any]]
    most: int = 0


@dataclasses.dataclass(frozen=True)
class Task:
    """A model with its objective, as pure functions. The loop never learns how many players there are.

    Every x, in and out, is as the model sees it (data.scale); the evaluation converts.

    init(key) -> (params {player: tree}, Extra)
    rounds: turns inside a round see the same parameters and the same batch; rounds run in order, each on a
        batch of its own, so that five critic steps see five batches.
    sample(params, extra, ctx, labels) -> (n, *shape): one sample for each of the n indices of ctx;
        labels: (n,) int32, or None where the model is unconditional.
    evaluate(params, extra, batch, ctx) -> {metric: (n,)}: one value an example, of which the mean is reported; or
        {metric: ((n,), (n,))}: sums and what they are over, of which the ratio is. Successes and failures are bool.
        Examples are taken to be independent of each other. None: nothing to say, or it is `language` that is scored.
    reconstruct(params, extra, batch, ctx) -> (n, *shape), or None.
    score: (label, function(params, extra, x (n, *shape), ctx) -> (n,)): a field over data space to draw
        beneath 2-D points, such as the discriminator's logit; or None.
    encode(params, extra, batch, ctx) -> (n, d) codes, and decode(params, extra, codes, labels) -> (n, *shape), of a
        model with a latent space to walk through; or None.
    diagnostics: of the final evaluation.
    codes: (K, function(params, extra, batch, ctx) -> (n, …) int32 in 0..K−1): the discrete latent of each example;
        how the codes are used over a split is reported; or None.
    language: a decoding.Language, of a model of text, which can be scored and generated from; or None.
    num_classes: of the labels that `sample` wants; 0: unconditional.
    """

    init: Callable[[Array], tuple[dict[str, Tree], Extra]]
    rounds: tuple[tuple[Turn, ...], ...]
    sample: Callable[..., Array]
    evaluate: Callable[..., Metrics] | None = None
    reconstruct: Callable[..., Array] | None = None
    score: tuple[str, Callable[..., Array]] | None = None
    encode: Callable[..., Array] | None = None
    decode: Callable[..., Array] | None = None
    diagnostics: tuple[Diagnostic, ...] = ()
    codes: tuple[int, Callable[..., Array]] | None = None
    language: Any = None
    num_classes: int = 0

    @property
    def players(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(turn.player for turns in self.rounds for turn in turns))
