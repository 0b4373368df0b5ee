"""How many of 64 seeds cover all modes of a mixture in the plane, by the objective and what regularizes D.

    python -m aigc_jax.study --config=configs/studies/gan_stability.py --workdir=runs/gan_stability

Networks of two hidden layers of 64 units, 4000 steps in batches of 128, one step of D for each of G, learning rates and
the averaged generator of configs/gan.py. A mode is covered where one of 2500 samples lies within 3 standard deviations
of it, as in VEEGAN and PacGAN.

Table 1 of PacGAN (Lin et al. 2018) stands beside two of the rows. Its networks are others: G has four hidden layers of
400 units with batch norm, D three of 200 maxout units, and they are trained for 400,000 steps with a learning rate of
1e-4. So these rows say whether its numbers hold for a GAN of today's settings, and not whether its runs can be made
again.
"""

from aigc_jax.studies.claims import Claim, Published, Study, Versus

_STEPS = 4000
_FIELDS = {
    'num_seeds': 16, 'total_steps': _STEPS, 'eval_every_steps': 500, 'checkpoint_every_steps': _STEPS,
    'log_every_steps': 500, 'batch_size': 128, 'model.generator.features': (64, 64),
    'model.discriminator.features': (64, 64), 'eval.num_samples': 2500,
}  # fmt: skip
_MODES = {'ring8': 8, 'grid25': 25}
_OBJECTIVES = {
    'nonsaturating': 'the non-saturating loss', 'least_squares': 'least squares', 'hinge': 'the hinge loss',
    'relativistic': 'the relativistic loss',
}  # fmt: skip
_PLAIN = {'task.r1': 0.0, 'task.r2': 0.0}
# Without this entry: R1 and R2 in the strength that the config has for these data.
_SETTINGS = {
    **{loss: ({'task.loss': loss, **_PLAIN}, f'{words} alone') for loss, words in _OBJECTIVES.items()},
    **{f'{loss}-r1r2': ({'task.loss': loss}, f'{words} with R1 and R2') for loss, words in _OBJECTIVES.items()},
    'nonsaturating-packed': (
        {'task.loss': 'nonsaturating', **_PLAIN, 'task.packing': 4}, 'the non-saturating loss on packs of 4',
    ),
    'wasserstein-gp': (
        {'task.loss': 'wasserstein', **_PLAIN, 'task.gradient_penalty': 10.0}, 'Wasserstein with a gradient penalty',
    ),
}  # fmt: skip
_TABLE = 'arXiv:1712.04086, table 1, of other networks and 400,000 steps'
# ± as printed, which the table may mean as a standard deviation or an error. Within a twentieth of the modes they are
# the same here.
_PUBLISHED = {
    ('ring8', 'nonsaturating'): Published(6.3, sd=0.5, tolerance=0.4, source=_TABLE),
    ('grid25', 'nonsaturating'): Published(17.3, sd=0.8, tolerance=1.25, source=_TABLE),
    ('ring8', 'nonsaturating-packed'): Published(7.8, tolerance=0.4, source=_TABLE),
    ('grid25', 'nonsaturating-packed'): Published(24.8, tolerance=1.25, source=_TABLE),
}


def study():
    claims = []
    for data, modes in _MODES.items():
        for setting, (fields, words) in _SETTINGS.items():
            name = f'{data}-{setting}'
            common = dict(
                config=f'../gan.py:{data}', fields=_FIELDS | fields, metric='samples/modes',
            )  # fmt: skip
            # Against the same objective without a regularizer.
            plain = setting.removesuffix('-r1r2').removesuffix('-packed')
            than = Versus(f'{data}-{plain}') if plain in _OBJECTIVES and plain != setting else None
            claims.append(Claim(
                name=name, claim=f'{data}: {words} covers all {modes} modes', reach=float(modes), better='max',
                expected=than, **common,
            ))  # fmt: skip
            claims.append(Claim(
                name=f'{name}-steps', claim=f'{data}: {words}, the step at which all modes are covered first',
                reach=float(modes), first_step=True, better='min', **common,
            ))  # fmt: skip
            if published := _PUBLISHED.get((data, setting)):
                claims.append(Claim(
                    name=f'{name}-modes', claim=f'{data}: the modes that {words} covers', better='max',
                    expected=published, **common,
                ))  # fmt: skip
    return Study(title='Which GANs cover all modes', claims=claims, seeds=64)
