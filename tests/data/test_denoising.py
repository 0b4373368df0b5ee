"""Windows of text as sources and targets: what is hidden, by T5's counts, and nothing lost."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from aigc_jax.core import rng
from aigc_jax.core.errors import UserError
from aigc_jax.data import NO_TAG, denoising, infilling, tokenizers

BYTES = tokenizers.train('byte', ['ab'], ['ab'], 0, True, special=('pad',), num_sentinels=10)
ENDLESS = tokenizers.train('byte', ['ab'], ['ab'], 0, False, num_sentinels=10)


def drawn(objective, n=40, length=40, step=0, first=0):
    """(windows (n, length + 1), the pair of each as arrays)."""
    tokens = np.random.default_rng(0).integers(0, 256, (n, length + 1)).astype(np.int32)
    ctx = rng.context(0, 'train', step, jnp.arange(first, n))
    return tokens[first:], jax.tree.map(np.asarray, objective.transform({'tokens': tokens[first:]}, ctx))


def filled(source, target, sentinels, end):
    """The source with what the target says for its sentinels."""
    of, now = {}, None
    for token in target:
        if token in sentinels:
            now = of.setdefault(token, [])
        elif token != end:
            now.append(token)
    assert [token for token in source if token in sentinels] == list(of)  # the same, in the same order
    assert list(of) == list(sentinels[: len(of)])  # from the first on
    return [x for token in source if token != end for x in of.get(token, [token])], [len(own) for own in of.values()]


@pytest.mark.parametrize('length, density, mean_span, source, target', [
    (568, 0.15, 3.0, 512, 114),  # T5's pre-training: random_spans_helper(512, 0.15, 1, 1, 3) is (568, 114)
    (141, 0.15, 3.0, 128, 29),
    (1024, 0.5, 3.0, 684, 684),
])  # fmt: skip
def test_sizes_are_those_of_t5s_code(length, density, mean_span, source, target):
    assert denoising.span_sizes(length, density, mean_span)[2:] == (source, target)


@pytest.mark.parametrize('tokenizer', [BYTES, ENDLESS], ids=['ends', 'endless'])
def test_spans_are_hidden_and_none_is_lost(tokenizer):
    sizes = denoising.span_sizes(40, 0.15, 3.0, tokenizer.end is not None)
    tokens, pair = drawn(denoising.spans(tokenizer, 0.15, 3.0))
    assert pair['source'].shape[1] == sizes.source and pair['target'].shape[1] == sizes.target
    assert (pair['source_length'] == sizes.source).all() and (pair['target_length'] == sizes.target).all()
    for window, source, target in zip(tokens, pair['source'], pair['target'], strict=True):
        whole, lengths = filled(source, target, tokenizer.sentinels, tokenizer.end)
        assert whole == list(window[:-1]) and len(lengths) == sizes.spans and sum(lengths) == sizes.hidden
        assert source[0] == window[0]
        if tokenizer.end is not None:
            assert source[-1] == target[-1] == tokenizer.end


def test_each_division_into_spans_is_as_likely():
    """6 hidden tokens in 2 spans: lengths 1 to 5, each in a fifth of the windows (binomial, 5 standard errors)."""
    n = 4000
    _, pair = drawn(denoising.spans(BYTES, 0.15, 3.0), n)
    first = np.argmax(pair['target'] == BYTES.sentinels[1], axis=1) - 1
    share = np.bincount(first, minlength=6)[1:] / n
    np.testing.assert_allclose(share, 0.2, atol=5 * (0.16 / n) ** 0.5)


def test_the_draws_of_a_window_are_its_own():
    """Whatever stands beside it; another step draws anew."""
    objective = denoising.spans(BYTES, 0.15, 3.0)
    _, all_of = drawn(objective)
    _, last = drawn(objective, first=30)
    _, later = drawn(objective, step=1)
    np.testing.assert_array_equal(all_of['source'][30:], last['source'])
    assert (all_of['source'] != later['source']).any(axis=1).mean() > 0.9


CODE = """def area(width, height):
    # area of what has width
    return width * height + 'width'.height(area, width)
