import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from aigc_jax.nn import build
from aigc_jax.nn.build import drawn

traced = []


class Net(nn.Module):
    width: int
    scale: float = 1.0

    @nn.compact
    def __call__(self, x):
        traced.append(self.width)
        offset = self.param('offset', lambda key: jax.random.normal(key, (self.width,), float))
        return nn.Dense(self.width, kernel_init=nn.initializers.normal(self.scale))(x) + offset


@pytest.fixture(autouse=True)
def none_is_kept():
    build._traced.cache_clear()
    traced.clear()


def shapes(net, length=3):
    found = jax.eval_shape(lambda: drawn(net, jax.random.key(0), jnp.zeros((1, length))))
    return found['Dense_0']['kernel'].shape, found['offset'].dtype


def test_a_module_of_the_same_fields_is_traced_once():
    assert [shapes(Net(4)) for _ in range(3)] == [((3, 4), jnp.float32)] * 3 and traced == [4]
    jax.jit(lambda seed: drawn(Net(4), jax.random.key(seed), jnp.zeros((1, 3))))(1)
    assert traced == [4]


def test_another_module_other_inputs_and_other_settings_have_their_own_shapes():
    assert shapes(Net(4)) == ((3, 4), jnp.float32)
    assert shapes(Net(5)) == ((3, 5), jnp.float32)
    assert shapes(Net(4), 7) == ((7, 4), jnp.float32)
    with jax.enable_x64(True):
        assert shapes(Net(4)) == ((3, 4), jnp.float64)
    assert shapes(Net(4)) == ((3, 4), jnp.float32)


@pytest.mark.parametrize('scale', [1.0, 2.0])
def test_what_is_drawn_is_what_the_module_draws(scale):
    net, x = Net(4, scale), jnp.zeros((1, 3))
    for seed in (0, 1):
        key = jax.random.key(seed)
        of = [jax.jit(f)(key) for f in (lambda k: drawn(net, k, x), lambda k: net.init(k, x)['params'])]
        of += [drawn(net, key, x), net.init(key, x)['params']]  # without a program
        for pair in (of[:2], of[2:]):
            jax.tree.map(np.testing.assert_array_equal, *pair)


def test_few_modules_are_kept():
    for width in range(1, 12):
        shapes(Net(width))
    assert build._traced.cache_info().currsize == 8
