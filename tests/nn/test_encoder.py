"""Encoders against what transformers gives for the same parameters, and what their fields mean."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from stacks import stacked

from aigc_jax.adapt import huggingface
from aigc_jax.nn import encoder

GOLDENS = pathlib.Path(__file__).parent.parent / 'adapt' / 'goldens'
HEADS = {'masked': dict(masked=True), 'sequence': dict(classes=3), 'tokens': dict(tags=3)}
REST = dict(zero_init=False, dropout=0.0, attention='einsum')


def golden(name, **more):
    """(module, parameters, arrays) of a model that transformers has drawn."""
    folder = huggingface.Folder(GOLDENS / name)
    family, fields = huggingface.family_of(folder), huggingface.family_of(folder).fields(folder.config, name)
    own = {field.removeprefix('model.'): value for field, value in fields.items() if field.startswith('model.')}
    module = encoder.Encoder(vocab_size=61, **REST, **more, **own, **HEADS[name.partition('_')[2]])
    params = huggingface.read(folder, family, fields, jax.eval_shape(lambda: encoder.init(module, jax.random.key(0))))
    return module, params, np.load(folder.path / 'golden.npz')


@pytest.mark.parametrize('name', [
    *sorted(path.name for path in GOLDENS.glob('*bert*_*')), 'bert_masked xla', 'bert_masked scan',
])  # fmt: skip
def test_an_encoder_gives_what_transformers_gives(name):
    name, *more = name.split()
    module, params, arrays = golden(name, scan_layers='scan' in more)
    module = module.clone(attention='xla' if 'xla' in more else 'einsum')
    assert module.activation == 'gelu_erf'
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


@pytest.mark.parametrize('fields', [
    dict(remat=True), dict(remat=True, scan_layers=True), dict(post_norm=False, position='rope'),
], ids=str)  # fmt: skip
def test_other_encoders(fields):
    """The gradient of `remat` is the same, and that of layers in a loop.

    A block that normalizes what its layers read ends with a norm.
    """
    module, params, arrays = golden('bert_masked')
    other = module.clone(**fields)

    def loss(module, params):
        return module.apply({'params': params}, arrays['tokens'], arrays['lengths']).tokens.sum()

    if 'remat' in fields:
        of_other = stacked if other.scan_layers else lambda params: params
        wanted = of_other(jax.grad(lambda params: loss(module, params))(params))
        grads = jax.grad(lambda params: loss(other, params))(of_other(params))
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-3), grads, wanted)
    else:
        drawn = encoder.init(other, jax.random.key(0))
        assert 'norm' in drawn and not {'embed_norm', 'position'} & drawn.keys()
        assert np.isfinite(loss(other, drawn))
