"""Decoding: draws against exact distributions, the same text in any batch, beams against enumeration, the flags."""

import gzip
import itertools
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import scipy.stats
from refusals import assert_refused

import aigc_jax
from aigc_jax import decoding
from aigc_jax.core import parallel, rng
from aigc_jax.core.capabilities import CausalText
from aigc_jax.core.errors import UserError
from aigc_jax.decoding import Sampling, generate, sampling
from aigc_jax.decoding.speculation import propose, speculate
from aigc_jax.nn.language_layers import State
from aigc_jax.nn.transformer import Transformer
from aigc_jax.reports import texts as texts_lib
from aigc_jax.runs import config as config_lib
from aigc_jax.runs.experiment import Experiment
from aigc_jax.runs.folder import Run

CONFIGS = pathlib.Path(__file__).parents[2] / 'configs'
V = 5
LOGITS = np.random.default_rng(0).normal(0, 1.5, (V, V)).astype(np.float32)  # of the next token, by the last one
KEY = rng.stream(0, 'test')


def toy(tokens, state):
    """A Markov chain that, so that the cache is used, also looks at how many columns it has read."""
    column = state.column + jnp.arange(tokens.shape[1])
    layers = state.layers + tokens.shape[1]
    return jnp.asarray(LOGITS)[tokens] + 0.1 * (column % 3)[:, None] * jnp.arange(V), State(
        state.column + tokens.shape[1], layers, state.start
    )


def toy_1(tokens, state):
    """toy, with the columns counted by `column` alone, as a cache that can be cut back."""
    logits, state = toy(tokens, state)
    return logits, state._replace(layers=jnp.zeros_like(state.layers))


def log_probs(token, t):
    """Of the next token after `token` and t more, by toy, without JAX."""
    return scipy.special.log_softmax(LOGITS[token] + 0.1 * (t % 3) * np.arange(V))


def fresh(n):
    return State(jnp.int32(0), jnp.zeros((n,), jnp.int32), jnp.zeros((n,), jnp.int32))


def draw(how, n=20_000, steps=1, prompt=2, **more):
    tokens = jnp.full((n, 1), prompt, jnp.int32)
    call = jax.jit(lambda: decoding.sample(toy, fresh(n), tokens, KEY, jnp.arange(n), how, steps, **more))
    return jax.device_get(call())


def expected(how, prompt=2):
    """The distribution of the first token, written out."""
    logits = LOGITS[prompt].astype(np.float64)
    if how.repetition_penalty != 1:
        logits[prompt] *= how.repetition_penalty if logits[prompt] < 0 else 1 / how.repetition_penalty
    logits = logits / how.temperature
    p = np.exp(logits) / np.exp(logits).sum()
    order = np.argsort(-p)
    kept = set(order[: how.top_k or V])
    p = np.where([i in kept for i in range(V)], p, 0)
    p = p / p.sum()
    nucleus, total = set(), 0.0
    for i in order:
        if total < how.top_p:
            nucleus.add(i)
        total += p[i]
    p = np.where([i in nucleus for i in range(V)], p, 0)
    p = np.where(p >= how.min_p * p.max(), p, 0)
    return p / p.sum()


@pytest.mark.parametrize('how', [
    Sampling(), Sampling(temperature=0.6), Sampling(top_k=2), Sampling(top_p=0.8), Sampling(min_p=0.3),
    Sampling(repetition_penalty=2.0), Sampling(temperature=1.5, top_k=4, top_p=0.9, min_p=0.1),
], ids=str)  # fmt: skip
def test_draws_follow_the_exact_distribution(how):
    found = np.bincount(draw(how).tokens[:, 0], minlength=V)
    p = expected(how)
    assert (found[p == 0] == 0).all()
    kept = p > 0
    assert kept.sum() == 1 or scipy.stats.chisquare(found[kept], p[kept] * found.sum()).pvalue > 1e-3
    assert (how == Sampling()) == kept.all() or how.temperature != 1 or how.repetition_penalty != 1


@pytest.mark.parametrize(('size', 'k'), [(7, 7), (1000, 4), (1024, 16), (4096, 1)])
def test_the_largest_are_those_of_jax(size, k):
    draw = np.random.default_rng(size)
    ties = draw.integers(9, size=(5, size))
    for x in (draw.normal(size=(5, size)), ties, np.where(ties == 8, 8.0, -np.inf)):
        x = x.astype(np.float32)
        for found, expected in zip(sampling.top_k(x, k), jax.lax.top_k(x, k), strict=True):
            np.testing.assert_array_equal(found, expected)
            assert found.dtype == expected.dtype


def test_zero_temperature_takes_the_likeliest_and_the_likelihood_is_the_models_own():
    found = draw(Sampling(temperature=0.0), n=3, steps=4)
    token, log_p, written = 2, 0.0, []
    for t in range(4):
        logits = LOGITS[token] + 0.1 * (t % 3) * np.arange(V)
        token = int(np.argmax(logits))
        written.append(token)
        log_p += scipy.special.log_softmax(logits)[token]
    assert found.tokens.tolist() == [written] * 3 and found.length.tolist() == [4] * 3
    np.testing.assert_allclose(found.log_prob, log_p, rtol=1e-5)


