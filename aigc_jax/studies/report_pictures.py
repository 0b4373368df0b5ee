"""The pictures of a study's report, bounded where it has many claims.

Each function returns [(PNG, words), …], and a sentence about what is left out.
"""

import os
from collections.abc import Mapping, Sequence

from aigc_jax.core.errors import printable
from aigc_jax.metrics import intervals
from aigc_jax.plots import arms, forest, pareto
from aigc_jax.plots.figure import BLUE, COLOURS, GREEN, ORANGE
from aigc_jax.plots.forest import Row, Style, short
from aigc_jax.studies import findings, statistics
from aigc_jax.studies import report_words as words
from aigc_jax.studies.claims import Claim, Published, Versus
from aigc_jax.studies.findings import Finding, Report

Curves = Mapping[str, Mapping[str, Mapping[str, Mapping[int, Mapping[int, float]]]]]
Pictures = tuple[list[tuple[bytes, str]], str]

_GREY = '#666666'
STYLES = {
    findings.REPRODUCED: Style(BLUE, 'o'), findings.BETTER: Style(GREEN, '^'), findings.WORSE: Style(ORANGE, 'v'),
    findings.UNDECIDED: Style(_GREY, 'D', filled=False), findings.MISSING: Style(_GREY, 's', filled=False),
    findings.MEASURED: Style(_GREY, 'o', filled=False),
}  # fmt: skip
MOST_ROWS, MOST_PANELS = 160, 40  # so that 10,000 claims are drawn within seconds
_ROWS_EACH = 40  # of one picture
_NO_LIMITS = float('nan'), float('nan')


def against_published(report: Report) -> Pictures:
    """Forest plots of the claims that have seeds and a published value, up to MOST_ROWS."""
    label = 'worse  ←  distance from the published value, in halves of its region  →  better'
    found = [finding for finding in report.findings if isinstance(finding.claim.expected, Published) and finding.seeds]
    about = 'measured against published values, by claim'
    parts = _parts(found[:MOST_ROWS], _ROWS_EACH)
    drawn = [(forest.forest([_row(one) for one in part], STYLES, label), about) for part in parts]
    return drawn, _left_out(len(found) - MOST_ROWS, 'claims')


def seeds(report: Report) -> Pictures:
    """The dots of each seed, by metric, up to MOST_ROWS claims and MOST_PANELS pictures."""
    found = [finding for finding in report.findings if finding.seeds]
    by_metric: dict[str, list[Finding]] = {}
    for finding in found[:MOST_ROWS]:
        by_metric.setdefault(words.metric(finding.claim), []).append(finding)
    parts = [(title, part) for title, of in by_metric.items() for part in _parts(of, _ROWS_EACH)][:MOST_PANELS]
    drawn = [
        (forest.dots(title, [_row(one) for one in part], STYLES), f'the value of each seed: {title}')
        for title, part in parts
    ]
    return drawn, _left_out(len(found) - sum(len(part) for _, part in parts), 'claims')


def curves(report: Report, of: Curves) -> Pictures:
    """Metrics over the steps, up to MOST_PANELS panels. Claims of the same runs have the same curves, which are drawn
    once. of: {claim: {metric: {'train' or 'eval': {seed: {step: value}}}}}."""
    runs: dict[str, tuple[str, dict]] = {}  # a name and all metrics of each
    for finding in report.findings:
        if own := of.get(finding.claim.name):
            _, metrics = runs.setdefault(_runs(finding.claim), (finding.claim.name, {}))
            metrics.update((metric, splits) for metric, splits in own.items() if metric not in metrics)
    drawn, left, left_out = [], MOST_PANELS, 0
    for part in _parts([*runs.values()], len(COLOURS)):
        names, held = [name for name, _ in part], [metrics for _, metrics in part]
        metrics = [*dict.fromkeys(metric for one in held for metric in one)]
        left_out += max(len(metrics) - left, 0)
        if not (metrics := metrics[:left]):
            continue
        left -= len(metrics)
        panels = {}
        for metric in metrics:
            of_arms = [one.get(metric, {}) for one in held]
            splits = [split for split in ('train', 'eval') if any(split in one for one in of_arms)]
            panels[short(printable(metric))] = {split: [one.get(split, {}) for one in of_arms] for split in splits}
        png = arms.curves(panels, [short(name) for name in names])
        drawn.append((png, f'metrics over the steps: {", ".join(names)}'))
    return drawn, _left_out(left_out, 'panels')


def _left_out(count: int, of: str) -> str:
    return f'{count} more {of} are not drawn.' if count > 0 else ''


def fronts(report: Report) -> Pictures:
    """A Pareto plot for each pair of metrics of which settings have both, up to MOST_PANELS."""
    drawn, notes = [], []
    for pair in report.pareto[:MOST_PANELS]:
        points, both = paired(report, pair), ' and '.join(map(words.one_line, pair))
        better = [{one[k].claim.better for one in points.values()} for k in (0, 1)]
        if not points:
            notes.append(f'No setting has seeds of both {both}.')
            continue
        if max(map(len, better)) > 1:
            notes.append(f'Claims of {both} differ in whether less or more is better, so no front is drawn.')
            continue
        rows = [[one[k].row for one in points.values()] for k in (0, 1)]
        values = [[row['value'] for row in of] for of in rows]
        limits = [[intervals.limits(row) or _NO_LIMITS for row in of] for of in rows]
        names, titles = [short(name) for name in points], tuple(short(words.one_line(name)) for name in pair)
        png = pareto.pareto(*values, *limits, names, titles, tuple(one.pop() for one in better))
        drawn.append((png, f'{" against ".join(titles)}, by setting'))
    return drawn, ' '.join(notes) or _left_out(len(report.pareto) - MOST_PANELS, 'pairs')


def paired(report: Report, pair: tuple[str, str]) -> dict[str, tuple[Finding, Finding]]:
    """{name: the findings of both metrics} of each setting of config, fields and evaluation that has both. Shares and
    steps at which a threshold is reached are no values of a metric."""
    settings: dict[str, dict[str, Finding]] = {}
    for finding in report.findings:
        claim = finding.claim
        if claim.metric in pair and claim.reach is None and finding.seeds:
            key = f'{_runs(claim)} {sorted(claim.evaluate.items())!r}'
            settings.setdefault(key, {}).setdefault(claim.metric, finding)
    both = [tuple(of[metric] for metric in pair) for of in settings.values() if len(of) == len(set(pair))]
    names = [os.path.commonprefix([one.claim.name for one in of]).rstrip('._+-') for of in both]
    if not all(names) or len(set(names)) < len(names):
        names = [of[0].claim.name for of in both]
    return dict(zip(names, both, strict=True))


def _row(finding: Finding) -> Row:
    claim, region, said = finding.claim, None, f'{finding.verdict}  {words.measured(finding.row)}'
    if isinstance(expected := claim.expected, Published):
        region = statistics.published_region(expected.value, expected.tolerance, expected.sd, expected.n)
        said += f'  [{words.published_value(expected)}]'
    elif isinstance(expected, Versus):
        said += f'  ({words.better_than(expected)})'
    return Row(
        short(claim.name), finding.row['value'], intervals.limits(finding.row), region, finding.verdict, said,
        1 if claim.better == 'max' else -1, finding.values, [*finding.marks.values()],
    )  # fmt: skip


def _runs(claim: Claim) -> str:
    """A key that claims of the same runs share."""
    return f'{claim.config} {sorted(claim.fields.items())!r}'


def _parts(rows: Sequence, size: int) -> list[Sequence]:
    return [rows[k : k + size] for k in range(0, len(rows), size)]
