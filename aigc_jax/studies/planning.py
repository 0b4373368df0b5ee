"""The runs of a study: a study file is read, each claim is checked as the config that it is, and gets its trials."""

import copy
import dataclasses
import functools
import inspect
import json
import os
import pathlib
import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from aigc_jax.core import user_code
from aigc_jax.core.errors import UserError
from aigc_jax.runs import config as config_lib
from aigc_jax.studies import registration
from aigc_jax.studies.claims import Claim, Study
from aigc_jax.studies.measurable import Measurable
from aigc_jax.studies.rows import texts
from aigc_jax.studies.sweeps import Evaluation, Row, Trial, fingerprint, name_of

_GROUPS = 'data', 'sample', 'eval'  # of a config, which an evaluation's file records
_VALID = {'eval.final_split': 'valid'}  # what is tuned is chosen by, never the test split


class Pair(NamedTuple):
    """The trial that trains a run, and the trial that gives a claim's value: the same, unless it evaluates the run once
    more."""

    trained: Trial
    evaluated: Trial

    @property
    def trials(self) -> list[Trial]:
        return [self.trained, self.evaluated] if self.evaluated.evaluation else [self.trained]


@dataclasses.dataclass(frozen=True)
class Setting:
    """The config and fields that one or more claims share, and so their runs. replicas: num_seeds of each run."""

    row: Row
    config: str
    replicas: int
    resolved: ConfigDict

    def evaluated(self, evaluate: Mapping[str, Any]) -> ConfigDict:
        """The config with these fields. Raises UserError."""
        config = copy.deepcopy(self.resolved)
        config_lib.override(config, texts(dict(evaluate)), config_lib.FREE)
        config_lib.check(config)
        return config

    def evaluation(self, evaluate: dict[str, Any]) -> Evaluation | None:
        """None: the final evaluation of the training. Raises UserError."""
        if not evaluate:
            return None
        fields, config = tuple(texts(evaluate)), self.evaluated(evaluate)
        plain = json.loads(config_lib.to_json(config))
        made_with = {f'{group}.{name}': value for group in _GROUPS for name, value in plain[group].items()}
        by_data = {'eval.sample_tokens': -1}  # what the data choose, beside 'auto'
        return Evaluation(fields, {n: v for n, v in made_with.items() if v != by_data.get(n, 'auto')})


class Candidate(NamedTuple):
    """One row of a claim's `tune`: the setting that it is tuned with, on the validation split, and reported with."""

    fields: dict[str, Any]
    tuned: Setting
    reported: Setting


