"""What the article that the project began from says of VAEs and GANs, measured on points in the plane by data size.

    python -m aigc_jax.study --config=configs/studies/article_claims.py --workdir=runs/article_claims

It says that a VAE's samples lack diversity, that a GAN's training is unstable, and that a GAN needs more data. A VAE, a
GAN and a flow are trained on 100, 1000 and 100,000 points for as many steps, with two hidden layers of 64 units (the
flow: two blocks of that width), 16 seeds each. `ring8` has modes, which say what diversity is; of `moons`, the
Wasserstein distance tells both missing and misplaced samples. None of the three was tuned for these sizes.
"""

from aigc_jax.studies.claims import Claim, Study, Versus

_SIZES = 100, 1000, 100_000
_FIELDS = {
    'num_seeds': 16, 'total_steps': 4000, 'eval_every_steps': 4000, 'checkpoint_every_steps': 4000,
    'log_every_steps': 500, 'batch_size': 128, 'data.scale': 'standard', 'eval.num_samples': 2500,
}  # fmt: skip
_FAMILIES = {
    'vae': ('../vae.py:points', {
        'model.encoder.features': (64, 64), 'model.decoder.features': (64, 64), 'eval.best_metric': '', 'eval.k': 8,
    }),
    'gan': ('../gan.py:ring8', {
        'model.generator.features': (64, 64), 'model.discriminator.features': (64, 64),
    }),
    'flow': ('../flow.py:ring8', {
        'model.network.width': 64, 'model.network.depth': 2, 'model.network.expansion': 2, 'eval.nll_examples': 100,
        'eval.nll_tolerance': 1e-2, 'sample.tolerance': 1e-2,
    }),
}  # fmt: skip
# name: (data, what is measured of them, {family: (the family that it is said to be better than, the claim)})
_CLAIMS = {
    'modes': ('ring8', dict(metric='samples/modes', better='max'), {
        'vae': ('', 'Diversity: how many modes a VAE covers'),
        'gan': ('vae', 'Diversity: a GAN covers more modes than a VAE'),
        'flow': ('vae', 'Diversity: a flow covers more modes than a VAE'),
    }),
    'sharp': ('ring8', dict(metric='samples/high_quality', better='max'), {
        'vae': ('', 'Sharpness: how many samples of a VAE lie in a mode, in percent'),
        'gan': ('vae', 'Sharpness: more samples of a GAN than of a VAE lie in a mode'),
        'flow': ('vae', 'Sharpness: more samples of a flow than of a VAE lie in a mode'),
    }),
    'share': ('ring8', dict(metric='samples/modes', better='max', reach=8.0), {
        'gan': ('', 'Stability: the share of seeds of a GAN that cover all modes'),
        'vae': ('gan', 'Stability: more seeds of a VAE than of a GAN cover all modes'),
        'flow': ('gan', 'Stability: more seeds of a flow than of a GAN cover all modes'),
    }),
    'distance': ('moons', dict(metric='samples/squared_wasserstein', better='min'), {
        'gan': ('', 'Hunger for data: how far the samples of a GAN are from the data'),
        'vae': ('gan', 'Hunger for data: the samples of a VAE are nearer to the data than those of a GAN'),
        'flow': ('gan', 'Hunger for data: the samples of a flow are nearer to the data than those of a GAN'),
    }),
}  # fmt: skip


def study():
    claims = []
    for size in _SIZES:
        for what, (data, measured, families) in _CLAIMS.items():
            for family, (than, words) in families.items():
                config, fields = _FAMILIES[family]
                own = {'data.name': data, 'data.num_examples': size}
                claims.append(Claim(
                    name=f'{what}-{family}-{size}', claim=f'{words}; of {size} points', config=config,
                    fields=_FIELDS | fields | own, **measured,
                    expected=Versus(f'{what}-{than}-{size}') if than else None,
                ))  # fmt: skip
    return Study(title='What is said of VAEs and GANs', claims=claims, seeds=16)
