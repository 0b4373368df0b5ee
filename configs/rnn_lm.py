"""A recurrent language model: LSTM, GRU, or a linear recurrence, by truncated back-propagation through time.

    python -m aigc_jax.main --config=configs/rnn_lm.py --workdir=runs/rnn
    python -m aigc_jax.main --mode=sample --workdir=runs/rnn --prompt='The import statement'
    python -m aigc_jax.main --config=configs/rnn_lm.py:code --workdir=runs/rnn_code

The first trains on the text of Python's help(), the last on the source code of its standard library; nothing is
downloaded. configs/README.md holds what each is measured to reach, and how long it takes.

What is not set here has its default: configs/fields.md holds every field, its default and what it means.
"""

from ml_collections import ConfigDict


def get_config():
    return ConfigDict(
        dict(
            total_steps=3000,
            batch_size=32,
            eval_every_steps=500,
            checkpoint_every_steps=500,
            optim=dict(
                model=dict(
                    name='adamw',
                    options=dict(b1=0.9, b2=0.99, weight_decay=0.1),
                    schedule=dict(
                        name='warmup_cosine_decay_schedule',
                        init_value=0.0,
                        peak_value=3e-3,
                        warmup_percent=5.0,
                        decay_percent=100.0,
                        end_value=1e-5,
                    ),
                    clip_norm=1.0,
                    weight_decay_regex='kernel|recurrent',
                ),
            ),
            data=dict(name='pydoc', order='contiguous', block=64, eval_block=1024, eval_stride=768),
            model=dict(kind='recurrent', cell='lstm', layers=1, features=256, tied=False, dropout=0.0),
            task=dict(name='lm'),
            eval=dict(split='valid', batch_size=32, num_shown=4, best_metric='model/nats_per_token'),
        )
    )


VARIANTS = {
    # Seconds on a CPU, for tests.
    'smoke': {
        'total_steps': 40, 'steps_per_call': 1, 'log_every_steps': 10, 'eval_every_steps': 20,
        'checkpoint_every_steps': 20, 'batch_size': 8, 'eval.num_shown': 2, 'eval.sample_tokens': 10,
        'eval.num_samples': 2, 'eval.ngram_order': 2, 'eval.batch_size': 64, 'data.block': 16, 'data.eval_block': 128,
        'data.eval_stride': 96, 'model.features': 16, 'model.layers': 2,
    },
    'code': {'data.name': 'python-stdlib'},
    'gru': {'model.cell': 'gru'},
    'linear': {'model.cell': 'linear', 'model.layers': 4},
    # Tiny Shakespeare as nanoGPT divides it: the last 10 % are held out, and there is no test split.
    'shakespeare': {
        'data.name': 'text:input.txt', 'data.tokenizer': 'char', 'data.valid_percent': 10.0, 'data.test_percent': 0.0,
        'eval.final_split': 'valid', 'eval.best_metric': '', 'eval.ngram_order': 7,
    },
}  # fmt: skip
