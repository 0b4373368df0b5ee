"""An auto-encoder of discrete latents, VQ-VAE or FSQ, and the Transformer over its codes, trained in one run
(van den Oord et al. 2017; Mentzer et al. 2024).

    python -m aigc_jax.main --config=configs/vq.py --workdir=runs/vq
    python -m aigc_jax.main --config=configs/vq.py:mnist,fsq --config.data.name=idx:DIR --workdir=runs/fsq

The first trains on scikit-learn's 8×8 digits. configs/README.md holds what each is measured to reach, and how fast.
"""

from ml_collections import ConfigDict


def get_config(arg=''):
    config = ConfigDict(
        dict(
            seed=0,
            total_steps=1000,  # optimizer steps
            batch_size=128,  # examples of each round, over all devices
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
                    name='adam',
                    options=dict(b1=0.9, b2=0.99),
                    schedule=dict(name='cosine_decay_schedule', init_value=1e-3, decay_percent=100.0, alpha=0.01),
                    clip_norm=0.0,  # global norm; 0: not clipped
                    weight_decay_regex='kernel',
                    # ((regex of parameters, factor), …). That of the learned scale of a likelihood, where there is one:
                    # Adam moves each parameter by the rate at most, and log σ has further to go than a weight.
                    learning_rate_rules=(('log_scale', 10.0),),
                    freeze='',  # regex of parameters
                    ema_decay=0.0,  # of the parameters that are evaluated and sampled; 0: those trained
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
                    clip_norm=1.0,  # global norm; 0: not clipped
                    weight_decay_regex='kernel',
                    learning_rate_rules=(),  # ((regex of parameters, factor), …)
                    freeze='',  # regex of parameters
                    ema_decay=0.0,  # of the parameters that are evaluated and sampled; 0: those trained
                ),
            ),
            data=dict(
                name='digits',
                dir='',  # where TFDS keeps its sets; '': its default
                num_examples=100_000,  # of the stacked sets' training split
                # held out if the data have no valid split; -1: 10,000, or a fifth of the training examples where those
                # are fewer; 0: there is none, all is trained on
                valid_examples=-1,
                shape=(),  # (H, W) of images that an npz, npy, mat or amat holds as rows of pixels; (): square
                binarize='none',  # 'none', 'threshold', 'static' or 'dynamic'
                scale='unit',  # integer levels to [0, 1] ('unit') or [-1, 1] ('symmetric')
                stream=False,  # read by Grain while training, instead of resident on the device
                augment=dict(  # of training images, on the device, by draws of each step
                    flip=False,  # half of them left to right
                    shift=0,  # pixels, at most, along each axis
                    rotation=0.0,  # degrees, at most, either way
                    scale=0.0,  # by a factor in 1 ± this
                    cutout=0,  # pixels, the side of a black square
                    mixup=0.0,  # α of the Beta distribution of the shares of two examples
                ),
            ),
            model=dict(
                quantizer=dict(
                    name='vq',  # or 'fsq', whose only field is `levels`: see the variant
                    codes=32,
                    dim=8,  # of a code's vector
                    commitment=0.25,  # β, weight of ‖z − sg[e]‖², summed over the grid
                    decay=0.99,  # of the moving averages that make the codebook, a step
                    revive_below=0.03,  # of even use: a code used less becomes a vector of the batch; 0: never
                ),
                conditional=False,  # the prior, on the class
                # halves the sides once for each of `features`; the grid that is left has a code at each place
                encoder=dict(features=(32,), block='residual', norm='group', activation='silu', attention=0, depth=1),
                decoder=dict(features=(32,), block='residual', norm='group', activation='silu', attention=0, depth=1),
                prior=dict(  # over the codes in raster order
                    layers=2,
                    heads=4,
                    kv_heads=4,  # fewer than heads: grouped queries (Ainslie et al. 2023)
                    width=64,
                    mlp_width=256,
                    position='learned',  # or 'rope', 'none'
                    norm='rmsnorm',  # or 'layernorm'
                    activation='relu2',  # or 'gelu', 'swiglu'
                    qk_norm=True,
                    bias=False,
                    zero_init=True,  # of what goes into the residual stream, and of the head
                    tied=False,  # embedding and head are one matrix
                    softcap=0.0,  # of the logits; 0: none
                    window=0,  # codes that a code looks back at; 0: all
                    dropout=0.1,
                    attention='einsum',  # fastest on a CPU; 'xla' or 'cudnn' (wants dropout=0.0)
                    remat=False,  # recompute each block in the backward pass, to save memory
                    scan_layers=False,  # compile one block for all layers: for deep models; needs dropout=0.0
                ),
            ),
            task=dict(
                name='vq',
                likelihood='bernoulli',  # or 'gaussian', 'discretized_logistic', 'categorical'
            ),
            eval=dict(
                # that is evaluated while training; 'auto': valid, or test where there is none. The final evaluation is
                # on `final_split`
                split='auto',
                final_split='test',
                batch_size=500,  # examples
                num_samples=10_000,  # for metrics of samples
                # What images are compared by in the final evaluation: 'classifier' (trained here, on the labels),
                # 'pixels', another run's extractor.npz, 'onnx:FILE'; '': no metrics of images; 'auto': classifier, or
                # pixels where there are no labels
                extractor='auto',
                num_shown=64,  # in a picture
                temperature=1.0,  # of the codes that the prior draws for samples; 0: the likeliest ones
                best_metric='model/nll_bound',  # the checkpoint with the best value is kept; '': none
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
