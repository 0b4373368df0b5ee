"""A study's table of claims for a paper, in LaTeX with the package booktabs."""

import re
import unicodedata

from aigc_jax.studies import report_words as words
from aigc_jax.studies.findings import Report

# {column of report_words: (head, its share of the width beside the others that have one; 0: as wide as its cells)}
_COLUMNS = {
    'claim': ('Claim', 1.6), 'measured': ('Measured', 0.8), 'expected': ('Expected', 1.0), 'seeds': ('Seeds', 0),
    'p': ('$p$', 0), 'for reference': ('For reference', 1.0), 'verdict': ('Verdict', 0),
}  # fmt: skip
_SPECIAL = {
    '\\': r'\textbackslash{}', '{': r'\{', '}': r'\}', '$': r'\$', '&': r'\&', '#': r'\#', '%': r'\%', '_': r'\_',
    '~': r'\textasciitilde{}', '^': r'\textasciicircum{}', '<': r'\textless{}', '>': r'\textgreater{}',
    '|': r'\textbar{}', '"': "''", '±': r'$\pm$', '−': '$-$', '×': r'$\times$', '·': r'$\cdot$',
    '≤': r'$\leq$', '≥': r'$\geq$', '≈': r'$\approx$', '→': r'$\rightarrow$', '∞': r'$\infty$', '–': '--', '—': '---',
    '…': r'\ldots{}', '`': '{`}', '‘': '`', '’': "'", '“': '``', '”': "''", '½': r'$\frac{1}{2}$', '÷': r'$\div$',
    '°': r'$^\circ$',
}  # fmt: skip
_UNKNOWN = 'ÐÞðþ'  # of Latin-1, what LaTeX's own encoding of fonts lacks
_GREEK = (
    'alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi pi rho sigma tau upsilon phi chi psi '
    'omega Gamma Delta Theta Lambda Xi Pi Sigma Upsilon Phi Psi Omega'
).split()


def table(report: Report) -> str:
    """A table as wide as the page, a line for each claim, for \\usepackage{booktabs,tabularx}. It compiles with every
    engine: a letter that LaTeX may not know is written as U+XXXX. Sources and the registration stand in comments."""
    found = words.columns(report.findings)
    columns = {title: [escape(cell) for cell in found[title]] for title in _COLUMNS if title in found}
    if 'for reference' in columns:  # the names of metrics are wider than a column
        columns['for reference'] = [re.sub(r'(/|\\_)', r'\1\\allowbreak{}', cell) for cell in columns['for reference']]
    if not columns:
        columns = {'claim': [], 'verdict': []}
    lines = [
        r'% needs \usepackage{booktabs,tabularx}',
        f'% {words.one_line(report.title)}: study {words.one_line(report.study)}',
        f'% registered as {words.one_line(report.registration)} (sha256)',
    ]
    for finding in report.findings:
        if source := words.source(finding.claim):
            lines.append(f'% {finding.claim.name}: {words.published(finding.claim.expected)}, {source}')
    lines += [
        r'\begingroup\noindent\footnotesize\setlength{\tabcolsep}{3pt}%',
        r'\begin{tabularx}{\linewidth}{@{}' + _widths(columns) + '@{}}',
        r'\toprule',
        _line([_COLUMNS[title][0] for title in columns]),
        r'\midrule',
        *map(_line, zip(*columns.values(), strict=True)),
        r'\bottomrule',
        r'\end{tabularx}\endgroup',
    ]
    return '\n'.join(lines) + '\n'


def _widths(columns) -> str:
    """What tabularx is told of each column: the shares of those that have one sum to how many they are."""
    shares = {title: _COLUMNS[title][1] for title in columns if _COLUMNS[title][1]}
    each = len(shares) / sum(shares.values())
    wide = r'>{{\hsize={:.3f}\hsize\raggedright\arraybackslash}}X'
    return ''.join(wide.format(each * shares[title]) if title in shares else 'l' for title in columns)


def escape(text: str) -> str:
    """`text` on one line, so that LaTeX sets it as it is."""
    parts = re.split(r'((?<!\S)-(?=\d)|--+)', words.one_line(text))  # a minus; what LaTeX would join to a dash
    for k in range(1, len(parts), 2):
        parts[k] = '$-$' if parts[k] == '-' else '{}'.join(parts[k])
    return ''.join(part if k % 2 else ''.join(map(_letter, part)) for k, part in enumerate(parts))


def _letter(c: str) -> str:
    if c in _SPECIAL:
        return _SPECIAL[c]
    if c.isascii() or ('À' <= c <= 'ÿ' and c not in _UNKNOWN):
        return c
    name = unicodedata.name(c, '')
    if name.startswith(('GREEK SMALL LETTER ', 'GREEK CAPITAL LETTER ')):
        _, size, _, letter = name.split(' ', 3)
        letter = {'LAMDA': 'LAMBDA'}.get(letter, letter)
        letter = letter.lower() if size == 'SMALL' else letter.capitalize()
        if letter in _GREEK:
            return f'$\\{letter}$'
    plain = unicodedata.normalize('NFKD', c)
    if plain.isascii():
        return f'$^{{{plain}}}$' if unicodedata.decomposition(c).startswith('<super>') else ''.join(map(_letter, plain))
    return _letter(plain) if len(plain) == 1 and plain != c else f'U+{ord(c):04X}'  # the former of the sign of micro


def _line(cells) -> str:
    line = ' & '.join(cells) + r' \\'
    return f'{{}}{line}' if line.startswith(('[', '*')) else line  # the \\ before it would take that for its own
