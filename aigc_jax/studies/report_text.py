"""A study's report as Markdown that reads well at a terminal too: report.md, and the tables of documents."""

import re
import unicodedata
from collections.abc import Callable, Sequence

from aigc_jax.core.errors import UserError
from aigc_jax.studies import report_words as words
from aigc_jax.studies.findings import Finding, Report

# What begins or ends something in Markdown or HTML, some of it only at the edge of a word or of the line.
_MARKS = re.compile(
    r'[\\`*\[\]|~$]|(?<!\w)_|_(?!\w)|<(?=[\w/!?])|&(?=#?\w+;)'
    r'|^>|^[#+=-](?=[\s#+=-]|$)|(?:(?<=^\d)|(?<=^\d\d))[.)](?=\s|$)'
)


def markdown(report: Report, command: str = '', escaped: bool = True) -> str:
    """report.md. command: the study's, `python -m aigc_jax.study --config=… --workdir=…`, which --row and --seed are
    added to. escaped: False gives what a terminal shows, without the backslashes that Markdown wants."""
    shown = escape if escaped else words.one_line
    parts = [f'# {shown(report.title)}', _facts(report, shown), table(report, shown=shown)]
    if command:
        parts.append(f'This command makes any single number again:\n\n    {words.again(command)}')
    parts += [_section(finding, shown) for finding in report.findings]
    return '\n\n'.join(part.rstrip('\n') for part in parts) + '\n'


def escape(text: str) -> str:
    """`text` on one line, so that Markdown shows it as it is."""
    return _MARKS.sub(r'\\\g<0>', words.one_line(text))


def table(report: Report, claims: Sequence[str] | None = None, shown: Callable[[str], str] = escape) -> str:
    """The Markdown table: a line for each claim, of those named if any are. shown: of a cell. Raises UserError for a
    name that is no claim's."""
    findings = {finding.claim.name: finding for finding in report.findings}
    if claims is not None:
        if unknown := [name for name in claims if name not in findings]:
            raise UserError(f'{report.study}: has no claim {unknown[0]!r}; known: {", ".join(findings)}')
        findings = {name: findings[name] for name in claims}
    columns = []
    for title, cells in words.columns([*findings.values()]).items():
        column = [title, '---', *map(shown, cells)]
        wide = 3 if title in words.LONG else max(map(_width, column))
        column = [cell + ' ' * (wide - _width(cell)) for cell in column]
        columns.append([column[0], '-' * max(wide, len(title)), *column[2:]])
    return ''.join('| ' + ' | '.join(line) + ' |\n' for line in zip(*columns, strict=True))


def _facts(report: Report, shown: Callable[[str], str]) -> str:
    facts = [
        f'{shown(words.summary(report))}.',
        f'Study {_code(report.study)}, registered as {_code(report.registration)} (sha256).',
        f'Its runs took {words.hours(report.hours)} hours.',
        *map(shown, words.notes(report)),
    ]
    return '\n'.join(f'- {fact}' for fact in facts)


def _section(finding: Finding, shown: Callable[[str], str]) -> str:
    claim = finding.claim
    lines = {'verdict': shown(finding.verdict + (f': {finding.words}' if finding.words else ''))}
    lines |= {name: shown(said) for name, said in words.said(finding).items()}
    lines |= {name: _code(said) for name, said in words.settings(claim).items()}
    body = [f'- {name}: {said}' for name, said in lines.items()]
    body += [f'- absent: {shown(line)}' for line in finding.absent]
    return '\n'.join([f'## {shown(claim.name)}', '', shown(claim.claim), '', *body])


def _code(text: str) -> str:
    """A code span, whose fence is longer than any in the text."""
    text = words.one_line(text)
    fence = '`' * (1 + max((len(run) for run in re.findall('`+', text)), default=0))
    space = ' ' if len(fence) > 1 else ''
    return f'{fence}{space}{text}{space}{fence}'


def _width(text: str) -> int:
    """Columns of a terminal."""
    of = lambda c: 0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in 'WF' else 1
    return len(text) if text.isascii() else sum(map(of, text))
