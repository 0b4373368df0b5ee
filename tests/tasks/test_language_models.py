"""Transformer and recurrent models: causality, the cache, documents, the state between blocks, what a loss is."""

import functools
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

from aigc_jax.core import optim, rng
from aigc_jax.core.capabilities import CausalText
from aigc_jax.core.types import Extra
from aigc_jax.nn import blocks, recurrent, transformer
from aigc_jax.reports.evaluation import Evaluation
from aigc_jax.reports.evaluator import Evaluator
from aigc_jax.runs import config as config_lib
from aigc_jax.runs.experiment import Experiment

BLOCKS = {
    'gpt2': dict(position='learned', norm='layernorm', activation='gelu', bias=True, tied=True),
    'modern': dict(kv_heads=2, qk_norm=True, softcap=15.0),
    'window': dict(window=3, activation='swiglu'),
    'lstm': dict(cell='lstm'),
    'gru': dict(cell='gru', tied=True),
    'linear': dict(cell='linear', layers=3),
}
VOCAB, LENGTH = 11, 12


def module(name, **more):
    fields = BLOCKS[name]
    if 'cell' in fields:
        return recurrent.Recurrent(**{**dict(vocab_size=VOCAB, end=None, layers=2, features=8, tied=False, dropout=0.0),
                                      **fields, **more})  # fmt: skip
    return transformer.Transformer(**{
        **dict(vocab_size=VOCAB, context=32, end=None, layers=2, heads=4, kv_heads=4, width=16, mlp_width=32,
               position='rope', norm='rmsnorm', activation='relu2', qk_norm=False, bias=False, zero_init=False,
               tied=False, softcap=0.0, window=0, dropout=0.0, attention='einsum', remat=False, scan_layers=False),
        **fields, **more,
    })  # fmt: skip


@functools.cache
def compiled(model):
    """model.apply(params, tokens, state), compiled: far fewer programs than one for each operation."""
    return jax.jit(model.apply)


@functools.cache
def randomized(model):
    return scattered(jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 4), jnp.int32)))


@jax.jit
def scattered(params):
    """Parameters far from their initialization, so that nothing is small, or equal, by chance."""
    leaves, treedef = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    drawn = [leaf + 0.3 * jax.random.normal(key, leaf.shape) for leaf, key in zip(leaves, keys, strict=True)]
    return jax.tree.unflatten(treedef, drawn)


def tokens_of(n=3, length=LENGTH, seed=0):
    return jnp.asarray(np.random.default_rng(seed).integers(0, VOCAB, (n, length)), jnp.int32)


@pytest.mark.parametrize('name', BLOCKS)
def test_a_logit_depends_on_the_tokens_before_it_alone(name):
    """By the gradient with respect to the embedded tokens: no zero that should not be, and none that should."""
    model, tokens = module(name), tokens_of(1)
    params, apply = randomized(model), compiled(model)

    def influence(position):
        changed = [tokens.at[0, i].set((tokens[0, i] + 1) % VOCAB) for i in range(LENGTH)]
        base, *found = (np.asarray(apply(params, other)[0][0, position]) for other in (tokens, *changed))
        return [np.abs(other - base).max() for other in found]

    found = np.array(influence(6))
    assert (found[7:] == 0).all()
    # A window of 3 in two layers reaches 4 back.
    reach = 2 if name == 'window' else 0
    assert (found[reach:7] > 0).all() and (found[:reach] == 0).all()


@pytest.mark.parametrize('name', BLOCKS)
@pytest.mark.parametrize('pieces', [[12], [5, 1, 1, 1, 4], [1] * 12], ids=str)
def test_reading_piece_by_piece_is_the_full_forward(name, pieces):
    model, tokens = module(name), tokens_of()
    params, apply = randomized(model), compiled(model)
    expected = apply(params, tokens)[0]
    state, found, at = model.initial_state(3, 20), [], 0
    for piece in pieces:
        logits, state = apply(params, tokens[:, at : at + piece], state)
        found.append(logits)
        at += piece
    np.testing.assert_allclose(np.concatenate(found, axis=1), expected, rtol=2e-4, atol=2e-4)


