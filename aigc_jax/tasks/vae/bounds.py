"""Pieces of a VAE's objective: gradient estimators, free bits, total correlation, the bound for several k."""

import math

import jax
import jax.numpy as jnp

from aigc_jax.core.types import Array
from aigc_jax.tasks.likelihoods import normal_terms

# Of the posterior's parameters. 'stl' leaves out the score term, whose mean is 0 for the ELBO (Roeder et al. 2017;
# biased for k > 1); 'dreg' reparameterizes it a second time, unbiased for every k (Tucker et al. 2019).
ESTIMATORS = ('standard', 'stl', 'dreg')


def importance_weighted(log_w: Array) -> Array:
    """log 1/k Σ w, (n, k) -> (n,); Burda et al. 2016, eq. 8. Its gradient weighs each draw by w / Σ w."""
    return jax.nn.logsumexp(log_w, axis=1) - math.log(log_w.shape[1])


def doubly_reparameterized(z: Array, log_w: Array, beta: Array | float) -> Array:
    """z (n, k, d), whose gradient is multiplied by 1 − β + β w̃, w̃ = w / Σ w of log_w (n, k).

    With log q(z given x) of stopped parameters, the gradient of the bound then weighs ∂ log w/∂z · ∂z/∂φ by w̃² where
    β = 1. For a weighted KL, the score term that a second reparameterization replaces is −β w̃ ∂ log q/∂φ, of which the
    mean is that of −β w̃ (1 − w̃) ∂ log w/∂z · ∂z/∂φ.
    """
    factor = jax.lax.stop_gradient(1 - beta + beta * jax.nn.softmax(log_w, axis=1))[..., None]
    fixed = jax.lax.stop_gradient(z)
    return fixed + factor * (z - fixed)


def free_bits(kl: Array, least: float) -> Array:
    """Σ_j max(λ, KL_j) of the batch's mean KL_j of each group, (n, G) -> (); Kingma et al. 2016, appendix C.8."""
    return jnp.sum(jnp.maximum(jnp.mean(kl, axis=0), least))


def total_correlation(z: Array, mu: Array, log_var: Array) -> Array:
    """E log q(z) − Σ_j log q(z_j) for one z (n, d) of each posterior μ, log σ² (n, d), () nats, where q(z) is the mean
    of these n posteriors.

    Minibatch-weighted sampling (Chen et al. 2018) divides by the number of training examples besides, which adds
    a constant and leaves the gradient as it is.
    """
    pairs, shift = normal_terms(z[:, None], mu, log_var), math.log(len(z))
    joint = jax.nn.logsumexp(jnp.sum(pairs, axis=-1), axis=1) - shift
    product = jnp.sum(jax.nn.logsumexp(pairs, axis=1) - shift, axis=-1)
    return jnp.mean(joint - product)


def k_curve(log_w: Array) -> dict[int, Array]:
    """{k: the bound of k draws (n,)} for k = 1, 2, 5, 10, …, K, from log w (n, K): each is the mean over as many groups
    of k draws as there are, so that they share their draws."""
    n, most = log_w.shape
    ks = [m * 10**e for e in range(len(str(most))) for m in (1, 2, 5) if m * 10**e < most] + [most]
    groups = {k: log_w[:, : most // k * k].reshape(n * (most // k), k) for k in ks}
    return {k: jnp.mean(importance_weighted(group).reshape(n, -1), axis=1) for k, group in groups.items()}
