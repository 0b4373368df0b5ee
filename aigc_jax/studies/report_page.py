"""A study's report as one page of HTML: report.html."""

from aigc_jax.studies import findings, markup
from aigc_jax.studies import report_pictures as pictures
from aigc_jax.studies import report_words as words
from aigc_jax.studies.findings import Finding, Report
from aigc_jax.studies.report_pictures import Curves, Pictures

# The shapes are those of the pictures.
_SIGNS = {
    findings.REPRODUCED: '●', findings.BETTER: '▲', findings.WORSE: '▼', findings.UNDECIDED: '◇', findings.MISSING: '□',
    findings.MEASURED: '○',
}  # fmt: skip
_MOST_IN_WORDS = 2000  # claims that have a section of their own


def page(report: Report, curves: Curves | None = None, command: str = '') -> str:
    """curves: {claim: {metric: {'train' or 'eval': {seed: {step: value}}}}}. command: as of report_text.markdown."""
    parts = [_facts(report, command), '<h2>Claims</h2>', _table(report)]
    parts += _pictures(
        'Against the published values', pictures.against_published(report),
        'The grey band is the published value with its own interval and the tolerance. The line is the interval of the '
        'measured value. The published value stands in brackets. A scale beyond 4 is logarithmic.',
    )  # fmt: skip
    parts += _pictures(
        'Each seed', pictures.seeds(report),
        'A small circle is a seed, and a cross a seed without a finite value. The large mark is the mean with its '
        'interval. The grey bar is the published value with its own interval and the tolerance. A dashed line is a '
        'value that stands beside it.',
    )  # fmt: skip
    parts += _pictures(
        'Trade-offs', pictures.fronts(report),
        'A point is a setting, with the intervals of both metrics. No other setting has better means than a filled one '
        'on both.',
    )  # fmt: skip
    parts += _pictures(
        'Curves', pictures.curves(report, curves or {}),
        'A thin line is a seed. The thick line is the median over the seeds. The band reaches from the lowest to the '
        'highest of the seeds that have come to a step.',
    )  # fmt: skip
    parts += ['<h2>Each claim</h2>', *map(_section, report.findings[:_MOST_IN_WORDS])]
    if (more := len(report.findings) - _MOST_IN_WORDS) > 0:
        parts.append(f'<p class="note">{more} more claims stand in report.md.</p>')
    return markup.document(words.one_line(report.title), parts)


def _facts(report: Report, command: str) -> str:
    facts = [
        f'{words.summary(report)}.',
        f'Study {words.one_line(report.study)}, registered as {words.one_line(report.registration)} (sha256).',
        f'Its runs took {words.hours(report.hours)} hours.',
        *words.notes(report),
    ]
    shown = '<ul>' + ''.join(f'<li>{markup.escape(fact)}</li>' for fact in facts) + '</ul>'
    if command:
        again = markup.escape(words.again(command))
        shown += f'<p>This command makes any single number again:</p><pre>{again}</pre>'
    return shown


def _table(report: Report) -> str:
    """What is long stands below what is short."""
    columns = words.columns(report.findings)
    cells = {title: [*map(markup.escape, column)] for title, column in columns.items()}
    if len(report.findings) <= _MOST_IN_WORDS:
        cells['row'] = [f'<a href="#{name}">{name}</a>' for name in cells['row']]
    cells['verdict'] = [_verdict(finding.verdict) for finding in report.findings]
    for above, below in (('row', 'claim'), ('expected', 'source')):
        if below in cells:
            both = zip(cells[above], cells.pop(below), strict=True)
            cells[above] = [f'{one}<div class="below">{other}</div>' if other else one for one, other in both]
    cells.pop('metric', None)
    short = [k for k, title in enumerate(cells) if title in ('verdict', 'measured', 'seeds', 'p', 'hours')]
    return markup.table([*cells], [*zip(*cells.values(), strict=True)], short)


def _verdict(verdict: str) -> str:
    return f'<span style="color:{pictures.STYLES[verdict].colour}">{_SIGNS[verdict]}</span> {verdict}'


def _pictures(title: str, pictures: Pictures, said: str) -> list[str]:
    """Nothing where there is neither a picture nor a note."""
    drawn, note = pictures
    parts = [f'<h2>{title}</h2>'] if drawn or note else []
    parts += [f'<p>{said}</p>', *(markup.picture(png, about) for png, about in drawn)] if drawn else []
    return [*parts, f'<p class="note">{markup.escape(note)}</p>'] if note else parts


def _section(finding: Finding) -> str:
    name, lines = markup.escape(words.one_line(finding.claim.name)), words.said(finding) | words.settings(finding.claim)
    rows = [[markup.escape(what), markup.escape(said)] for what, said in lines.items()]
    rows += [['absent', markup.escape(words.one_line(line))] for line in finding.absent]
    lacks = f': {markup.escape(words.one_line(finding.words))}' if finding.words else ''
    rows.insert(0, ['verdict', _verdict(finding.verdict) + lacks])
    claim = markup.escape(words.one_line(finding.claim.claim))
    return f'<h3 id="{name}">{name}</h3><p>{claim}</p>{markup.table(["", ""], rows, (0,))}'