"""


def windows_of(tokenizer, length, text=CODE):
    """All windows of the text, with the numbers of its identifiers."""
    tokens, names = tokenizer.encode(text), infilling.numbered(tokenizer, text, True, {})
    where = np.arange(len(tokens) - length)[:, None] + np.arange(length + 1)
    return {'tokens': tokens[where], 'names': names[where]}


def test_identifiers_have_numbers_of_their_own():
    numbers = {b'x': 1}
    found = infilling.numbered(BYTES, CODE, True, numbers)
    assert numbers == {b'x': 1, b'area': 2, b'width': 3, b'height': 4}
    raw = CODE.encode()
    for number, name in ((2, b'area'), (3, b'width'), (4, b'height')):
        starts = np.flatnonzero(found == number)
        assert [raw[i : i + len(name)] for i in starts] == [name] * (2 if number == 2 else 3)
        assert all((found[i + 1 : i + len(name)] == infilling.GOES_ON).all() for i in starts)
    assert (found == infilling.GOES_ON).sum() == 2 * 3 + 3 * 4 + 3 * 5


def by_hand(window, names, sentinels, most):
    """The source and the target of a window, without the end, written once more with lists."""
    i, of, source, target, length = 0, {}, [], [], len(window) - 1
    while i < length:
        if names[i] <= 0:
            source.append(window[i])
            i += 1
            continue
        stop = i + 1
        while stop <= length and names[stop] == infilling.GOES_ON:
            stop += 1
        name = list(window[i:stop])
        if stop <= length and names[i] not in of:  # whole in the window
            room = len(target) + 1 + len(name) + 1 <= most and len(of) < len(sentinels) and None not in of.values()
            of[names[i]] = sentinels[len(of)] if room else None
            target += [of[names[i]], *name] if room else []
        hidden = stop <= length and of[names[i]] is not None
        source += [of[names[i]]] if hidden else name[: length - i]
        i = stop
    return source, target


@pytest.mark.parametrize('length, sentinels', [(60, 10), (30, 10), (60, 2), (9, 10)])
def test_all_places_of_a_name_have_its_sentinel(length, sentinels):
    tokenizer = dataclasses.replace(BYTES, num_sentinels=sentinels)
    batch = windows_of(tokenizer, length)
    ctx = rng.context(0, 'train', 0, jnp.arange(len(batch['tokens'])))
    pair = jax.tree.map(np.asarray, jax.jit(denoising.names(tokenizer).transform)(batch, ctx))
    several = 0
    for i, (window, names) in enumerate(zip(batch['tokens'], batch['names'], strict=True)):
        source, target = by_hand(window, names, tokenizer.sentinels, length // 2)
        several += len(source) < length and source.count(tokenizer.sentinels[0]) > 1
        assert pair['source'][i, : pair['source_length'][i]].tolist() == [*source, tokenizer.end]
        assert pair['target'][i, : pair['target_length'][i]].tolist() == [*target, tokenizer.end]
    assert several or length < 30


def test_half_of_the_windows_hide_names_and_half_spans():
    batch = jax.tree.map(lambda x: np.tile(x[:1], (400, 1)), windows_of(BYTES, 40))
    of = lambda objective: jax.tree.map(
        np.asarray, objective.transform(batch, rng.context(0, 'train', 3, jnp.arange(400)))
    )
    both, spans, names = of(denoising.identifier_aware(BYTES, 0.15, 3.0)), *map(
        of, (denoising.spans(BYTES, 0.15, 3.0), denoising.names(BYTES))
    )  # fmt: skip
    row = lambda pair, name, i: pair[name][i, : pair[f'{name}_length'][i]].tolist()
    is_name = [row(both, 'target', i) == row(names, 'target', i) for i in range(400)]
    for i in range(400):
        other = names if is_name[i] else spans
        assert all(row(both, name, i) == row(other, name, i) for name in ('source', 'target'))
    assert abs(np.mean(is_name) - 0.5) < 5 * 0.5 / 20


def test_a_third_of_the_windows_is_tagged_as_it_is():
    """By hand: a letter of a name is tagged 1, whether the window holds the name whole or not, and the end of a
    document has no tag. The other windows are those of the objective without tagging."""
    whole = windows_of(BYTES, 40, f'{CODE}{CODE}')
    batch = jax.tree.map(lambda x: np.resize(x, (600, 41)), whole)
    batch['tokens'][:, 20], batch['names'][:, 20] = BYTES.end, 0
    ctx = rng.context(0, 'train', 3, jnp.arange(600))
    aware = denoising.identifier_aware(BYTES, 0.15, 3.0)

    @jax.jit
    def transform(batch):
        pair = aware.transform(batch, ctx)
        return pair, denoising.partly_tagged(pair, batch, ctx, 1 / 3, aware.behind)

    pair, found = jax.device_get(transform(batch))
    is_tagged = (found['tags'] != NO_TAG).any(axis=1)
    assert abs(is_tagged.mean() - 1 / 3) < 5 * (2 / 9 / 600) ** 0.5
    others = ~is_tagged
    for name, value in pair.items():
        np.testing.assert_array_equal(found[name][others], value[others])
    by_name = np.asarray(ctx.uniform('objective') < 0.5)
    assert abs(by_name[is_tagged].mean() - 0.5) < 5 * 0.5 / is_tagged.sum() ** 0.5  # drawn independently of it
    assert (found['target_length'][is_tagged] == 0).all() and (found['source_length'][is_tagged] == 41).all()
    np.testing.assert_array_equal(found['source'][is_tagged, :40], batch['tokens'][is_tagged, :40])
    assert (found['source'][is_tagged, 40] == BYTES.end).all()
    tags = np.where(batch['names'][:, :40] == 0, 0, 1)
    tags[:, 20] = NO_TAG
    np.testing.assert_array_equal(found['tags'][is_tagged, :40], tags[is_tagged])
    assert (found['tags'][:, 40] == NO_TAG).all()
    cut = is_tagged & (batch['names'][:, 0] == infilling.GOES_ON)
    assert cut.any() and (found['tags'][cut, 0] == 1).all()
    endless = denoising.tagged(batch, ())
    assert endless['source'].shape == endless['tags'].shape == (600, 40)


def test_a_window_is_cut_anywhere_into_a_prefix_and_what_follows():
    """Each place as likely, as random_prefix_noise_mask of T5's code has it (binomial, 5 standard errors)."""
    n = 4000
    tokens, pair = drawn(denoising.prefix(), n, length=9)
    cuts = pair['source_length']
    assert pair['source'].shape[1] == pair['target'].shape[1] == 8 and (cuts + pair['target_length'] == 9).all()
    for window, source, target, cut in zip(tokens[:, :-1], pair['source'], pair['target'], cuts, strict=True):
        np.testing.assert_array_equal([*source[:cut], *target[: 9 - cut]], window)
        assert not source[cut:].any() and not target[9 - cut :].any()
    share = np.bincount(cuts, minlength=9)[1:] / n
    np.testing.assert_allclose(share, 1 / 8, atol=5 * (7 / 64 / n) ** 0.5)
    _, shortest = drawn(denoising.prefix(), length=2)
    assert (shortest['source_length'] == 1).all() and (shortest['target_length'] == 1).all()


def test_what_does_not_fit_is_refused_by_its_field():
    with pytest.raises(UserError, match=r'data.sentinels: 10; a window has 14 spans to hide, so set it to 14'):
        drawn(denoising.spans(BYTES, 0.15, 3.0), length=280)
    with pytest.raises(UserError, match='task.mean_span: 1, and task.noise_density, 0.9: 20 tokens have 18'):
        denoising.span_sizes(20, 0.9, 1.0)
    with pytest.raises(UserError, match='task.mean_span'):
        denoising.span_sizes(1, 0.15, 3.0)
