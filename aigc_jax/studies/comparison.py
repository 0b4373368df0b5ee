"""The metrics of arms beside each other, each with its difference to the first arm and what that says."""

import collections
import fnmatch
import functools
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from aigc_jax import reports
from aigc_jax.core.errors import UserError, near
from aigc_jax.core.types import NO_METRICS
from aigc_jax.metrics import intervals
from aigc_jax.metrics.intervals import Measurement
from aigc_jax.reports import tables
from aigc_jax.studies import arms as arms_lib
from aigc_jax.studies import power, statistics
from aigc_jax.studies.arms import Arm
from aigc_jax.studies.statistics import Difference

ALPHA = 0.05
SPLITS = ('train', 'eval')  # of metrics.jsonl; 'final' is the final evaluation
_MOST_SHOWN = 16  # seeds of which each value is printed
_MOST_FOLDERS = 4  # of an arm's runs that are printed
_MOST_FIELDS = 20  # of the config that are printed, each with its values


class Entry(NamedTuple):
    """One arm's seeds on one metric.

    row: their mean with its interval, of the seeds that are finite. values: {seed: value}. difference: to the arm
    `reference`, the first that has values; None of that arm itself. words: what it says. effect, improvement: Hedges' g
    and the probability of improvement; {} where they say nothing.
    """

    arm: Arm
    row: Measurement
    values: dict[int, float]
    reference: str = ''
    difference: Difference | None = None
    words: str = ''
    effect: Measurement = {}
    improvement: Measurement = {}


class Measured(NamedTuple):
    """One metric of all arms. better: 'min', 'max', or '' where nobody said. absent: names of arms without a value."""

    title: str
    better: str
    entries: list[Entry]
    absent: list[str]