@dataclasses.dataclass(frozen=True)
class Plan:
    """A study file that was read and checked. settings, evaluations, candidates: by the name of a claim.

    candidates: of the claims that are tuned. Until one is chosen, the claim has the setting of the first.
    """

    path: pathlib.Path
    study: Study
    settings: dict[str, Setting]
    evaluations: dict[str, Evaluation | None]
    candidates: dict[str, list[Candidate]]
    registration: str

    @property
    def name(self) -> str:
        return self.path.stem

    def chosen(self, choices: dict[str, int]) -> 'Plan':
        """With the setting that was chosen for each of these claims. choices: {claim: number of its candidate}."""
        settings = {name: self.candidates[name][k].reported for name, k in choices.items()}
        return dataclasses.replace(self, settings=self.settings | settings)

    def tuning_trials(self, claim: Claim, workdir: pathlib.Path) -> list[list[Trial]]:
        """Of each candidate those of its seeds."""
        tuning = self.study.tuning
        return [
            [
                self._trial(claim, one.tuned, seed, workdir, workdir)
                for seed in range(tuning.first_seed, tuning.first_seed + tuning.seeds, one.tuned.replicas)
            ]
            for one in self.candidates[claim.name]
        ]

    @functools.cached_property
    def claims(self) -> dict[str, Claim]:
        return {claim.name: claim for claim in self.study.claims}

    @property
    def results(self) -> pathlib.Path:
        """The report that was committed beside the study."""
        return self.path.with_name(f'{self.name}.results.json')

    def seeds(self, claim: Claim) -> int:
        """How many it is to have, at the first look."""
        return claim.seeds or self.study.seeds

    def check_metrics(self, names: Iterable[str]) -> None:
        """Raises UserError where the evaluations of a claim of these names will not have what the claim measures."""
        measurable, tuning = Measurable(), self.study.tuning
        for claim in map(self.claims.get, names):
            where, setting = f'{self.path.name}, claim {claim.name}', self.settings[claim.name]
            config = setting.evaluated(claim.evaluate)
            measurable.check(claim.metric, setting.config, config, f'{where}, metric')
            for floor in claim.floors:
                measurable.check(floor, setting.config, config, f'{where}, floors')
            if claim.tune:
                tuned = self.candidates[claim.name][0].tuned
                measurable.check(tuning.metric, setting.config, tuned.resolved, f'{where}, metric of its Tuning')

    def trials(self, claim: Claim, seeds: int, workdir: pathlib.Path) -> list[Pair]:
        """Of the first `seeds` seeds."""
        first = self.study.first_seed
        return self.trials_of(claim, range(first, first + seeds, self.settings[claim.name].replicas), workdir)

    def first_of(self, claim: Claim, seed: int) -> int:
        """The first seed of the run that has this one."""
        first, replicas = self.study.first_seed, self.settings[claim.name].replicas
        return first + (seed - first) // replicas * replicas

    def trials_of(
        self, claim: Claim, firsts: Iterable[int], workdir: pathlib.Path, starts: pathlib.Path | None = None
    ) -> list[Pair]:
        """Those of the runs whose first seeds these are. starts: the folder of the runs that they start from; None:
        workdir."""
        setting, evaluation = self.settings[claim.name], self.evaluations[claim.name]
        trained = [self._trial(claim, setting, seed, workdir, starts or workdir) for seed in firsts]
        return [Pair(one, dataclasses.replace(one, evaluation=evaluation)) for one in trained]

    def _trial(self, claim: Claim, setting: Setting, seed: int, workdir: pathlib.Path, starts: pathlib.Path) -> Trial:
        start = None
        if claim.start:
            start = self._trial(self.claims[claim.start], self.settings[claim.start], seed, starts, starts)
        return Trial(setting.row, seed, workdir, setting.config, start=start, into=claim.into)


def load(path: str) -> Plan:
    """The plan of 'FILE.py[:ARGUMENT]', whose study() is given the argument, such as the folder of its data.

    Raises UserError, for the first claim that is wrong.
    """
    found = re.fullmatch(r'(.+?\.py|[^:]*)(?::(.*))?', path, re.DOTALL)
    file = pathlib.Path(found[1]).expanduser()
    module = user_code.load(file, '--config')
    if not hasattr(module, 'study'):
        raise UserError(f'--config: {file} defines no study(); it returns aigc_jax.studies.claims.Study')
    with user_code.errors_of(file, '--config'):
        parameters = inspect.signature(module.study).parameters.values()
        if found[2] and not parameters:
            raise UserError(f'--config: study() of {file} takes no argument; leave out :{found[2]}')
        if not found[2] and any(one.default is one.empty for one in parameters):
            names = ', '.join(one.name for one in parameters)
            raise UserError(f'--config: study({names}) of {file} takes an argument; give it as {file}:ARGUMENT')
        study = module.study(found[2]) if found[2] else module.study()
        if not isinstance(study, Study):
            raise TypeError(f'study() returns {type(study).__name__}, not aigc_jax.studies.claims.Study')
        registered = registration.digest(study, found[2] or '')
    of = {claim.name: claim for claim in study.claims}
    by_key: dict[str, Setting] = {}
    settings, evaluations, candidates = {}, {}, {}

    def setting(claim: Claim, more: dict[str, Any]) -> Setting:
        fields = dict(claim.fields) | more
        if claim.start:
            fields[claim.into] = setting(of[claim.start], {}).row.name
        key = json.dumps([claim.config, fields], sort_keys=True)
        if key not in by_key:
            by_key[key] = _setting(file, claim.config, fields)
        return by_key[key]

    for claim in study.claims:
        try:
            if claim.tune:
                rows = [dict(row) for row in claim.tune]
                found = [Candidate(row, setting(claim, row | _VALID), setting(claim, row)) for row in rows]
                candidates[claim.name] = found
                _check_budget(study, candidates)
            settings[claim.name] = setting(claim, dict(claim.tune[0]) if claim.tune else {})
            evaluations[claim.name] = settings[claim.name].evaluation(dict(claim.evaluate))
        except UserError as error:
            raise UserError(f'{file.name}, claim {claim.name}: {str(error).removeprefix("--config.")}') from None
        _check_seeds(claim, study, settings[claim.name])
    _check_starts(study, settings)
    _check_twins(file, study, settings, candidates)
    return Plan(file.absolute(), study, settings, evaluations, candidates, registered)