def test_a_text_is_the_same_in_any_batch():
    whole = draw(Sampling(), n=32, steps=10).tokens
    for i in (0, 7, 31):
        call = decoding.sample(toy, fresh(1), jnp.full((1, 1), 2), KEY, jnp.array([i]), Sampling(), 10)
        np.testing.assert_array_equal(call.tokens[0], whole[i])
    assert len({tuple(row) for row in whole.tolist()}) > 20


def test_texts_end_where_they_should():
    found = draw(Sampling(), n=500, steps=12, end=4)
    for row, length in zip(found.tokens, found.length, strict=True):
        ends = np.flatnonzero(row == 4)
        assert length == (ends[0] + 1 if len(ends) else 12) and (row[length:] == 0).all()
    assert 0 < (found.length == 12).sum() < 500
    stopped = draw(Sampling(), n=500, steps=12, stop=(1, 3))
    for row, length in zip(stopped.tokens.tolist(), stopped.length, strict=True):
        pairs = [i for i in range(11) if row[i : i + 2] == [1, 3]]
        assert length == (pairs[0] + 2 if pairs else 12)


@pytest.mark.parametrize('end, alpha', [(None, 0.0), (4, 0.0), (4, 1.0)])
def test_a_full_beam_finds_the_best_of_all_texts(end, alpha):
    steps, beam = 3, V**2  # every prefix of the last but one step has its place
    how = Sampling(beam_size=beam, length_penalty=alpha)
    prompts = jnp.array([[0], [2]], jnp.int32)
    found = decoding.beam_search(toy, fresh(2), prompts, how, steps, end)

    def score(prompt, text):
        token, total = prompt, 0.0
        for t, following in enumerate(text):
            total += log_probs(token, t)[following]
            token = following
            if token == end:
                return total, text[: t + 1]
        return total, text

    for row, prompt in enumerate((0, 2)):
        texts = dict((text, total) for total, text in (score(prompt, t) for t in itertools.product(range(V), repeat=3)))
        best = max(texts, key=lambda text: texts[text] / ((5 + len(text)) / 6) ** alpha)
        assert tuple(found.tokens[row, : found.length[row]].tolist()) == best
        assert float(found.log_prob[row]) == pytest.approx(texts[best], rel=1e-5)


def test_a_beams_likelihood_is_the_models_own_where_a_penalty_ranks():
    how = Sampling(beam_size=V, repetition_penalty=1.5)
    found = decoding.beam_search(toy, fresh(1), jnp.array([[2]]), how, 4)
    token, total = 2, 0.0
    for t, following in enumerate(found.tokens[0].tolist()):
        total += log_probs(token, t)[following]
        token = following
    assert float(found.log_prob[0]) == pytest.approx(total, rel=1e-5)


def test_a_search_stops_where_all_beams_have_ended():
    """And is the one that had no room for more; behind its end a text has zeros."""
    calls, end = [], 4

    def apply(tokens, state):
        jax.debug.callback(lambda: calls.append(0))
        logits, state = toy(tokens, state)
        return logits + 4.0 * (jnp.arange(V) == end), state

    prompt, how = jnp.array([[2], [1]], jnp.int32), Sampling(beam_size=3, length_penalty=1.0)
    search = lambda steps: decoding.beam_search(apply, fresh(2), prompt, how, steps, end)
    long = jax.block_until_ready(search(60))
    jax.effects_barrier()
    assert len(calls) < 20
    short = search(20)
    np.testing.assert_array_equal(long.tokens[:, :20], short.tokens)
    np.testing.assert_allclose(long.log_prob, short.log_prob, rtol=1e-6)
    for tokens, length in zip(np.asarray(long.tokens), long.length, strict=True):
        assert tokens[length - 1] == end and not tokens[length:].any()


def test_beams_and_a_draft_fill_the_context_to_its_last_column(smoke):
    """What fits where no flag says how many, and the likelihood of a forward pass."""
    experiment, state = Run(smoke('gpt')).open()
    model, tokenizer = experiment.task.get(CausalText), experiment.dataset.spec.tokenizer
    nll = jax.jit(lambda read: model.token_nll(state.params, None, read))
    prompts = ['The import statement', 'x' * 46]
    for how, draft in ((Sampling(beam_size=3), ''), (Sampling(temperature=0.0), 'ngram')):
        for text in texts_lib.writer(experiment, how, None, draft=draft).generate(state, prompts, 1, 0):
            read = np.concatenate([tokenizer.encode(text.prompt), text.tokens]).astype(np.int32)
            told = nll(np.pad(read, (0, 48 - len(read)))[None])[0][len(text.prompt) - 1 : len(read) - 1]
            assert len(text.tokens) == len(told) == 2 and text.nats == pytest.approx(float(told.sum()), rel=1e-3)


