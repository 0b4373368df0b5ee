"""What a run was made with and lies elsewhere now: the checkpoints that its config names, found again by their digests.

Of data that have moved, the manifest's fingerprint is compared when they are read (manifest.check).
"""

from ml_collections import ConfigDict

from aigc_jax import data
from aigc_jax.core.errors import UserError
from aigc_jax.runs import config as config_lib
from aigc_jax.runs import initial, manifest, teacher
from aigc_jax.runs.folder import Run

_PREFIXES = {'init.run': 'init', 'prune.run': 'prune', 'distill.run': 'teacher'}  # of the manifest's names


def fields(config: ConfigDict, run: Run) -> frozenset[str]:
    """Those of init.run, prune.run, distill.run and data.name that `config` has otherwise than the run, which is there,
    and that name another place of the same. Raises UserError where the manifest is damaged."""
    now, before = map(config_lib.flatten, (config, run.config))
    other = [name for name in _PREFIXES if '' not in (now[name], before.get(name, '')) and now[name] != before[name]]
    found = {name for name in other if _is_same(run, name, now[name])}
    names = [flat.get('data.name') for flat in (now, before)]
    if names[0] != names[1] and isinstance(names[1], str) and manifest.trained_on(run.paths.manifest):
        kinds = {data.kind_at(name)[0] for name in names}
        found |= {'data.name'} if len(kinds) == 1 and '' not in kinds else set()
    return frozenset(found)


def _is_same(run: Run, field: str, folder: str) -> bool:
    """Whether the checkpoint in `folder` is the one that `field` gave the run, by the run's manifest."""
    step, digest, said = (f'{_PREFIXES[field]}_{name}' for name in ('step', 'sha256', 'config'))
    starts = [start for start in run.manifest.get('starts', []) if isinstance(start.get(digest), str)]
    if not starts or not isinstance(starts[-1].get(step), int):
        return False
    made, also = starts[-1], teacher.MODEL if field == 'distill.run' else ''
    try:
        if initial.digest(ConfigDict({'init': {'run': folder}}), made[step]) != made[digest]:
            return False
        return initial.changed(field, folder, made.get(said, {}), initial.said(folder, also)) is None
    except UserError:  # no such run is there
        return False