def _setting(file: pathlib.Path, config: str, fields: dict[str, Any]) -> Setting:
    found = re.fullmatch(r'(.+\.py|[^:]*)(:.*)?', config, re.DOTALL)
    config = os.path.normpath(file.absolute().parent / pathlib.Path(found[1]).expanduser()) + (found[2] or '')
    resolved = config_lib.load(config, texts(fields))
    named = pathlib.PurePath(found[1]).stem + (found[2] or '')
    name = name_of({'config': named} | fields).removeprefix('config=')
    row = Row(name, fields, fingerprint(config_lib.to_json(resolved)), resolved.total_steps)
    return Setting(row, config, resolved.num_seeds, resolved)


def _check_twins(
    file: pathlib.Path, study: Study, settings: dict[str, Setting], candidates: dict[str, list[Candidate]]
) -> None:
    """Two settings that are one config would be trained twice."""
    seen: dict[tuple[str, int], tuple[Claim, str, Setting]] = {}
    for claim in study.claims:
        own = {f'claim {claim.name}': settings[claim.name]}
        if claim.tune:
            rows = enumerate(candidates[claim.name], 1)
            own = {f'row {k} of tune of claim {claim.name}': one.reported for k, one in rows}
        for place, setting in own.items():
            key = setting.row.fingerprint, setting.row.total_steps
            twin, where, other = seen.setdefault(key, (claim, place, setting))
            if twin is claim and where != place:
                raise UserError(f'{file.name}: {where} and {place} are the same config; remove one of the two rows')
            if other is not setting:
                most = max(other.row.fields, setting.row.fields, key=len)
                raise UserError(
                    f'{file.name}: {where} and {place} are the same config, written in two ways, and it would be '
                    f'trained twice; give both the same config and the fields {most}, or leave one of them out'
                )


def _check_budget(study: Study, candidates: dict[str, list[Candidate]]) -> None:
    """All candidates are trained for as many steps with as many seeds."""
    settings = [one.tuned for found in candidates.values() for one in found]
    if len({setting.row.total_steps for setting in settings}) > 1:
        steps = ', '.join(sorted({str(setting.row.total_steps) for setting in settings}))
        raise UserError(f'tune: the rows are trained for other numbers of steps: {steps}; give all as many')
    if len({setting.replicas for setting in settings}) > 1 or study.tuning.seeds % settings[0].replicas:
        runs = f'runs of num_seeds={settings[0].replicas}; give a multiple of it, and all rows the same num_seeds'
        raise UserError(f'tune: {study.tuning.seeds} seeds of tuning in {runs}')


def _check_starts(study: Study, settings: dict[str, Setting]) -> None:
    for claim in study.claims:
        if claim.start and settings[claim.start].replicas > 1:
            raise UserError(
                f'claim {claim.name}: it starts from the runs of {claim.start}, which have num_seeds='
                f'{settings[claim.start].replicas}; a run starts from one seed, so set it to 1'
            )
        if claim.start and settings[claim.name].replicas > 1:
            raise UserError(f'claim {claim.name}: each of its seeds starts from another run, so set num_seeds to 1')


def _check_seeds(claim: Claim, study: Study, setting: Setting) -> None:
    seeds = claim.seeds or study.seeds
    if seeds % setting.replicas:
        raise UserError(
            f'claim {claim.name}: {seeds} seeds in runs of num_seeds={setting.replicas}; give a multiple of it'
        )
    for other in (one for one in study.claims if one.name in claim.others):
        if (other.metric, other.reach, other.first_step, other.better) != (
            claim.metric, claim.reach, claim.first_step, claim.better,
        ):  # fmt: skip
            raise UserError(f'claim {claim.name}: {other.name} has another metric, reach or better; give both the same')
        if (other.seeds or study.seeds) != seeds:
            raise UserError(f'claim {claim.name}: {seeds} seeds, and {other.name} has others; give both as many')
