"""A masked language model: BERT's block and objective (Devlin et al. 2019), or today's block, by its fields.

    python -m aigc_jax.main --config=configs/bert.py --workdir=runs/bert
    python -m aigc_jax.main --mode=sample --workdir=runs/bert --prompt='the <mask> statement'
    python -m aigc_jax.main --config=configs/bert.py:code --workdir=runs/bert_code

The first trains on the text of Python's help(), the last on the source code of its standard library; nothing is
downloaded.

What is not set here has its default: configs/fields.md holds every field, its default and what it means.
"""

from ml_collections import ConfigDict

_OPTIMIZER = dict(
    name='adamw',
    options=dict(b1=0.9, b2=0.98, weight_decay=0.01),  # Liu et al. 2019, section 3.1
    weight_decay_regex='kernel|embedding',
    schedule=dict(
        name='warmup_cosine_decay_schedule', init_value=0.0, peak_value=1e-3, warmup_percent=10.0, decay_percent=100.0,
        end_value=0.0,
    ),
    clip_norm=1.0,
)  # fmt: skip


def get_config():
    return ConfigDict(
        dict(
            total_steps=2000,
            batch_size=16,
            eval_every_steps=500,
            checkpoint_every_steps=500,
            optim=dict(model=_OPTIMIZER),
            data=dict(
                name='pydoc', tokenizer='bpe', vocab_size=1024, special=('pad', 'mask', 'cls', 'sep'), block=126,
                eval_stride=126,
            ),
            model=dict(
                layers=4,
                heads=4,
                kv_heads=4,
                width=128,
                mlp_width=512,
                position='learned',
                norm='layernorm',
                norm_epsilon=1e-12,
                activation='gelu_erf',
                qk_norm=False,
                bias=True,
                zero_init=False,
                dropout=0.0,
                attention='einsum',
                post_norm=True,
            ),
            task=dict(name='mlm'),
            eval=dict(split='valid', batch_size=64, best_metric='nats_per_masked_token'),
        )
    )  # fmt: skip


VARIANTS = {
    # Seconds on a CPU, for tests.
    'smoke': {
        'total_steps': 40, 'steps_per_call': 1, 'log_every_steps': 10, 'eval_every_steps': 20,
        'checkpoint_every_steps': 20, 'batch_size': 8, 'eval.batch_size': 256, 'data.tokenizer': 'byte',
        'data.vocab_size': -1, 'data.block': 46, 'data.eval_stride': 46,
        'model.layers': 2, 'model.heads': 2, 'model.kv_heads': 2, 'model.width': 16, 'model.mlp_width': 32,
    },
    # Source code: the standard library of the Python that runs.
    'code': {'data.name': 'python-stdlib', 'data.vocab_size': 4096, 'total_steps': 5000},
    'whole_words': {'task.whole_words': True},
    'sentence_order': {'task.sentence_order': 1.0},
    # RoBERTa's positions and epsilon.
    'roberta': {'model.norm_epsilon': 1e-5, 'model.position_offset': 2, 'model.token_types': 1},
    # Replaced-token detection (Clark et al. 2020); all hidden tokens become the mask.
    'electra': {
        'task': {'name': 'electra'}, 'task.mask_share': 1.0, 'task.random_share': 0.0, 'optim.generator': _OPTIMIZER,
        'eval.best_metric': 'detection/nats_per_token',
    },
    # The block of configs/gpt.py.
    'modern': {
        'model.position': 'rope', 'model.norm': 'rmsnorm', 'model.norm_epsilon': 0.0, 'model.activation': 'relu2',
        'model.qk_norm': True, 'model.bias': False, 'model.zero_init': True, 'model.post_norm': False,
        'model.token_types': 0,
    },
    # The optimizer of configs/t5.py: with `modern` it learns far faster on a small budget (configs/README.md).
    'muon': {
        'optim.model.name': 'muon', 'optim.model.schedule.peak_value': 1e-2,
        'optim.model.options': {
            'muon_weight_dimension_numbers': 'block.*kernel', 'adam_b1': 0.9, 'adam_b2': 0.95, 'weight_decay': 0.0,
        },
    },
}  # fmt: skip
