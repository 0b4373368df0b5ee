"""A decoder-only Transformer language model (Radford et al. 2019, and what the block has become since).

    python -m aigc_jax.main --config=configs/gpt.py --workdir=runs/gpt
    python -m aigc_jax.main --mode=sample --workdir=runs/gpt --prompt='The import statement'
    python -m aigc_jax.main --config=configs/gpt.py:code --workdir=runs/code

The first trains on the text of Python's help(), the last on the source code of its standard library; nothing is
downloaded. configs/README.md holds what each is measured to reach, and how long it takes.

What is not set here has its default: configs/fields.md holds every field, its default and what it means.
"""

from ml_collections import ConfigDict


def get_config():
    return ConfigDict(
        dict(
            total_steps=1000,
            batch_size=8,
            eval_every_steps=250,
            checkpoint_every_steps=250,
            optim=dict(
                model=dict(
                    name='muon',  # on the blocks' matrices, Adam on the rest
                    options=dict(
                        muon_weight_dimension_numbers='block.*kernel', adam_b1=0.9, adam_b2=0.95, weight_decay=0.0
                    ),
                    schedule=dict(
                        name='warmup_cosine_decay_schedule',
                        init_value=0.0,
                        peak_value=2e-2,
                        warmup_percent=5.0,
                        decay_percent=100.0,
                        end_value=0.0,
                    ),
                    clip_norm=1.0,
                    learning_rate_rules=(('embed|head|norm', 0.3),),
                ),
            ),
            data=dict(name='pydoc'),
            model=dict(
                kind='transformer',
                layers=4,
                heads=4,
                kv_heads=4,
                width=128,
                mlp_width=512,
                position='rope',
                norm='rmsnorm',
                activation='relu2',
                qk_norm=True,
                bias=False,
                zero_init=True,
                tied=False,
                softcap=15.0,
                window=0,
                dropout=0.0,
                attention='einsum',
                remat=False,
            ),
            task=dict(name='lm'),
            eval=dict(split='valid', batch_size=64, num_shown=4, best_metric='model/nats_per_token'),
        )
    )


# GPT-2's block and its optimizer.
_GPT2 = {
    'model.position': 'learned', 'model.norm': 'layernorm', 'model.activation': 'gelu', 'model.qk_norm': False,
    'model.bias': True, 'model.zero_init': False, 'model.tied': True, 'model.softcap': 0.0,
    'optim.model.name': 'adamw', 'optim.model.options': {'b1': 0.9, 'b2': 0.99, 'weight_decay': 0.1},
    'optim.model.schedule.peak_value': 1e-3, 'optim.model.schedule.end_value': 1e-4,
    'optim.model.learning_rate_rules': (), 'optim.model.weight_decay_regex': 'kernel|embedding',
}  # fmt: skip
# Tiny Shakespeare as nanoGPT divides it: the last 10 % are held out, and there is no test split.
_SHAKESPEARE = {
    'data.name': 'text:input.txt', 'data.tokenizer': 'char', 'data.valid_percent': 10.0, 'data.test_percent': 0.0,
    'data.block': 64, 'data.eval_stride': 32, 'eval.final_split': 'valid', 'eval.best_metric': '', 'batch_size': 12,
    'total_steps': 2000, 'eval_every_steps': 500, 'checkpoint_every_steps': 500,
    'eval.sample_tokens': 60, 'eval.ngram_order': 7,
}  # fmt: skip

VARIANTS = {
    # Seconds on a CPU, for tests.
    'smoke': {
        'total_steps': 40, 'steps_per_call': 1, 'log_every_steps': 10, 'eval_every_steps': 20,
        'checkpoint_every_steps': 20, 'batch_size': 8, 'eval.num_shown': 2, 'eval.sample_tokens': 10,
        'eval.num_samples': 2, 'eval.ngram_order': 2, 'eval.batch_size': 256, 'data.block': 48, 'data.eval_stride': 32,
        'model.layers': 2,
        'model.heads': 2, 'model.kv_heads': 1, 'model.width': 16, 'model.mlp_width': 32,
    },
    # Source code: the standard library of the Python that runs.
    'code': {'data.name': 'python-stdlib', 'total_steps': 5000},
    # The same, half of it as infilling.
    'infill': {
        'data.name': 'python-stdlib', 'total_steps': 5000, 'data.fim_rate': 0.5, 'data.fim_identifiers': 0.2,
    },
    # Below xz, in an hour on two cores: 2.8 M parameters.
    'code_large': {
        'data.name': 'python-stdlib', 'total_steps': 3000, 'batch_size': 8, 'data.block': 512, 'data.eval_stride': 256,
        'model.layers': 6, 'model.heads': 3, 'model.kv_heads': 3, 'model.width': 192, 'model.mlp_width': 768,
        'optim.model.ema_decay': 0.998, 'eval_every_steps': 1000, 'checkpoint_every_steps': 100, 'eval.batch_size': 32,
    },
    # Small programs from examples of what they give; the test split has other compositions than are trained on.
    'programs': {
        'data.name': 'programs', 'data.tokenizer': 'char', 'data.test_percent': 10.0,
        'total_steps': 1200, 'eval_every_steps': 400, 'checkpoint_every_steps': 400, 'model.width': 160,
        'model.mlp_width': 640, 'eval.problems': 'programs', 'eval.problem_tokens': 90, 'eval.ngram_order': 8,
    },
    'gpt2': _GPT2,
    # nanoGPT's CPU configuration (its README: 1.88 nats a character after 2000 steps).
    'nanogpt': {**_SHAKESPEARE, **_GPT2, 'model.bias': False},
    # The same tokens and about the same number of parameters with the block above.
    'shakespeare': {**_SHAKESPEARE},
    # As far as hours on two cores go: 2.7 M parameters, nanoGPT's larger context.
    'shakespeare_large': {
        **_SHAKESPEARE, 'total_steps': 4500, 'batch_size': 16, 'data.block': 256, 'data.eval_stride': 128,
        'model.layers': 6, 'model.heads': 3, 'model.kv_heads': 3, 'model.width': 192, 'model.mlp_width': 768,
        'model.dropout': 0.2, 'optim.model.ema_decay': 0.998, 'checkpoint_every_steps': 100,
        'eval.best_metric': 'model/nats_per_token', 'eval.sample_tokens': 200,
    },
}  # fmt: skip
