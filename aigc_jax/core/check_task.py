"""Checks a task of a researcher's own before it is trained: what each of its functions returns, by shapes alone."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from aigc_jax.core import rng, user_code
from aigc_jax.core.capabilities import (
    Capability,
    CausalText,
    Codebook,
    LatentSpace,
    Measures,
    Reconstructs,
    Samples,
    ScalarField,
    Seq2Seq,
    SplitStatistic,
)
from aigc_jax.core.errors import UserError
from aigc_jax.core.types import NO_METRICS, Aux, Batch, Extra, Task, Turn

_N = 7  # examples that a capability is tried with
_LOSS = '(scalar, Aux(metrics, extra))'


def _of_loss(returned: Any) -> tuple[Any, Any, Any, Any, Any] | None:
    """(value, metrics, extra, weight, logits) of what a loss returns; None where it has another form."""
    match returned:
        case (value, Aux(metrics, Extra() as extra, weight, logits)):
            return value, metrics, extra, weight, logits
    return None


def check(
    task: Task, path: str, rows: int, batch_size: int, train: Callable[[int, rng.Context], Batch],
    evaluated: Callable[[int, rng.Context], Batch], shape: tuple[int, ...] | None,
) -> None:  # fmt: skip
    """Raises UserError, which names the file and the function, for what no part of the package could use. Nothing is
    computed.

    path: of the file that defines the task. rows: examples that a loss is given at once, of batch_size. train,
    evaluated: (n, ctx) -> a batch as losses and as capabilities see it. shape: of one sample; None: any.
    """
    checked = _Checked(path)
    checked.structure(task)
    params, extra = checked.init(task, batch_size)
    some = jax.tree.map(lambda x: jax.ShapeDtypeStruct((rows, *x.shape[1:]), x.dtype), extra.carry)
    for turns in task.rounds:
        for turn in turns:
            checked.loss(turn, params, extra._replace(carry=some), rows, train)
    classes = (samples := task.get(Samples)) and samples.num_classes
    labels = jax.ShapeDtypeStruct((_N,), jnp.int32) if classes else None
    for one in task.capabilities:
        checked.capability(one, params, extra, evaluated, shape, labels)


class _Checked:
    """The checks of one file."""

    def __init__(self, path: str):
        self._path = path

    def _want(self, fits: bool, function: str, returned: Any, wanted: str) -> None:
        if not fits:
            raise UserError(f'task.name: {self._path}: {function} returns {_said(returned)}; it returns {wanted}')

    def _shapes(self, name: str, function: Callable, *arguments) -> Any:
        """What the function `name` returns of these, abstract."""
        with user_code.errors_of(self._path, 'task.name', name):
            return jax.eval_shape(function, *arguments)

    def structure(self, task: Task) -> None:
        rounds = task.rounds
        fits = isinstance(rounds, (tuple, list)) and len(rounds)
        fits = fits and all(isinstance(turns, (tuple, list)) and len(turns) for turns in rounds)
        if not fits or not all(isinstance(turn, Turn) for turns in rounds for turn in turns):
            raise UserError(
                f'task.name: {self._path}: rounds of its Task is {str(rounds)[:60]}; it is a tuple of rounds, each a '
                'tuple of one Turn or more, such as ((Turn(player, loss),),)'
            )
        is_tuple = isinstance(task.capabilities, (tuple, list))
        if not is_tuple or not all(isinstance(one, Capability) for one in task.capabilities):
            kinds = [type(one).__name__ for one in task.capabilities] if is_tuple else type(task.capabilities).__name__
            raise UserError(
                f'task.name: {self._path}: capabilities of its Task is {kinds}; it is a tuple of instances of the '
                'classes of aigc_jax/core/capabilities.py, such as (Measures(per_example),)'
            )
        players = [turn.player for turns in rounds for turn in turns]
        if not all(isinstance(player, str) for player in players):
            raise UserError(f'task.name: {self._path}: a Turn is of player {players!r}; each is a text')

    def init(self, task: Task, batch_size: int) -> tuple[dict[str, Any], Extra]:
        """(params, extra), abstract."""
        found = self._shapes('init', lambda: task.init(rng.stream(0, 'init')))
        fits = isinstance(found, tuple) and len(found) == 2 and isinstance(found[1], Extra)
        fits = fits and isinstance(found[0], dict) and all(isinstance(player, str) for player in found[0])
        self._want(fits, 'init', found, '({player: its parameters}, Extra(stats, carry))')
        params, extra = found
        floats = all(jnp.issubdtype(x.dtype, jnp.floating) for x in jax.tree.leaves(params))
        self._want(floats, 'init', params, 'parameters that are floats; what is not trained belongs to Extra.stats')
        for x in jax.tree.leaves(extra.carry):
            self._want(x.shape[:1] == (batch_size,), 'init', extra.carry, f'a carry of batch_size, {batch_size}, rows')
        if unknown := [player for player in task.players if player not in params]:
            raise UserError(
                f'task.name: {self._path}: a Turn is of player {unknown[0]!r}; init has parameters of '
                f'{", ".join(map(repr, params)) or "none"}'
            )
        return params, extra

    def loss(self, turn: Turn, params, extra: Extra, rows: int, batch_of) -> None:
        name = f'loss of player {turn.player}'

        def loss(params, extra):
            ctx = rng.context(0, 'train', 0, jnp.arange(rows, dtype=jnp.int32))
            return turn.loss(params, extra, batch_of(rows, ctx), ctx)

        returned = self._shapes(name, loss, params, extra)
        found = _of_loss(returned)
        self._want(found is not None, name, returned, f'{_LOSS}, whose extra is an Extra')
        value, metrics, renewed, weight, logits = found
        is_scalar = lambda x: getattr(x, 'shape', None) == ()
        fits = is_scalar(value) and jnp.issubdtype(value.dtype, jnp.floating)
        self._want(fits, name, value, 'a float () first, the mean over the examples')
        fits = isinstance(metrics, dict) and all(isinstance(k, str) and is_scalar(v) for k, v in metrics.items())
        self._want(fits, name, metrics, 'metrics {name: ()}, means over the examples')
        self._want(weight is None or is_scalar(weight), name, weight, 'a weight ()')
        shapes = [getattr(part, 'shape', None) for part in logits] if isinstance(logits, (tuple, list)) else []
        fits = len(shapes) == 2 and None not in shapes and shapes[0] and shapes[0][:-1] == shapes[1]
        self._want(logits is None or fits, name, logits, 'logits (…, classes), with the places that count, bool (…)')
        self._want(_kinds(renewed) == _kinds(extra), name, renewed, f'an extra like that given, {_said(extra)}')

    def capability(self, one: Capability, params, extra: Extra, batch_of, shape, labels) -> None:
        kind, n = type(one).__name__, _N

        def tried(name: str, function: Callable, *arguments):
            """What the function gives of n examples: function(params, extra, batch, ctx, *arguments)."""

            def call(params, extra, *arguments):
                ctx = rng.context(0, 'eval', 0, jnp.arange(n, dtype=jnp.int32))
                return function(params, extra, batch_of(n, ctx), ctx, *arguments)

            return self._shapes(f'{kind}.{name}', call, params, extra, *arguments)

        def want(fits: bool, name: str, returned, wanted: str) -> None:
            self._want(bool(fits), f'{kind}.{name}', returned, f'{wanted}; here n = {n}')

        x_shape = '(n, …)' if shape is None else _tuple('n', *shape)
        is_x = lambda x: _is(x, n) if shape is None else _is(x, n, *shape)
        match one:
            case Measures():
                found = tried('per_example', one.per_example)
                of_each = lambda v: _is(v, n, exactly=True) or (
                    isinstance(v, tuple) and len(v) == 2 and all(_is(part, n, exactly=True) for part in v)
                )
                fits = _is_named(found) and all(map(of_each, found.values()))
                want(fits, 'per_example', found, '{metric: (n,)} or {metric: ((n,), (n,))}, one value an example')
                if taken := found.keys() & NO_METRICS:
                    raise UserError(
                        f'task.name: {self._path}: a metric of Measures has the name {min(taken)!r}, which a row of '
                        'metrics.jsonl has for something else; choose another'
                    )
            case Samples():
                if type(one.num_classes) is not int or one.num_classes < 0:
                    raise UserError(f'task.name: {self._path}: num_classes of Samples is {one.num_classes!r}; it is '
                                    'the number of classes, or 0')  # fmt: skip
                draw = lambda params, extra, batch, ctx, labels: one.draw(params, extra, ctx, labels)
                found = tried('draw', draw, labels)
                want(is_x(found), 'draw', found, x_shape)
            case Reconstructs():
                found = tried('reconstruct', one.reconstruct)
                want(is_x(found), 'reconstruct', found, x_shape)
            case ScalarField():
                value = lambda params, extra, batch, ctx: one.value(params, extra, batch['x'], ctx)
                found = tried('value', value)
                want(_is(found, n, exactly=True), 'value', found, '(n,)')
            case LatentSpace():
                codes = tried('encode', one.encode)
                want(_is(codes, n) and len(codes.shape) == 2, 'encode', codes, 'codes (n, d)')
                decode = lambda params, extra, batch, ctx, codes, labels: one.decode(params, extra, codes, labels)
                found = tried('decode', decode, codes, labels)
                want(is_x(found), 'decode', found, x_shape)
            case Codebook():
                found = tried('index', one.index)
                fits = _is(found, n) and jnp.issubdtype(found.dtype, jnp.integer)
                want(fits, 'index', found, 'whole numbers (n, …)')
            case SplitStatistic():
                found = tried('collect', one.collect)
                want(_is_named(found) and all(_is(x, n) for x in found.values()), 'collect', found, '{name: (n, …)}')
            case CausalText():
                length = min(8, one.context or 8)
                tokens = jax.ShapeDtypeStruct((n, length), np.int32)
                longer = jax.ShapeDtypeStruct((n, length + 1), np.int32)
                found = self._shapes('CausalText.token_nll', one.token_nll, params, extra, longer)
                want(_is(found, n, length, exactly=True), 'token_nll', found, f'(n, L); here L = {length}')
                decode = lambda params, extra, tokens: one.decode(params, extra, tokens, one.init_cache(n, length))
                found = self._shapes('CausalText.decode', decode, params, extra, tokens)
                fits = isinstance(found, tuple) and len(found) == 2 and _is(found[0], n, length, one.vocab_size)
                words = f'(logits (n, L, {one.vocab_size}), cache); here L = {length}'
                want(fits, 'decode', found[:1] if isinstance(found, tuple) else found, words)
                cache = self._shapes('CausalText.init_cache', lambda: one.init_cache(n, length))
                want(_is_cache(cache, one.columns), 'init_cache', cache, _cache_words(one.columns))
            case Seq2Seq():
                self._seq2seq(one, params, extra, tried, want)

    def _seq2seq(self, one: Seq2Seq, params, extra: Extra, tried: Callable, want: Callable) -> None:
        n = _N
        found = tried('token_nll', one.token_nll)
        fits = isinstance(found, tuple) and len(found) == 2 and all(_is(x, n) for x in found)
        want(fits and found[0].shape == found[1].shape, 'token_nll', found, '((n, T), (n, T))')
        source, start = (jax.ShapeDtypeStruct(shape, np.int32) for shape in ((n, 8), (n,)))

        def decode(params, extra, source, start):
            return one.decode(params, extra, *one.begin(params, extra, source, start, 7))

        cache = self._shapes('Seq2Seq.init_cache', lambda *given: one.begin(*given, 7)[1], params, extra, source, start)
        want(_is_cache(cache, one.columns), 'init_cache', cache, _cache_words(one.columns))
        found = self._shapes('Seq2Seq.decode', decode, params, extra, source, start)
        fits = isinstance(found, tuple) and len(found) == 2 and _is(found[0], n, 1, one.vocab_size)
        words = f'(logits (n, L, {one.vocab_size}), cache); here L = 1'
        want(fits, 'decode', found[:1] if isinstance(found, tuple) else found, words)


def _is(x: Any, *shape: int, exactly: bool = False) -> bool:
    """Whether x is an array whose shape begins with `shape`, or is that."""
    found = getattr(x, 'shape', None)
    wanted = len(shape) if not exactly and len(shape) == 1 else None
    return found is not None and found[:wanted] == shape


def _is_cache(found: Any, columns: bool) -> bool:
    """Whether it has what core.capabilities.WritesText says."""
    fits = hasattr(found, '_replace') and _is(getattr(found, 'start', None), _N, exactly=True)
    if not columns or not fits:
        return fits
    shapes = [x.shape for x in jax.tree.leaves(getattr(found, 'layers', ()))]
    room = {shape[-2] if len(shape) > 1 else None for shape in shapes}
    return hasattr(found, 'beams') and hasattr(found, 'column') and len(room) == 1 and None not in room


def _cache_words(columns: bool) -> str:
    if columns:
        return 'a State of aigc_jax/nn/language_layers.py whose layers have columns at axis −2, as `columns` says'
    return 'a NamedTuple with start (n,), such as the State of aigc_jax/nn/language_layers.py'


def _is_named(found: Any) -> bool:
    return isinstance(found, dict) and all(isinstance(name, str) for name in found)


def _kinds(tree: Any) -> tuple:
    return jax.tree.structure(tree), [(x.shape, x.dtype) for x in jax.tree.leaves(tree)]


def _tuple(*parts) -> str:
    return f'({", ".join(map(str, parts))}{"," * (len(parts) == 1)})'


def _said(tree: Any) -> str:
    """The shapes and types of a tree, in words."""
    if isinstance(tree, dict):
        words = f'{{{", ".join(f"{name!r}: {_said(x)}" for name, x in tree.items())}}}'
    elif hasattr(tree, '_fields'):
        words = f'{type(tree).__name__}({", ".join(map(_said, tree))})'
    elif isinstance(tree, (tuple, list)):
        words = _tuple(*map(_said, tree))
    else:
        words = f'{tree.dtype} {_tuple(*tree.shape)}' if hasattr(tree, 'shape') else type(tree).__name__
    return words if len(words) <= 200 else f'{words[:199]}…'
