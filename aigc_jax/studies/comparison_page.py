"""A comparison as one page of HTML."""

import os
import pathlib

from aigc_jax.core.errors import UserError, printable
from aigc_jax.core.files import atomic_write
from aigc_jax.metrics import intervals
from aigc_jax.plots import arms as plots
from aigc_jax.studies import comparison as comparison_lib
from aigc_jax.studies import markup
from aigc_jax.studies.arms import seed_words
from aigc_jax.studies.comparison import SPLITS, Comparison, Measured

_MOST_PANELS = 60


def check(path: pathlib.Path, comparison: Comparison) -> None:
    """Raises UserError where the page cannot be at `path`: nothing is written into the folder of a run."""
    if path.is_dir():
        raise UserError(f'--html: {path} is a folder; name a file')
    if not path.parent.is_dir():
        raise UserError(f'--html: {path.parent} is no folder; make it, or name another file')
    for run in (run for arm in comparison.arms for run in arm.runs):
        if pathlib.Path(os.path.realpath(path)).is_relative_to(os.path.realpath(run.folder)):
            raise UserError(f'--html: {path} lies in the run {run.folder}; name a file outside of it')


def write(path: pathlib.Path, comparison: Comparison) -> None:
    """Raises RunError where the disk refuses."""
    atomic_write(path, page(comparison))


def page(comparison: Comparison) -> str:
    arms = comparison.arms
    names = [arm.name for arm in arms]
    shades = dict(zip(names, plots.colours(len(arms)), strict=True))
    mark = lambda name: f'<span class="arm" style="color:{shades[name]}">{name}</span>'
    parts = ['<h2>Arms</h2>']
    rows = []
    for arm in arms:
        seeds = seed_words(sorted({seed for run in arm.runs for seed in run.seeds}))
        folders = '<br>'.join(markup.escape(str(run.folder)) for run in arm.runs)
        rows.append([mark(arm.name), markup.escape(arm.label), seeds, folders])
    parts.append(markup.table(['arm', 'fields', 'seeds', 'runs'], rows))
    parts += [f'<p class="note">{markup.escape(remark)}</p>' for remark in comparison.remarks]
    for title, table in comparison_lib.comparison_tables(comparison).items():
        head = [table[0][0], *(mark(name) for name in table[0][1:])]
        rows = [[markup.escape(cell) for cell in row] for row in table[1:]]
        parts += [f'<h2>What differs: {title}</h2>', markup.table(head, rows)]
    if comparison.metrics:
        parts.append(f'<h2>Metrics</h2><p>A circle is a seed. The bar is the mean with its 95 % interval. Differences '
                     f'are to {mark(names[0])}.</p>')  # fmt: skip
        parts.append(markup.picture(_dots(comparison), 'the value of each seed, by metric and arm'))
        parts += [_metric(measured, mark) for measured in comparison.metrics]
    if panels := _curves(comparison):
        said = 'A thin line is a seed. The thick line is the median over an arm. The band reaches from the '
        parts.append(f'<h2>Curves</h2><p>{said}lowest to the highest of the seeds that have come to a step.</p>')
        parts.append(markup.picture(plots.curves(panels, names), 'metrics over the steps, by arm'))
    return markup.document('Comparison of runs', parts)


def _metric(measured: Measured, mark) -> str:
    rows = []
    for entry in measured.entries:
        said = [comparison_lib.difference_words(entry), comparison_lib.extra_words(entry)]
        seeds = comparison_lib.seed_values(entry.values).replace(': ', ':\u00a0')  # on one line with its value
        cells = [comparison_lib.mean_words(entry.row), seeds]
        difference = '<br>'.join(markup.escape(words) for words in said if words)
        rows.append([mark(entry.arm.name), str(len(entry.values)), *map(markup.escape, cells), difference])
    head = ['arm', 'n', 'mean', 'each seed', 'difference']
    absent = f'<p>{comparison_lib.absent_words(measured)}</p>' if measured.absent else ''
    title = markup.escape(measured.title + comparison_lib.better_words(measured.better))
    return f'<h3>{title}</h3>{markup.table(head, rows, (2,))}{absent}'


def _dots(comparison: Comparison) -> bytes:
    panels = {}
    for measured in comparison.metrics[:_MOST_PANELS]:
        of_arms = {
            e.arm.name: ([*e.values.values()], e.row['value'], intervals.limits(e.row)) for e in measured.entries
        }
        nothing = [], float('nan'), None
        panels[printable(measured.title)] = [of_arms.get(arm.name, nothing) for arm in comparison.arms]
    return plots.dots(panels, [arm.name for arm in comparison.arms])


def _curves(comparison: Comparison) -> dict:
    names = {}
    for split, name in comparison.curves.values():
        names.setdefault(name, set()).add(split)
    return {
        printable(name): {
            split: [arm.curves(split, name) for arm in comparison.arms] for split in SPLITS if split in names[name]
        }
        for name in [*names][:_MOST_PANELS]
    }