CHANGED = (
    dict(position='learned'), dict(position='rope', kv_heads=2, window=5), dict(scan_layers=True, attention='xla'),
    dict(position='rope', activation='swiglu', norm='rmsnorm', qk_norm=True),
)  # fmt: skip
BEAMS = [Sampling(beam_size=n, repetition_penalty=1.7, length_penalty=2.0) for n in (3, 11)]
# Each model once and each size of a beam twice, for seconds of compilation each.
SEARCHED = [
    (changed, how)
    for (i, changed), (j, how) in itertools.product(enumerate(CHANGED), enumerate(BEAMS))
    if (i + j) % 2 == 1 or 'AIGC_JAX_THOROUGH' in os.environ
]


@pytest.mark.parametrize('changed, how', SEARCHED, ids=str)
def test_beams_in_the_columns_of_one_row_are_those_in_rows_of_their_own(changed, how, monkeypatch):
    """Of prompts of unequal length, where some texts end early; with columns for 4 tokens, and then for 8."""
    monkeypatch.setattr(sampling, '_LEAST', 4)
    fields = dict(
        layers=2, heads=4, kv_heads=4, width=16, mlp_width=24, position='learned', norm='layernorm', activation='gelu',
        qk_norm=False, bias=True, zero_init=False, dropout=0.0, attention='einsum', vocab_size=11, context=24, end=None,
        tied=False, softcap=0.0, window=0, remat=False,
    )  # fmt: skip
    module, plain = Transformer(**fields | changed), Transformer(**fields | changed | dict(scan_layers=False))
    steps, end = 8, 7
    prompt, start = sampling.pad_prompts([np.array([3, 1, 4, 1, 5]), np.array([9]), np.array([2, 6, 5])])
    shapes, draw = jax.eval_shape(plain.init, KEY, jnp.asarray(prompt))['params'], np.random.default_rng(3).normal
    # Large weights, so that what a beam looks at decides what it writes.
    params = jax.tree.map(lambda x: draw(0, 0.5, x.shape).astype(np.float32), shapes)
    stacked = params
    if module.scan_layers:
        stacked = {name: value for name, value in params.items() if not name.startswith('block_')}
        stacked['blocks'] = jax.tree.map(lambda *x: np.stack(x), params['block_0'], params['block_1'])

    @jax.jit
    def in_columns(prompt, start):
        state = module.initial_state(*prompt.shape)._replace(start=start)
        apply = lambda tokens, state: module.apply({'params': stacked}, tokens, state)
        return decoding.beam_search(apply, state, prompt, how, steps, end, shared=True)

    @jax.jit
    def in_rows(prompt, start):
        state = plain.initial_state(len(prompt), prompt.shape[1] + steps)._replace(start=start)
        apply = lambda tokens, state: plain.apply({'params': params}, tokens, state)
        return decoding.beam_search(apply, state, prompt, how, steps, end)

    one, own = in_columns(prompt, start), in_rows(prompt, start)
    np.testing.assert_array_equal(one.tokens, own.tokens)
    np.testing.assert_allclose(one.log_prob, own.log_prob, rtol=1e-4)
    assert len({tuple(row) for row in one.tokens.tolist()}) == 3 and len(set(one.tokens.reshape(-1).tolist())) > 2
    np.testing.assert_array_equal(in_columns(prompt[:1], start[:1]).tokens[0], one.tokens[0])  # whatever is beside it


@pytest.mark.parametrize('how', [
    Sampling(), Sampling(temperature=0.0), Sampling(temperature=0.7, top_p=0.9, repetition_penalty=1.3),
], ids=str)  # fmt: skip
def test_speculative_decoding_writes_what_sampling_writes(how):
    """The same texts, so the same distribution, which the test of plain draws compares; with fewer calls."""
    n, steps = 300, 12
    table = jnp.asarray(decoding.draft_table(draw(how, n=50, steps=steps).tokens.reshape(-1), V))
    for end, stop in ((None, ()), (4, (1, 3))):
        plain = draw(how, n=n, steps=steps, end=end, stop=stop)

        def one(index, end=end, stop=stop):
            prompt = jnp.full((1, 1), 2, jnp.int32)
            return speculate(toy_1, fresh(1), prompt, KEY, index[None], table, how, steps, end, stop)

        found, calls = jax.device_get(jax.jit(jax.vmap(one))(jnp.arange(n)))
        np.testing.assert_array_equal(found.length, plain.length)
        for row, other, length in zip(found.tokens, plain.tokens, plain.length, strict=True):
            np.testing.assert_array_equal(row[:length], other[:length])
        np.testing.assert_allclose(found.log_prob, plain.log_prob, rtol=1e-4, atol=1e-5)
        assert calls.sum() < plain.length.sum() and (calls >= 1).all()


def test_a_draft_proposes_what_most_often_followed():
    text = np.array([0, 1, 2, 3, 0, 1, 2, 4, 0, 1, 2, 4, 3, 3])
    table = jnp.asarray(decoding.draft_table(text, V))
    assert propose(table, jnp.array([9, 9, 9, 0, 1])).tolist()[:2] == [2, 4]  # after 0 1 2: 4 twice, 3 once
    assert propose(table, jnp.array([9, 3, 0, 1, 2])).tolist()[0] == 4  # a longer context knows better
    assert propose(table, jnp.array([2, 3, 0, 1, 2])).tolist()[0] == 4


