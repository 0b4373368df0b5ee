"""VAEs on statically binarized MNIST: −log p of the 10,000 test images, by importance sampling.

    python -m aigc_jax.study --config=configs/studies/binarized_mnist.py:DIR --workdir=runs/binarized_mnist

DIR holds binarized_mnist_train.amat, binarized_mnist_valid.amat and binarized_mnist_test.amat, compressed or not. This
study takes days on two cores, and goes on where it was ended: about 0.7 hours a seed for the VAE, 1 each for one
sample in the bound, for five, and for the flow as the prior, and 2 for the VampPrior. Fifty samples were not timed;
they decode ten times as much as five. --row=R runs one row.

Burda et al. train for 3,280 epochs, and these rows for 400. So they say whether a run of hours reaches the published
values, and not whether those runs can be made again.
"""

from aigc_jax.studies.claims import Claim, Published, Study, Versus

_METRIC = 'model/nll'
_EVALUATE = {'eval.k': 5000, 'eval.k_chunk': 50, 'eval.batch_size': 20}
# What another code makes of the same settings: the values that Pythae obtained differ by 0.12 (VAE), 0.22 (VampPrior)
# and 0.28 nats (50 samples) from those of the papers.
_TOLERANCE = 0.3
_PYTHAE = 'as github.com/clementchadebec/benchmark_VAE has it'
_BURDA = 'arXiv:1509.00519, table 3, of 3,280 epochs'
_IWAE = '../vae.py:binarized_mnist,iwae'
_VAMP = {
    'model.encoder.features': (300, 300), 'model.decoder.features': (300, 300),
    'optim.model.schedule.init_value': 1e-3, 'task.kl_warmup_steps': 60_000, 'eval_every_steps': 40_000,
}  # fmt: skip
_FLOW_PRIOR = {
    'model.encoder.block': 'plain', 'model.decoder.block': 'plain', 'model.latent_dim': 40, 'total_steps': 50_000,
    'eval_every_steps': 25_000, 'log_every_steps': 500, 'checkpoint_every_steps': 2500, 'eval.k': 4, 'eval.k_chunk': 4,
    'optim.model.schedule.init_value': 2e-3,
}  # fmt: skip


def study(folder):
    """folder: of the .amat files."""

    def claim(name, words, config, expected=None, evaluate=_EVALUATE, **fields):
        return Claim(
            name=name, claim=words, config=config, fields={**fields, 'data.name': f'amat:{folder}'}, evaluate=evaluate,
            metric=_METRIC, better='min', expected=expected,
        )  # fmt: skip

    published = lambda value, source: Published(value, tolerance=_TOLERANCE, source=source)
    one, fifty, doubly = {'task.k': 1}, {'task.k': 50}, {'task.estimator': 'dreg'}
    claims = [
        claim(
            'vae', 'A VAE with one hidden layer of 400 units reaches its published value',
            '../vae.py:binarized_mnist', published(89.9, f'arXiv:1505.05770, {_PYTHAE}'), num_seeds=3,
        ),
        claim(
            'iwae-1', 'The network of the IWAE, trained by the ELBO, reaches its published value', _IWAE,
            published(88.71, _BURDA), **one,
        ),
        claim(
            'iwae-5', 'The IWAE with five samples reaches its published value', _IWAE, published(87.63, _BURDA),
        ),
        claim(
            'iwae-50', 'The IWAE with fifty samples reaches its published value', _IWAE,
            published(87.1, f'arXiv:1509.00519, {_PYTHAE}'), **fifty,
        ),
        claim('five', 'Five samples in the bound are better than one', _IWAE, Versus('iwae-1')),
        claim('fifty', 'Fifty samples in the bound are better than five', _IWAE, Versus('iwae-5'), **fifty),
        claim(
            'dreg-5', "With five samples the encoder's doubly reparameterized gradient is better than the usual one",
            _IWAE, Versus('iwae-5'), **doubly,
        ),
        claim(
            'dreg-50', "With fifty samples the encoder's doubly reparameterized gradient is better than the usual one",
            _IWAE, Versus('iwae-50'), **fifty, **doubly,
        ),
        claim(
            'vamp', 'A VAE with a VampPrior of 500 pseudo-inputs reaches its published value',
            '../vae.py:binarized_mnist,vamp', published(85.57, f'arXiv:1705.07120, {_PYTHAE}'), **_VAMP,
        ),
        claim(
            'flow-prior', 'A convolutional VAE with a RealNVP as its prior, after 83 epochs',
            '../vae.py:binarized_mnist,conv,flow_prior', evaluate={'eval.k': 64}, **_FLOW_PRIOR,
        ),
    ]  # fmt: skip
    return Study(title='VAEs on statically binarized MNIST', claims=claims, seeds=3)
