"""Couplings of flow matching from eight Gaussians to two moons, as figure 1 of Cheng & Schwing (2025) compares them.

    python -m aigc_jax.study --config=configs/studies/moons.py --workdir=runs/moons

Below each of their pictures stands the squared 2-Wasserstein distance of 10,000 samples to as many points, mean ±
standard deviation over 10 runs: in the upper row of one Euler step, in the lower one of dopri5. As in their code, a run
has 20,000 steps of 256 examples and keeps no average of its parameters. Their couplings are of 1024 pairs, from which
four batches are cut; here they are of the 256 pairs of a batch.
"""

from aigc_jax.studies.claims import Claim, Published, Study, Versus

_SOURCE = 'arXiv:2503.10636, figure 1'
_METRIC = 'samples/squared_wasserstein'
_FIELDS = {'optim.model.ema_decay': 0.0}
# name: (config, what is coupled, {solver: the published mean and standard deviation})
_ROWS = {
    'fm': ('../flow.py:moons', 'Independent pairs', {'euler': (6.232, 0.186), 'adaptive': (0.120, 0.045)}),
    'ot': ('../flow.py:moons,ot', 'Optimal transport', {'euler': (0.072, 0.025), 'adaptive': (0.050, 0.040)}),
    'class-fm': (
        '../flow.py:moons,conditional', 'Independent pairs, given the class',
        {'euler': (2.573, 0.112), 'adaptive': (0.059, 0.029)},
    ),
    'class-ot': (
        '../flow.py:moons,ot,conditional', 'Optimal transport, given the class',
        {'euler': (0.483, 0.059), 'adaptive': (0.462, 0.025)},
    ),
    'class-c2ot': (
        '../flow.py:moons,c2ot', 'Optimal transport inside each class',
        {'euler': (0.048, 0.010), 'adaptive': (0.018, 0.006)},
    ),
}  # fmt: skip
# What these claims compare: (name, the row that is better, the one that it is better than, in words)
_COMPARED = (
    ('straight', 'ot-euler', 'fm-euler', 'Optimal transport makes the paths straighter'),
    ('skewed', 'class-fm-adaptive', 'class-ot-adaptive', 'Optimal transport that ignores the class misses the data'),
    ('straight-c2ot', 'class-c2ot-euler', 'class-fm-euler', 'Inside each class, it makes the paths straighter'),
    ('mended', 'class-c2ot-adaptive', 'class-ot-adaptive', 'Inside each class, it does not miss the data'),
)


# How a run is evaluated by each solver.
_EVALUATIONS = {
    'euler': {'eval.transport_samples': 10_000, 'sample.solver': 'euler', 'sample.steps': 1},
    'adaptive': {'eval.transport_samples': 10_000},
}
# The distance of a perfect sampler from 10,000 points: another draw has another share on each moon. In their code both
# moons have the same number of points.
_FLOOR = 0.026


def study():
    claims = {}
    for row, (config, coupling, published) in _ROWS.items():
        for solver, (mean, sd) in published.items():
            claims[f'{row}-{solver}'] = Claim(
                name=f'{row}-{solver}', claim=f'{coupling}: {"one Euler step" if solver == "euler" else "dopri5"}',
                config=config, fields=_FIELDS, evaluate=_EVALUATIONS[solver], metric=_METRIC, better='min',
                expected=Published(mean, sd=sd, n=10, tolerance=_FLOOR, source=_SOURCE),
            )  # fmt: skip
    compared = [
        Claim(
            name=name, claim=words, config=claims[row].config, fields=_FIELDS, evaluate=claims[row].evaluate,
            metric=_METRIC, better='min', expected=Versus(than),
        )
        for name, row, than, words in _COMPARED
    ]  # fmt: skip
    claims = [*claims.values(), *compared]
    return Study(title='Couplings of flow matching: eight Gaussians to two moons', claims=claims, seeds=10)
