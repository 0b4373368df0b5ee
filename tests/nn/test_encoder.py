"""Encoders against what transformers gives for the same parameters, and what their fields mean."""

import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from aigc_jax.adapt.huggingface import bert
from aigc_jax.nn import encoder

GOLDENS = pathlib.Path(__file__).parent.parent / 'adapt' / 'goldens'
HEADS = {'masked': dict(masked=True), 'sequence': dict(classes=3), 'tokens': dict(tags=3)}
FIELDS = dict(
    layers=2, heads=4, kv_heads=4, width=16, mlp_width=24, position='learned', norm='layernorm', activation='gelu_erf',
    qk_norm=False, bias=True, zero_init=False, dropout=0.0, attention='einsum',
)  # fmt: skip
OWN = {
    'bert': dict(norm_epsilon=1e-12, positions=20, token_types=2),
    'roberta': dict(norm_epsilon=1e-5, positions=20, token_types=1, position_offset=2),
}


def golden(name):
    """(module, parameters, arrays) of a model that transformers has drawn."""
    folder = GOLDENS / name
    family, _, head = name.partition('_')
    theirs = load_file(folder / 'model.safetensors')
    module = encoder.Encoder(vocab_size=61, **FIELDS, **OWN[family], **HEADS[head])
    rules = {rule.ours: rule for rule in bert.rules(family, {'model.layers': 2})}

    def one(path, leaf):
        rule = rules['/'.join(key.key for key in path)]
        value = theirs[rule.theirs[1:] if rule.theirs[0] == '/' else f'{family}.{rule.theirs}']
        value = value.T if rule.transpose else value
        assert value.shape == leaf.shape, rule
        return value

    shapes = jax.eval_shape(lambda: encoder.init(module, jax.random.key(0)))
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == sum(value.size for value in theirs.values())
    return module, jax.tree_util.tree_map_with_path(one, shapes), np.load(folder / 'golden.npz')


@pytest.mark.parametrize('name', [*sorted(path.name for path in GOLDENS.glob('*bert*_*')), 'bert_masked xla'])
def test_an_encoder_gives_what_transformers_gives(name):
    name, *attention = name.split()
    module, params, arrays = golden(name)
    module = module.clone(attention=''.join(attention) or 'einsum')
    assert json.loads((GOLDENS / name / 'config.json').read_text())['hidden_act'] == 'gelu'
    call = jax.jit(lambda *inputs: module.apply({'params': params}, *inputs))
    found = call(arrays['tokens'], arrays['lengths'], arrays['types'])
    logits = next(value for value in (found.tokens, found.label, found.tags) if value is not None)
    for ours, theirs in ((found.hidden, arrays['hidden']), (logits, arrays['logits'])):
        assert ours.shape == theirs.shape and np.abs(theirs).max() > 0.3
        np.testing.assert_allclose(ours, theirs, atol=1e-4, rtol=0)


def test_what_fills_up_a_row_changes_nothing_and_all_of_a_text_is_read():
    module, params, arrays = golden('roberta_masked')
    tokens, lengths = jnp.asarray(arrays['tokens']), jnp.asarray(arrays['lengths'])
    call = lambda tokens: module.apply({'params': params}, tokens, lengths).tokens[1, 0]
    base, length = call(tokens), int(lengths[1])
    changed = [jnp.abs(call(tokens.at[1, i].set(5)) - base).max() for i in range(1, tokens.shape[1])]
    assert min(changed[: length - 1]) > 1e-3 and max(changed[length - 1 :]) == 0


def test_the_head_of_tokens_at_some_places_is_that_of_these_places():
    module, params, arrays = golden('bert_masked')
    places = jnp.array([[3, 0], [6, 6], [0, 0]])
    call = lambda places: module.apply({'params': params}, arrays['tokens'], arrays['lengths'], None, places).tokens
    every = call(None)
    np.testing.assert_allclose(call(places), jnp.take_along_axis(every, places[..., None], axis=1), atol=1e-5)


@pytest.mark.parametrize('fields', [dict(remat=True), dict(post_norm=False, position='rope')], ids=str)
def test_other_encoders(fields):
    """The gradient of `remat` is the same; a block that normalizes what its layers read ends with a norm."""
    module, params, arrays = golden('bert_masked')
    other = module.clone(**fields)

    def loss(module, params):
        return module.apply({'params': params}, arrays['tokens'], arrays['lengths']).tokens.sum()

    if 'remat' in fields:
        grads = [jax.grad(lambda params, one=one: loss(one, params))(params) for one in (module, other)]
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-3), *grads)
    else:
        drawn = encoder.init(other, jax.random.key(0))
        assert 'norm' in drawn and not {'embed_norm', 'position'} & drawn.keys()
        assert np.isfinite(loss(other, drawn))
