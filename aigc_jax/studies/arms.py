"""Runs as the arms of a comparison: those whose configs differ in nothing but the seed are one arm."""

import dataclasses
import functools
import glob
import math
import os
import pathlib
import string
from collections.abc import Sequence

from aigc_jax.core.errors import UserError
from aigc_jax.metrics.intervals import Measurement
from aigc_jax.reports import tables
from aigc_jax.reports.tables import Results
from aigc_jax.runs import config as config_lib
from aigc_jax.runs import manifest as manifest_lib
from aigc_jax.runs import numerics
from aigc_jax.runs import results as results_lib
from aigc_jax.runs.folder import Run
from aigc_jax.training.early_stopping import is_over

# What tells no arms apart: which seeds a run has, and what changes rounding alone (the manifests name it).
_OF_ONE_ARM = ('seed', 'num_seeds', 'replicas', 'schema')
# Of a manifest, beside what decides bits (runs/numerics.py): what else may change results.
_OF_THE_MANIFEST = (
    'source', 'commit', 'data.fingerprint', 'data.loader_sha256', 'packages.flax', 'packages.optax', 'packages.numpy',
    'python',
)  # fmt: skip
# Of a config, by which the seeds of a run are known, and whether it is finished.
_READ = {
    'seed': int, 'num_seeds': int, 'total_steps': int, 'eval.patience': int, 'eval.best_metric': str,
    'eval.best_mode': str,
}  # fmt: skip
_MOST_DIGITS = 12  # of a digest that is shown
ABSENT = '–'


class RunData:
    """What the folder of a run holds, read once. All properties raise UserError where a file is damaged."""

    def __init__(self, folder: pathlib.Path):
        self.run, self.folder = Run(folder), folder
        self.config = self.run.config
        self.flat = config_lib.flatten(self.config)
        for name, kind in _READ.items():
            if type(value := self.flat.get(name)) is not kind:
                raise UserError(f'{self.run.paths.config}: {name} is {value!r}; bring it back from a copy')
        if not 1 <= self.config.num_seeds <= 1 << 16:
            raise UserError(f'{self.run.paths.config}: num_seeds is {self.config.num_seeds}')
        self.seeds = tuple(range(self.config.seed, self.config.seed + self.config.num_seeds))

    @functools.cached_property
    def rows(self) -> list[dict]:
        """Those of metrics.jsonl, each with its seed."""
        return [{'seed': self.seeds[0], **row} for row in self.run.rows()]

    @functools.cached_property
    def step(self) -> int:
        """The last one that metrics.jsonl tells of."""
        return max((row['step'] for row in self.rows), default=0)

    @functools.cached_property
    def diverged(self) -> set[int]:
        return {row['seed'] for row in self.rows if 'diverged' in row}

    @functools.cached_property
    def results(self) -> dict[int, Results]:
        """{seed: its rows} of the final evaluation; {} where the run is not finished."""
        found = tables.read(self.run.paths.evaluation)
        if not found or not is_over(self.config, self.run, found[0]):
            return {}
        try:
            return {seed: {name: _of_seed(row, seed) for name, row in found[1].items()} for seed in self.seeds}
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            raise UserError(
                f'{self.run.paths.evaluation}: cannot be read as that of seeds {self.seeds[0]} to {self.seeds[-1]} '
                f'({error}); remove it, and the command that trained the run makes it again'
            ) from None

    @functools.cached_property
    def made_with(self) -> dict[str, str]:
        """What of the manifest may change results, {'packages.jax': '0.10.2'}."""
        manifest = self.run.manifest
        of_bits = {name: _words(value) for name, value in numerics.part(manifest).items()}
        return {name: _words(manifest_lib.at(manifest, name)) for name in _OF_THE_MANIFEST} | of_bits


