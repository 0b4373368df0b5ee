"""A text model of a researcher's own: what its cache must be is checked before anything is trained."""

from typing import NamedTuple

import jax.numpy as jnp
import pytest

from aigc_jax.core import check_task
from aigc_jax.core.capabilities import CausalText, Seq2Seq
from aigc_jax.core.errors import UserError
from aigc_jax.core.types import Array, Aux, Extra, Task, Turn
from aigc_jax.nn.language_layers import State

V, ROWS, WIDTH = 5, 4, 3


class Own(NamedTuple):
    start: Array
    kept: Array


class Short(NamedTuple):  # a State without beams
    column: Array
    layers: tuple
    start: Array


def state(n, columns, shape=None, start=None, kind=State, **more):
    shape = shape or (lambda n, columns: (n, 2, columns, WIDTH))
    layers = ((jnp.zeros(shape(n, columns)), jnp.zeros(shape(n, columns))),)
    start = jnp.zeros((n,), jnp.int32) if start is None else start
    return kind(column=jnp.int32(0), layers=layers, start=start, **more)


def check(kind, init_cache, columns: bool) -> None:
    """Of a task that writes text, whose cache is init_cache(n, columns)."""

    def decode(params, extra, tokens, cache):
        return jnp.zeros((*tokens.shape, V)) + params['model']['w'], cache

    rest = dict(vocab_size=V, eos=None, bos=0, columns=columns, context=8, decode=decode)
    if kind is CausalText:
        text = CausalText(
            init_cache=init_cache, token_nll=lambda params, extra, tokens: jnp.zeros(tokens[:, 1:].shape), **rest
        )
    else:
        nothing = lambda params, extra, batch, ctx: (jnp.zeros((7, 4)), jnp.zeros((7, 4), bool))
        of_sources = lambda params, extra, source, start, columns: init_cache(len(source), columns)
        text = Seq2Seq(init_cache=of_sources, token_nll=nothing, frame=((), ()), **rest)
    loss = lambda params, extra, batch, ctx: (params['model']['w'], Aux({}, extra))
    task = Task(lambda key: ({'model': {'w': jnp.float32(0)}}, Extra({}, {})), ((Turn('model', loss),),), (text,))
    batch = lambda n, ctx: {'tokens': jnp.zeros((n, 6), jnp.int32)}
    check_task.check(task, 'my_task.py', ROWS, ROWS, batch, batch, None)


FITTING = {  # (cache, whether what was read stands in columns)
    'a State': (state, True),
    'layers in one': (lambda n, c: state(n, c, lambda n, c: (4, n, 2, c, WIDTH)), True),
    'rows of its own': (lambda n, c: Own(jnp.zeros((n,), jnp.int32), jnp.zeros((n, WIDTH))), False),
}  # fmt: skip
UNFIT = {
    'a pair': (lambda n, c: (jnp.zeros((n,)), jnp.zeros((n, WIDTH))), False),
    'no start': (lambda n, c: Short(jnp.int32(0), (), ()), False),
    'a start of one text': (lambda n, c: state(n, c, start=jnp.int32(0)), False),
    'starts of a column': (lambda n, c: state(n, c, start=jnp.zeros((n, 1), jnp.int32)), True),
    'without beams': (lambda n, c: state(n, c, kind=Short), True),
    'a cache of its own': (lambda n, c: Own(jnp.zeros((n,), jnp.int32), jnp.zeros((n, 2, c, WIDTH))), True),
    'no layers': (lambda n, c: state(n, c)._replace(layers=()), True),
    'layers of one axis': (lambda n, c: state(n, c, lambda n, c: (n,)), True),
    'columns last': (lambda n, c: state(n, c, lambda n, c: (n, 2, WIDTH, c)), True),
    'columns before heads': (lambda n, c: state(n, c, lambda n, c: (n, c, 2, WIDTH)), True),
    'a recurrent state': (lambda n, c: state(n, c, lambda n, c: (n, WIDTH)), True),
    'a number of columns that is always the same': (lambda n, c: state(n, c, lambda n, c: (n, 2, 8, WIDTH)), True),
}  # fmt: skip


@pytest.mark.parametrize('kind', [CausalText, Seq2Seq])
@pytest.mark.parametrize('init_cache, columns', FITTING.values(), ids=FITTING)
def test_a_cache_that_fits(kind, init_cache, columns):
    check(kind, init_cache, columns)


@pytest.mark.parametrize('kind', [CausalText, Seq2Seq])
@pytest.mark.parametrize('init_cache, columns', UNFIT.values(), ids=UNFIT)
def test_a_cache_that_does_not_fit_is_refused(kind, init_cache, columns):
    words = 'a State .* whose layers have columns at axis −2' if columns else r'a NamedTuple with start \(n,\)'
    with pytest.raises(UserError, match=f'my_task.py: {kind.__name__}.init_cache returns .*; it returns {words}'):
        check(kind, init_cache, columns)
