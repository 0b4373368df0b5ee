"""A variational auto-encoder with MLP encoder and decoder (Kingma & Welling 2013).

    python -m aigc_jax.main --config=configs/vae.py --workdir=runs/vae
    python -m aigc_jax.main --config=configs/vae.py:binarized_mnist --workdir=runs/bmnist --config.data.name=amat:DIR

The first trains on scikit-learn's 8×8 digits. configs/README.md holds what each is measured to reach, and how fast.
"""

from ml_collections import ConfigDict


def get_config(arg=''):
    config = ConfigDict(
        dict(
            seed=0,
            total_steps=10_000,  # optimizer steps
            batch_size=128,  # examples of each round, over all devices
            micro_batches=1,  # parts that a batch is cut into, to save memory
            steps_per_call=100,  # steps fused into one compiled call
            log_every_steps=100,
            eval_every_steps=1000,
            checkpoint_every_steps=1000,
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
                    options=dict(b1=0.9, b2=0.999),
                    schedule=dict(name='cosine_decay_schedule', init_value=1e-3, decay_percent=100.0, alpha=0.01),
                    clip_norm=0.0,  # global norm; 0: not clipped
                    weight_decay_regex='kernel',
                    # ((regex of parameters, factor), …). That of the learned scale of a likelihood, where there is one:
                    # Adam moves each parameter by the rate at most, and log σ has further to go than a weight.
                    learning_rate_rules=(('log_scale', 10.0),),
                    freeze='',  # regex of parameters
                    ema_decay=0.0,  # of the parameters that are evaluated and sampled; 0: those trained
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
                scale='unit',  # integer levels to [0, 1] ('unit') or [-1, 1] ('symmetric'); 'standard': of points
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
                kind='mlp',  # or 'conv', for images
                latent_dim=16,
                conditional=False,  # on the class
                prior='normal',  # or 'vamp', a mixture of posteriors, or 'flow'
                pseudo_inputs=100,  # components of the prior 'vamp'
                posterior='gaussian',  # or that moved by a flow, 'realnvp' or 'iaf'
                posterior_context=0,  # numbers that such a flow is told by the encoder, even
                flow=dict(layers=6, features=(64, 64), activation='relu'),  # of the prior's and the posterior's
                stochastic_layers=1,  # 2: z2 of the group `second` above z of latent_dim
                second=dict(latent_dim=8, features=(64, 64), activation='relu', bias_init='zeros'),
                encoder=dict(features=(256, 128), activation='relu', bias_init='zeros'),
                decoder=dict(features=(128, 256), activation='relu', bias_init='zeros'),
            ),
            task=dict(
                name='vae',
                # 'bernoulli', 'gaussian' with a learned scale, 'optimal_gaussian' (σ-VAE), 'discretized_logistic' with
                # a learned scale, or 'categorical', with a logit for each level of a pixel
                likelihood='bernoulli',
                k=1,  # importance samples of the training bound; 1: the ELBO
                beta=1.0,  # weight of the KL
                kl_warmup_steps=0,  # over which that weight rises from 0
                estimator='standard',  # of the encoder's gradient: 'stl' or, for k > 1, 'dreg'
                # nats that the batch's mean KL of a dimension is not pressed below; of a layer, where the prior or the
                # posterior is no Gaussian of independent dimensions
                free_bits=0.0,
                tc_weight=0.0,  # of the total correlation beside the KL; β-TCVAE has β − 1
            ),
            eval=dict(
                # that is evaluated while training; 'auto': valid, or test where there is none. The final evaluation is
                # on `final_split`
                split='auto',
                final_split='test',
                batch_size=500,  # examples
                k=64,  # importance samples of the NLL; 5000 is the literature's
                k_chunk=8,  # of them at a time, at most
                k_curve=False,  # whether to tell the bound of 1, 2, 5, 10, … of them, too
                ais_temperatures=0,  # of annealed importance sampling in the final evaluation; 0: none
                ais_chains=16,  # of it, for each example
                ais_examples=100,  # that it is done for, drawn at random, the same for every run; 0: all
                temperature=1.0,  # of the prior in samples: a factor of its standard deviation
                interpolation='spherical',  # or 'linear', of the picture interpolations.png
                num_samples=10_000,  # for metrics of samples
                # What images are compared by in the final evaluation: 'classifier' (trained here, on the labels),
                # 'pixels', another run's extractor.npz, 'onnx:FILE'; '': no metrics of images; 'auto': classifier, or
                # pixels where there are no labels
                extractor='auto',
                num_shown=64,  # in a picture
                best_metric='model/nll',  # the checkpoint with the best value is kept; '': none
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
        'total_steps': 40, 'steps_per_call': 10, 'log_every_steps': 10, 'eval_every_steps': 20,
        'checkpoint_every_steps': 20, 'batch_size': 32, 'eval.k': 4, 'eval.k_chunk': 2, 'eval.num_samples': 200,
        'eval.num_shown': 16, 'model.latent_dim': 2, 'model.encoder.features': (16,), 'model.decoder.features': (16,),
        'data.num_examples': 1000, 'eval.extractor': '', 'model.pseudo_inputs': 20, 'model.flow.layers': 2,
        'model.flow.features': (16,), 'model.second.latent_dim': 2, 'model.second.features': (16,),
    },
    # 2-D data: z of the data's own dimension, a Gaussian likelihood with a learned scale.
    'points': {
        'data.name': 'ring8', 'task.likelihood': 'gaussian', 'model.latent_dim': 2,
        'model.encoder.features': (128, 128), 'model.decoder.features': (128, 128), 'batch_size': 256,
    },
    # Statically binarized MNIST with 784-400-40 (the setting of Rezende & Mohamed 2015 and of Pythae's table). All
    # 60,000 images are trained on, so there are none to choose a checkpoint by: the last one is the result.
    'binarized_mnist': {
        'data.name': 'amat:binarized_mnist', 'data.valid_examples': 0, 'eval.split': 'test', 'eval.best_metric': '',
        'batch_size': 100, 'total_steps': 240_000, 'model.latent_dim': 40,
        'model.encoder.features': (400,), 'model.encoder.activation': 'gelu',
        'model.decoder.features': (400,), 'model.decoder.activation': 'gelu',
        'optim.model.name': 'adamw', 'optim.model.options.weight_decay': 0.05,
        'optim.model.schedule.init_value': 3e-3, 'optim.model.ema_decay': 0.999,
        'eval_every_steps': 20_000, 'checkpoint_every_steps': 5000, 'log_every_steps': 1000, 'eval.k': 32,
        'eval.extractor': '',  # the set has no labels, and samples are means, which binary images are not
    },
    # Convolutional, residual, with group normalization.
    'conv': {
        'model.kind': 'conv', 'model.latent_dim': 32, 'steps_per_call': 20,
        'model.encoder': {
            'features': (32, 64), 'block': 'residual', 'norm': 'group', 'activation': 'silu', 'spectral': False,
            'attention': 0, 'depth': 1,
        },
        'model.decoder': {
            'features': (64, 32), 'block': 'residual', 'norm': 'group', 'activation': 'silu', 'spectral': False,
            'attention': 0, 'depth': 1,
        },
    },
    # What follows goes with any data: `binarized_mnist,iwae` is the first network of Burda et al. 2016.
    'iwae': {
        'task.k': 5, 'model.latent_dim': 50, 'batch_size': 100,
        'model.encoder.features': (200, 200), 'model.encoder.activation': 'tanh',
        'model.decoder.features': (200, 200), 'model.decoder.activation': 'tanh',
        'optim.model.schedule.init_value': 1e-3,
    },
    # On top of `iwae`: their second, with 100 and 50 latent variables.
    'two_layers': {
        'model.stochastic_layers': 2, 'model.latent_dim': 100, 'model.second.latent_dim': 50,
        'model.second.features': (100, 100), 'model.second.activation': 'tanh',
    },
    # 500 pseudo-inputs (Tomczak & Welling 2018), which begin as training examples.
    'vamp': {'model.prior': 'vamp', 'model.pseudo_inputs': 500},
    # A RealNVP of 6 couplings as the prior, of codes that have the same dimension.
    'flow_prior': {'model.prior': 'flow', 'model.flow.layers': 6, 'model.flow.features': (128, 128)},
    # The article's network.
    'article': {'model.latent_dim': 2, 'model.encoder.features': (128, 64), 'model.decoder.features': (64, 128)},
}  # fmt: skip
