"""Masked language models: which tokens are hidden and how, what the loss is over, fixed masks, filling in."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from aigc_jax.core import rng
from aigc_jax.core.capabilities import FillsIn, Measures
from aigc_jax.core.errors import UserError
from aigc_jax.core.types import Extra
from aigc_jax.data import tokenizers
from aigc_jax.data.masking import Masking, joints
from aigc_jax.runs import config as config_lib
from aigc_jax.runs import partial
from aigc_jax.runs.experiment import Experiment

SPECIAL = ('pad', 'mask', 'cls', 'sep')
TEXT = 'def f_1(näme):  # see help(f) and the_end\n    return 12 + näme\n'
EXTRA = Extra({}, {})


def tokenizer(kind='byte', text=TEXT):
    return tokenizers.train(kind, [text], [text], 400, False, special=SPECIAL)


def masked(masking, tokens, index=None, may=None, step=0):
    tokens = jnp.atleast_2d(jnp.asarray(tokens, jnp.int32))
    index = jnp.arange(len(tokens)) if index is None else jnp.asarray(index)
    may = jnp.ones(tokens.shape, bool) if may is None else jnp.asarray(may)
    return jax.jit(masking)(tokens, may, rng.context(0, 'train', step, index))


def test_a_share_of_the_tokens_is_hidden_and_80_10_10_become_mask_other_and_same():
    own = tokenizer()
    masking = Masking(own, 0.15, 0.8, 0.1, False)
    tokens = np.tile(own.encode('abcdefghij' * 10), (400, 1))
    tokens[:, :3] = own.mask, own.cls, own.sep
    found = jax.device_get(masked(masking, tokens))
    assert (found.counted.sum(axis=1) == round(0.15 * 97)).all() and found.places.shape == (400, masking.most(100))
    assert found.places[found.counted].min() >= 3  # never a special token
    np.testing.assert_array_equal(found.targets, np.take_along_axis(tokens, found.places, axis=1))
    changed = found.tokens != tokens
    rows, places = np.arange(400)[:, None], found.places
    hidden = np.zeros(tokens.shape, bool)
    hidden[rows, places] = found.counted
    assert not (changed & ~hidden).any() and all(len({*row}) == len(row) for row in places)
    shown = found.tokens[hidden]
    count = hidden.sum()
    mask, same = (shown == own.mask).mean(), (found.tokens == tokens)[hidden].mean()
    deviation = 4 / np.sqrt(count)
    assert mask == pytest.approx(0.8, abs=0.4 * deviation) and same == pytest.approx(0.1, abs=0.3 * deviation)
    others = shown[(shown != own.mask)]
    assert others.max() < 256 and len(np.unique(others)) > 150  # another token is any but a special one
    # Each place is hidden as often as any other.
    often = hidden[:, 3:].mean(axis=0)
    assert np.abs(often - often.mean()).max() < 0.1


@pytest.mark.parametrize('whole_words', [False, True])
def test_what_is_hidden_is_a_function_of_step_and_example(whole_words):
    own = tokenizer()
    masking, tokens = Masking(own, 0.3, 0.8, 0.1, whole_words), np.tile(own.encode(TEXT), (6, 1))
    whole = masked(masking, tokens)
    part = masked(masking, tokens[2:5], index=[2, 3, 4])
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a[2:5], b), whole, part)
    assert (masked(masking, tokens, step=1).tokens != whole.tokens).any()
    assert len(np.unique(whole.tokens, axis=0)) == 6


@pytest.mark.parametrize('kind', ['byte', 'char', 'bpe', 'word'])
def test_whole_words_are_hidden_whole(kind):
    own = tokenizer(kind)
    tokens = own.encode(TEXT)
    goes_on, goes_further = joints(own)
    word = np.cumsum([i == 0 or not (goes_on[tokens[i]] and goes_further[tokens[i - 1]]) for i in range(len(tokens))])
    words = [own.decode(tokens[word == k]).strip(' ') for k in np.unique(word)]
    if kind != 'word':
        assert {'def', 'f_1', 'näme', 'the_end', 'return', '12', '+'} <= {*words} and '(' in ' '.join(words)
        assert not any('def' in one and len(one) > 3 for one in words)
    else:
        assert len(words) == len(tokens)
    found = jax.device_get(masked(Masking(own, 0.3, 1.0, 0.0, True), np.tile(tokens, (200, 1))))
    budget, sizes = round(0.3 * len(tokens)), np.bincount(word)
    hidden = found.tokens == own.mask
    for row in hidden:
        each = {k: row[word == k].mean() for k in np.unique(word)}
        assert {*each.values()} <= {0.0, 1.0}
        left = budget - row.sum()
        assert left >= 0 and not any(share == 0 and sizes[k] <= left for k, share in each.items())  # none would fit
    often = [hidden[:, word == k].mean() for k in np.unique(word)]
    assert min(often) > 0.02 and (hidden.sum(axis=1) == found.counted.sum(axis=1)).all()


def test_a_text_without_a_token_that_may_be_hidden_has_none():
    own = tokenizer()
    masking, tokens = Masking(own, 0.15, 1.0, 0.0, False), np.tile(own.encode('abcd'), (2, 1))
    found = masked(masking, tokens, may=[[False] * 4, [True] * 4])
    assert found.counted.sum(axis=1).tolist() == [0, 1] and (found.tokens[0] == own.encode('abcd')).all()


def experiment(*overrides, variants='smoke'):
    small = [('data.block', '20'), ('data.eval_stride', '15'), ('model.width', '8'), ('model.layers', '1')]
    return Experiment(config_lib.load(f'configs/bert.py:{variants}', small + [*overrides]))


def batch_of(own, n=6, split='train', seed=0):
    index = np.random.default_rng(seed).integers(0, len(own.dataset.splits[split]), n)
    return own.dataset.splits[split][index]


def spread(params):
    return jax.tree.map(lambda x: x + 0.3 * jax.random.normal(jax.random.key(x.size), x.shape), params)


def test_the_loss_is_the_mean_over_the_hidden_tokens():
    own = experiment(('task.whole_words', 'True'), ('task.mask_rate', '0.3'))
    turn, params = own.task.rounds[0][0], spread(own.task.init(rng.stream(0, 'init'))[0])
    batch = {'tokens': batch_of(own)['tokens']}
    call = jax.jit(lambda batch, index: turn.loss(params, EXTRA, batch, rng.context(0, 'train', 3, index)))
    value, aux = call(batch, jnp.arange(6))
    parts = [call({'tokens': batch['tokens'][i : i + 1]}, jnp.arange(i, i + 1)) for i in range(6)]
    weights = np.array([aux.weight for _, aux in parts])
    assert aux.weight == weights.sum() and len({*weights.tolist()}) > 1
    assert value == pytest.approx(np.average([value for value, _ in parts], weights=weights), rel=1e-5)
    assert aux.metrics['nats_per_masked_token'] == value


def test_evaluation_hides_the_same_tokens_each_time_and_each_token_in_one_window_alone():
    own = experiment()
    measure, params = own.task.get(Measures).per_example, own.task.init(rng.stream(0, 'init'))[0]
    examples = own.examples('test', np.arange(4))
    assert examples['counted'].tolist() == [20, 15, 15, 15]  # the windows overlap
    found = [
        jax.device_get(measure(params, EXTRA, examples, rng.context(seed, 'eval', step, jnp.arange(4))))
        for seed, step in ((0, 0), (7, 3))
    ]
    jax.tree.map(np.testing.assert_array_equal, *found)
    nats, count = found[0]['nats_per_masked_token']
    assert count.tolist() == [3, 2, 2, 2] and nats / count == pytest.approx(np.log(260), rel=0.05)
    own_window = {name: value[2:3] for name, value in examples.items()}
    one = measure(params, EXTRA, own_window, rng.context(0, 'eval', 0, jnp.array([2])))
    assert one['nats_per_masked_token'][0][0] == pytest.approx(nats[2], rel=1e-5)


def test_halves_of_a_window_are_exchanged_in_every_other_and_framed():
    own = experiment(variants='smoke,sentence_order')
    task = own.task.rounds[0][0].loss.__self__
    token, window = own.dataset.spec.tokenizer, np.tile(np.arange(20), (64, 1))
    may = np.tile(np.arange(20) >= 5, (64, 1))
    context = rng.context(0, 'train', 0, jnp.arange(64))
    found = jax.device_get(task.framed(jnp.asarray(window), jnp.asarray(may), context))
    tokens, may, types, exchanged = found
    assert 16 < exchanged.sum() < 48 and types[0].tolist() == 12 * [0] + 11 * [1]
    for row, own_may, swapped in zip(tokens, may, exchanged, strict=True):
        a, b = np.arange(10), np.arange(10, 20)
        first, second = (b, a) if swapped else (a, b)
        assert row.tolist() == [token.cls, *first, token.sep, *second, token.sep]
        assert own_may.tolist() == [False, *(first >= 5), False, *(second >= 5), False]
    _, aux = own.task.rounds[0][0].loss(
        own.task.init(rng.stream(0, 'init'))[0], EXTRA, {'tokens': batch_of(own)['tokens']},
        rng.context(0, 'train', 0, jnp.arange(6)),
    )  # fmt: skip
    assert 'order_accuracy' in aux.metrics


def test_a_model_without_special_tokens_around_a_text_reads_windows_as_they_are():
    own = experiment(('data.special', "('mask',)"))
    assert own.task.get(FillsIn).context == 20


@pytest.mark.parametrize('overrides, words', [
    ((('data.special', "('cls',)"),), 'data.special: the tokenizer has no token'),
    ((('data.order', 'contiguous'),), 'data.order: an encoder'),
    ((('model.positions', '21'),), 'model.positions: 21, but a window of 20 tokens'),
    ((('task.random_share', '0.3'),), 'task.random_share: 0.3'),
    ((('task.sentence_order', '1.0'), ('data.special', "('mask', 'cls')")), 'task.sentence_order: two texts'),
    ((('task.sentence_order', '1.0'), ('model.token_types', '1')), 'model.token_types: 1'),
    ((('data.name', 'digits'),), 'data.name=digits'),
], ids=lambda x: x if isinstance(x, str) else '')  # fmt: skip
def test_mistakes_are_named(overrides, words):
    with pytest.raises(UserError, match=words.replace('(', '.')) as error:
        experiment(*overrides)
    assert '\n' not in str(error.value)


def test_the_generator_draws_what_is_told_apart():
    own = experiment(variants='smoke,electra')
    ((generator, model),) = own.task.rounds
    params = spread(own.task.init(rng.stream(0, 'init'))[0])
    assert generator.player == 'generator' and model.player == 'model' and params.keys() == {'generator', 'model'}
    batch, ctx = {'tokens': batch_of(own, 64)['tokens']}, rng.context(0, 'train', 0, jnp.arange(64))
    task = model.loss.__self__
    found = jax.jit(lambda: task.sums(params, batch, ctx))()
    assert found['count'].tolist() == 64 * [20.0] and 0 < found['replaced'].min() and found['replaced'].max() <= 3
    # The shares that the generator draws with: of a token that it is sure of, that token.
    sure = jax.tree.map(jnp.zeros_like, params['generator'])
    sure['mask_bias'] = sure['mask_bias'].at[7].set(50.0)
    hidden = task.generator.hidden(batch, ctx)
    targets, counted = hidden.masked.targets, hidden.masked.counted
    found = jax.jit(lambda: task.sums({**params, 'generator': sure}, batch, ctx))()
    assert found['replaced'].tolist() == (counted & (targets != 7)).sum(axis=1).tolist()
    even = jax.tree.map(jnp.zeros_like, sure)
    found = jax.jit(lambda: task.sums({**params, 'generator': even}, batch, ctx))()
    assert found['replaced'].sum() > 0.95 * counted.sum()  # of 260 tokens, drawn alike
    # The gradient of each player is of its own loss alone.
    wrong = jax.grad(lambda own: model.loss({**params, 'generator': own}, EXTRA, batch, ctx)[0])(params['generator'])
    assert all(not leaf.any() for leaf in jax.tree.leaves(wrong))
    # A model whose logits are all negative tells every replaced token wrong, and no other.
    blind = jax.tree.map(jnp.zeros_like, params['model'])
    blind['tagger']['bias'] -= 1.0
    value, aux = model.loss({'generator': even, 'model': blind}, EXTRA, batch, ctx)
    share = float(aux.metrics['replaced_share'])
    assert aux.metrics['accuracy'] == pytest.approx(1 - share) and aux.weight == 64 * 20
    assert value == pytest.approx(np.log1p(np.exp(-1)) + share, rel=1e-5)


def test_a_model_is_taken_from_a_run_of_two_players():
    """Of the other player nothing is, nor of the state of its optimizer."""
    params = {'model': {'block': np.zeros((2, 3)), 'head': np.zeros(3)}}
    theirs = {'model/block': [2, 3], 'model/tagger': [1], 'generator/block': [1, 1], 'generator/head': [3]}
    init = config_lib.ConfigDict({'rename': (), 'drawn': 'head', 'unused': 'tagger|generator/'})
    chosen = partial.of(init, params, theirs, 'there')
    assert chosen.taken(params)['model']['head'] is None and chosen.taken(params)['model']['block'] is not None
    left = ['params/generator/block', 'params/model/tagger', 'opt/generator/0/count', 'opt/model/0/mu/tagger']
    kept = ['params/model/block', 'opt/model/0/count', 'opt/model/0/mu/block', 'stats/generator/x']
    assert [*map(chosen.leaves, left)] == [True] * 4 and [*map(chosen.leaves, kept)] == [False] * 4
