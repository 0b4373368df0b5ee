"""Solvers of dx/dt = f(t, x) from t = 0 to t = 1, of many x at once that do not depend on each other.

f(t (n,), x (n, D)) -> (n, D). The adaptive solver chooses the steps of each x by itself, so that what becomes of an x
does not depend on those beside it. jax.experimental.ode.odeint would choose one step for all, and does not tell how
often it evaluates f.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from aigc_jax.core.types import Array

Field = Callable[[Array, Array], Array]
# What the adaptive solver gives up at, and gives as NaN: so many steps tried, or one too short for float32 to see.
MOST_STEPS, LEAST_STEP = 10_000, 1e-8

# Of the second stage and of the sum, of methods of order 2: c2, b1, b2.
_TWO_STAGES = {'midpoint': (0.5, 0.0, 1.0), 'heun': (1.0, 0.5, 0.5)}
_DIRECTIONS = 64  # of Jacobian-vector products at once
FIXED = {'euler': 1, 'midpoint': 2, 'heun': 2}  # evaluations a step
SOLVERS = (*FIXED, 'dopri5')

# Dormand & Prince 1980, RK5(4)7M: the stages, of which the last is the first of the next step; c; and the difference
# between the solutions of orders 5 and 4.
_A = (
    (1 / 5,),
    (3 / 40, 9 / 40),
    (44 / 45, -56 / 15, 32 / 9),
    (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
    (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
    (35 / 384, 0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84),
)
_C = (1 / 5, 3 / 10, 4 / 5, 8 / 9, 1, 1)
_E = (71 / 57600, 0, -71 / 16695, 71 / 1920, -17253 / 339200, 22 / 525, -1 / 40)
_ROWS = np.array([row + (0,) * (7 - len(row)) for row in _A])
_SAFETY, _SHRINK, _GROW = 0.9, 0.2, 10.0  # of the next step, as Hairer et al. 1993, section II.4, have them


def solve(solver: str, f: Field, x: Array, steps: int, tolerance: float) -> tuple[Array, Array]:
    """(x at t = 1, evaluations of f for each x, (n,) int32).

    steps: of equal length, of a solver in FIXED. tolerance: of 'dopri5', absolute and relative, of a step's error.
    """
    if solver == 'dopri5':
        return dopri5(f, x, tolerance)
    return fixed(solver, f, x, steps), jnp.full(len(x), FIXED[solver] * steps, jnp.int32)


def fixed(solver: str, f: Field, x: Array, steps: int) -> Array:
    """x at t = 1, by steps of equal length."""
    h = 1 / steps

    def step(i, x):
        t = jnp.full(len(x), i * h, x.dtype)
        k1 = f(t, x)
        if solver == 'euler':
            return x + h * k1
        c2, b1, b2 = _TWO_STAGES[solver]
        return x + h * (b1 * k1 + b2 * f(t + c2 * h, x + c2 * h * k1))

    return jax.lax.fori_loop(0, steps, step, x)


def dopri5(f: Field, x: Array, tolerance: float) -> tuple[Array, Array]:
    """(x at t = 1, evaluations (n,)), by the method of Dormand & Prince 1980 with local extrapolation.

    Of each x, an error estimate's root mean square over D, relative to tolerance · (1 + |x|), decides on its step. The
    loop runs until the last x is there.
    """
    norm = lambda y: jnp.sqrt(jnp.mean(y**2, axis=-1))
    down = lambda t: t[:, None]

    def attempt(state):
        t, h, x, k1, tried, count = state
        active = (t < 1) & (h > LEAST_STEP)
        h = jnp.minimum(h, 1 - t)

        def stage(i, found):  # in a loop, so that f is compiled once
            k, _ = found
            y = x + down(h) * jnp.tensordot(jnp.asarray(_ROWS, x.dtype)[i], k, 1, precision='highest')
            return k.at[i + 1].set(f(t + jnp.asarray(_C, x.dtype)[i] * h, y)), y

        k = jnp.zeros((len(_E), *x.shape), x.dtype).at[0].set(k1)
        k, y = jax.lax.fori_loop(0, len(_C), stage, (k, x))
        error = down(h) * jnp.tensordot(jnp.asarray(_E, x.dtype), k, 1, precision='highest')
        size = norm(error / (tolerance * (1 + jnp.maximum(jnp.abs(x), jnp.abs(y)))))
        taken = active & (size <= 1)
        # What is not a number shrinks the step, too.
        factor = _SAFETY * jnp.where(size > 0, size, 1e-10) ** -0.2
        factor = jnp.where(jnp.isfinite(size), jnp.clip(factor, _SHRINK, _GROW), _SHRINK)
        # 1 itself, and not 1 − ε, behind the last step.
        t = jnp.where(taken, jnp.where(h >= 1 - t, 1.0, t + h), t)
        x, k1 = jnp.where(down(taken), y, x), jnp.where(down(taken), k[-1], k1)
        return t, jnp.where(active, h * factor, h), x, k1, tried + 1, count + len(_A) * active

    def going(state):
        t, h, *_, tried, _ = state
        return jnp.any((t < 1) & (h > LEAST_STEP)) & (tried < MOST_STEPS)

    t = jnp.zeros(len(x), x.dtype)
    k1 = f(t, x)
    scale = tolerance * (1 + jnp.abs(x))
    h = 0.01 * norm(x / scale) / jnp.maximum(norm(k1 / scale), 1e-10)  # Hairer et al. 1993, section II.4
    h = jnp.clip(jnp.nan_to_num(h, nan=1e-3), 1e-5, 1.0)
    start = t, h, x, k1, jnp.int32(0), jnp.ones(len(x), jnp.int32)
    t, _, x, _, _, count = jax.lax.while_loop(going, attempt, start)
    return jnp.where(down(t < 1), jnp.nan, x), count


def divergence(f: Field, t: Array, x: Array, probes: Array | None) -> tuple[Array, Array]:
    """(f(t, x), Σ ∂f_i/∂x_i (n,)): the trace itself, by D Jacobian-vector products, where probes is None; else
    Hutchinson's estimate, the mean of εᵀ (∂f/∂x) ε over ε of probes (K, n, D) (Grathwohl et al. 2019, section 3.1)."""
    moved = lambda direction: jax.jvp(lambda x: f(t, x), (x,), (direction,))
    if probes is None and x.shape[-1] > _DIRECTIONS:  # all at once would take D times the memory of f
        basis = np.eye(x.shape[-1], dtype=x.dtype)
        part = lambda e: jnp.sum(moved(jnp.broadcast_to(e, x.shape))[1] * e, axis=-1)
        return f(t, x), jnp.sum(jax.lax.map(part, basis, batch_size=_DIRECTIONS), axis=0)
    if probes is None:
        probes = jnp.broadcast_to(np.eye(x.shape[-1], dtype=x.dtype)[:, None], (x.shape[-1], *x.shape))
        reduce = jnp.sum
    else:
        reduce = jnp.mean
    values, products = jax.vmap(moved, out_axes=(None, 0))(probes)
    return values, reduce(jnp.sum(products * probes, axis=-1), axis=0)


def log_likelihood(
    f: Field, log_source: Callable[[Array], Array], x: Array, probes: Array | None, tolerance: float
) -> tuple[Array, Array, Array]:
    """(log p(x), where x comes from in the source, evaluations), (n,), (n, D), (n,), of the flow of f at t = 1.

    log p1(x) = log p0(x0) − ∫ div f dt along the way back (Chen et al. 2018, eq. 8), by 'dopri5'.
    """

    def back(s: Array, y: Array) -> Array:
        value, trace = divergence(f, 1 - s, y[:, :-1], probes)
        return -jnp.concatenate([value, trace[:, None]], axis=-1)

    y, count = dopri5(back, jnp.concatenate([x, jnp.zeros((len(x), 1), x.dtype)], axis=-1), tolerance)
    return log_source(y[:, :-1]) + y[:, -1], y[:, :-1], count
