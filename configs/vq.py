"""An auto-encoder of discrete latents, VQ-VAE or FSQ, and the Transformer over its codes, trained in one run
(van den Oord et al. 2017; Mentzer et al. 2024).

    python -m aigc_jax.main --config=configs/vq.py --workdir=runs/vq
    python -m aigc_jax.main --config=configs/vq.py:mnist,fsq --config.data.name=idx:DIR --workdir=runs/fsq

The first trains on scikit-learn's 8×8 digits. configs/README.md holds what each is measured to reach, and how fast.

What is not set here has its default: configs/fields.md holds every field, its default and what it means.
"""

from ml_collections import ConfigDict


def get_config():
    return ConfigDict(
        dict(
            total_steps=1000,
            eval_every_steps=250,
            checkpoint_every_steps=250,
            optim=dict(
                model=dict(
                    name='adam',
                    options=dict(b1=0.9, b2=0.99),
                    schedule=dict(name='cosine_decay_schedule', init_value=1e-3, decay_percent=100.0, alpha=0.01),
                    # The learned scale of a likelihood, where there is one: Adam moves each parameter by the rate at
                    # most, and log σ has further to go than a weight.
                    learning_rate_rules=(('log_scale', 10.0),),
                ),
                prior=dict(
                    name='adamw',
                    options=dict(b1=0.9, b2=0.99, weight_decay=0.1),
                    schedule=dict(
                        name='warmup_cosine_decay_schedule',
                        init_value=0.0,
                        peak_value=2e-3,
                        warmup_percent=5.0,
                        decay_percent=100.0,
                        end_value=0.0,
                    ),
                    clip_norm=1.0,
                ),
            ),
            data=dict(name='digits'),
            model=dict(
                quantizer=dict(name='vq', codes=32, dim=8, commitment=0.25, decay=0.99, revive_below=0.03),
                encoder=dict(features=(32,), block='residual', norm='group', activation='silu'),
                decoder=dict(features=(32,), block='residual', norm='group', activation='silu'),
                prior=dict(
                    layers=2,
                    heads=4,
                    kv_heads=4,
                    width=64,
                    mlp_width=256,
                    position='learned',
                    norm='rmsnorm',
                    activation='relu2',
                    qk_norm=True,
                    bias=False,
                    zero_init=True,
                    tied=False,
                    softcap=0.0,
                    window=0,
                    dropout=0.1,
                    attention='einsum',
                    remat=False,
                ),
            ),
            task=dict(name='vq', likelihood='bernoulli'),
            eval=dict(best_metric='model/nll_bound'),
        )
    )


VARIANTS = {
    # Seconds on a CPU, for tests.
    'smoke': {
        'total_steps': 40, 'steps_per_call': 1, 'log_every_steps': 10, 'eval_every_steps': 20,
        'checkpoint_every_steps': 20, 'batch_size': 32, 'eval.num_shown': 16, 'data.num_examples': 1000,
        'eval.extractor': '', 'eval.num_samples': 200,
        'model.quantizer.codes': 16, 'model.quantizer.dim': 4, 'model.encoder.features': (8,),
        'model.decoder.features': (8,), 'model.prior.layers': 1, 'model.prior.heads': 2, 'model.prior.kv_heads': 2,
        'model.prior.width': 16, 'model.prior.mlp_width': 32,
    },
    # 240 codes without a codebook; about as many as 'mnist' has with one.
    'fsq': {'model.quantizer': {'name': 'fsq', 'levels': (8, 6, 5)}},
    # 28×28 to 7×7 codes, with networks that minutes on a CPU suffice for.
    'mnist': {
        'data.name': 'idx:mnist', 'batch_size': 64, 'total_steps': 10_000, 'eval_every_steps': 1000,
        'checkpoint_every_steps': 1000, 'model.quantizer.codes': 256,
        'model.encoder.features': (32, 64), 'model.encoder.block': 'plain', 'model.encoder.depth': 2,
        'model.decoder.features': (64, 32), 'model.decoder.block': 'plain', 'model.decoder.depth': 2,
        'model.prior.layers': 3,
    },
}  # fmt: skip