def test_flags_that_contradict_or_leave_their_range():
    for how, word in (
        (Sampling(temperature=-1.0), 'temperature=-1.0'), (Sampling(top_k=-1), 'top_k=-1'),
        (Sampling(top_p=0.0), 'top_p=0.0'), (Sampling(min_p=2.0), 'min_p=2.0'),
        (Sampling(repetition_penalty=0.0), 'repetition_penalty'), (Sampling(beam_size=0), 'beam_size=0'),
        (Sampling(beam_size=2, top_k=2), 'beam_size'), (Sampling(temperature=0.0, top_p=0.5), 'temperature=0'),
    ):  # fmt: skip
        with pytest.raises(UserError, match=word):
            how.check(V)


@pytest.mark.parametrize('model', ['gpt', 'rnn_lm'])
def test_texts_of_a_trained_model(smoke, model, monkeypatch):
    """Prompts of unequal length, one batch or many, in threads or in one, cached or not: the same texts, and the
    likelihood of a forward pass."""
    experiment, state = Run(smoke(model)).open()
    monkeypatch.setattr(parallel, 'cores', lambda: 4)  # 9 texts in 4 threads of 3, of which one has 3 copies
    prompts = ['The', 'An import statement', '']
    how = Sampling(temperature=0.8)
    texts = texts_lib.writer(experiment, how, 15).generate(state, prompts, 3, seed=5)
    assert [text.prompt for text in texts] == [p for p in prompts for _ in range(3)]
    model, tokenizer = experiment.task.get(CausalText), experiment.dataset.spec.tokenizer
    again = generate.Generator(model, tokenizer, how, 15, chunk=2).generate(state, prompts, 3, seed=5)
    assert [text.text for text in texts] == [text.text for text in again]
    assert [text.nats for text in texts] == pytest.approx([text.nats for text in again], rel=1e-4)
    language, tokenizer = experiment.task.get(CausalText), experiment.dataset.spec.tokenizer
    forward = jax.jit(lambda tokens: jax.nn.log_softmax(language.decode(state.params, None, tokens, None)[0][0]))
    for text in texts:
        read = np.concatenate([tokenizer.encode(text.prompt), text.tokens]).astype(np.int32)
        if not text.prompt:
            read = np.concatenate([[language.bos], read])
        log_p = np.asarray(forward(np.pad(read, (0, 48 - len(read)))[None]))[np.arange(len(read) - 1), read[1:]]
        assert text.nats == pytest.approx(-log_p[-len(text.tokens) :].sum(), rel=1e-3)


@pytest.mark.parametrize('temperature', [0.0, 0.8])
def test_a_text_is_the_same_streamed_drafted_or_at_once(smoke, temperature):
    experiment, state = Run(smoke('gpt')).open()
    how = Sampling(temperature=temperature)
    write = lambda stream=None, **more: texts_lib.writer(experiment, how, 30, **more).generate(
        state, ['The'], 1 if stream else 3, 5, stream
    )
    plain, seen = write(), []
    (streamed,) = write(seen.append)
    assert streamed.text == plain[0].text == seen[-1]
    assert len(seen) > 3 and all(late.startswith(early) for early, late in itertools.pairwise(seen))
    drafted = write(draft='ngram')
    assert [text.text for text in drafted] == [text.text for text in plain]
    assert [text.nats for text in drafted] == pytest.approx([text.nats for text in plain], rel=1e-4)
    assert sum(text.calls for text in drafted) < sum(text.calls for text in plain) == 90


def test_a_draft_fills_a_context_of_learned_positions():
    """A call reads proposals from places behind the context, which no learned position has."""
    overrides = [('data.block', '24'), ('data.eval_block', '24'), ('data.eval_stride', '12')]
    experiment = Experiment(config_lib.load(f'{CONFIGS}/gpt.py:smoke,gpt2', overrides))
    assert experiment.config.model.position == 'learned'
    state = experiment.create_state()
    write = lambda draft: texts_lib.writer(experiment, Sampling(), None, draft=draft).generate(state, ['a'], 2, 0)
    drafted = write('ngram')
    assert [len(text.tokens) for text in drafted] == [23, 23]  # what fits, where no flag says how many
    for ours, plain in zip(drafted, write(''), strict=True):
        np.testing.assert_array_equal(ours.tokens, plain.tokens[:23])
        assert np.isfinite(ours.nats)


