"""The losses of adversarial players: each takes the logits D(x) and D(G(z)), (n,), and gives (L_D, L_G), (n,) each."""

import jax

from aigc_jax.core.types import Array


def nonsaturating(real: Array, fake: Array) -> tuple[Array, Array]:
    """L_D = −E log σ(D(x)) − E log(1 − σ(D(G(z)))), 2 log 2 at D = 0; L_G = −E log σ(D(G(z))).
    Goodfellow et al. 2014, eq. 1 and section 3."""
    return jax.nn.softplus(-real) + jax.nn.softplus(fake), jax.nn.softplus(-fake)


def saturating(real: Array, fake: Array) -> tuple[Array, Array]:
    """L_D as `nonsaturating`; L_G = E log(1 − σ(D(G(z)))), the game as it was posed. Goodfellow et al. 2014, eq. 1."""
    return jax.nn.softplus(-real) + jax.nn.softplus(fake), -jax.nn.softplus(fake)


def least_squares(real: Array, fake: Array) -> tuple[Array, Array]:
    """L_D = ½ E (D(x) − 1)² + ½ E D(G(z))²; L_G = ½ E (D(G(z)) − 1)². Mao et al. 2017, eq. 9."""
    return 0.5 * (real - 1) ** 2 + 0.5 * fake**2, 0.5 * (fake - 1) ** 2


def hinge(real: Array, fake: Array) -> tuple[Array, Array]:
    """L_D = E max(0, 1 − D(x)) + E max(0, 1 + D(G(z))); L_G = −E D(G(z)). Lim & Ye 2017; Miyato et al. 2018,
    eq. 16 and 17."""
    return jax.nn.relu(1 - real) + jax.nn.relu(1 + fake), -fake


def wasserstein(real: Array, fake: Array) -> tuple[Array, Array]:
    """L_D = E D(G(z)) − E D(x); L_G = −E D(G(z)). Arjovsky et al. 2017, eq. 2; wants clip_weights or a penalty. Their
    code's 100 critic steps before some of the generator's are left out: a step is one compiled program."""
    return fake - real, -fake


def relativistic(real: Array, fake: Array) -> tuple[Array, Array]:
    """L_D = −E log σ(D(x) − D(G(z))); L_G = −E log σ(D(G(z)) − D(x)), in pairs.
    Jolicoeur-Martineau 2019, eq. 5 and 6 (RpGAN); Huang et al. 2024 (R3GAN), whose eq. 2 is the zero-sum game of it,
    and whose code is this."""
    return jax.nn.softplus(fake - real), jax.nn.softplus(real - fake)


LOSSES = {f.__name__: f for f in (nonsaturating, saturating, least_squares, hinge, wasserstein, relativistic)}
ZERO_SUM = ('saturating', 'wasserstein')  # L_G = −L_D, but for E log σ(D(x)) or E D(x), which G does not reach
# Where D = 0 means that x is as likely real as generated.
CALIBRATED = ('nonsaturating', 'saturating', 'hinge')