@pytest.mark.parametrize('name', BLOCKS)
def test_what_fills_up_a_prompt_on_the_left_changes_nothing(name):
    model, tokens = module(name), tokens_of(2)
    params, apply = randomized(model), compiled(model)
    expected = apply(params, tokens[:, 5:])[0]
    start = jnp.array([5, 5])
    filled, _ = apply(params, tokens, model.initial_state(2, 20)._replace(start=start))
    np.testing.assert_allclose(filled[:, 5:], expected, rtol=2e-4, atol=2e-4)


@pytest.mark.parametrize('name', BLOCKS)
def test_documents_do_not_see_each_other(name):
    end = VOCAB - 1
    model = module(name, end=end)
    params, apply = randomized(model), compiled(model)
    tokens = tokens_of() % end
    two = tokens.at[:, 7].set(end)
    np.testing.assert_allclose(
        apply(params, two)[0][:, 7:], apply(params, two[:, 7:])[0], rtol=2e-4, atol=2e-4
    ) if BLOCKS[name].get('position') != 'learned' else None
    other = two.at[:, :7].set((two[:, :7] + 1) % end)
    np.testing.assert_array_equal(apply(params, two)[0][:, 7:], apply(params, other)[0][:, 7:])
    together = compiled(module(name))
    assert (together(params, two)[0][:, 7:] != together(params, other)[0][:, 7:]).any()


def test_gpt2_is_gpt2():
    """The block written once more in NumPy, from the paper."""
    model, tokens = module('gpt2', layers=1), tokens_of(1)
    tree = jax.device_get(randomized(model))['params']

    def norm(x, p):
        return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5) * p['scale'] + p['bias']

    dense = lambda x, p: x @ p['kernel'] + p['bias']
    b = tree['block_0']
    x = tree['embed']['embedding'][tokens[0]] + tree['position']['embedding'][:LENGTH]
    h = norm(x, b['attention_norm'])
    q, k, v = (dense(h, b[name]).reshape(LENGTH, 4, 4) for name in ('query', 'key', 'value'))
    scores = np.einsum('lhd,shd->hls', q, k) / math.sqrt(4)
    scores[:, ~np.tri(LENGTH, dtype=bool)] = -np.inf
    mixed = np.einsum('hls,shd->lhd', scipy.special.softmax(scores, axis=-1), v).reshape(LENGTH, 16)
    x = x + dense(mixed, b['out'])
    h = dense(norm(x, b['mlp_norm']), b['up'])
    gelu = 0.5 * h * (1 + np.tanh(math.sqrt(2 / math.pi) * (h + 0.044715 * h**3)))
    x = norm(x + dense(gelu, b['down']), tree['norm'])
    found = model.apply({'params': tree}, tokens)[0][0]
    np.testing.assert_allclose(found, x @ tree['embed']['embedding'].T, rtol=1e-4, atol=1e-4)


def test_parameters_of_the_published_sizes():
    """GPT-2 small has 124,439,808 (its checkpoint, the tied head counted once); an LSTM 4 (d_in + d + 1) d a layer."""
    small = module('gpt2', vocab_size=50257, context=1024, layers=12, heads=12, kv_heads=12, width=768, mlp_width=3072)
    shapes = jax.eval_shape(lambda: small.init(jax.random.key(0), jnp.zeros((1, 4), jnp.int32)))
    assert sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes)) == 124_439_808
    lstm = module('lstm', layers=1)
    shapes = jax.eval_shape(lambda: lstm.init(jax.random.key(0), jnp.zeros((1, 4), jnp.int32)))['params']['layer_0']
    assert sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes)) == 4 * (8 + 8 + 1) * 8


@pytest.mark.parametrize('fields', [dict(remat=True), dict(attention='xla')], ids=str)
def test_other_ways_to_compute_the_same(fields):
    tokens = tokens_of()

    def value_and_gradient(model):
        params = randomized(module('modern'))
        return jax.jit(jax.value_and_grad(lambda p: jnp.mean(model.apply(p, tokens)[0] ** 2)))(params)

    plain, other = value_and_gradient(module('modern')), value_and_gradient(module('modern', **fields))
    for a, b in zip(jax.tree.leaves(plain), jax.tree.leaves(other), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-4, atol=1e-6)
    text = str(jax.make_jaxpr(lambda p: module('modern', **fields).apply(p, tokens)[0])(randomized(module('modern'))))
    assert ('remat' in text or 'checkpoint' in text) == ('remat' in fields)


