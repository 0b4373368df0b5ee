import re

import handmade
import pytest

from aigc_jax.studies import report_latex


def rows(table: str) -> list[list[str]]:
    """The cells of a tabular. Fails where it is not well formed."""
    code = '\n'.join(line for line in table.splitlines() if not line.startswith('%'))
    assert code.isascii() or re.fullmatch(r'[\x20-\x7e\n\u00c0-\u00ff]*', code)
    bare = code.replace('\\\\', '\n').replace('\\&', '').replace('\\%', '').replace('\\#', '').replace('\\_', '')
    bare = bare.replace('\\{', '').replace('\\}', '').replace('\\$', '')
    depth = 0
    for c in bare:
        depth += (c == '{') - (c == '}')
        assert depth >= 0
    assert depth == 0 and bare.count('$') % 2 == 0 and not set('%#~<>|"') & set(bare)
    assert not re.search(r'[\^_](?![^$]*\$(?:[^$]*\$[^$]*\$)*[^$]*$)', bare)  # both stand in mathematics alone
    columns = len(re.sub(r'p\{[^{}]*\}', 'p', re.search(r'\\begin\{tabular\}\{(.*)\}\n', code)[1]))
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
    assert r'\usepackage{booktabs}' in table and 'ab' * 32 in table


def test_hostile_text_stays_text():
    table = report_latex.table(handmade.hostile())
    assert rows(table)[1][0] == (
        r'\textless{}script\textgreater{}alert(1)\textless{}/script\textgreater{} \textbar{} a \& b \textbackslash{} '
        r'\_x\_ `c` \$y\$ \{z\} \#1 50\% \textasciitilde{}\textasciicircum{} \textbackslash{}x1b[31m'
        r'\textbackslash{}u202e new line, $\omega$$^{3}$ U+751F'
    )
    assert all(line.startswith(('%', '\\')) or ' & ' in line for line in table.splitlines())


@pytest.mark.parametrize(
    'text, want',
    [
        ('-0.3', '$-$0.3'),
        ('1-2 --row ---', '1-2 -{}-row -{}-{}-'),
        ('é ß Ω Λ ε', r'é ß $\Omega$ $\Lambda$ $\epsilon$'),
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
