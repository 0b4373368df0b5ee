"""Classes of texts or of tokens, told by an encoder that has been a masked language model before.

    python -m aigc_jax.main --config=configs/bert.py:code --config.data.name=python-modules --workdir=runs/bert_code
    python -m aigc_jax.main --config=configs/finetune_classify.py --config.init.run=runs/bert_code --workdir=runs/names
    python -m aigc_jax.main --config=configs/finetune_classify.py --workdir=runs/names_scratch

The second goes on from the run of the first, and the last begins anew. The data are functions of Python's standard
library, and of each token whether it is of an identifier; the first run sees none that is held out. For texts with a
class set data.name to labelled:FILE. Set the fields of the model as the run that it goes on from has them, and
data.block to its data.block + 2: here the tokens cls and sep are counted.

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
                    weight_decay_regex='kernel|embedding',
                    schedule=dict(
                        name='warmup_cosine_decay_schedule',
                        init_value=0.0,
                        peak_value=3e-4,
                        warmup_percent=10.0,
                        decay_percent=100.0,
                        end_value=0.0,
                    ),
                    clip_norm=1.0,
                ),
            ),
            init=dict(drawn='pooler|classifier|tagger', unused='mask_|pooler|classifier|tagger|generator/'),
            data=dict(name='identifiers', special=('pad', 'mask', 'cls', 'sep'), block=128),
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
                dropout=0.1,
                attention='einsum',
                post_norm=True,
            ),
            task=dict(name='classify'),
            eval=dict(split='valid', batch_size=64, best_metric='nats'),
        )
    )


VARIANTS = {
    # The model of configs/bert.py:modern.
    'modern': {
        'model.position': 'rope', 'model.norm': 'rmsnorm', 'model.norm_epsilon': 0.0, 'model.activation': 'relu2',
        'model.qk_norm': True, 'model.bias': False, 'model.zero_init': True, 'model.post_norm': False,
        'model.token_types': 0,
    },
    # Seconds on a CPU, for tests.
    'smoke': {
        'total_steps': 40, 'steps_per_call': 1, 'log_every_steps': 10, 'eval_every_steps': 20,
        'checkpoint_every_steps': 20, 'batch_size': 8, 'eval.batch_size': 256, 'data.block': 48,
        'model.layers': 2, 'model.heads': 2, 'model.kv_heads': 2, 'model.width': 16, 'model.mlp_width': 32,
    },
}  # fmt: skip
