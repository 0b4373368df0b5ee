"""Caches that a beam search meets: those of columns, in which beams stand side by side, and those of anyone's own."""

import itertools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from aigc_jax import decoding
from aigc_jax.core import rng
from aigc_jax.core.capabilities import CausalText
from aigc_jax.core.errors import UserError
from aigc_jax.data import Tokenizer
from aigc_jax.decoding import Sampling, generate, language
from aigc_jax.nn.transformer import Transformer

V = 5
LOGITS = np.random.default_rng(0).normal(0, 1.5, (V, V)).astype(np.float32)  # of the next token, by the last one
KEY = rng.stream(0, 'test')


class OwnCache(NamedTuple):
    start: jax.Array
    column: jax.Array
    kept: jax.Array


def own_text(axis: int, context: int = 50) -> CausalText:
    """Of a task of a researcher's own: in its cache, which is no State, texts are on `axis`."""

    def init_cache(n, columns):
        return OwnCache(jnp.zeros((n,), jnp.int32), jnp.int32(0), jnp.zeros((2, n, 3) if axis else (n, 2, 3)))

    def decode(params, extra, tokens, cache):
        """Of the last token, and of how many of each kind there were, which stands in `kept`, not in columns."""
        count = jnp.cumsum(jax.nn.one_hot(tokens, V), axis=1)
        kept = jnp.moveaxis(cache.kept, axis, 0)
        told = jnp.sum(kept, axis=1)[:, None] + count[..., :3]
        kept = kept.at[:, 0].add(count[:, -1, :3])
        logits = jnp.asarray(LOGITS)[tokens] + told @ jnp.asarray(LOGITS)[:3]
        return logits, cache._replace(column=cache.column + tokens.shape[1], kept=jnp.moveaxis(kept, 0, axis))

    return CausalText(decode, init_cache, token_nll=None, context=context, vocab_size=V, eos=None, bos=0)


def test_a_cache_without_columns_does_not_grow():
    """Whatever its context is: it has no layers with columns that could."""
    prompt, texts = np.array([[1], [2]], np.int32), np.arange(2)
    write = lambda model: decoding.TextDecoder(model).generate(
        None, None, prompt, np.zeros(2, np.int32), KEY, texts, Sampling(), 40, ()
    )
    np.testing.assert_array_equal(write(own_text(0, 50)).tokens, write(own_text(0, 0)).tokens)


@pytest.mark.parametrize('context', [0, 50])
def test_a_cache_without_columns_has_a_row_for_each_beam(context):
    """Whatever its context is; so the text is the best of all, which the beams of one row would not find."""
    steps, prompt, model = 3, np.array([[1], [2]], np.int32), own_text(0, context)
    arguments = prompt, np.zeros(2, np.int32), KEY, np.arange(2)
    how = Sampling(beam_size=V**2)  # every prefix of the last but one step has its place
    found = decoding.TextDecoder(model).generate(None, None, *arguments, how, steps, ())
    texts = np.array(list(itertools.product(range(V), repeat=steps)))
    for row, first in enumerate(prompt):
        read = np.concatenate([np.repeat(first[None], len(texts), 0), texts], axis=1)
        logits, _ = model.decode(None, None, read, model.init_cache(len(read), 0))
        log_p = np.take_along_axis(jax.nn.log_softmax(logits)[:, :-1], texts[:, :, None], axis=-1).sum((1, 2))
        assert found.tokens[row].tolist() == texts[log_p.argmax()].tolist()
        assert float(found.log_prob[row]) == pytest.approx(float(log_p.max()), rel=1e-4)


@pytest.mark.parametrize('n', [1, 2, 3])
def test_a_cache_with_texts_on_another_axis_is_refused(n):
    """Of two texts, too, where each axis has the size of the first."""
    arguments = np.ones((n, 1), np.int32), np.zeros(n, np.int32), KEY, np.arange(n)
    with pytest.raises(UserError, match='beam_size=3: .*has texts as its first axis, or columns'):
        decoding.TextDecoder(own_text(1)).generate(None, None, *arguments, Sampling(beam_size=3), 3, ())


@pytest.mark.parametrize('scan', [False, True])
def test_many_beams_have_rows_of_their_own_where_there_are_rows(scan, monkeypatch):
    """A prompt stands in the cache once up to so many beams, and never is read through columns that are empty."""
    fields = dict(
        layers=2, heads=2, kv_heads=2, width=16, mlp_width=24, position='rope', norm='rmsnorm', activation='gelu',
        qk_norm=False, bias=False, zero_init=False, dropout=0.0, attention='einsum', vocab_size=11, context=40,
        end=None, tied=False, softcap=0.0, window=0, remat=False, scan_layers=scan,
    )  # fmt: skip
    module, prompt = Transformer(**fields), np.random.default_rng(0).integers(1, 11, (3, 30), dtype=np.int32)
    shapes, draw = jax.eval_shape(module.init, KEY, prompt)['params'], np.random.default_rng(3).normal
    params = jax.tree.map(lambda x: draw(0, 0.5, x.shape).astype(np.float32), shapes)
    model = CausalText(
        decode=lambda params, extra, tokens, cache: module.apply({'params': params}, tokens, cache),
        init_cache=module.initial_state, token_nll=None, context=40, vocab_size=11, eos=7, bos=0, columns=True,
    )  # fmt: skip
    start, how, found, rooms = np.array([4, 0, 9], np.int32), Sampling(beam_size=5), {}, {}
    for most in (4, 5):
        monkeypatch.setattr(language, '_BESIDE', most)
        call = lambda *arguments: language.TextDecoder(model).generate(params, None, *arguments, KEY, index, how, 8, ())
        monkeypatch.setattr(language, '_divided', lambda write, *rows: write(*rows))
        index = np.arange(3)
        found[most] = call(prompt, start)
        (loop,) = loops(jax.make_jaxpr(call)(prompt, start).jaxpr)
        rooms[most] = {x.aval.shape[-4:-1] for x in loop.params['body_jaxpr'].jaxpr.invars if x.aval.ndim > 3}
    np.testing.assert_array_equal(found[4].tokens, found[5].tokens)
    np.testing.assert_allclose(found[4].log_prob, found[5].log_prob, rtol=1e-4)
    assert rooms[5] == {(3, 2, 30 + 5 * 8)} and rooms[4] == (rooms[5] if scan else {(15, 2, 30 + 8)})


def loops(jaxpr):
    for equation in jaxpr.eqns:
        if equation.primitive.name == 'while':
            yield equation
        elif 'jaxpr' in equation.params:
            yield from loops(equation.params['jaxpr'].jaxpr)


def test_a_draft_of_a_model_without_columns_is_refused():
    tokenizer = Tokenizer('byte', (), has_end=False)
    with pytest.raises(UserError, match='draft: this model cannot take back'):
        generate.Generator(own_text(0), tokenizer, Sampling(), 5, draft=np.arange(5))
