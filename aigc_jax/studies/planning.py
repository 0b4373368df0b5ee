"""The runs of a study: a study file is read, each claim is checked as the config that it is, and gets its trials."""

import dataclasses
import functools
import json
import os
import pathlib
import re
from collections.abc import Iterable
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from aigc_jax.core import user_code
from aigc_jax.core.errors import UserError
from aigc_jax.runs import config as config_lib
from aigc_jax.studies import registration
from aigc_jax.studies.claims import Claim, Study, Versus
from aigc_jax.studies.rows import texts
from aigc_jax.studies.sweeps import Evaluation, Row, Trial, fingerprint, name_of

_GROUPS = 'data', 'sample', 'eval'  # of a config, which an evaluation's file records


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

    def evaluation(self, evaluate: dict[str, Any]) -> Evaluation | None:
        """None: the final evaluation of the training. Raises UserError."""
        if not evaluate:
            return None
        fields = tuple(texts(evaluate))
        config = ConfigDict(self.resolved)
        config_lib.override(config, fields, config_lib.FREE)
        config_lib.check(config)
        plain = json.loads(config_lib.to_json(config))
        made_with = {f'{group}.{name}': value for group in _GROUPS for name, value in plain[group].items()}
        by_data = {'eval.sample_tokens': -1}  # what the data choose, beside 'auto'
        return Evaluation(fields, {n: v for n, v in made_with.items() if v != by_data.get(n, 'auto')})


@dataclasses.dataclass(frozen=True)
class Plan:
    """A study file that was read and checked. settings, evaluations: by the name of a claim."""

    path: pathlib.Path
    study: Study
    settings: dict[str, Setting]
    evaluations: dict[str, Evaluation | None]
    registration: str

    @property
    def name(self) -> str:
        return self.path.stem

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

    def trials(self, claim: Claim, seeds: int, workdir: pathlib.Path) -> list[Pair]:
        """Of the first `seeds` seeds."""
        first = self.study.first_seed
        return self.trials_of(claim, range(first, first + seeds, self.settings[claim.name].replicas), workdir)

    def trials_of(self, claim: Claim, firsts: Iterable[int], workdir: pathlib.Path) -> list[Pair]:
        """Those of the runs whose first seeds these are."""
        setting, evaluation = self.settings[claim.name], self.evaluations[claim.name]
        trained = [Trial(setting.row, seed, workdir, setting.config) for seed in firsts]
        return [Pair(one, dataclasses.replace(one, evaluation=evaluation)) for one in trained]


def load(path: str) -> Plan:
    """Raises UserError, for the first claim that is wrong."""
    file = pathlib.Path(path).expanduser()
    module = user_code.load(file, '--config')
    if not hasattr(module, 'study'):
        raise UserError(f'--config: {path} defines no study(); it returns aigc_jax.studies.claims.Study')
    with user_code.errors_of(file, '--config'):
        study = module.study()
        if not isinstance(study, Study):
            raise TypeError(f'study() returns {type(study).__name__}, not aigc_jax.studies.claims.Study')
        registered = registration.digest(study)
    by_key: dict[str, Setting] = {}
    settings, evaluations = {}, {}
    for claim in study.claims:
        key = json.dumps([claim.config, dict(claim.fields)], sort_keys=True)
        try:
            if key not in by_key:
                by_key[key] = _setting(file, claim)
            settings[claim.name] = by_key[key]
            evaluations[claim.name] = by_key[key].evaluation(dict(claim.evaluate))
        except UserError as error:
            raise UserError(f'{file.name}, claim {claim.name}: {str(error).removeprefix("--config.")}') from None
        _check_seeds(claim, study, by_key[key])
    twins: dict[str, Claim] = {}
    for claim in study.claims:
        key = settings[claim.name].row.fingerprint
        if (twin := twins.setdefault(key, claim)) is not claim and settings[twin.name] is not settings[claim.name]:
            raise UserError(
                f'{file.name}: claims {twin.name} and {claim.name} write the same config in two ways, which would be '
                f'trained twice; give both the same config and fields'
            )
    return Plan(file.absolute(), study, settings, evaluations, registered)


def _setting(file: pathlib.Path, claim: Claim) -> Setting:
    found = re.fullmatch(r'(.+\.py|[^:]*)(:.*)?', claim.config, re.DOTALL)
    config = os.path.normpath(file.absolute().parent / pathlib.Path(found[1]).expanduser()) + (found[2] or '')
    fields = dict(claim.fields)
    resolved = config_lib.load(config, texts(fields))
    named = pathlib.PurePath(found[1]).stem + (found[2] or '')
    name = name_of({'config': named} | fields).removeprefix('config=')
    row = Row(name, fields, fingerprint(config_lib.to_json(resolved)), resolved.total_steps)
    return Setting(row, config, resolved.num_seeds, resolved)


def _check_seeds(claim: Claim, study: Study, setting: Setting) -> None:
    seeds = claim.seeds or study.seeds
    if seeds % setting.replicas:
        raise UserError(
            f'claim {claim.name}: {seeds} seeds in runs of num_seeds={setting.replicas}; give a multiple of it'
        )
    if isinstance(claim.expected, Versus):
        other = next(one for one in study.claims if one.name == claim.expected.than)
        if (other.metric, other.reach, other.first_step, other.better) != (
            claim.metric, claim.reach, claim.first_step, claim.better,
        ):  # fmt: skip
            raise UserError(f'claim {claim.name}: {other.name} has another metric, reach or better; give both the same')
        if (other.seeds or study.seeds) != seeds:
            raise UserError(f'claim {claim.name}: {seeds} seeds, and {other.name} has others; give both as many')
