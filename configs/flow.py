"""Flow matching (Lipman et al. 2023; Liu et al. 2023), and MeanFlow (Geng et al. 2025).

    python -m aigc_jax.main --config=configs/flow.py --workdir=runs/flow
    python -m aigc_jax.main --config=configs/flow.py:moons,ot --workdir=runs/moons
    python -m aigc_jax.main --config=configs/flow.py:mnist,c2ot --config.data.name=idx:DIR --workdir=runs/mnist

The first trains on scikit-learn's 8×8 digits. A finished run is sampled in other ways by sample.solver, sample.steps
and sample.guidance.

What is not set here has its default: configs/fields.md holds every field, its default and what it means.
"""

from ml_collections import ConfigDict


def get_config():
    return ConfigDict(
        dict(
            total_steps=4000,
            steps_per_call=100,
            log_every_steps=100,
            eval_every_steps=2000,
            checkpoint_every_steps=2000,
            optim=dict(
                model=dict(
                    name='adam',
                    schedule=dict(name='cosine_decay_schedule', init_value=1e-3, decay_percent=100.0, alpha=0.01),
                    clip_norm=1.0,
                    ema_decay=0.999,
                ),
            ),
            data=dict(name='digits', scale='symmetric'),
            model=dict(
                kind='unet', conditional=True, network=dict(features=(32, 64), depth=1, attention=0, activation='silu')
            ),
            task=dict(name='flow', class_dropout=0.1),
        )
    )


_POINTS = {
    'total_steps': 20_000, 'batch_size': 256, 'eval_every_steps': 5000, 'checkpoint_every_steps': 5000,
    'data.scale': 'unit', 'model.kind': 'mlp', 'model.conditional': False,
    'model.network': {'width': 128, 'depth': 3, 'expansion': 4, 'activation': 'gelu'},
    'sample.tolerance': 1e-4, 'eval.nll_tolerance': 1e-4, 'eval.probes': 0,
}  # fmt: skip

VARIANTS = {
    # Seconds on a CPU, for tests.
    'smoke': {
        'total_steps': 40, 'steps_per_call': 10, 'log_every_steps': 10, 'eval_every_steps': 20,
        'checkpoint_every_steps': 20, 'batch_size': 32, 'eval.num_samples': 200, 'eval.num_shown': 16,
        'model.kind': 'mlp', 'model.conditional': False, 'data.num_examples': 1000, 'eval.extractor': '',
        'model.network': {'width': 16, 'depth': 1, 'expansion': 2, 'activation': 'gelu'}, 'sample.tolerance': 1e-2,
        'eval.nll_tolerance': 1e-2, 'eval.transport_samples': 200,
    },
    'ring8': {**_POINTS, 'data.name': 'ring8'},
    # Eight Gaussians to two moons (Tong et al. 2024), in the network and schedule of Cheng & Schwing 2025.
    'moons': {
        **_POINTS, 'data.name': 'moons', 'task.source': 'eight_gaussians', 'optim.model.schedule.init_value': 3e-4,
        'optim.model.schedule.alpha': 1.0, 'optim.model.clip_norm': 0.0,
    },
    # The default.
    'digits': {},
    'mnist': {
        'data.name': 'idx:mnist', 'total_steps': 10_000, 'steps_per_call': 20, 'eval.batch_size': 250,
        'model.network': {'features': (32, 64, 64), 'depth': 1, 'attention': 0, 'activation': 'silu'},
    },
    # The rest goes behind the others: 'moons,ot', 'digits,meanflow'.
    'conditional': {'model.conditional': True},
    'ot': {'task.coupling': 'optimal'},
    'c2ot': {'task.coupling': 'class_optimal', 'model.conditional': True},
    # In one step (Geng et al. 2025, section 5, but for guidance inside the objective; their time runs the other way).
    'meanflow': {
        'task.objective': 'mean_velocity', 'task.time': 'logit_normal', 'task.time_mean': 0.4, 'task.weight_power': 1.0,
        'sample.solver': 'mean_flow', 'sample.steps': 1,
    },
}  # fmt: skip
