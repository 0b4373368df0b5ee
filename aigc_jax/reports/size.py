"""How large a model is."""

from aigc_jax import adapt
from aigc_jax.core import optim
from aigc_jax.core.types import TrainState
from aigc_jax.reports.base import Report
from aigc_jax.reports.tables import Results
from aigc_jax.runs.experiment import Experiment


class Size(Report):
    """model/bytes: of the parameters that are evaluated, of all players, as adapt.stored has them."""

    name, when, switch = 'size', 'final', 'model_bytes'
    title = 'bytes of the model'

    @classmethod
    def names(cls, experiment: Experiment) -> list[str]:
        return ['model/bytes']

    def measure(self, state: TrainState, seed: int, split: str) -> Results:
        stored = adapt.stored(optim.averaged(state.params, state.opt), self.experiment.config)
        return {'model/bytes': {'value': float(sum(one.bytes for one in stored.values())), 'n': 1}}
