"""Values that are known exactly, each reached by a training: a few minutes on two cores.

    python -m aigc_jax.study --config=configs/studies/oracles.py --workdir=runs/oracles

Exact values are of the split that the claim evaluates, so that its being a sample does not come in: the true density's
mean −log p of it. Only 2.8379 nats is an expectation.
"""

import math
import pathlib

import numpy as np
import scipy.stats
from sklearn.decomposition import PCA

from aigc_jax import data
from aigc_jax.core import user_code
from aigc_jax.runs import config as config_lib
from aigc_jax.studies.claims import Claim, Published, Study

_HERE = pathlib.Path(__file__).parent
_SHORT = {'num_seeds': 3, 'steps_per_call': 100, 'log_every_steps': 1000}


def _steps(count: int) -> dict[str, int]:
    return {'total_steps': count, 'eval_every_steps': count, 'checkpoint_every_steps': count}


# Without hidden layers, encoder and decoder are linear. The encoder's log-variance is linear in x, too, and has to
# become constant.
_LATENT = 4
_LINEAR = {
    **_SHORT, **_steps(5000), 'data.name': 'digits', 'task.likelihood': 'gaussian', 'batch_size': 256,
    'model.latent_dim': _LATENT, 'model.encoder.features': (), 'model.decoder.features': (), 'eval.extractor': '',
    'optim.model.schedule.init_value': 3e-2, 'optim.model.learning_rate_rules': (), 'eval.best_metric': '',
}  # fmt: skip
_VAE = {
    **_SHORT, **_steps(3000), 'model.encoder.features': (64, 64), 'model.decoder.features': (64, 64),
    'eval.best_metric': '', 'eval.k': 1000, 'eval.k_chunk': 50, 'eval.transport_samples': 250,
}  # fmt: skip
_FLOW = {
    **_SHORT, **_steps(3000), 'model.network.width': 64, 'model.network.depth': 2, 'model.network.expansion': 2,
    'eval.nll_examples': 0, 'eval.nll_tolerance': 1e-3, 'sample.tolerance': 1e-2,
}  # fmt: skip
_LANGUAGE = {
    'num_seeds': 3, **_steps(600), 'batch_size': 32, 'model.layers': 2, 'model.heads': 2, 'model.kv_heads': 2,
    'model.width': 32, 'model.mlp_width': 64, 'data.block': 32, 'data.eval_block': 32, 'data.eval_stride': 16,
    'eval.best_metric': '', 'eval.ngram_order': 3, 'eval.num_samples': 0, 'eval.num_shown': 2, 'eval.sample_tokens': 10,
}  # fmt: skip


def _examples(config: str, overrides: list[tuple[str, str]], split: str) -> np.ndarray:
    """x of a split, (n, D) float64, in the data's own units."""
    dataset = data.load(config_lib.load(str(_HERE / config), overrides).data)
    source = dataset.splits[split]
    x = dataset.spec.to_data(source[np.arange(len(source))]['x'])
    return np.asarray(x, np.float64).reshape(len(source), -1)


def _known(value: float, tolerance: float, source: str) -> Published:
    """Rounded, so that another machine's last bits do not make it another study."""
    return Published(round(value, 6), tolerance=tolerance, source=source)


def _ppca() -> tuple[float, float, float]:
    """(mean −log p of train, of test, mean KL(q(z given x) ‖ p(z)) of train) of the maximum of the likelihood."""
    train, test = (_examples('../vae.py', [], split) for split in ('train', 'test'))
    pca = PCA(_LATENT, svd_solver='full').fit(train)
    # KL_j = ½ (E μ_j² + s_j² − ln s_j² − 1) with s_j² = σ²/λ_j and E μ_j² = 1 − σ²/λ_j (Tipping & Bishop 1999, eq. 7).
    rate = 0.5 * np.log(pca.explained_variance_ / pca.noise_variance_).sum()
    return -pca.score(train), -pca.score(test), float(rate)