@pytest.mark.parametrize('remat', [False, True])
def test_scanned_layers_are_the_layers(remat):
    """Logits, gradients, the cache, and Muon's steps: those of the blocks one by one, stacked."""
    one, scanned = module('modern', remat=remat), module('modern', remat=remat, scan_layers=True)
    tokens, params = tokens_of(), randomized(one)['params']
    stack = lambda tree: {
        **{name: part for name, part in tree.items() if not name.startswith('block_')},
        'blocks': jax.tree.map(lambda *parts: jnp.stack(parts), *(tree[f'block_{i}'] for i in range(2))),
    }
    shapes = lambda tree: jax.tree.map(jnp.shape, tree)
    assert shapes(jax.eval_shape(scanned.init, jax.random.key(0), tokens)['params']) == shapes(stack(params))
    weights = jax.random.normal(jax.random.key(2), (*tokens.shape, VOCAB))
    value = lambda model: lambda params: jnp.sum(weights * model.apply({'params': params}, tokens)[0])
    near = lambda a, b: jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=2e-4, atol=2e-4), a, b)
    (ours, found), (theirs, grads) = (
        jax.jit(jax.value_and_grad(value(model)))(tree) for model, tree in ((scanned, stack(params)), (one, params))
    )
    near(ours, theirs)
    near(found, stack(grads))

    def read(model, params):
        state, found = model.initial_state(3, LENGTH), []
        for part in (tokens[:, :5], tokens[:, 5:6], tokens[:, 6:]):
            logits, state = compiled(model)({'params': params}, part, state)
            found.append(logits)
        return jnp.concatenate(found, axis=1)

    near(read(scanned, stack(params)), read(one, params))
    config = config_lib.load('configs/gpt.py:smoke', []).optim.model
    config.learning_rate_rules = ()

    @jax.jit
    def step(params, grads):
        optimizer = optim.optimizer(config, params, 100, 'optim.model')
        state = optimizer.init(params)
        for _ in range(2):  # the first learning rate is 0
            updates, state = optimizer.update(grads, state, params)
        return updates

    near(step(stack(params), stack(grads)), stack(step(params, grads)))


@pytest.mark.parametrize('cell', ['lstm', 'gru'])
def test_the_gradient_of_a_recurrence_is_that_of_its_scan(cell):
    cell = recurrent.CELLS[cell]
    keys = jax.random.split(jax.random.key(0), 4)
    xs, weights = jax.random.normal(keys[0], (5, 2, cell.gates * 3)), jax.random.normal(keys[1], (3, cell.gates * 3))
    state = tuple(jax.random.normal(keys[2], (cell.arrays, 2, 3)))
    keep = jnp.ones((5, 2, 1)).at[2, 0].set(0)

    def plain(weights, xs, state):
        def step(state, inputs):
            x, k = inputs
            state = tuple(part * k for part in state)
            state, _ = cell.step(x, state[0] @ weights, state)
            return state, state[0]

        last, hs = jax.lax.scan(step, state, (xs, keep))
        return jnp.sum(jnp.sin(hs)) + sum(jnp.sum(part**2) for part in last)

    def ours(weights, xs, state):
        hs, last = recurrent.unroll(cell, weights, xs, keep, state)
        return jnp.sum(jnp.sin(hs)) + sum(jnp.sum(part**2) for part in last)

    for a, b in zip(*(jax.tree.leaves(jax.value_and_grad(f, (0, 1, 2))(weights, xs, state)) for f in (plain, ours)),
                    strict=True):  # fmt: skip
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def experiment_of(name, *overrides):
    return Experiment(config_lib.load(f'configs/{name}.py:smoke', list(overrides)))


def test_the_loss_is_the_mean_of_minus_log_p_and_z_loss_is_added():
    losses = {}
    for z in ('0.0', '0.1'):
        experiment = experiment_of('gpt', ('task.z_loss', z))
        params = experiment.create_state().params
        params = scattered(params)
        batch = {'tokens': jnp.asarray(experiment.dataset.splits['train'][np.arange(3)]['tokens'])}
        turn = experiment.task.rounds[0][0]
        losses[z] = jax.jit(turn.loss)(params, Extra({}, {}), batch, rng.context(0, 'train', 0, jnp.arange(3)))
        decode = jax.jit(experiment.task.get(CausalText).decode)
        logits, _ = decode(params, Extra({}, {}), batch['tokens'][:, :-1], None)
    log_p = scipy.special.log_softmax(np.asarray(logits, np.float64), axis=-1)
    nll = -np.take_along_axis(log_p, np.asarray(batch['tokens'])[:, 1:, None], axis=-1).mean()
    assert float(losses['0.0'][0]) == pytest.approx(nll, rel=1e-5)
    log_z = scipy.special.logsumexp(np.asarray(logits, np.float64), axis=-1)
    assert float(losses['0.1'][0]) == pytest.approx(nll + 0.1 * (log_z**2).mean(), rel=1e-5)
    assert float(losses['0.1'][1][0]['nats_per_token']) == pytest.approx(nll, rel=1e-5)