def test_texts_beyond_the_context(smoke):
    """Past 48 tokens the last 24 are read again; what was written before stays, and no other prompt matters."""
    experiment, state = Run(smoke('gpt')).open()
    write = lambda prompts, most, n=2: texts_lib.writer(experiment, Sampling(), most).generate(state, prompts, n, 5)
    long = write(['The', 'An import'], 150)
    assert [len(text.tokens) for text in long] == [150] * 4 and len({text.text for text in long}) == 4
    short = write(['The', 'An import'], 30)
    for a, b in zip(short, long, strict=True):
        np.testing.assert_array_equal(a.tokens, b.tokens[:30])
    experiment.config.eval.batch_size = 1
    assert [text.text for text in write(['The', 'An import'], 150)] == [text.text for text in long]
    read = np.concatenate([experiment.dataset.spec.tokenizer.encode('The'), long[0].tokens])
    forward = jax.jit(lambda tokens: experiment.task.get(CausalText).decode(state.params, None, tokens, None)[0])
    nats, place = 0.0, 3
    for first in range(0, len(read), 24):  # what is read at once: 48 tokens, the first 24 of them again
        window = np.zeros((1, 48), np.int32)
        window[0, : len(read) - first] = read[first : first + 48]
        log_p = jax.nn.log_softmax(forward(window)[0])
        while place < min(first + 48, len(read)):
            nats -= float(log_p[place - first - 1, read[place]])
            place += 1
    assert long[0].nats == pytest.approx(nats, rel=1e-3)


@pytest.mark.parametrize('model', ['gpt', 'rnn_lm'])
def test_a_grammar_is_kept_by_a_trained_model(smoke, model):
    experiment, state = Run(smoke(model)).open()
    writer = texts_lib.writer(experiment, Sampling(), 60, grammar='json')
    texts = writer.generate(state, ['[1, {"k": ', ''], 10, seed=1)
    assert {text.ended for text in texts} <= {'end', 'closed'} and 'closed' in {text.ended for text in texts}
    for text in texts:  # the prompt is part of what is parsed, and there is time to close what is open
        json.loads(str(text))
    alone = writer.generate(state, ['[1, {"k": '], 1, seed=1)[0]
    assert (alone.text, alone.ended) == (texts[0].text, texts[0].ended)
    with pytest.raises(UserError, match="no text of grammar=json begins with it: behind '\\[1 ' may not be 'x"):
        writer.generate(state, ['[1 x'], 1, seed=1)
    with pytest.raises(UserError, match='max_new_tokens=2: a text of grammar=json .* needs [34] more tokens'):
        texts_lib.writer(experiment, Sampling(), 2, grammar='json').generate(state, ['[[['], 1, seed=1)
    for text in texts:
        assert 0 < text.ruled_out < text.nats or not len(text.tokens)
    assert 'ruled out by the grammar' in generate.summary(texts)


def text_model(tmp_path, text, *overrides):
    """A small untrained model of this text."""
    (tmp_path / 'text').write_text(text)
    fields = [('data.name', f'text:{tmp_path}/text'), ('data.block', '16'), ('data.eval_block', '16'),
              ('data.eval_stride', '8'), *overrides]  # fmt: skip
    experiment = Experiment(config_lib.load(f'{CONFIGS / "gpt.py"}:smoke', fields))
    return experiment, experiment.create_state()


def test_a_grammar_ends_a_text_that_no_token_ends(tmp_path):
    """One document has no end, and no token is a Y, so after V nothing can follow; X alone is no text, VXVX is VXV."""
    experiment, state = text_model(tmp_path, 'XVXXV' * 200, ('data.tokenizer', 'char'))
    write = lambda most: texts_lib.writer(experiment, Sampling(), most, grammar=f'{tmp_path}/g.lark').generate(
        state, [''], 20, seed=0
    )
    (tmp_path / 'g.lark').write_text('start: "X"* "V" "Y"?\n')
    texts = write(3)
    whole = [text for text in texts if text.ended == 'end']
    assert {text.text for text in whole} == {'V', 'XV'} and all(np.isfinite(text.ruled_out) for text in texts)
    assert {(text.text, text.ended) for text in texts if text.ended != 'end'} == {('XXV', 'closed')}
    # Of X and V the length leaves V alone: what that rules out is −log p(V) of the model, which is all that V costs.
    nats = experiment.task.get(CausalText).token_nll
    closed = next(text for text in texts if text.ended == 'closed')
    read = np.concatenate([[experiment.task.get(CausalText).bos], closed.tokens])[None]
    own = np.asarray(nats(experiment.create_state().params, None, read))[0]
    assert len(own) == 3 and closed.ruled_out >= own[2] * 0.999
    (tmp_path / 'g.lark').write_text('start: "V" ("X" "V")*\n')
    assert {(text.text, text.ended, len(text.tokens)) for text in write(4)} == {('VXV', 'closed', 3)}
    assert '20 led to an end by the grammar' in generate.summary(write(4))
    assert generate.summary(write(4)[:1]).startswith('1 text (1 led')


def test_a_stop_text_is_found_however_its_tokens_spell_it(tmp_path):
    text = 'the cat sat on the mat and then the hat ran\n' * 60
    experiment, state = text_model(tmp_path, text, ('data.tokenizer', 'bpe'), ('data.vocab_size', '300'))
    decode = experiment.dataset.spec.tokenizer.decode
    assert any('at' in decode([token]) and decode([token]) != 'at' for token in range(256, 300))
    texts = texts_lib.writer(experiment, Sampling(), 40, stop='at').generate(state, ['the '], 30, seed=0)
    assert {text.ended for text in texts} == {'stop', 'length'}
    for text in texts:
        assert ('at' in decode(text.tokens)) == (text.ended == 'stop') and 'at' not in text.text
        assert 'at' not in decode(text.tokens[:-1])  # nothing is written, or paid for, behind it
        assert decode(text.tokens).startswith(text.text)
    with pytest.raises(UserError, match='stop: a draft writes several tokens'):
        texts_lib.writer(experiment, Sampling(), 40, stop='at', draft='ngram')