def study():
    train_nll, test_nll, rate = _ppca()
    gaussian = user_code.load(_HERE / 'own' / 'gaussian.py', 'config')
    markov = user_code.load(_HERE / 'own' / 'markov.py', 'config')
    test = gaussian.load(None)['test']['x']
    gaussian_nll = -float(scipy.stats.multivariate_normal(gaussian.MEAN, gaussian.COVARIANCE).logpdf(test).mean())
    standard = _examples('../flow.py:ring8', [('data.name', 'gaussian2d')], 'test')
    standard_nll = math.log(2 * math.pi) + 0.5 * float(np.square(standard).sum(axis=1).mean())
    chain = markov.nats(markov.load(None)['test'])

    # 0.05 nats are 0.001 bits a pixel. A latent dimension more changes the test split's value by 2.5, one less by 3.0.
    ppca = dict(config='../vae.py', fields=_LINEAR)
    of_train = {'eval.final_split': 'train'}
    tipping = 'the maximum of the likelihood of probabilistic PCA, Tipping & Bishop 1999 (scikit-learn)'
    # The KL of a Gaussian in the plane whose standard deviations are 7 % off is 2 · 0.07² = 0.01 nats.
    plane = 0.01
    # log p of any x is too low by Var(w / E w) / 2k (Nowozin 2018, eq. 5): 0.005 where that variance is 10.
    bias = 0.005
    claims = [
        Claim(
            name='ppca-train', claim='A linear Gaussian VAE becomes probabilistic PCA: the likelihood of its own data',
            metric='model/nll', better='min', evaluate=of_train, **ppca,
            expected=_known(train_nll, 0.05, tipping),
        ),
        Claim(
            name='ppca-test', claim='A linear Gaussian VAE becomes probabilistic PCA: the likelihood of other data',
            metric='model/nll', better='min', **ppca,
            expected=_known(test_nll, 0.05, tipping),
        ),
        Claim(
            # Of one draw of z for each of 1437 images, whose reconstruction has a standard deviation of √(4 / 2) nats:
            # 0.037 a seed, so that the interval of 3 seeds is ± 0.09.
            name='ppca-elbo', claim='The ELBO of a linear Gaussian VAE is the likelihood: its posterior is exact',
            metric='model/elbo', better='max', evaluate=of_train, **ppca,
            expected=_known(-train_nll, 0.15, tipping),
        ),
        Claim(
            name='ppca-rate', claim='Its KL is half the sum of the logarithms of eigenvalues over the noise',
            metric='model/kl', better='min', evaluate=of_train, **ppca,
            expected=_known(rate, 0.05, '½ Σ ln(λⱼ / σ²), of Tipping & Bishop 1999, eq. 7 and 8'),
        ),
        Claim(
            name='quadrature', claim='Importance sampling with 1000 draws finds the likelihood that quadrature finds',
            config='own/quadrature.py', fields=_VAE, metric='model/quadrature_gap', better='min',
            floors=('model/quadrature_coarse',),
            expected=_known(0.0, bias, 'log ∫ p(x given z) p(z) dz of the trained decoder, by the '
                               'trapezoidal rule on 257 × 257 nodes'),
        ),
        Claim(
            name='entropy-flow', claim='A flow of N(0, I) in the plane reaches its entropy',
            # The mean of −log p of 10,000 draws has a standard error of 0.01.
            config='../flow.py:ring8', fields={**_FLOW, 'data.name': 'gaussian2d', 'eval.num_samples': 500},
            metric='model/nll', better='min',
            expected=_known(1 + math.log(2 * math.pi), 0.02 + plane, '1 + ln 2π'),
        ),
        Claim(
            name='entropy-vae', claim='A VAE of N(0, I) in the plane reaches its entropy',
            config='../vae.py:points',
            fields={
                **_VAE, **_steps(2000), 'data.name': 'gaussian2d', 'model.encoder.features': (32,),
                'model.decoder.features': (32,), 'eval.num_samples': 500, 'eval.k': 64, 'eval.k_chunk': 64,
            },
            metric='model/nll', better='min',
            expected=_known(1 + math.log(2 * math.pi), 0.02 + plane, '1 + ln 2π'),
        ),
        Claim(
            name='standard-flow', claim='The same flow gives the test points the likelihood that N(0, I) gives them',
            config='../flow.py:ring8', fields={**_FLOW, 'data.name': 'gaussian2d', 'eval.num_samples': 500},
            metric='model/nll', better='min',
            expected=_known(standard_nll, plane, 'mean −log N(x; 0, I) of the test split'),
        ),
        Claim(
            name='gaussian-flow', claim='A flow gives the points of a correlated Gaussian their likelihood',
            config='own/gaussian.py', fields={**_FLOW, 'eval.transport_samples': 500}, metric='model/nll', better='min',
            expected=_known(gaussian_nll, plane, 'mean −log N(x; μ, Σ) of the test split'),
        ),
        Claim(
            name='gaussian-flow-probe', claim="So does Hutchinson's estimate of the divergence, with one probe a point",
            config='own/gaussian.py', fields={**_FLOW, 'eval.transport_samples': 500}, metric='model/nll', better='min',
            # With one probe v the divergence of the map Σ^½ comes out as vᵀ M v, M = ½ ln Σ, which is wrong by ± 2 M₁₂,
            # 1.14 nats: by 0.011 in the mean of 10,000 points, so that the interval of 3 seeds is ± 0.03.
            evaluate={'eval.probes': 1},
            expected=_known(gaussian_nll, plane + 0.03, 'mean −log N(x; μ, Σ) of the test split'),
        ),
        Claim(
            name='kneser-ney', claim='A 3-gram model with Kneser-Ney smoothing finds a Markov chain of second order',
            # 36 contexts × 5 free numbers, estimated from 300,000 letters, cost 180 / (2 · 300,000) = 0.0003 nats.
            config='own/markov.py', fields=_LANGUAGE, metric='3-gram/nats_per_token', better='min',
            expected=_known(chain, 0.001, 'mean −log p of the test text under the chain'),
        ),
        Claim(
            # With one letter before it, a letter costs 1.65 nats.
            name='language', claim='So does a small Transformer',
            config='own/markov.py', fields=_LANGUAGE, metric='model/nats_per_token', better='min',
            floors=('3-gram/nats_per_token',),
            expected=_known(chain, 0.01, 'mean −log p of the test text under the chain'),
        ),
    ]
    return Study(title='Values that are known exactly', claims=claims, seeds=3)
