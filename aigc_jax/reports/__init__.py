"""Evaluations, samples and pictures of a model, made of what it can do. REPORTS is the table of evaluations."""

from typing import NamedTuple

from aigc_jax import tasks
from aigc_jax.core.errors import UserError, near
from aigc_jax.metrics.names import named
from aigc_jax.reports.base import Report
from aigc_jax.reports.codebook import CodebookUse
from aigc_jax.reports.image_samples import ImageSamples
from aigc_jax.reports.means import Means, SplitStatistics
from aigc_jax.reports.mixture import MixtureSamples
from aigc_jax.reports.problems import Problems
from aigc_jax.reports.size import Size
from aigc_jax.reports.text_likelihood import Baselines, TextLikelihood
from aigc_jax.reports.text_samples import TextSamples
from aigc_jax.reports.transport import PointTransport
from aigc_jax.reports.written import Written
from aigc_jax.runs.experiment import Experiment

REPORTS: tuple[type[Report], ...] = (
    Means, TextLikelihood, CodebookUse, MixtureSamples, PointTransport, SplitStatistics, TextSamples, Baselines,
    Written, Problems, ImageSamples, Size,
)  # fmt: skip


def of(experiment: Experiment) -> list[type[Report]]:
    """The reports that apply to an experiment."""
    return [report for report in REPORTS if report.applies(experiment)]


def is_each(report: type[Report], experiment: Experiment) -> bool:
    """Whether it is made at each evaluation while training."""
    return report.when == 'each' or report.name in experiment.config.eval.also_each


class Names(NamedTuple):
    """Of the metrics of an evaluation. stems: beginnings of others, up to _, of which a metric may be shortened."""

    whole: list[str]
    stems: list[str]

    def has(self, metric: str) -> bool:
        return named(metric, self.whole + self.stems) is not None or any(metric.startswith(f'{s}_') for s in self.stems)


def names(experiment: Experiment) -> Names | None:
    """Of the final evaluation, before it is made; None where not all are known: those of an own task's statistics."""
    applying = of(experiment)
    if SplitStatistics in applying and tasks.is_own(experiment.config.task.name):
        return None
    of_kind = lambda stems: [n for report in applying if report.stems == stems for n in report.names(experiment)]
    return Names(of_kind(False), of_kind(True))


def check(experiment: Experiment) -> None:
    """Raises UserError for fields of config.eval that do not fit; nothing is computed."""
    for report in REPORTS:
        report.check(experiment)
    config, applying = experiment.config.eval, of(experiment)
    final = [report.name for report in applying if report.when == 'final']
    off = [report for report in REPORTS if report.is_off(experiment)]
    for name in config.also_each:
        if switch := next((one.switch for one in off if one.name == name), ''):
            raise UserError(
                f'eval.also_each: {name} is left out, for eval.{switch} is {config[switch]!r}; set eval.{switch}, too'
            )
        if name not in final:
            what = f'no report {name!r}{near(name, final)}' if final else 'nothing besides'
            raise UserError(f'eval.also_each: the final evaluation of this model makes {what}')
    if not (best := config.best_metric):
        return
    known = [name for report in applying if is_each(report, experiment) for name in report.names(experiment)]
    if named(best, known) is not None:
        return
    for report in applying + off:
        if named(best, report.names(experiment)) is not None:
            also = f'eval.{report.switch}, and ' if report in off else ''
            raise UserError(
                f'eval.best_metric: {best} is not measured while training; set {also}eval.also_each to '
                f"('{report.name}',)"
            )
    raise UserError(f'eval.best_metric: an evaluation has no {best!r}{near(best, known)}')
