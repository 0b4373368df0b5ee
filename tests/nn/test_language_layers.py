"""Layers of language models: the logits of a tied head, however many rows it is asked for."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from aigc_jax.nn.language_layers import tied_logits


class Tied(nn.Module):
    dtype: str

    @nn.compact
    def __call__(self, x):
        return tied_logits(x, nn.Embed(50, 16, dtype=self.dtype))


@pytest.mark.parametrize(
    ('rows', 'dtype'),
    [((1,), 'float32'), ((2, 3), 'float32'), ((3, 4), 'float32'), ((8, 5), 'float32'), ((3,), 'bfloat16')],
)
def test_a_tied_head_multiplies_by_its_embedding(rows, dtype):
    model, x = Tied(dtype), jax.random.normal(jax.random.key(1), (*rows, 16))
    params = model.init(jax.random.key(0), x)
    out, pull = jax.vjp(model.apply, params, x)
    table = params['params']['Embed_0']['embedding']
    assert out.shape == (*rows, 50) and out.dtype == dtype
    close = dict(rtol=1e-5, atol=1e-5) if dtype == 'float32' else dict(rtol=0.02, atol=0.05)
    as_float = lambda a: np.asarray(a, np.float32)
    np.testing.assert_allclose(as_float(out), as_float(x @ table.T), **close)
    d_params, d_x = pull(jnp.ones_like(out))
    np.testing.assert_allclose(as_float(d_x), as_float(jnp.ones((*rows, 50)) @ table), **close)
    d_table = as_float(jnp.broadcast_to(x.reshape(-1, 16).sum(0), (50, 16)))
    np.testing.assert_allclose(as_float(d_params['params']['Embed_0']['embedding']), d_table, **close)


@pytest.mark.parametrize('rows', [1, 3])
def test_a_tied_head_is_the_same_for_each_text_alone_and_exported_for_another_device(rows):
    model, x = Tied('float32'), jax.random.normal(jax.random.key(1), (4, rows, 16))
    params = model.init(jax.random.key(0), x)
    whole = np.asarray(x @ params['params']['Embed_0']['embedding'].T)
    alone = jax.jit(jax.vmap(model.apply, (None, 0)))(params, x)
    np.testing.assert_allclose(alone, whole, rtol=1e-5, atol=1e-5)
    exported = jax.export.export(jax.jit(model.apply), platforms=('cuda', 'cpu'))(params, x[0])
    again = jax.export.deserialize(exported.serialize())
    np.testing.assert_allclose(again.call(params, x[0]), whole[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('rows', [1, 2, 8])
def test_the_gradient_of_micro_batches_is_that_of_the_batch(rows):
    model, x = Tied('float32'), jax.random.normal(jax.random.key(1), (32, 16))
    params = model.init(jax.random.key(0), x)
    gradient = jax.grad(lambda params, x: jnp.mean(jax.nn.logsumexp(model.apply(params, x), axis=-1)))
    parts = jax.lax.map(lambda part: gradient(params, part), x.reshape(-1, rows, 16))
    for ours, whole in zip(jax.tree.leaves(parts), jax.tree.leaves(gradient(params, x)), strict=True):
        np.testing.assert_allclose(ours.mean(0), whole, rtol=1e-4, atol=1e-7)