class Comparison:
    """The runs in `places` (`arms.find`), whose first arm the others are compared with. It reads, and writes nothing.

    metrics: names of the final evaluation, their beginnings up to _ (`reports.named`), or patterns such as samples/*;
    of metrics.jsonl train:NAME and eval:NAME, at the last step that all seeds have. (): all of the final evaluation, or
    all of eval: where no run has one.
    better: 'min' or 'max', for all `metrics`; '': eval.best_mode for the runs' eval.best_metric, unknown for others.
    Raises UserError.
    """

    def __init__(self, places: Sequence[str], metrics: Sequence[str] = (), better: str = ''):
        if better not in ('', 'min', 'max'):
            raise UserError(f'--better: {better!r}; it is min or max')
        self.arms = arms_lib.group(arms_lib.find(places))
        self.made_with = arms_lib.made_with(self.arms)
        self.remarks = arms_lib.remarks(self.arms)
        self._better = better
        self.metrics = [self._measured(name) for name in self._chosen(metrics)]
        if tests := sum(1 for measured in self.metrics for e in measured.entries if e.difference and e.difference.test):
            chance = f'expect {tests * ALPHA:.2g} below {ALPHA} by chance'
            self.remarks.append(f'each p is of one test, and {tests} were made: {chance}')

    @functools.cached_property
    def final(self) -> list[str]:
        """The metrics of the final evaluations."""
        runs = [run for arm in self.arms for run in arm.runs]
        return [*dict.fromkeys(name for run in runs for results in run.results.values() for name in results)]

    @functools.cached_property
    def curves(self) -> dict[str, tuple[str, str]]:
        """{'eval:NAME': (split, NAME)} of all curves."""
        rows = [row for arm in self.arms for run in arm.runs for row in run.rows if row['split'] in SPLITS]
        pairs = sorted({(row['split'], name) for row in rows for name in row if name not in NO_METRICS})
        return {f'{split}:{name}': (split, name) for split, name in pairs}

    def _chosen(self, metrics: Sequence[str]) -> list[str]:
        if not metrics:
            return self.final or [name for name in self.curves if name.startswith('eval:')]
        known, chosen = [*self.final, *self.curves], []
        for metric in metrics:
            one = reports.named(metric, self.final)
            found = [one] if one else [name for name in known if fnmatch.fnmatchcase(name, metric)]
            if not found:
                raise UserError(f'--metric: no run has {metric!r}{near(metric, known) if known else ""}')
            chosen += found
        return [*dict.fromkeys(chosen)]

    def _measured(self, name: str) -> Measured:
        of_arms, title = [arm.rows(name) for arm in self.arms], name
        if name in self.curves:
            of_arms, step = self._at_last_step(*self.curves[name])
            title = name if step is None else f'{name} at step {step}'
        better, entries = self._better or self._direction(name), []
        for arm, rows in zip(self.arms, of_arms, strict=True):
            if not rows:
                continue
            values = {seed: row['value'] for seed, row in rows.items()}
            entry = Entry(arm, self._mean(arm, name, rows), values)
            exp_of = next((row['exp_of'] for row in rows.values() if 'exp_of' in row), None)
            if exp_of and entries:
                entry = entry._replace(words=f'see {exp_of}, of which this is the exponential')
            elif entries:
                entry = _against(entries[0], entry, better)
            entries.append(entry)
        absent = [arm.name for arm, rows in zip(self.arms, of_arms, strict=True) if not rows]
        return Measured(title, better, entries, absent)

    def _at_last_step(self, split: str, name: str) -> tuple[list[dict[int, Measurement]], int | None]:
        """({seed: row} of each arm, the last step that all seeds have which did not diverge)."""
        curves = [arm.curves(split, name) for arm in self.arms]
        lost = [{seed for run in arm.runs for seed in run.diverged} for arm in self.arms]
        for arm, of_arm, gone in zip(self.arms, curves, lost, strict=True):
            if of_arm or gone == {seed for run in arm.runs for seed in run.seeds}:  # it diverged before its first row
                of_arm |= {seed: {} for seed in gone - of_arm.keys()}
        alive = [c for of_arm, gone in zip(curves, lost, strict=True) for seed, c in of_arm.items() if seed not in gone]
        steps = set.intersection(*map(set, alive)) if alive else set()
        if not steps:
            return [{} for _ in self.arms], None
        step = max(steps)
        value = lambda seed, curve, gone: math.nan if seed in gone else curve[step]
        found = [
            {seed: {'value': value(seed, curve, gone), 'n': 1} for seed, curve in of_arm.items()}
            for of_arm, gone in zip(curves, lost, strict=True)
        ]
        return found, step

    def _mean(self, arm: Arm, name: str, rows: dict[int, Measurement]) -> Measurement:
        by_seed = {seed: {name: row} for seed, row in rows.items()}
        for seed, row in rows.items():
            if isinstance(base := row.get('exp_of'), str):
                if not (found := arm.rows(base).get(seed)):
                    raise UserError(f'{arm.of_seed[seed].folder}: its evaluation has {name}, but no {base}')
                by_seed[seed][base] = found
        return tables.across(by_seed)[name]

    def _direction(self, name: str) -> str:
        names = self.final if name in self.final else [known.partition(':')[2] for known in self.curves]
        name, modes = name if name in self.final else name.partition(':')[2], set()
        for arm in self.arms:
            best = arm.runs[0].flat.get('eval.best_metric')
            if best and reports.named(best, names) == name:
                modes.add(arm.runs[0].flat.get('eval.best_mode'))
        return modes.pop() if len(modes) == 1 and modes <= {'min', 'max'} else ''


def _against(first: Entry, entry: Entry, better: str) -> Entry:
    paired = first.values.keys() == entry.values.keys()
    seeds = sorted(entry.values) if paired else [*entry.values]
    a = np.array([entry.values[seed] for seed in seeds])
    b = np.array([first.values[seed] for seed in (seeds if paired else first.values)])
    found, finite = statistics.difference(a, b, better, paired, ALPHA), np.isfinite(a).all() and np.isfinite(b).all()
    words = _words(found, a, b, better, paired)
    entry = entry._replace(reference=first.arm.name, difference=found, words=words)
    if finite and found.test in (statistics.PAIRED, statistics.WELCH):
        entry = entry._replace(effect=statistics.effect_size(a, b, paired, ALPHA))
    if better and min(len(a), len(b)) > 1:
        entry = entry._replace(improvement=statistics.probability_of_improvement(a, b, better, ALPHA))
    return entry


