"""The fields of a config with task.name=flow."""

from aigc_jax.core import schema
from aigc_jax.core.schema import Field, Group
from aigc_jax.nn import unet
from aigc_jax.nn.build import fields
from aigc_jax.tasks.flow import couplings, solvers

OBJECTIVES, SOURCES, TIMES = ('velocity', 'mean_velocity'), ('normal', 'eight_gaussians'), ('uniform', 'logit_normal')
SOLVERS = (*solvers.SOLVERS, 'mean_flow')

TASK = {
    'objective': Field(
        str, 'velocity', choices=OBJECTIVES, doc='what the network learns; `mean_velocity`: MeanFlow (Geng et al. 2025)'
    ),
    'coupling': Field(
        str, 'independent', choices=tuple(couplings.COUPLINGS),
        doc='of source and data: `optimal` (minibatch optimal transport, Tong et al. 2024), `class_optimal` (C²OT, '
        'Cheng & Schwing 2025)',
    ),
    'source': Field(str, 'normal', choices=SOURCES, doc='what the flow begins from; `eight_gaussians`: for the plane'),
    'time': Field(str, 'uniform', choices=TIMES, doc='distribution of the time at which the field is learned'),
    'time_mean': Field(float, 0.0, doc='mean of its logit, where time is logit_normal'),
    'time_std': Field(float, 1.0, least=0, most=100, doc='standard deviation of its logit'),
    'class_dropout': Field(
        float, 0.0, least=0, most=1, doc='share of the examples whose class is withheld, for guidance'
    ),
    'dequantize': Field(
        bool, True, doc='noise as wide as a level while training, for the log-likelihood of integer data'
    ),
    'mean_share': Field(
        float, 0.25, least=0, most=1, doc="share of MeanFlow's examples that have two different times"
    ),
    'weight_power': Field(
        float, 0.0, least=0, most=2, doc='p of the weight 1 / (squared error + 0.01)ᵖ of an example'
    ),
}  # fmt: skip


def _network(own, model) -> Group | None:
    kind = unet.KINDS.get(schema.named(model, 'kind'))
    return fields(kind) if kind else None  # which the check of kind says


MODEL = {
    'kind': Field(str, 'unet', choices=tuple(unet.KINDS), doc='the velocity field; `unet` is for images'),
    'conditional': Field(bool, False, doc='whether the field is told the class'),
    'network': Field(dict, fields=_network, doc='of this kind'),
}
SAMPLE = {
    'solver': Field(
        str, 'dopri5', choices=SOLVERS,
        doc='of the ODE: `euler`, `midpoint`, `heun` in `steps` steps, `dopri5` in steps adapted to '
        '`tolerance`, `mean_flow` in `steps` steps of MeanFlow',
    ),
    'steps': Field(int, 20, least=1, doc='of a solver whose steps are not adapted'),
    'tolerance': Field(float, 1e-3, least=1e-6, below=1, doc='of a step of dopri5'),
    'guidance': Field(float, 1.0, doc='weight of the class; 1: the conditional field, 0: the unconditional one'),
}  # fmt: skip
EVAL = {
    'nll_tolerance': Field(
        float, 1e-3, least=1e-6, below=1, doc='of a step of dopri5, which integrates the log-likelihood, and codes'
    ),
    'probes': Field(int, 1, least=0, doc="of Hutchinson's estimate of the divergence; 0: the divergence itself"),
    'nll_examples': Field(int, 1000, least=0, doc='whose log-likelihood the final evaluation integrates; 0: all'),
}  # fmt: skip
FIELDS = {'task': TASK, 'model': MODEL, 'sample': SAMPLE, 'eval': EVAL}