def test_words_stand_apart(tmp_path):
    experiment, state = text_model(tmp_path, 'one two three\n' * 300, ('data.tokenizer', 'word'))
    tokenizer = experiment.dataset.spec.tokenizer
    words = tokenizer.encode('one\ntwo three\n')
    growing = [tokenizer.decode(words[:n]) for n in range(len(words) + 1)]
    assert growing[-1] == 'one\ntwo three\n'
    assert all(later.startswith(earlier) for earlier, later in itertools.pairwise(growing))
    seen = []
    writer = texts_lib.writer(experiment, Sampling(), 12)
    (text,) = writer.generate(state, ['one two'], 1, seed=0, stream=seen.append)
    assert re.match(r'one two( |\n)', str(text)) and seen[-1] == text.text
    assert all(late.startswith(early) for early, late in itertools.pairwise(seen))


def test_a_penalty_leaves_the_end_alone():
    """The token before a text is the one that ends it."""
    tokens, start = jnp.array([[3, 9, 1], [0, 9, 2]]), jnp.array([0, 1])
    found = sampling.seen_tokens(tokens, start, 10, 9)
    assert [np.flatnonzero(row).tolist() for row in found] == [[1, 3], [2]]
    assert np.flatnonzero(sampling.seen_tokens(tokens, start, 10, None)[1]).tolist() == [2, 9]


def test_what_is_filled_in_is_asked_for_as_in_training():
    """The prompt is what stands before the middle in a training window; the suffix comes behind the text."""
    overrides = [('data.fim_rate', '1.0'), ('eval.batch_size', '4')]
    experiment = Experiment(config_lib.load(f'{CONFIGS / "gpt.py"}:smoke', overrides))
    tok, state = experiment.dataset.spec.tokenizer, experiment.create_state()
    before, between, after = tok.fim
    writer = texts_lib.writer(experiment, Sampling(), 12, suffix='\n')
    expected = [tok.end, before, *b'import ', between, ord('\n'), after]
    assert writer._prompt('import ').tolist() == expected
    (text,) = writer.generate(state, ['import '], 1, seed=0)
    with pytest.raises(UserError, match='would forget what to fill in; 36 fit'):
        texts_lib.writer(experiment, Sampling(), 37, suffix='\n').generate(state, ['import '], 1, seed=0)
    assert str(text) == 'import ' + text.text + '\n' and len(text.tokens) <= 12
    # A window of one document, cut by the transform of training, holds the same.
    window = np.frombuffer(b'import os\nx', np.uint8).astype(np.int32)
    window = np.concatenate([[tok.end], window, np.zeros(4, np.int32)])
    draws = rng.context(0, 'train', 0, jnp.arange(200))
    rows = experiment.train_preprocess({'tokens': jnp.tile(window, (200, 1))}, draws)['tokens'].tolist()
    found = [row for row in rows if row[: len(expected) - 2] == expected[:-2]]
    assert found and all(after in row and row[len(expected) - 2 :].index(after) >= 0 for row in found)


def test_the_command_line_writes(runner, smoke, tmp_path):
    folder = tmp_path / 'run'
    shutil.copytree(smoke('gpt'), folder)
    (tmp_path / '[p].gz').write_bytes(gzip.compress(b'\xef\xbb\xbfThe\r\n"An\\nimport"\r\n'))
    code, out, err = runner('--mode=sample', f'--workdir={folder}', f'--prompt_file={tmp_path}/[p].gz',
                            '--num_samples=2', '--max_new_tokens=12', '--temperature=0.7', '--top_p=0.9')  # fmt: skip
    assert code == 0 and out.count('The') == 2 and out.count('An\nimport') == 2
    assert '4 texts' in err and 'nats a token' in err
    (path,) = (folder / 'samples').glob('00000040_sample0-*.npz')
    stored = np.load(path)
    assert stored['samples'].shape == (4, stored['length'].max()) and (stored['nats'] > 0).all()
    assert path.with_suffix('.txt').read_text() == out
    code, beam, err = runner('--mode=sample', f'--workdir={folder}', '--prompt=The <mask>', '--num_samples=1',
                             '--beam_size=4', '--max_new_tokens=12')  # fmt: skip
    assert code == 0 and beam.startswith('The <mask>')
    assert err.startswith('note: --prompt: <mask> is text as any other to lm; a model of task.name=mlm fills it in\n')


OUTPUTS = {
    'closed': ('| true', 141, ''),
    'closed stream': ('--stream --num_samples=1 | true', 141, ''),
    'full disk': ('> /dev/full', 1, 'error: stdout: cannot be written: No space left on device'),
    'full disk, evaluate': ('--mode=evaluate > /dev/full', 1, 'error: stdout: cannot be written: No space left'),
    'ascii, evaluate': ('--mode=evaluate', 0, ''),
}