def _words(found: Difference, a: np.ndarray, b: np.ndarray, better: str, paired: bool) -> str:
    """What the difference a − b says, in plain words."""
    n, finite = min(len(a), len(b)), np.isfinite(a).all() and np.isfinite(b).all()
    if n < 2:
        return 'n too few to say: one seed shows no spread between seeds'
    if not finite and not better:
        return 'no test: a value is not finite, and --better=min or --better=max has to say which side is the worst'
    if np.array_equal(a, b) or (not np.ptp(a) and not np.ptp(b) and a[0] == b[0]):
        return 'no difference: the values are the same'
    if better and (verdict := statistics.arm_verdict(found, a, b, better, ALPHA)) != 'undecided':
        return verdict
    if found.p < ALPHA:
        return 'higher' if found.row['value'] > 0 else 'lower'
    if found.test not in (statistics.PAIRED, statistics.WELCH):
        return f'n too few to say: {n} seeds compared by their ranks'
    samples, sd = (1, float(np.std(a - b, ddof=1))) if paired else (2, power.pooled_sd(a, b))
    d, pairs = abs(found.row['value']), 'pairs of seeds' if paired else 'seeds of each arm'
    needed, few, many = power.seeds_by_pilot(d, sd, samples * (n - 1), samples, ALPHA)
    return (
        f'n too few to say: {n} {pairs} find a difference of {power.resolvable(sd, n, samples, ALPHA):.3g} with a '
        f'probability of {power.POWER:.0%}; one of {d:.3g} needs {_count(needed)} ({_count(few)} to {_count(many)}, as '
        f'the spread is known from {n} alone)'
    )


def _count(n: float) -> str:
    return f'{n:,.0f}' if math.isfinite(n) else 'more than 100,000'


def mean_words(row: Measurement) -> str:
    """'46.1 ± 0.4 (over 180 examples), without the 1 not finite'."""
    if not math.isfinite(row['value']):
        return 'not finite'
    words = f'{row["value"]:.6g}'
    if found := intervals.limits(row):
        words += f' ± {row["ci"]:.3g}' if 'ci' in row else f' ({found[0]:.4g} to {found[1]:.4g})'
        words += f' (over {row["n"]} {row["over"]})' if row.get('over') != 'seeds' else ''
    return words + (f', without the {row["diverged"]} not finite' if row.get('diverged') else '')


def difference_words(entry: Entry) -> str:
    """'B − A = −0.9 ± 0.5, p = 0.012 (Welch's t): better'; '' of the reference."""
    if (found := entry.difference) is None:
        return entry.words
    value = found.row['value']
    words = f'{entry.arm.name} − {entry.reference} = {value:+.3g}' if math.isfinite(value) else ''
    words += f' ± {found.row["ci"]:.3g}' if words and math.isfinite(found.row.get('ci', math.nan)) else ''
    if found.test:
        words += f'{", " if words else ""}p = {found.p:.2g} ({found.test})'
    return f'{words}: {entry.words}' if words else entry.words


def extra_words(entry: Entry) -> str:
    """The effect size and the probability of improvement; '' where there are none."""
    parts = []
    if entry.effect and math.isfinite(entry.effect['value']):
        parts.append('effect size g = {value:.3g} ({low:.3g} to {high:.3g})'.format(**entry.effect))
    if entry.improvement:
        parts.append('probability of improvement {value:.2f} ({low:.2f} to {high:.2f})'.format(**entry.improvement))
    return ', '.join(parts)