@dataclasses.dataclass
class Arm:
    """Runs that differ only in their seeds. name: a letter; fields: those of the config that tell the arms apart."""

    name: str
    runs: list[RunData]
    fields: dict[str, str] = dataclasses.field(default_factory=dict)

    @property
    def label(self) -> str:
        return ', '.join(f'{name}={value}' for name, value in self.fields.items() if value != ABSENT)

    @functools.cached_property
    def of_seed(self) -> dict[int, RunData]:
        """{seed: the first run that has it}, of those that are finished and those that diverged."""
        found: dict[int, RunData] = {}
        for run in self.runs:
            for seed in run.seeds:
                if run.results or seed in run.diverged:
                    found.setdefault(seed, run)
        return dict(sorted(found.items()))

    def rows(self, metric: str) -> dict[int, Measurement]:
        """{seed: its row of the final evaluation}; nan of a seed that diverged. A metric that the arm's evaluations
        lack has none; where every seed diverged before its evaluation it is not known which they would have."""
        found = {seed: run.results.get(seed, {}).get(metric) for seed, run in self.of_seed.items()}
        known = next((row for row in found.values() if row), None)
        if known is None and any(run.results for run in self.runs):
            return {}
        lost = {'n': 0, **(known or {}), 'value': math.nan}
        found |= {seed: lost for seed, run in self.of_seed.items() if seed in run.diverged}
        return {seed: row for seed, row in found.items() if row}

    def curves(self, split: str, metric: str) -> dict[int, dict[int, float]]:
        """{seed: {step: value}} of the curves in metrics.jsonl, unfinished runs too."""
        found: dict[int, dict[int, float]] = {}
        for run in self.runs:
            own: dict[int, dict[int, float]] = {}
            for row in run.rows:
                if row['split'] == split and metric in row:
                    value = math.nan if row[metric] is None else row[metric]
                    own.setdefault(row['seed'], {})[row['step']] = value
            for seed, curve in own.items():
                found.setdefault(seed, curve)
        return dict(sorted(found.items()))


def find(places: Sequence[str]) -> list[RunData]:
    """The runs that `places` name: folders of runs, folders that hold runs at any depth, or patterns of either. Each
    is taken once. Raises UserError where a place names none."""
    if not places:
        raise UserError('no RUN is named; name the folders of runs, or a folder that holds them')
    found: dict[tuple[int, int], RunData] = {}
    for place in places:
        expanded = os.path.expanduser(place)
        matched = sorted(filter(os.path.isdir, glob.glob(expanded)), key=tables.by_numbers)
        if os.path.lexists(expanded):
            matched = [expanded]
        folders = [folder for path in matched for folder in _runs_below(path)]
        if not folders:
            raise UserError(f'{place}: {"holds no run (no config.json)" if matched else "there is no such folder"}')
        for folder in folders:
            status = os.stat(folder)
            found.setdefault((status.st_dev, status.st_ino), RunData(pathlib.Path(folder)))
    return list(found.values())


def _runs_below(path: str) -> list[str]:
    if not os.path.isdir(path):
        raise UserError(f'{path}: is no folder; name the folder of a run')
    found, left = [], [path]
    while left:
        path = left.pop()
        if os.path.exists(os.path.join(path, 'config.json')):
            found.append(path)
            continue
        try:
            below = [entry.path for entry in os.scandir(path) if entry.is_dir(follow_symlinks=False)]
        except OSError as error:
            raise UserError(f'{path}: cannot be read: {error.strerror or error}') from None
        left += sorted(below, key=tables.by_numbers, reverse=True)
    return found


