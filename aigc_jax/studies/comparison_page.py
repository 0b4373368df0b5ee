"""A comparison as one page of HTML that holds its pictures, and needs no other file and no network."""

import base64
import html
import os
import pathlib
from collections.abc import Sequence

from aigc_jax.core.errors import UserError, printable
from aigc_jax.core.files import atomic_write
from aigc_jax.metrics import intervals
from aigc_jax.plots import arms as plots
from aigc_jax.studies import comparison as comparison_lib
from aigc_jax.studies.arms import seed_words
from aigc_jax.studies.comparison import SPLITS, Comparison, Measured

_MOST_PANELS = 60
_STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; margin: 2em auto; max-width: 72em; padding: 0 1em; color: #222 }
table { border-collapse: collapse; margin: .6em 0 1.6em }
th, td { border-bottom: 1px solid #ddd; padding: .25em .8em .25em 0; text-align: left; vertical-align: top }
td { overflow-wrap: anywhere } th { font-weight: 600 } h2 { font-size: 1.15em; margin: 1.6em 0 .2em }
h3 { font-size: 1em; margin: 1em 0 0 } img { max-width: 100% } .arm { font-weight: 600 } .note { color: #8a4b00 }
"""


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
    parts = ['<h1>Comparison of runs</h1>', '<h2>Arms</h2>']
    rows = []
    for arm in arms:
        seeds = seed_words(sorted({seed for run in arm.runs for seed in run.seeds}))
        folders = '<br>'.join(_escape(str(run.folder)) for run in arm.runs)
        rows.append([mark(arm.name), _escape(arm.label), seeds, folders])
    parts.append(_table(['arm', 'fields', 'seeds', 'runs'], rows))
    parts += [f'<p class="note">{_escape(remark)}</p>' for remark in comparison.remarks]
    for title, table in comparison_lib.comparison_tables(comparison).items():
        head = [table[0][0], *(mark(name) for name in table[0][1:])]
        rows = [[_escape(cell) for cell in row] for row in table[1:]]
        parts += [f'<h2>What differs: {title}</h2>', _table(head, rows)]
    if comparison.metrics:
        parts.append(f'<h2>Metrics</h2><p>A circle is a seed. The bar is the mean with its 95 % interval. Differences '
                     f'are to {mark(names[0])}.</p>')  # fmt: skip
        parts.append(_picture(_dots(comparison), 'the value of each seed, by metric and arm'))
        parts += [_metric(measured, comparison, mark) for measured in comparison.metrics]
    if panels := _curves(comparison):
        said = 'A thin line is a seed. The thick line is the median over an arm. The band reaches from the '
        parts.append(f'<h2>Curves</h2><p>{said}lowest to the highest of the seeds that have come to a step.</p>')
        parts.append(_picture(plots.curves(panels, names), 'metrics over the steps, by arm'))
    body = '\n'.join(parts)
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>Comparison of runs</title>'
        f'<style>{_STYLE}</style></head>\n<body>\n{body}\n</body></html>\n'
    )


def _metric(measured: Measured, comparison: Comparison, mark) -> str:
    rows = []
    for entry in measured.entries:
        said = [comparison_lib.difference_words(entry, comparison.arms[0]), comparison_lib.extra_words(entry)]
        cells = [comparison_lib.mean_words(entry.row), comparison_lib.seed_values(entry.values)]
        difference = '<br>'.join(_escape(words) for words in said if words)
        rows.append([mark(entry.arm.name), str(len(entry.values)), *map(_escape, cells), difference])
    head = ['arm', 'n', 'mean', 'each seed', 'difference']
    return f'<h3>{_escape(measured.title + comparison_lib.better_words(measured.better))}</h3>{_table(head, rows)}'


def _dots(comparison: Comparison) -> bytes:
    panels = {}
    for measured in comparison.metrics[:_MOST_PANELS]:
        panels[printable(measured.title)] = [
            (list(e.values.values()), e.row.get('value', float('nan')), intervals.limits(e.row) if e.row else None)
            for e in measured.entries
        ]
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


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Of cells that are HTML already."""
    line = lambda cells, tag: '<tr>' + ''.join(f'<{tag}>{cell}</{tag}>' for cell in cells) + '</tr>'
    return '<table>' + line(head, 'th') + ''.join(line(row, 'td') for row in rows) + '</table>'


def _picture(data: bytes, words: str) -> str:
    return f'<img alt="{_escape(words)}" src="data:image/png;base64,{base64.b64encode(data).decode()}">'


def _escape(text: str) -> str:
    return html.escape(printable(text))
