import pathlib
import re
import shutil
import subprocess

import handmade
import pytest

from aigc_jax.studies import findings, report_latex

ROOT = pathlib.Path(__file__).resolve().parents[2]


def rows(table: str) -> list[list[str]]:
    """The cells of a tabular. Fails where it is not well formed."""
    code = '\n'.join(line for line in table.splitlines() if not line.startswith('%'))
    assert code.isascii() or re.fullmatch(r'[\x20-\x7e\n\u00c0-\u00ff]*', code)
    widths = re.search(r'\\begin\{tabularx\}\{\\linewidth\}\{@\{\}(.*)@\{\}\}\n', code)[1]
    code = code.replace(widths, '').replace('{3pt}%\n', '{3pt}')
    bare = code.replace('\\\\', '\n').replace('\\&', '').replace('\\%', '').replace('\\#', '').replace('\\_', '')
    bare = bare.replace('\\{', '').replace('\\}', '').replace('\\$', '')
    depth = 0
    for c in bare:
        depth += (c == '{') - (c == '}')
        assert depth >= 0
    assert depth == 0 and bare.count('$') % 2 == 0 and not set('%#~<>|"') & set(bare)
    assert not re.search(r'[\^_](?![^$]*\$(?:[^$]*\$[^$]*\$)*[^$]*$)', bare)  # both stand in mathematics alone
    columns = len(re.sub(r'>\{[^{}]*\}', '', widths))
    inside = code.partition('\\toprule')[2].partition('\\bottomrule')[0].replace('\\midrule', '')
    found = [[cell.strip() for cell in re.split(r'(?<!\\)&', line)] for line in inside.split('\\\\\n') if line.strip()]
    assert all(len(row) == columns for row in found)
    return found


def test_the_table_has_the_numbers_of_each_claim():
    table = report_latex.table(handmade.of_every_kind())
    head, *found = rows(table)
    assert head == ['Claim', 'Measured', 'Expected', 'Seeds', '$p$', 'For reference', 'Verdict']
    of = {row[0]: row[1:] for row in found}
    assert of['what a claims'] == [
        r'1.005 $\pm$ 0.038', r'1.000 $\pm$ 0.186 (n=10), tolerance 0.05', '4 of 4', '', 'perfect sampler 0.0004',
        'reproduced',
    ]  # fmt: skip
    assert of['what b claims'][1] == r'better than a: $-$0.5025 $\pm$ 0.0080'
    assert of['what share claims'][0] == '0.172 (0.099--0.282)' and of['what none claims'][0] == ''
    assert '% a: 1.000 ± 0.186 (n=10), tolerance 0.05, arXiv:1234.5678, table 1\n' in table
    assert r'\usepackage{booktabs,tabularx}' in table and 'ab' * 32 in table


def test_hostile_text_stays_text():
    table = report_latex.table(handmade.hostile())
    assert rows(table)[1][0] == (
        r'\textless{}script\textgreater{}alert(1)\textless{}/script\textgreater{} \textbar{} a \& b \textbackslash{} '
        r'\_x\_ {`}c{`} \$y\$ \{z\} \#1 50\% \textasciitilde{}\textasciicircum{} \textbackslash{}x1b[31m'
        r'\textbackslash{}u202e new line, $\omega$$^{3}$ U+751F'
    )
    assert all(line.startswith(('%', '\\')) or ' & ' in line for line in table.splitlines())


@pytest.mark.parametrize(
    'text, want',
    [
        ('-0.3', '$-$0.3'),
        ('1-2 --row ---', '1-2 -{}-row -{}-{}-'),
        ('é ß Ω Λ ε', r'é ß $\Omega$ $\Lambda$ $\epsilon$'),
        ('Ð þ 5 µm “a” 3°', "U+00D0 U+00FE 5 $\\mu$m ``a'' 3$^\\circ$"),
        ('C²OT, ₂, ﬁ, ①', 'C$^{2}$OT, 2, fi, 1'),
        ('½ ≥ ± – ∞', r'$\frac{1}{2}$ $\geq$ $\pm$ -- $\infty$'),
        ('Α ο \u0301', 'U+0391 U+03BF U+0301'),
    ],
)
def test_letters_that_latex_does_not_know_are_set_in_another_way(text, want):
    assert report_latex.escape(text) == want


def test_a_report_without_claims_has_a_table_without_rows():
    assert len(rows(report_latex.table(handmade.report()))) == 1
    many = handmade.report(*(handmade.finding(handmade.claim(f'c{k}'), []) for k in range(200)))
    assert len(rows(report_latex.table(many))) == 201


ODD = (
    r'50 % of a_b & c #1 $5 ^2 ~x \cmd {y} ± ² é ω³ 生 <a> "q" a--b — – … ½ ≤ | ` ?` !` @ [z] ß µ ° İ ı ﬁ −1 × σ² → ∞ '
    '≈ ‘x’ “y” € ™ 😀'
)
LATIN = ''.join(map(chr, range(0xA1, 0x250)))


def compiled(folder, report) -> str:
    """What pdflatex says of the table in a document."""
    if not shutil.which('pdflatex') or subprocess.run(['kpsewhich', 'booktabs.sty'], capture_output=True).returncode:
        pytest.skip('pdflatex with booktabs is not here: texlive-latex-recommended has both')
    head = '\\documentclass{article}\n\\usepackage{booktabs,tabularx}\n\\begin{document}\n'
    (folder / 'a.tex').write_text(f'{head}{report_latex.table(report)}\\end{{document}}\n', encoding='utf-8')
    command = ['pdflatex', '-interaction=nonstopmode', '-halt-on-error', 'a.tex']
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, errors='replace', timeout=120)
    assert done.returncode == 0 and (folder / 'a.pdf').stat().st_size > 5000, done.stdout[-2000:]
    return done.stdout


@pytest.mark.parametrize('words', [ODD, LATIN, '[1] begins the row', '* a star', ''])
def test_a_table_of_any_words_compiles(tmp_path, words):
    of = [handmade.claim(name, claim=words, floors=('a_b^2',)) for name in ('a_b', 'c+d')]
    found = [handmade.finding(claim, [1.0, 2.0], marks={'50 % of a_b^2 ± é': 1.0}) for claim in of]
    assert 'Missing character' not in compiled(tmp_path, handmade.report(*found, title=words))


@pytest.mark.parametrize('name', ['oracles', 'of_every_kind', 'hostile'])
def test_reports_compile(tmp_path, name):
    committed = ROOT / 'configs' / 'studies' / f'{name}.results.json'
    said = compiled(tmp_path, findings.read(committed) if committed.exists() else getattr(handmade, name)())
    if name != 'hostile':  # whose words are wider than a column
        assert 'Overfull' not in said  # nothing runs off the page


@pytest.mark.parametrize(
    'text, want', [('[a]', '{}[a] & x \\\\'), ('*', '{}* & x \\\\'), ('a [b]', 'a [b] & x \\\\')]
)
def test_a_row_that_begins_with_a_bracket_is_no_option_of_the_row_before(text, want):
    assert report_latex._line([report_latex.escape(text), 'x']) == want
