"""How many of the 1000 modes of StackedMNIST GANs find, and how evenly: 26,000 samples, as in VEEGAN and PacGAN.

    python -m aigc_jax.study --config=configs/studies/stacked_mnist.py:DIR --workdir=runs/stacked_mnist

DIR holds the four files of MNIST. A seed takes about 40 minutes on one core, half of them for its evaluation, so that
the study takes about 6 hours in all; it goes on where it was ended.

A mode is what a classifier reads from the three channels. Each run trains the classifier on the digits of its data, by
a recipe that the seed has no part in, so that all runs have the same one up to rounding.

The runs have 3000 steps in batches of 64, 1.5 epochs of 128,000 images; those of PacGAN's code have 50 epochs. Beside
them stands table 3 of Huang et al. (2024), whose networks and classifier are others.
"""

from aigc_jax.studies.claims import Claim, Published, Study, Versus

_FIELDS = {
    'total_steps': 3000, 'eval_every_steps': 1000, 'checkpoint_every_steps': 500, 'eval.num_samples': 26_000,
}  # fmt: skip
_TABLE = 'arXiv:2501.05441, table 3, of another network and much longer training'
_PACKED = {'task.packing': 2}
_MODES, _KL = ('samples/modes', 'max'), ('samples/uniform_kl', 'min')


def study(folder):
    """folder: of the files of MNIST."""

    def claim(name, words, variant, metric, expected, **fields):
        metric, better = metric
        return Claim(
            name=name, claim=words, config=f'../gan.py:{variant},stacked', metric=metric, better=better,
            fields={**fields, **_FIELDS, 'data.name': f'stacked:idx:{folder}'}, expected=expected,
        )  # fmt: skip

    published = lambda value, tolerance: Published(value, tolerance=tolerance, source=_TABLE)
    relativistic, packed = 'The relativistic loss with R1 and R2', 'A DCGAN whose D judges two images at once'
    claims = [
        # The table has no spread. A twentieth of the modes is not what it is about.
        claim('dcgan-modes', 'A DCGAN loses nine modes of ten', 'dcgan', _MODES, published(99, 50)),
        claim('dcgan-kl', 'The samples of a DCGAN are far from equal shares', 'dcgan', _KL, published(3.40, 0.1)),
        claim(
            'pacdcgan2-modes', f'{packed} finds more modes', 'dcgan', _MODES, Versus('dcgan-modes'), **_PACKED,
        ),
        claim(
            'pacdcgan2-kl', f'{packed} is nearer to equal shares', 'dcgan', _KL, Versus('dcgan-kl'), **_PACKED,
        ),
        claim('rpgan-modes', f'{relativistic} finds all modes', 'rpgan', _MODES, published(1000, 1)),
        # The shares of the digits alone put a perfect sampler 0.005 farther from equal shares than sampling does.
        claim('rpgan-kl', f'{relativistic} is as near to equal shares as R3GAN', 'rpgan', _KL, published(0.029, 0.005)),
        claim(
            'rpgan-covers', f'{relativistic} finds more modes than a DCGAN', 'rpgan', _MODES, Versus('dcgan-modes'),
        ),
        claim(
            'rpgan-evens', f'{relativistic} is nearer to equal shares than a DCGAN', 'rpgan', _KL, Versus('dcgan-kl'),
        ),
    ]  # fmt: skip
    return Study(title='Modes of StackedMNIST', claims=claims, seeds=3)
