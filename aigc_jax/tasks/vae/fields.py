"""The fields of a config with task.name=vae."""

import dataclasses

from aigc_jax.core.schema import Field
from aigc_jax.metrics import ais
from aigc_jax.nn import build, flows, mlp, networks
from aigc_jax.tasks import likelihoods
from aigc_jax.tasks.vae import bounds

PRIORS, POSTERIORS = ('normal', 'vamp', 'flow'), ('gaussian', 'realnvp', 'iaf')
_FLOW = build.fields(flows.Flow)
_SECOND = build.fields(mlp.Encoder)


def _with_defaults(group: dict[str, Field], **defaults) -> dict[str, Field]:
    return group | {name: dataclasses.replace(group[name], default=value) for name, value in defaults.items()}


FIELDS = {
    'task': {
        'likelihood': likelihoods.FIELD,
        'k': Field(int, 1, least=1, doc='importance samples of the training bound; 1: the ELBO'),
        'beta': Field(float, 1.0, least=0, doc='weight of the KL'),
        'kl_warmup_steps': Field(int, 0, least=0, doc='over which that weight rises from 0'),
        'estimator': Field(
            str, 'standard', choices=tuple(bounds.ESTIMATORS),
            doc="of the encoder's gradient: `stl` (Roeder et al. 2017) or, for k > 1, `dreg` (Tucker et al. 2019)",
        ),
        'free_bits': Field(
            float, 0.0, least=0,
            doc="nats that the batch's mean KL of a dimension is not pressed below; of a layer, where the prior or the "
            'posterior is no Gaussian of independent dimensions',
        ),
        'tc_weight': Field(
            float, 0.0, least=0, doc='of the total correlation beside the KL; β-TCVAE (Chen et al. 2018) has β − 1'
        ),
    },
    'model': {
        'kind': networks.KIND,
        'latent_dim': Field(int, least=1, doc='of z; of z1, where there are two layers'),
        'conditional': Field(bool, False, doc='whether encoder and decoder are told the class'),
        'prior': Field(
            str, 'normal', choices=PRIORS,
            doc='`vamp` is a mixture of posteriors (Tomczak & Welling 2018), `flow` a RealNVP',
        ),
        'pseudo_inputs': Field(int, 100, least=1, doc='components of the prior `vamp`'),
        'posterior': Field(
            str, 'gaussian', choices=POSTERIORS, doc='`realnvp` and `iaf`: a Gaussian that is moved by a flow'
        ),
        'posterior_context': Field(
            int, 0, least=0,
            doc='numbers that such a flow is told by the encoder, even (Kingma et al. 2016, algorithm 1)',
        ),
        'flow': Field(
            dict, fields=_with_defaults(_FLOW, layers=6, features=(64, 64), activation='relu'),
            doc="of the prior's and the posterior's",
        ),
        'stochastic_layers': Field(
            int, 1, choices=(1, 2), doc='2: z2 of the group `second` above z1 (Burda et al. 2016, section 5)'
        ),
        'second': Field(
            dict, fields={
                'latent_dim': Field(int, 8, least=1, doc='of z2'),
                **_with_defaults(_SECOND, features=(64, 64), activation='relu', bias_init='zeros'),
            },
        ),
        'encoder': networks.field('Encoder', 'from an example to the mean and log-variance of z'),
        'decoder': networks.field('Decoder', 'from z to the parameters of the likelihood'),
    },
    'sample': {
        'temperature': Field(float, 1.0, least=0, doc='of the prior: a factor of its standard deviation'),
    },
    'eval': {
        'k': Field(int, 64, least=1, doc="importance samples of the NLL; 5000 is the literature's"),
        'k_chunk': Field(int, 8, least=1, doc='of these samples at a time, at most'),
        'k_curve': Field(bool, False, doc='whether the bound of 1, 2, 5, 10, … samples is told, too'),
        **ais.FIELDS,
    },
}  # fmt: skip
