"""Runs of one sweep that are not alike: another config than the row has is refused, other code or data are noted."""

import collections
from collections.abc import Iterator

from aigc_jax.core.errors import UserError
from aigc_jax.runs import config as config_lib
from aigc_jax.runs import manifest
from aigc_jax.runs.paths import Paths
from aigc_jax.studies import rows, states
from aigc_jax.studies.states import State
from aigc_jax.studies.sweeps import Trial


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
    among the seeds of a row the data and an own task. A manifest that is damaged has a line of its own."""
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
    for what, name in (('data', 'data.fingerprint'), ('file of task.name', 'own_task')):
        by_row = collections.defaultdict(set)
        for trial, made_with in made:
            by_row[trial.row.name].add(str(manifest.at(made_with, name)))
        if several := [name for name, different in by_row.items() if len(different) > 1]:
            yield f'the seeds of {len(several)} rows do not have the same {what}, such as those of {several[0]}'
