"""A recurrent language model: LSTM, GRU, or a linear recurrence, by truncated back-propagation through time.

    python -m aigc_jax.main --config=configs/rnn_lm.py --workdir=runs/rnn
    python -m aigc_jax.main --mode=sample --workdir=runs/rnn --prompt='The import statement'
    python -m aigc_jax.main --config=configs/rnn_lm.py:code --workdir=runs/rnn_code

The first trains on the text of Python's help(), the last on the source code of its standard library; nothing is
downloaded. configs/README.md holds what each is measured to reach, and how long it takes.
"""

from ml_collections import ConfigDict


def get_config(arg=''):
    config = ConfigDict(
        dict(
            seed=0,
            total_steps=3000,  # optimizer steps
            batch_size=32,  # rows of text, over all devices
            micro_batches=1,  # parts that a batch is cut into, to save memory
            steps_per_call=10,  # steps fused into one compiled call
            log_every_steps=50,
            eval_every_steps=500,
            checkpoint_every_steps=500,
            keep_checkpoints=3,  # the newest ones; the best one is kept beside them
            num_seeds=1,  # replicas, seeds seed, seed + 1, …, trained as one program
            replicas='vmap',  # 'vmap' for speed, 'map' where a replica must equal its single run bit for bit
            init_from='',  # a run's folder whose newest parameters and statistics to start from
            precision='float32',  # of the products: 'float32' or 'bfloat16'; parameters are float32
            parallel=dict(
                mode='jit',  # 'jit' over the mesh, or 'pmap' over all devices
                mesh=dict(data=-1, fsdp=1, tensor=1),  # devices along each axis; -1: those that are left
                rules=(),  # ((regex of parameters, 'fsdp' | 'replicated' | tuple of axes), …)
            ),
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
                    clip_norm=1.0,  # global norm; 0: not clipped
                    weight_decay_regex='kernel|recurrent',
                    learning_rate_rules=(),  # ((regex of parameters, factor), …)
                    freeze='',  # regex of parameters
                    ema_decay=0.0,  # of the parameters that are evaluated and sampled; 0: those trained
                ),
            ),
            data=dict(
                # Or 'python-stdlib', 'programs', 'text:FILE', 'text:GLOB', 'code:DIR', 'jsonl:FILE', 'tfds:NAME', and
                # 'text:train=A,valid=B,test=C', also of code and jsonl; aigc_jax/data/README.md tells of each.
                name='pydoc',
                dir='',  # folder of TFDS sets, for tfds:NAME; '': TFDS's default
                tokenizer='auto',  # 'byte', 'char', 'word', 'bpe'; 'auto': that of init_from, or bytes
                vocab_size=-1,  # most tokens of 'word' and 'bpe', special ones included; -1: as init_from, or 1024
                code=False,  # whether it is Python source; code:, python-stdlib and programs always are
                order='contiguous',  # rows of text read on from block to block, or 'shuffled': blocks from anywhere
                valid_percent=5.0,  # of the text, or of its documents
                test_percent=5.0,
                block=64,  # tokens through which the gradient goes back
                eval_block=1024,  # tokens of a window of the evaluation, at most; 0: as while training
                eval_stride=768,  # tokens from window to window; each is scored with block − stride before it, or more
                fim_rate=0.0,  # share of training windows whose middle is moved to their end: infilling; 0: none
                fim_identifiers=0.0,  # share of these whose middle is one identifier
                stream=False,  # read by Grain while training, instead of resident on the device
            ),
            model=dict(
                kind='recurrent',
                cell='lstm',  # or 'gru', 'linear'
                layers=1,
                features=256,
                tied=False,  # embedding and head are one matrix
                dropout=0.0,
            ),
            task=dict(
                name='lm',
                z_loss=0.0,  # weight of log² Z
                separate_documents=True,  # the state begins anew with each document
            ),
            eval=dict(
                split='valid',  # that is evaluated while training; the final evaluation is on `final_split`
                final_split='test',
                batch_size=32,  # windows
                num_shown=4,  # samples
                sample_tokens=-1,  # of each sample; -1: 200, or as many as the model and the held-out text allow
                num_samples=200,  # of the metrics of samples in the final evaluation, or what the held-out text allows
                ngram_order=5,  # of the baseline in the final evaluation, given the training text; 0: no baselines
                problems='',  # solved in the final evaluation: 'programs', 'humaneval:FILE', 'mbpp:FILE'; '': none
                problem_samples=10,  # programs written for each problem, and executed
                pass_k=(1, 10),  # pass@k of these k, at most problem_samples
                problem_tokens=128,  # the most of each program
                problem_temperature=0.8,
                problem_beam=8,  # of solved@beam; 1: none
                best_metric='model/nats_per_token',  # the checkpoint with the best value is kept; '': none
                best_mode='min',
                patience=0,  # evaluations without a better value before stopping; 0: never
            ),
        )
    )
    for variant in filter(None, arg.split(',')):
        config.update_from_flattened_dict(VARIANTS[variant])
    return config


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