def test_an_untrained_model_knows_nothing_and_the_evaluation_says_so(tmp_path):
    """Zero-initialized head: every token has 1/257, in nats, bits a byte and perplexity."""
    path = tmp_path / 'documents.jsonl'
    path.write_text(''.join(json.dumps({'text': f'Document {i} of these. ' * 9}) + '\n' for i in range(100)))
    experiment = experiment_of('gpt', ('data.name', f'jsonl:{path}'))
    found = Evaluation(Evaluator(experiment)).each(experiment.create_state(), 0, 'test')
    assert found['model/nats_per_token']['value'] == pytest.approx(math.log(257), rel=1e-6)
    assert found['model/perplexity']['value'] == pytest.approx(257, rel=1e-4)
    tokens = experiment.dataset.splits['test'].tokens[1:]
    ends = int((tokens == 256).sum())  # cost nats and stand for no byte
    bits = math.log2(257) * len(tokens) / (len(tokens) - ends)
    assert ends > 0 and found['model/bits_per_byte']['value'] == pytest.approx(bits, rel=1e-6)


def test_the_state_is_carried_from_block_to_block_and_begins_anew_with_the_rows():
    """Two blocks with the state carried are one block of twice the length; without, they are not."""
    experiment = experiment_of('rnn_lm', ('task.separate_documents', 'False'))
    state = experiment.create_state()
    params = scattered(state.params)
    turn, block = experiment.task.rounds[0][0], experiment.config.data.block
    tokens = jnp.asarray(experiment.dataset.splits['train'].tokens[: 8 * (2 * block) + 1].astype(np.int32))
    rows = jnp.stack([tokens[i * 2 * block : (i + 1) * 2 * block + 1] for i in range(8)])
    ctx = lambda step: rng.context(0, 'train', step, jnp.arange(8))
    extra = Extra({}, state.carry)
    loss = jax.jit(turn.loss)
    first, (_, carried, *_) = loss(params, extra, {'tokens': rows[:, : block + 1]}, ctx(0))
    second, _ = loss(params, carried, {'tokens': rows[:, block:]}, ctx(1))
    whole, _ = loss(params, extra, {'tokens': rows}, ctx(0))
    assert float(first + second) / 2 == pytest.approx(float(whole), rel=1e-5)
    length = len(experiment.dataset.splits['train']) // 8
    anew, _ = loss(params, carried, {'tokens': rows[:, block:]}, ctx(length))
    fresh, _ = loss(params, extra, {'tokens': rows[:, block:]}, ctx(1))
    assert float(anew) == float(fresh) != float(second)


