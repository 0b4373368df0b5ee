"""Whether a metric that a study, a sweep or a search names is one that its runs will have: told before they start."""

import copy

import jax
from ml_collections import ConfigDict

from aigc_jax import reports
from aigc_jax.core import parallel
from aigc_jax.core.errors import RunError, UserError, near
from aigc_jax.runs.experiment import Experiment


class Measurable:
    """Remembers what evaluations have: a metric that one of a group has is no slip of the pen, and a group is asked
    once for it. To ask takes about a second, and reads the data."""

    def __init__(self):
        self._known: dict[str, list[reports.Names]] = {}

    def check(self, metric: str, group: str, config: ConfigDict, where: str) -> None:
        """Raises UserError, which begins with `where`, where no evaluation of `group` so far has the metric, and one of
        a run of `config` will not have it."""
        known = self._known.setdefault(group, [])
        if any(names.has(metric) for names in known) or (names := _names(config)) is None:
            return
        known.append(names)
        if not names.has(metric):
            found = near(metric, names.whole + names.stems)
            raise UserError(f'{where}: an evaluation of these runs will have no {metric!r}{found}')


def _names(config: ConfigDict) -> reports.Names | None:
    """None where they are not known here: the data may be on another machine, and a run says itself what is wrong."""
    config = copy.deepcopy(config)
    config.parallel = ConfigDict({'mode': 'jit', 'mesh': parallel.WHOLE_MESH, 'rules': ()})
    jax.config.update('jax_platforms', 'cpu')  # an accelerator is for the runs
    try:
        return reports.names(Experiment(config, jax.devices()[:1]))
    except (UserError, RunError):
        return None
