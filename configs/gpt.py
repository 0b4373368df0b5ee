"""A decoder-only Transformer language model (Radford et al. 2019, and what the block has become since).

    python -m aigc_jax.main --config=configs/gpt.py --workdir=runs/gpt
    python -m aigc_jax.main --mode=sample --workdir=runs/gpt --prompt='The import statement'
    python -m aigc_jax.main --config=configs/gpt.py:code --workdir=runs/code

The first trains on the text of Python's help(), the last on the source code of its standard library; nothing is
downloaded. configs/README.md holds what each is measured to reach, and how long it takes.
"""

from ml_collections import ConfigDict


def get_config(arg=''):
    config = ConfigDict(
        dict(
            seed=0,
            total_steps=1000,  # optimizer steps
            batch_size=8,  # windows of data.block tokens, over all devices
            micro_batches=1,  # parts that a batch is cut into, to save memory
            steps_per_call=10,  # steps fused into one compiled call
            log_every_steps=50,
            eval_every_steps=250,
            checkpoint_every_steps=250,
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
                    name='muon',  # on the blocks' matrices, Adam on the rest; or 'adamw', …
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
                    clip_norm=1.0,  # global norm; 0: not clipped
                    weight_decay_regex='kernel',
                    learning_rate_rules=(('embed|head|norm', 0.3),),  # ((regex of parameters, factor), …)
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
                order='shuffled',  # windows from anywhere, or 'contiguous', for recurrent models
                valid_percent=5.0,  # of the text, or of its documents
                test_percent=5.0,
                block=256,  # tokens of a training window, and the most that the model sees, prompt and continuation
                eval_block=0,  # tokens of a window of the evaluation, at most; 0: as while training
                # Tokens from window to window; each is scored with block − stride before it, or more. -1: half a window
                eval_stride=-1,
                fim_rate=0.0,  # share of training windows whose middle is moved to their end: infilling; 0: none
                fim_identifiers=0.0,  # share of these whose middle is one identifier
                stream=False,  # read by Grain while training, instead of resident on the device
            ),
            model=dict(
                kind='transformer',
                layers=4,
                heads=4,
                kv_heads=4,  # fewer than heads: grouped queries (Ainslie et al. 2023)
                width=128,
                mlp_width=512,
                position='rope',  # or 'learned', 'none'
                norm='rmsnorm',  # or 'layernorm'
                activation='relu2',  # or 'gelu', 'swiglu'
                qk_norm=True,
                bias=False,
                zero_init=True,  # of what goes into the residual stream, and of the head
                tied=False,  # embedding and head are one matrix
                softcap=15.0,  # of the logits; 0: none
                window=0,  # tokens that a token looks back at; 0: all
                dropout=0.0,
                attention='einsum',  # fastest on a CPU; 'xla' or 'cudnn' (a GPU's fused kernel, wants bfloat16)
                remat=False,  # recompute each block in the backward pass, to save memory
                scan_layers=False,  # compile one block for all layers: for deep models; needs dropout=0.0
            ),
            task=dict(
                name='lm',
                z_loss=0.0,  # weight of log² Z
                separate_documents=True,  # attention stops where a document begins
            ),
            eval=dict(
                split='valid',  # that is evaluated while training; the final evaluation is on `final_split`
                final_split='test',
                batch_size=64,  # windows
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
