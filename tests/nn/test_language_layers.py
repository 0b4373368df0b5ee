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
