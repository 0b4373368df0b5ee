"""T5: an encoder-decoder that is pre-trained to write what is hidden of a text (Raffel et al. 2020).

    python -m aigc_jax.main --config=configs/t5.py --workdir=runs/t5
    python -m aigc_jax.main --mode=sample --workdir=runs/t5 --prompt='for i in <extra_id_0>(10):' --num_samples=1

It trains on the source code of Python's standard library; nothing is downloaded. configs/finetune_seq2seq.py goes on
from there. configs/README.md holds what each is measured to reach, and how long it takes.

What is not set here has its default: configs/fields.md holds every field, its default and what it means.
"""

from ml_collections import ConfigDict


def get_config():
    return ConfigDict(
        dict(
            total_steps=2000,
            batch_size=16,
            eval_every_steps=500,
            checkpoint_every_steps=500,
            optim=dict(
                model=dict(
                    name='muon',  # on the blocks' matrices, Adam on the rest
                    options=dict(
                        muon_weight_dimension_numbers='coder_[0-9].*kernel', adam_b1=0.9, adam_b2=0.95,
                        weight_decay=0.0,
                    ),
                    schedule=dict(
                        name='warmup_cosine_decay_schedule',
                        init_value=0.0,
                        peak_value=1e-2,
                        warmup_percent=5.0,
                        decay_percent=100.0,
                        end_value=0.0,
                    ),
                    clip_norm=1.0,
                ),
            ),
            data=dict(
                name='python-stdlib', tokenizer='bpe', vocab_size=2048, special=('pad',), sentinels=100,
                block=114, eval_stride=114,  # a source has 104 tokens then, and a target 24
            ),
            model=dict(
                layers=3,
                heads=4,
                width=128,
                mlp_width=512,
                activation='geglu',
                tied=False,
                dropout=0.0,
                attention='einsum',
            ),
            task=dict(name='seq2seq'),
            eval=dict(split='valid', batch_size=64, best_metric='model/nats_per_token'),
        )
    )  # fmt: skip


_V1_0 = {
    'model.activation': 'relu', 'model.tied': True, 'model.scaled_logits': True, 'model.dropout': 0.1,
    'optim.model.name': 'adafactor', 'optim.model.options': {},
}  # fmt: skip
_IDENTIFIER_AWARE = {'task.objective': 'identifier_aware', 'data.number_identifiers': True}
VARIANTS = {
    # Seconds on a CPU, for tests.
    'smoke': {
        'total_steps': 40, 'steps_per_call': 1, 'log_every_steps': 10, 'eval_every_steps': 20,
        'checkpoint_every_steps': 20, 'batch_size': 8, 'eval.batch_size': 64, 'data.name': 'pydoc',
        'data.tokenizer': 'byte', 'data.block': 40, 'data.eval_stride': 40, 'data.sentinels': 4, 'model.layers': 1,
        'model.heads': 2, 'model.width': 16, 'model.mlp_width': 32,
    },
    # The blocks of T5 v1.0, which CodeT5 has, too, and the optimizer of its code.
    'v1_0': _V1_0,
    # One block is compiled for all layers, for deep models.
    'scan': {
        'model.scan_layers': True, 'optim.model.options.muon_weight_dimension_numbers': 'coder_blocks.*kernel',
    },
    # Names of Python are hidden, too: CodeT5's identifier-aware denoising, without its tagging.
    'identifier_aware': _IDENTIFIER_AWARE,
    # All of it, on v1.0: a third of the windows each has spans hidden, or names, or its names told.
    'codet5': {**_V1_0, **_IDENTIFIER_AWARE, 'task.tagging_share': 1 / 3},
    'identifiers': {'task.objective': 'identifiers', 'data.number_identifiers': True},
    # What follows in each window, from its first tokens: as many as are drawn.
    'prefix': {'task.objective': 'prefix'},
}  # fmt: skip
