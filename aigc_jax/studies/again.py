"""One number of a study's tables, made again from nothing."""

import dataclasses
import pathlib
import shutil
from collections.abc import Sequence

from aigc_jax.core.errors import UserError
from aigc_jax.runs import manifest
from aigc_jax.runs.paths import Paths
from aigc_jax.studies import findings, gathering
from aigc_jax.studies.claims import Claim
from aigc_jax.studies.findings import Seed
from aigc_jax.studies.planning import Pair, Plan

FOLDER = 'again'  # below the study's, for the runs that are made again


@dataclasses.dataclass(frozen=True)
class Before:
    """A number that is to be made again, and where it stands."""

    seed: Seed
    where: str


def settled(plan: Plan, claim: Claim, workdir: pathlib.Path) -> Plan:
    """With the setting that the tuning of this claim chose. Raises UserError where it is not over."""
    if claim.name not in plan.candidates:
        return plan
    found = gathering.Gathered(plan, workdir, None)
    if claim.name not in found.open:
        return found.plan
    if plan.results.exists():
        for one in findings.read(plan.results).findings:
            rows = [dict(row) for row in claim.tune]
            if one.claim.name == claim.name and one.chosen in rows:
                return plan.chosen({claim.name: rows.index(one.chosen)})
    raise UserError(f'--seed: claim {claim.name} is not tuned yet in {workdir}; run the study first')


def before(plan: Plan, claim: Claim, seed: int, workdir: pathlib.Path) -> Before | None:
    """The number in the runs of `workdir`, else in the report that was committed beside the study; None: in neither."""
    found = gathering.Gathered(plan, workdir, None).seeds(claim, seed)
    if seed in found:
        return Before(found[seed], str(workdir))
    if plan.results.exists():
        for one in findings.read(plan.results).findings:
            if one.claim.name == claim.name and seed in one.seeds:
                return Before(one.seeds[seed], plan.results.name)
    return None


def trials(plan: Plan, claim: Claim, seed: int, workdir: pathlib.Path) -> Pair:
    """Those of the run with this seed, in a folder that is empty then. Raises UserError."""
    if seed < (first := plan.study.first_seed):
        raise UserError(f'--seed={seed}: the seeds of {plan.name} begin with {first}')
    (pair,) = plan.trials_of(claim, [plan.first_of(claim, seed)], workdir / FOLDER, workdir)
    start = pair.trained.start
    if start and not start.folder.is_dir():
        raise UserError(
            f'--seed: claim {claim.name} starts from the run {start.folder}, which is not there; run the study with '
            f'--row={claim.name} first'
        )
    shutil.rmtree(pair.trained.folder, ignore_errors=True)
    for trial in pair.trials:
        trial.log.unlink(missing_ok=True)
    return pair


def made(plan: Plan, claim: Claim, seed: int, workdir: pathlib.Path) -> Seed | None:
    """What the trials gave; None where they failed."""
    return gathering.Gathered(plan, workdir / FOLDER, None).seeds(claim, seed).get(seed)


def grounds(workdir: pathlib.Path, now: Seed, old: Before | None) -> list[str]:
    """What the two runs do not share: their data, and the checkpoints that they began with. Only what both say."""
    if old is None or old.where != str(workdir):
        return []
    there, here = (_grounds(Paths(folder).manifest) for folder in (workdir / old.seed.run, workdir / FOLDER / now.run))
    return [what for what in there if what in here and there[what] != here[what]]


def _grounds(path: pathlib.Path) -> dict[str, str]:
    found = manifest.read(path)
    start = found['starts'][0] if found.get('starts') else {}
    digests = {'init.run': 'init_sha256', 'prune.run': 'prune_sha256', 'distill.run': 'teacher_sha256'}
    begun = {f'the checkpoint of {field}': start[name] for field, name in digests.items() if name in start}
    return begun | {'the data': manifest.at(found, 'data.fingerprint')}


def words(claim: Claim, seed: int, now: Seed, old: Before | None, others: Sequence[str] = ()) -> tuple[str, int]:
    """(a line that says whether the number is the same, the exit code: 0 the same, 1 another, 2 nothing to compare).
    others: what `grounds` gives."""
    begin = f'{claim.name}, seed {seed}: {claim.metric} = {now.value!r}'
    if old is None:
        return f'{begin}; there is no earlier value to compare it with', 2
    if repr(old.seed.value) == repr(now.value):
        return f'{begin}, the same to the bit as in {old.where}', 0
    why = ''
    if others:
        why = f'; not the same for both: {", ".join(others)}'
    elif old.seed.numerics != now.numerics:
        why = '; the numerics differ (version of JAX, device, threads, flags), so that the rounding may'
    elif old.seed.commit != now.commit:
        why = f'; the code was {old.seed.commit or "unknown"} and is {now.commit or "unknown"}'
    return f'{begin}; in {old.where} it is {old.seed.value!r}, a difference of {now.value - old.seed.value:.3g}{why}', 1
