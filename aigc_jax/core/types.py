"""What a model is to the rest of the project: a `Task` of pure functions over a `TrainState` of arrays."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeVar

import jax

Array = jax.Array
Tree = Any  # a pytree of arrays
Batch = Mapping[str, Array]  # every leaf has the batch axis first
C = TypeVar('C')


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
NO_METRICS = 'step', 'split', 'seed', 'diverged'  # what a row of metrics.jsonl holds beside metrics


class Aux(NamedTuple):
    """What a loss returns beside its value.

    metrics: {name: ()}, means as the loss is one.
    extra: the renewed statistics and recurrent state.
    weight: (), how many examples (or tokens) the means are over, for micro-batches and devices that hold unequal
        numbers of them, such as masked tokens; where it is 0 the means are not read. None: the examples of the batch.
    logits: for distillation, of a loss that is a mean of −log p of classes: (the logits (…, classes), whether the mean
        counts a place, bool (…)). None: the loss is another.
    """

    metrics: Metrics
    extra: Extra
    weight: Array | None = None
    logits: tuple[Array, Array] | None = None


Loss = Callable[[dict[str, Tree], Extra, Batch, Any], tuple[Array, Aux]]


@dataclasses.dataclass(frozen=True)
class Turn:
    """One player's update.

    loss(params, extra, batch, ctx) -> (scalar, Aux): a mean over the examples (or tokens) of `batch`;
        differentiated with respect to params[player] alone; ctx is a `rng.Context`.
    """

    player: str
    loss: Loss


@dataclasses.dataclass(frozen=True)
class Task:
    """A model with its objective, as pure functions. The loop never learns how many players there are.

    init(key) -> (params {player: tree}, Extra)
    rounds: turns inside a round see the same parameters and the same batch; rounds run in order, each on a
        batch of its own, so that five critic steps see five batches.
    capabilities: what the trained model can do (core.capabilities); an evaluation, a picture or a sampler is made
        where the capabilities that it needs are there.
    """

    init: Callable[[Array], tuple[dict[str, Tree], Extra]]
    rounds: tuple[tuple[Turn, ...], ...]
    capabilities: tuple[Any, ...] = ()

    @functools.cached_property
    def abstract(self) -> tuple[dict[str, Tree], Extra]:
        """Shapes and dtypes of what init gives. They are kept, because tracing a deep model takes a second."""
        return jax.eval_shape(lambda: self.init(jax.random.key(0, impl='threefry2x32')))

    @property
    def players(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(turn.player for turns in self.rounds for turn in turns))

    def get(self, kind: type[C]) -> C | None:
        """The first capability of this class; None where the model has none."""
        return next(iter(self.all(kind)), None)

    def all(self, kind: type[C]) -> list[C]:
        return [one for one in self.capabilities if isinstance(one, kind)]

    def through(self, change: Callable[[dict[str, Tree]], dict[str, Tree]]) -> 'Task':
        """The same task, each of whose functions sees change(params) in the place of the parameters."""
        return self.around(lambda function: lambda params, *rest: function(change(params), *rest))

    def around(self, wrap: Callable[[Callable], Callable]) -> 'Task':
        """The same task, with wrap(function) in the place of each function that begins with the parameters."""
        rounds = tuple(tuple(Turn(turn.player, wrap(turn.loss)) for turn in turns) for turns in self.rounds)
        capabilities = []
        for one in self.capabilities:
            functions = {name: getattr(one, name) for name in one.OF_PARAMETERS}
            new = {name: wrap(function) for name, function in functions.items() if function is not None}
            capabilities.append(dataclasses.replace(one, **new))
        return dataclasses.replace(self, rounds=rounds, capabilities=tuple(capabilities))

    def on_data(self, read: Callable, write: Callable) -> 'Task':
        """The same task, whose capabilities read and give raw data; see core.capabilities."""
        capabilities = tuple(one.on_data(read, write) for one in self.capabilities)
        return dataclasses.replace(self, capabilities=capabilities)
