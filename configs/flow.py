"""Flow matching (Lipman et al. 2023; Liu et al. 2023), and MeanFlow (Geng et al. 2025).

    python -m aigc_jax.main --config=configs/flow.py --workdir=runs/flow
    python -m aigc_jax.main --config=configs/flow.py:moons,ot --workdir=runs/moons
    python -m aigc_jax.main --config=configs/flow.py:mnist,c2ot --config.data.name=idx:DIR --workdir=runs/mnist

The first trains on scikit-learn's 8×8 digits. A finished run is sampled in other ways by eval.solver, eval.steps and
eval.guidance.
"""

from ml_collections import ConfigDict


def get_config(arg=''):
    config = ConfigDict(
        dict(
            seed=0,
            total_steps=4000,  # optimizer steps
            batch_size=128,  # examples, over all devices
            micro_batches=1,  # parts that a batch is cut into, to save memory
            steps_per_call=100,  # steps fused into one compiled call
            log_every_steps=100,
            eval_every_steps=2000,
            checkpoint_every_steps=2000,
            keep_checkpoints=3,  # the newest ones; the best one is kept beside them
            num_seeds=1,  # replicas, seeds seed, seed + 1, …, trained as one program
            replicas='vmap',  # 'vmap' for speed, 'map' where a replica must equal its single run bit for bit
            init_from='',  # a run's folder whose newest parameters to start from
            precision='float32',  # of the products: 'float32' or 'bfloat16'; parameters are float32
            parallel=dict(
                mode='jit',  # 'jit' over the mesh, or 'pmap' over all devices
                mesh=dict(data=-1, fsdp=1, tensor=1),  # devices along each axis; -1: those that are left
                rules=(),  # ((regex of parameters, 'fsdp' | 'replicated' | tuple of axes), …)
            ),
            optim=dict(
                model=dict(
                    name='adam',
                    options=dict(),
                    schedule=dict(name='cosine_decay_schedule', init_value=1e-3, decay_percent=100.0, alpha=0.01),
                    clip_norm=1.0,  # global norm; 0: not clipped
                    weight_decay_regex='kernel',
                    learning_rate_rules=(),  # ((regex of parameters, factor), …)
                    freeze='',  # regex of parameters
                    ema_decay=0.999,  # of the parameters that are evaluated and sampled; 0: those trained
                ),
            ),
            data=dict(
                name='digits',
                dir='',  # where TFDS keeps its sets; '': its default
                num_examples=100_000,  # of the 2-D and stacked sets' training split
                # held out if the data have no valid split; -1: 10,000, or a fifth of the training examples where those
                # are fewer; 0: there is none, all is trained on
                valid_examples=-1,
                shape=(),  # (H, W) of images that an npz, npy, mat or amat holds as rows of pixels; (): square
                binarize='none',  # 'none', 'threshold', 'static' or 'dynamic'
                scale='symmetric',  # integer levels to [0, 1] ('unit') or [-1, 1] ('symmetric')
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
                kind='unet',  # for images, or 'mlp'
                conditional=True,  # on the class
                network=dict(features=(32, 64), depth=1, attention=0, activation='silu'),
            ),
            task=dict(
                name='flow',
                objective='velocity',  # or 'mean_velocity': MeanFlow
                coupling='independent',  # of source and data: 'optimal' (minibatch OT), 'class_optimal' (C²OT)
                source='normal',  # or 'eight_gaussians', for points in the plane
                time='uniform',  # that the field is learned at; or 'logit_normal', of …
                time_mean=0.0,
                time_std=1.0,
                class_dropout=0.1,  # share of the examples whose class is withheld, for guidance
                dequantize=True,  # noise as wide as a level, which the log-likelihood of integer data wants
                mean_share=0.25,  # of the examples of MeanFlow, that have two different times
                weight_power=0.0,  # p of the weight 1 / (squared error + 0.01)ᵖ of an example
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
                best_metric='',  # the checkpoint with the best value is kept; '': none
                best_mode='min',
                patience=0,  # evaluations without a better value before stopping; 0: never
                # How samples are drawn: 'euler', 'midpoint' and 'heun' in `steps` steps, 'dopri5' in steps that are
                # adapted to `tolerance`, 'mean_flow' in `steps` steps of MeanFlow
                solver='dopri5',
                steps=20,
                tolerance=1e-3,  # of dopri5, which the log-likelihood is always integrated by
                guidance=1.0,  # weight of the class; 1: the conditional field, 0: the unconditional one
                probes=1,  # of Hutchinson's estimate of the divergence; 0: the divergence itself
                nll_examples=1000,  # that the final evaluation integrates, for the log-likelihood; 0: all
            ),
        )
    )
    for variant in filter(None, arg.split(',')):
        config.update_from_flattened_dict(VARIANTS[variant])
    return config


_POINTS = {
    'total_steps': 20_000, 'batch_size': 256, 'eval_every_steps': 5000, 'checkpoint_every_steps': 5000,
    'data.scale': 'unit', 'model.kind': 'mlp', 'model.conditional': False,
    'model.network': {'features': 128, 'depth': 3, 'expansion': 4, 'activation': 'gelu'},
    'eval.probes': 0, 'eval.tolerance': 1e-4,
}  # fmt: skip

VARIANTS = {
    # Seconds on a CPU, for tests.
    'smoke': {
        'total_steps': 40, 'steps_per_call': 10, 'log_every_steps': 10, 'eval_every_steps': 20,
        'checkpoint_every_steps': 20, 'batch_size': 32, 'eval.num_samples': 200, 'eval.num_shown': 16,
        'model.kind': 'mlp', 'model.conditional': False, 'data.num_examples': 1000, 'eval.extractor': '',
        'model.network': {'features': 16, 'depth': 1, 'expansion': 2, 'activation': 'gelu'}, 'eval.tolerance': 1e-2,
    },
    'ring8': {**_POINTS, 'data.name': 'ring8'},
    # Eight Gaussians to two moons (Tong et al. 2024), in the network and schedule of Cheng & Schwing 2025.
    'moons': {
        **_POINTS, 'data.name': 'moons', 'task.source': 'eight_gaussians', 'optim.model.schedule.init_value': 3e-4,
        'optim.model.schedule.alpha': 1.0, 'optim.model.clip_norm': 0.0,
    },
    # The default.
    'digits': {},
    'mnist': {
        'data.name': 'idx:mnist', 'total_steps': 10_000, 'steps_per_call': 20, 'eval.batch_size': 250,
        'model.network': {'features': (32, 64, 64), 'depth': 1, 'attention': 0, 'activation': 'silu'},
    },
    # The rest goes behind the others: 'moons,ot', 'digits,meanflow'.
    'conditional': {'model.conditional': True},
    'ot': {'task.coupling': 'optimal'},
    'c2ot': {'task.coupling': 'class_optimal', 'model.conditional': True},
    # In one step (Geng et al. 2025, section 5, but for guidance inside the objective; their time runs the other way).
    'meanflow': {
        'task.objective': 'mean_velocity', 'task.time': 'logit_normal', 'task.time_mean': 0.4, 'task.weight_power': 1.0,
        'eval.solver': 'mean_flow', 'eval.steps': 1,
    },
}  # fmt: skip
