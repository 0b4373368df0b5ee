"""A run that was made with another config than its row has now: it is named, and nothing is overwritten."""

from aigc_jax.core.errors import UserError
from aigc_jax.runs import config as config_lib
from aigc_jax.runs.paths import Paths
from aigc_jax.studies import rows, states
from aigc_jax.studies.states import State
from aigc_jax.studies.sweeps import Sweep, Trial


def check(sweep: Sweep, found: list[tuple[Trial, State]]) -> None:
    """Raises UserError, which names the first run and the fields, where there are such runs."""
    drifted = [trial for trial, state in found if state.kind == states.OTHER]
    if not drifted:
        return
    first = drifted[0]
    ours = rows.resolved(sweep, first.row.fields, first.seed)
    differing = config_lib.differing(ours, config_lib.from_json(Paths(first.folder).config))
    raise UserError(
        f'--workdir: {len(drifted)} of {len(found)} runs were made with another config; differing in {first.folder}: '
        f'{"; ".join(differing)}\nName another folder, give the config that they were made with, or remove them.'
    )