def group(runs: Sequence[RunData]) -> list[Arm]:
    """The arms, in the order of their first runs. A run whose data have another fingerprint is of another arm."""
    keys: dict[str, list[RunData]] = {}
    for run in runs:
        identity = {name: value for name, value in run.flat.items() if _bears(name)}
        keys.setdefault(repr((sorted(identity.items()), run.made_with['data.fingerprint'])), []).append(run)
    arms = [Arm(_letters(k), members) for k, members in enumerate(keys.values())]
    firsts = [arm.runs[0] for arm in arms]
    names = {name: None for run in firsts for name in run.flat if _bears(name)}
    shown = {name: [_words(run.flat[name]) if name in run.flat else ABSENT for run in firsts] for name in names}
    shown['data.fingerprint'] = [run.made_with['data.fingerprint'] for run in firsts]
    # The fields that all arms have come first.
    for name in sorted(shown, key=lambda name: ABSENT in shown[name]):
        if len(set(shown[name])) > 1:
            for arm, words in zip(arms, shown[name], strict=True):
                arm.fields[name] = words
    return arms


def made_with(arms: Sequence[Arm]) -> dict[str, list[str]]:
    """{what differs between the manifests: its values in each arm}."""
    found = {}
    for name in dict.fromkeys(name for arm in arms for run in arm.runs for name in run.made_with):
        values = [sorted({run.made_with.get(name, ABSENT) for run in arm.runs}) for arm in arms]
        if len({value for of_arm in values for value in of_arm}) > 1:
            found[name] = [', '.join(of_arm) for of_arm in values]
    return found


def remarks(arms: Sequence[Arm]) -> list[str]:
    """What of these runs does not count as a finished seed, or not for itself, a sentence each."""
    found = []
    for arm in arms:
        for run in arm.runs:
            if lost := sorted(run.diverged):
                found.append(f'{run.folder} ({arm.name}): diverged: {seed_words(lost)}; counted as the worst')
            if not run.results and len(lost) < len(run.seeds):
                total = run.flat.get('total_steps')
                found.append(f'{run.folder} ({arm.name}): not finished, at step {run.step} of {total}; not counted')
            for seed in run.seeds:
                if (other := arm.of_seed.get(seed, run)) is not run:
                    where = f'{run.folder} ({arm.name}): {seed_words([seed])}'
                    found.append(f'{where} is in {other.folder} too; counted once')
            if not run.run.manifest:
                found.append(f'{run.folder} ({arm.name}): has no manifest.json, so what it was made with is unknown')
    if len({run.made_with['data.fingerprint'] for arm in arms for run in arm.runs}) > 1:
        found.append('the arms have other data (data.fingerprint), so their differences are not of the models alone')
    return found


def seed_words(seeds: Sequence[int]) -> str:
    """'seed 3', 'seeds 0, 2' or 'seeds 0 to 15'."""
    if len(seeds) > 4 and [*seeds] == [*range(seeds[0], seeds[-1] + 1)]:
        return f'seeds {seeds[0]} to {seeds[-1]}'
    return f'seed{"s" if len(seeds) > 1 else ""} {", ".join(map(str, seeds))}'


def _of_seed(row: Measurement, seed: int) -> Measurement:
    """One seed's own row of a row that may be over replicas, of which reports/tables.py joined it."""
    value = results_lib.of_seeds(row, seed)[seed]
    if 'values' not in row:
        return row | {'value': value}
    joined = {'values', 'seeds', 'diverged', 'n_each'}
    joined |= {'ci', 'low', 'high', 'n', 'over'} if row.get('over') == 'seeds' else set()
    own = {name: inner for name, inner in row.items() if name not in joined}
    if 'difference' in own:
        own['difference'] = _of_seed(row['difference'], seed)
    own |= {'n': row['n_each']} if 'n_each' in row else {}
    return own | {'value': value}


def _bears(name: str) -> bool:
    return name not in _OF_ONE_ARM and not name.startswith('parallel.')


def _words(value) -> str:
    if value is None:
        return ABSENT
    text = str(value)
    is_digest = isinstance(value, str) and len(text) >= 40 and set(text) <= set(string.hexdigits)
    return text[:_MOST_DIGITS] if is_digest else text or "''"


def _letters(k: int) -> str:
    return (_letters(k // 26 - 1) if k >= 26 else '') + string.ascii_uppercase[k % 26]
