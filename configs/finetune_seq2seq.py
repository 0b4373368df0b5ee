"""An encoder-decoder that writes the target of each pair of texts, from scratch or from a pre-trained model.

    python -m aigc_jax.main --config=configs/t5.py --config.data.name=python-modules --workdir=runs/t5
    python -m aigc_jax.main --config=configs/finetune_seq2seq.py --config.init.run=runs/t5 --workdir=runs/docstrings
    python -m aigc_jax.main --mode=sample --workdir=runs/docstrings --prompt='def add(a, b): return a + b' --beam_size=4

It summarizes functions of Python's standard library, of which runs/t5 has seen none that is held out; nothing is
downloaded. `--config.data.name=pairs:FILE` names a file of your own (aigc_jax/data/README.md) with a code and a
docstring a line; for other names add `--config.data.columns="('source', 'target')"`. The model is that of
configs/t5.py, and the tokenizer is that of init.run, or reads bytes.

What is not set here has its default: configs/fields.md holds every field, its default and what it means.
"""

from ml_collections import ConfigDict


def get_config():
    return ConfigDict(
        dict(
            total_steps=1000,
            batch_size=16,
            eval_every_steps=250,
            checkpoint_every_steps=250,
            optim=dict(
                model=dict(
                    name='adamw',
                    options=dict(b1=0.9, b2=0.98, weight_decay=0.01),
                    schedule=dict(
                        name='warmup_cosine_decay_schedule',
                        init_value=0.0,
                        peak_value=5e-4,
                        warmup_percent=10.0,
                        decay_percent=100.0,
                        end_value=0.0,
                    ),
                    clip_norm=1.0,
                    weight_decay_regex='kernel',
                ),
            ),
            data=dict(name='docstrings', columns=('code', 'docstring'), special=('pad',), block=256, target_block=64),
            model=dict(
                layers=3,
                heads=4,
                width=128,
                mlp_width=512,
                activation='geglu',
                tied=False,
                dropout=0.1,
                attention='einsum',
            ),
            task=dict(name='seq2seq'),
            eval=dict(split='valid', batch_size=64, num_shown=16, best_metric='model/nats_per_token'),
        )
    )


VARIANTS = {
    # The name of a function, from its body.
    'name': {'data.columns': ('code', 'name'), 'data.target_block': 24},
    # A function from its docstring.
    'code': {
        'data.columns': ('docstring', 'code'), 'data.block': 64, 'data.target_block': 256, 'eval.code_bleu': True,
    },
    # Both, of one model: CodeT5's bimodal dual generation.
    'both_ways': {'data.both_ways': True, 'data.target_block': 256},
    # Seconds on a CPU, for tests.
    'smoke': {
        'total_steps': 40, 'steps_per_call': 1, 'log_every_steps': 10, 'eval_every_steps': 20,
        'checkpoint_every_steps': 20, 'batch_size': 8, 'eval.batch_size': 64, 'data.columns': ('code', 'name'),
        'data.block': 24, 'data.target_block': 12, 'model.layers': 1,
        'model.heads': 2, 'model.width': 16, 'model.mlp_width': 32, 'eval.num_generated': 20, 'eval.num_shown': 4,
    },
}  # fmt: skip