def text(comparison: Comparison) -> str:
    """The comparison for a person, at a terminal."""
    arms, lines = comparison.arms, []
    for arm in arms:
        seeds = sorted({seed for run in arm.runs for seed in run.seeds})
        runs = f'{len(arm.runs)} run{"s" if len(arm.runs) > 1 else ""}'
        folders = [str(run.folder) for run in arm.runs]
        if len(folders) > _MOST_FOLDERS:
            folders[_MOST_FOLDERS - 1 :] = [f'and {len(folders) - _MOST_FOLDERS + 1} more']
        lines.append(f'{arm.name}  {runs}, {arms_lib.seed_words(seeds)}: {", ".join(folders)}')
    tables, later = [], []  # what differs much is no name of an arm, and comes behind the metrics
    for title, table in comparison_tables(comparison).items():
        shown, left_out = _cut(table)
        (later if left_out else tables).extend(['', title, *(f'  {line}' for line in [*_aligned(shown), *left_out])])
    lines += tables
    if comparison.remarks:
        lines += ['', *(f'note: {remark}' for remark in comparison.remarks)]
    for measured in comparison.metrics:
        lines += ['', measured.title + better_words(measured.better)]
        rows = [[e.arm.name, f'n={len(e.values)}', mean_words(e.row), seed_values(e.values)] for e in measured.entries]
        for line, entry in zip(_aligned(rows), measured.entries, strict=True):
            said = [difference_words(entry), extra_words(entry)]
            lines += [f'  {line}', *(f'     {words}' for words in said if words)]
        lines += [f'  {absent_words(measured)}'] if measured.absent else []
    return '\n'.join(lines + later) + '\n'


def comparison_tables(comparison: Comparison) -> dict[str, list[list[str]]]:
    """{title: rows} of what differs between the arms; the first row is the head."""
    names, found = [arm.name for arm in comparison.arms], {}
    if fields := [[name, *(arm.fields[name] for arm in comparison.arms)] for name in comparison.arms[0].fields]:
        found['config'] = [['', *names], *fields]
    if made_with := [[name, *values] for name, values in comparison.made_with.items()]:
        found['made with'] = [['', *names], *made_with]
    return found


def _cut(table: list[list[str]]) -> tuple[list[list[str]], list[str]]:
    """(the head and the rows that are printed, a line for each kind of those that are not). Arms of several families
    share few of their fields: of those that some arms lack only the number is told, by the groups of the config."""
    head, *rows = table
    if len(rows) <= _MOST_FIELDS:
        return table, []
    by_arms: dict[str, list[list[str]]] = {}
    for row in rows:
        which = [name for name, cell in zip(head[1:], row[1:], strict=True) if cell != arms_lib.ABSENT]
        by_arms.setdefault(', '.join(which), []).append(row)
    common, lines = by_arms.pop(', '.join(head[1:]), []), []
    for which, own in by_arms.items():
        groups = collections.Counter(row[0].partition('.')[0] for row in own)
        counts = ', '.join(f'{group} {count}' for group, count in groups.items())
        lines.append(f'{which} alone: {len(own)} fields ({counts})')
    if len(common) > _MOST_FIELDS:
        lines.append(f'{len(common) - _MOST_FIELDS} more that all have')
    return [head, *common[:_MOST_FIELDS]], [*lines, '--html=FILE shows each of them']


def better_words(better: str) -> str:
    return {'min': ' (less is better)', 'max': ' (more is better)', '': ''}[better]


def absent_words(measured: Measured) -> str:
    return f'no value: {", ".join(measured.absent)}'


def seed_values(values: dict[int, float]) -> str:
    """Each seed's value, in order; of many their range."""
    show = lambda value: f'{value:.5g}' if math.isfinite(value) else 'not finite'
    if len(values) <= _MOST_SHOWN:
        return ' '.join(f'{seed}: {show(value)}' for seed, value in values.items())
    finite = sorted(value for value in values.values() if math.isfinite(value))
    return f'{finite[0]:.5g} to {finite[-1]:.5g}' if finite else 'not finite'


def _aligned(rows: list[list[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ['  '.join(f'{cell:<{width}}' for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