def test_dropout_is_in_training_alone_and_the_same_for_the_same_example():
    experiment = experiment_of('gpt', ('model.dropout', '0.5'))
    state = experiment.create_state()
    params = scattered(state.params)
    turn = experiment.task.rounds[0][0]
    tokens = jnp.asarray(experiment.dataset.splits['train'][np.zeros(4, int)]['tokens'])
    of = jax.jit(
        lambda step, index: turn.loss(
            params, Extra({}, {}), {'tokens': tokens[index]}, rng.context(0, 'train', step, index)
        )[0]
    )
    loss = lambda step, index: float(of(step, index))
    one, two = jnp.arange(1), jnp.arange(1, 2)
    assert loss(0, one) == loss(0, one) and loss(0, one) != loss(0, two) and loss(0, one) != loss(1, one)
    assert loss(0, jnp.arange(2)) == pytest.approx((loss(0, one) + loss(0, two)) / 2, rel=1e-5)
    a, b = (experiment.task.get(CausalText).token_nll(params, Extra({}, {}), tokens) for _ in range(2))
    np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize('name, override, words', [
    ('gpt', ('model.position', 'ropes'), ["model.position: 'ropes'", 'rope']),
    ('gpt', ('model.kind', 'lstm'), ["model.kind: 'lstm'", 'recurrent']),
    ('gpt', ('model.heads', '3'), ['model.heads']),
    ('gpt', ('model.kv_heads', '0'), ['model.kv_heads: 0']),
    ('gpt', ('model.dropout', '1.0'), ['model.dropout: 1.0']),
    ('gpt', ('model.window', '-1'), ['model.window: -1']),
    ('gpt', ('model.softcap', '-1.0'), ['model.softcap: -1.0']),
    ('gpt', ('model.attention', 'cudnn'), ['model.attention: cudnn', 'bfloat16']),
    ('gpt', ('task.z_loss', '-1.0'), ['task.z_loss: -1.0']),
    ('gpt', ('data.eval_block', '64'), ['data.eval_block: 64', 'data.block, 48']),
    ('gpt', ('eval.sample_tokens', '48'), ['eval.sample_tokens']),
    ('gpt', ('eval.ngram_order', '-1'), ['eval.ngram_order: -1']),
    ('gpt', ('data.order', 'contiguous'), ['data.order', 'shuffled']),
    ('gpt', ('data.name', 'digits'), ['data.name=digits', 'fields of text']),
    ('vae', ('data.name', 'pydoc'), ['data.name=pydoc', 'fields of images']),
    ('gpt', ('optim.model.options.muon_weight_dimension_numbers', 'blok'), ['muon', "'blok' matches no parameter"]),
    ('rnn_lm', ('model.cell', 'lstn'), ["model.cell: 'lstn'", 'lstm']),
    ('rnn_lm', ('model.features', '0'), ['model.features: 0']),
    ('rnn_lm', ('batch_size', '30000'), ['batch_size: 30000 rows']),
])  # fmt: skip
def test_mistakes_are_named(runner, tmp_path, name, override, words):
    code, out, err = runner(
        f'--config=configs/{name}.py:smoke', f'--workdir={tmp_path}/run', f'--config.{override[0]}={override[1]}'
    )
    assert code == 2 and not out and len(err.splitlines()) <= 3 and all(word in err for word in words), err
    assert not (tmp_path / 'run').exists()


@pytest.mark.parametrize('biased', [False, True])
@pytest.mark.parametrize('cached', [False, True])
def test_the_written_gradient_of_attention_is_that_of_its_formula(cached, biased):
    """Grouped queries, a mask of documents, more queries than one part has; with a bias of T5's kind, no 1/√d."""
    n, groups, per_group, length, d = 2, 2, 3, 150, 4
    keys = [jax.random.normal(jax.random.key(i), (n, groups, *shape, d)) for i, shape in
            enumerate([(per_group, length), (length,), (length,), (per_group, length)])]  # fmt: skip
    q, k, v, probe = keys
    bias = jax.random.normal(jax.random.key(8), (groups * per_group, length, length)) if biased else None
    document = jnp.cumsum(jax.random.bernoulli(jax.random.key(9), 0.02, (n, length)), axis=1)
    mask = (jnp.arange(length) <= jnp.arange(length)[:, None]) & (document[:, :, None] == document[:, None, :])
    model = blocks.Block(
        index=0, layers=1, heads=groups * per_group, kv_heads=groups, width=groups * per_group * d, mlp_width=8,
        position='none', norm='rmsnorm', activation='gelu', qk_norm=False, bias=False, zero_init=False, dropout=0.0,
        attention='einsum', scaled=not biased,
    )  # fmt: skip

    def ours(q, k, v, bias):
        rest = mask, bias, not cached, False, None, 'attention', 'weights'
        out = model.apply({}, q.reshape(n, -1, length, d), k, v, *rest, method='_attend')
        return jnp.sum(out.reshape(q.shape) * probe)

    def formula(q, k, v, bias):
        scores = jnp.einsum('nkgld,nksd->nkgls', q, k)
        scores = scores / math.sqrt(d) if bias is None else scores + bias.reshape(groups, per_group, length, length)
        weights = jax.nn.softmax(jnp.where(mask[:, None, None], scores, -jnp.inf), axis=-1)
        return jnp.sum(jnp.einsum('nkgls,nksd->nkgld', weights, v) * probe)

    arguments = tuple(range(3 + biased))
    of = lambda f: jax.jit(jax.value_and_grad(f, argnums=arguments))(q, k, v, bias)
    found, wanted = of(ours), of(formula)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=2e-5), found, wanted)
