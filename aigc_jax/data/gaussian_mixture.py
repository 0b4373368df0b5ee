"""Gaussian mixtures with a known density, and the standard two-dimensional sets made of them."""

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True, eq=False)
class Mixture:
    """(1/K) sum_k N(means[k], std^2 I): equal weights, one isotropic std; means is (K, D) float64."""

    means: np.ndarray
    std: float

    def sample(self, rng: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray]:
        """n draws: x float32 (n, D), and the component that each came from, int32 (n,)."""
        component = rng.integers(len(self.means), size=n, dtype=np.int32)
        noise = rng.standard_normal((n, self.means.shape[1]))
        return (self.means[component] + self.std * noise).astype(np.float32), component


def gaussian2d() -> Mixture:
    """N(0, I_2): no model's negative log-likelihood falls below its entropy, 1 + ln 2 pi = 2.8379 nats."""
    return Mixture(np.zeros((1, 2)), 1.0)


def ring8() -> Mixture:
    """8 modes on a circle of radius 1, std 0.01.

    The "2D-ring" of VEEGAN (Srivastava et al. 2017, arXiv:1705.07761), in the numbers of PacGAN's code
    (Lin et al. 2018, arXiv:1712.04086): radius 1, variance 0.01^2. Radius 2, std 0.02 is this set doubled.
    """
    angles = np.arange(8) * (2 * np.pi / 8)
    # Rounded, so that cos and sin of another machine's library give the same bits.
    return Mixture(np.round(np.stack([np.cos(angles), np.sin(angles)], -1), 12) + 0.0, 0.01)


def grid25() -> Mixture:
    """25 modes on {-4, -2, 0, 2, 4}^2, std 0.05: the "2D-grid" of VEEGAN and PacGAN (see `ring8`)."""
    side = np.arange(-4.0, 5.0, 2.0)
    return Mixture(np.stack(np.meshgrid(side, side, indexing='ij'), -1).reshape(-1, 2), 0.05)


MIXTURES = {'gaussian2d': gaussian2d, 'ring8': ring8, 'grid25': grid25}