@pytest.mark.parametrize('rest, expected, words', OUTPUTS.values(), ids=OUTPUTS)
def test_an_output_that_cannot_take_the_results(smoke, tmp_path, rest, expected, words):
    """As a shell does it: nothing reads the pipe, the disk is full, the terminal has no letters beyond ASCII."""
    folder, evaluate = tmp_path / 'run', '--mode=evaluate' in rest
    shutil.copytree(smoke('gpt'), folder)
    mode = '' if evaluate else '--mode=sample --num_samples=3 --max_new_tokens=20 --prompt=é'
    command = f'{sys.executable} -m aigc_jax.main --workdir={folder} {mode} {rest}; exit ${{PIPESTATUS[0]}}'
    variables = {**os.environ, 'PYTHONIOENCODING': 'ascii', 'JAX_PLATFORMS': 'cpu'}
    done = subprocess.run(['bash', '-c', command], capture_output=True, text=True, cwd=CONFIGS.parent, env=variables)
    assert done.returncode == expected, done.stderr
    assert 'Traceback' not in done.stderr and 'Exception' not in done.stderr and words in done.stderr
    if evaluate:
        assert expected or '?' in done.stdout
    else:
        assert '\u00e9' in (folder / 'samples/00000040_sample0.txt').read_text(encoding='utf-8')


def test_the_flags_stand_for_fields_of_sample(runner, smoke, tmp_path):
    folder = shutil.copytree(smoke('gpt'), tmp_path / 'run')
    sample = lambda *more: runner(
        '--mode=sample', f'--workdir={folder}', '--num_samples=2', '--max_new_tokens=20', *more
    )
    flags, fields = ('--temperature=0.5', '--top_k=5'), ('--config.sample.temperature=0.5', '--config.sample.top_k=5')
    (code, plain, err), by_flag, by_field = sample(), sample(*flags), sample(*fields)
    assert code == 0, err
    assert by_flag == by_field and by_flag[0] == 0 and by_flag[1] != plain
    assert sample(*fields, '--temperature=1', '--top_k=0')[1] == plain
    names = sorted(path.name for path in (folder / 'samples').glob('*_sample0*.txt'))
    assert len(names) == 2 and '00000040_sample0.txt' in names  # of other settings, beside it
    assert (folder / 'samples' / '00000040_sample0.txt').read_text() == plain
    # Greedy by the config, and a search, draw nothing: one text, where no flag says how many.
    greedy = '--max_new_tokens=9', '--config.sample.temperature=0'
    code, _, err = runner('--mode=sample', f'--workdir={folder}', *greedy)
    assert code == 0 and err.startswith('1 text '), err
    beams = sample(*fields, '--beam_size=2', '--num_samples=1')
    assert_refused(beams, 'beam_size: a beam search draws nothing; with it temperature is 1')


@pytest.mark.parametrize('model', ['gpt', 'rnn_lm'])
def test_samples_of_a_language_model_are_drawn_as_its_config_says(smoke, model):
    greedy = aigc_jax.open(smoke(model), overrides={'sample.temperature': 0})
    (one, two), (text,) = greedy.sample(2, seed=1), greedy.generate(max_new_tokens=10, temperature=0.0)
    assert one == two and str(text).startswith(one[:5]) and one
    assert len(set(aigc_jax.open(smoke(model)).sample(4, seed=1))) == 4


@pytest.mark.parametrize('fields, words', [
    ([('sample.temperature', '0'), ('sample.top_p', '0.5')], 'sample.temperature=0 takes the likeliest token'),
    ([('sample.temperature', '1e-5')], 'sample.temperature=1e-05: it is 0, or 0.0001 to 10000'),
    ([('sample.top_p', '0')], 'sample.top_p: 0.0; it is more than 0 and 1 or less'),
])  # fmt: skip
@pytest.mark.parametrize('name', ['gpt', 'vq'])
def test_fields_of_sample_that_do_not_fit_are_refused(name, fields, words):
    with pytest.raises(UserError, match=f'^{re.escape(words)}'):
        Experiment(config_lib.load(f'{CONFIGS / name}.py:smoke', fields))


def test_top_k_above_the_vocabulary_means_all():
    logits, seen = jnp.array([[0.0, 1.0, 2.0]]), jnp.zeros((1, 1), bool)
    Sampling(top_k=500).check(3)
    np.testing.assert_array_equal(sampling.transform(logits, seen, Sampling(top_k=500)), logits)


