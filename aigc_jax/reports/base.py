"""What an evaluation is made of: reports, each of which needs some capabilities and data, and gives rows of a table."""

import pathlib

from aigc_jax.core.types import TrainState
from aigc_jax.reports.evaluator import Evaluator
from aigc_jax.reports.tables import Results
from aigc_jax.runs.experiment import Experiment


def able(experiment: Experiment, needs: tuple[type, ...]) -> bool:
    """Whether the model has these capabilities (core.capabilities), and the data a spec of these classes."""
    spec, task = experiment.dataset.spec, experiment.task
    return all(isinstance(spec, kind) or task.get(kind) is not None for kind in needs)


class Report:
    """One part of an evaluation. A new one is a file in this folder and a line in `reports.REPORTS`.

    name: in eval.also_each and in files. title: what is measured, in words, for a line on stderr; {split} stands for
    the split's name.
    needs: what `able` asks for; else it is not made.
    when: 'each' evaluation while training and the final one, or the 'final' one alone. eval.also_each names reports of
      the final evaluation that are made at each one, too.
    stems: whether `names` are the beginnings of names, up to _.
    switch: the field of config.eval that leaves it out where it holds '' or 0; '': there is none.
    """

    name = title = ''
    when = 'each'
    switch = ''
    stems = False
    needs: tuple[type, ...] = ()

    def __init__(self, evaluator: Evaluator):
        self.evaluator, self.experiment = evaluator, evaluator.experiment
        self.config = self.experiment.config.eval

    @classmethod
    def applies(cls, experiment: Experiment) -> bool:
        """Whether it is made: what it needs is there, and so is what else the data and the config have to have."""
        return able(experiment, cls.needs) and not cls.is_off(experiment)

    @classmethod
    def is_off(cls, experiment: Experiment) -> bool:
        """Whether it would be made if `switch` were set."""
        return able(experiment, cls.needs) and bool(cls.switch) and not experiment.config.eval[cls.switch]

    @classmethod
    def check(cls, experiment: Experiment) -> None:
        """Raises UserError for fields of config.eval that do not fit; nothing is computed."""

    @classmethod
    def names(cls, experiment: Experiment) -> list[str]:
        """All metrics that `measure` may give, before anything is computed: a study whose metric nobody names is
        refused."""
        raise NotImplementedError

    @classmethod
    def files(cls, experiment: Experiment) -> list[pathlib.Path]:
        """The user's files that it reads, besides the data."""
        return []

    def measure(self, state: TrainState, seed: int, split: str) -> Results:
        """Rows of one replica's state. Every process calls it; a row may be missing but on the first one."""
        raise NotImplementedError
