"""Runs of one sweep that are not alike: another config than the row has is refused, other code or data are noted."""

import collections
from collections.abc import Iterator

from aigc_jax.core.errors import UserError
from aigc_jax.runs import config as config_lib
from aigc_jax.runs import manifest, numerics
from aigc_jax.runs.paths import Paths
from aigc_jax.studies import rows, states
from aigc_jax.studies.states import State
from aigc_jax.studies.sweeps import Trial

# Measured with one core and two: sums over 256 rows and gradients over 4,096 differ in their last bits.
_WHY = {'device.threads': '; a run has the cores that --jobs leaves it, and XLA may round by their number'}


def check(found: list[tuple[Trial, State]]) -> None:
    """Raises UserError, which names the first run and the fields, where there are such runs."""
    drifted = [trial for trial, state in found if state.kind == states.OTHER]
    if not drifted:
        return
    first = drifted[0]
    ours = rows.resolved(first)
    differing = config_lib.differing(ours, config_lib.from_json(Paths(first.folder).config))
    raise UserError(
        f'--workdir: {len(drifted)} of {len(found)} runs were made with another config; differing in {first.folder}: '
        f'{"; ".join(differing)}\nName another folder, give the config that they were made with, or remove them.'
    )


def notes(found: list[tuple[Trial, State]]) -> Iterator[str]:
    """A line for each ground that the finished runs do not share, by their manifests: the code, the version of JAX, and
    among the seeds of a row the data, an own task, and what else decides bits (runs/numerics.py). A damaged manifest
    has a line of its own."""
    made = []
    for trial in (trial for trial, state in found if state.kind == states.DONE):
        try:
            made.append((trial, manifest.read(Paths(trial.folder).manifest)))
        except UserError as error:
            yield str(error)
    for what, name, most in (('code (sha256)', 'source', 8), ('jax', 'packages.jax', 40)):
        counts = collections.Counter(str(manifest.at(made_with, name))[:most] for _, made_with in made)
        if len(counts) > 1:
            shown = ', '.join(f'{count} with {value}' for value, count in counts.most_common(3))
            yield f'the finished runs do not have the same {what}: {shown}'
    by_row: dict[str, list[dict]] = collections.defaultdict(list)
    for trial, made_with in made:
        own = {'data': manifest.at(made_with, 'data.fingerprint'), 'file of task.name': made_with.get('own_task')}
        bits = {name: value for name, value in numerics.part(made_with).items() if name != 'packages.jax'}
        by_row[trial.row.name].append(own | bits)
    for what in dict.fromkeys(what for of_row in by_row.values() for of_run in of_row for what in of_run):
        values = {name: {str(of_run[what]) for of_run in of_row if what in of_run} for name, of_row in by_row.items()}
        if several := [name for name, different in values.items() if len(different) > 1]:
            such = f'such as those of {several[0]}: {", ".join(sorted(values[several[0]])[:3])[:80]}'
            yield f'the seeds of {len(several)} rows do not have the same {what}, {such}{_WHY.get(what, "")}'