MISTAKES = {
    'long prompt': (['--prompt=' + 'x' * 60], ["'xxxx", '60 tokens', '48 of the model']),
    'prompt that fills the context': (['--prompt=' + 'x' * 48, '--beam_size=2'], ['48 tokens', 'leaves no room']),
    'draft behind a full context': (['--prompt=' + 'x' * 48, '--draft=ngram'], ['48 tokens', 'leaves no room']),
    'beams above the vocabulary': (['--beam_size=300'], ['beam_size=300', 'the vocabulary has 2']),
    'beam beyond the context': (['--prompt=' + 'x' * 40, '--beam_size=2'], ['max_new_tokens=20', '8 fit']),
    'unknown draft': (['--draft=ngrm'], ['draft', "'ngram'"]),
    'draft and grammar': (['--draft=ngram', '--grammar=json'], ['draft', 'grammar']),
    'grammar of a beam': (['--beam_size=2', '--grammar=json'], ['grammar', 'beam']),
    'unknown grammar': (['--grammar=jsn'], ['grammar', 'json']),
    'stream of many': (['--stream'], ['stream', 'num_samples=1']),
    'the same many times': (['--temperature=0', '--num_samples=3'], ['num_samples=3', 'the same']),
    'penalty of no search': (['--length_penalty=0.5'], ['length_penalty', 'beam_size']),
    'too many tokens': (['--max_new_tokens=2000000'], ['max_new_tokens']),
    'prompt no UTF-8': (['--prompt=caf\udce9'], ['prompt: character 4', 'UTF-8']),
    'stop no UTF-8': (['--stop=\ud83d'], ['stop: character 1', 'UTF-8']),
    'line no UTF-8': (['--prompt_file={}/half'], ['line 1: character 2', 'UTF-8']),
    'no infilling': (['--suffix=x'], ['suffix', 'data.fim_rate']),
    'no UTF-8': (['--prompt_file={}/latin1'], ['latin1, line 1', 'UTF-8; if it is latin1: iconv -f latin1 -t utf-8 ']),
    'no prompt file': (['--prompt_file={}/none'], ['prompt_file', 'No such file']),
    'empty prompt file': (['--prompt_file={}/empty'], ['prompt_file', 'no line']),
    'two prompts': (['--prompt=a', '--prompt_file={}/empty'], ['--prompt and --prompt_file']),
    'range': (['--top_p=2'], ['top_p=2.0']),
    'contradiction': (['--beam_size=3', '--top_k=5'], ['beam_size']),
    'labels': (['--labels=3'], ['labels', 'no classes']),
    'no number': (['--temperature=warm'], ['temperature']),
    'cold': (['--temperature=1e-40'], ['temperature=1e-40', '0.0001 to 10000']),
    'hot': (['--temperature=inf'], ['temperature=inf', '0.0001 to 10000']),
    'nan': (['--min_p=nan'], ['min_p=nan', '0 to 1']),
    'long beams': (['--beam_size=2', '--length_penalty=1000'], ['length_penalty=1000', '-5 to 5']),
    'penalty': (['--repetition_penalty=1e30'], ['repetition_penalty', '0.01 to 100']),
    'a billion': (['--num_samples=1000000000'], ['num_samples', '1000000']),
    'suffix of a grammar': (['--suffix=x', '--grammar=json'], ['suffix', 'grammar']),
    'prompt of no text': (['--prompt=[1 x', '--grammar=json'], ['grammar=json', "'[1 '", "'x'"]),
}  # fmt: skip


@pytest.mark.parametrize('arguments, words', MISTAKES.values(), ids=MISTAKES)
def test_mistakes_on_the_command_line(runner, smoke, tmp_path, arguments, words):
    (tmp_path / 'latin1').write_bytes('é'.encode('latin1').join([b'a', b'b']))
    (tmp_path / 'empty').write_text('')
    (tmp_path / 'half').write_text('"a\\ud83d"\n')
    arguments = [argument.format(tmp_path) for argument in arguments]
    before = sorted(smoke('gpt').rglob('*'))
    code, out, err = runner('--mode=sample', f'--workdir={smoke("gpt")}', '--max_new_tokens=20', *arguments)
    assert code == 2 and not out and len(err.splitlines()) <= 3 and all(word in err for word in words), err
    assert sorted(smoke('gpt').rglob('*')) == before


def test_an_image_model_writes_no_text(runner, smoke):
    code, _, err = runner('--mode=sample', f'--workdir={smoke("vae")}', '--prompt=a')
    assert code == 2 and '--prompt' in err


def test_a_tokenizer_that_does_not_fit_the_checkpoint_is_refused(runner, smoke, tmp_path):
    folder = tmp_path / 'run'
    shutil.copytree(smoke('gpt'), folder)
    fields = json.loads((folder / 'tokenizer.json').read_text())
    for broken, word in ((json.dumps({**fields, 'has_end': True}), 'another model'), ('{', 'tokenizer.json')):
        (folder / 'tokenizer.json').write_text(broken)
        code, _, err = runner('--mode=sample', f'--workdir={folder}', '--max_new_tokens=20')
        assert code == 2 and word in err and len(err.splitlines()) <= 3, err


def test_a_run_writes_its_pictures_and_a_sample_at_each_evaluation(smoke):
    for name, drawn in (('gpt', {'curves.png', 'loss.png', 'attention.png'}), ('rnn_lm', {'curves.png', 'loss.png'})):
        folder = smoke(name)
        assert {path.name for path in (folder / 'plots').iterdir()} == drawn
        texts = sorted(path.name for path in (folder / 'samples').glob('*.txt'))
        assert texts == ['00000020.txt', '00000040.txt']
