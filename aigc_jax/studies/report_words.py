"""The numbers and words of a study's report, as its text, its LaTeX table and its page have them.

A number is shown with two significant digits of its interval, and never with more.
"""

import collections
import math
from collections.abc import Iterable, Sequence

from aigc_jax.core.errors import printable
from aigc_jax.metrics import intervals
from aigc_jax.metrics.intervals import MARKS, Measurement
from aigc_jax.studies.claims import Claim, Published, Versus
from aigc_jax.studies.findings import VERDICTS, Finding, Report, Seed

_DIGITS = 4  # significant, of a value without an interval
_FEW = 10  # seeds, below which the bootstrap's interval is much too short (statistics.bootstrap)
_LARGE, _SMALL = 7, -4  # exponents from which, and below which, a number is written with its exponent
_MOST_COMMIT, _NO_COMMIT = 12, 'no commit'  # digits of a commit that are shown


def one_line(text: str) -> str:
    """`text` on a line of its own, without characters that control a terminal."""
    return printable(' '.join(str(text).split()))


def exponent(value: float) -> int:
    """That of `value` rounded to two significant digits: 0 for 1 to 9.9. `value` is finite and not 0."""
    return int(f'{value:.1e}'.partition('e')[2])


def decimals(row: Measurement) -> int | None:
    """How many decimals show two significant digits of half the interval, negative for tens; None without one."""
    found = intervals.limits(row)
    half = (found[1] - found[0]) / 2 if found else 0.0
    return 1 - exponent(half) if half > 0 and math.isfinite(half) else None


def number(value: float, places: int | None = None) -> str:
    """`value` with `places` decimals, those before the point too where negative; None: with 4 significant digits."""
    if not math.isfinite(value):
        return 'not finite'
    if value and not _SMALL <= exponent(value) < _LARGE:
        shown = _DIGITS - 1 if places is None else max(0, min(places + exponent(value), 15))
        if places is None or places + exponent(value) >= 0:
            return f'{value:.{shown}e}'
    if places is None:
        whole = value == math.trunc(value)
        places = 0 if whole else max(0, _DIGITS - 1 - exponent(value))
    return f'{round(value, places) + 0.0:.{max(places, 0)}f}'  # + 0.0: no -0


def measured(row: Measurement) -> str:
    """'46.12 ± 0.43', '0.875 (0.776–0.934)' where the interval is no half-width, or the value alone."""
    value, found = row.get('value', math.nan), intervals.limits(row)
    if not math.isfinite(value):
        return 'not finite'
    if found is None:
        return number(value)
    places, (low, high) = decimals(row), found
    if 'ci' in row:
        return f'{number(value, places)} ± {number(row["ci"], places) if row["ci"] else 0}'
    to = ' to ' if low < 0 else '–'
    return f'{number(value, places)} ({number(low, places)}{to}{number(high, places)})'


def mean(finding: Finding) -> str:
    """The row of a finding, with what of its seeds is not in it; '' where it has no seeds."""
    if not finding.seeds:
        return ''
    words = measured(finding.row)
    if finding.level != 0.05 and intervals.limits(finding.row):
        words += f' (at {level(finding)})'
    if lost := sum(not math.isfinite(value) for value in finding.values):
        words += f' ({lost} of {len(finding.seeds)} {lost_word(finding.claim)})'
    return words


def lost_word(claim: Claim) -> str:
    """What befell a seed whose value is not finite."""
    return 'never reached it' if claim.first_step else 'diverged'


def level(finding: Finding) -> str:
    """'95 %'."""
    return f'{100 * (1 - finding.level):.4g} %'


def is_share(claim: Claim) -> bool:
    return claim.reach is not None and not claim.first_step


def metric(claim: Claim) -> str:
    """'model/nll, less is better', with the threshold that it is to reach."""
    words = claim.metric
    if claim.reach is not None:
        words = f'{"first step at which" if claim.first_step else "share of seeds of which"} {words} is at least '
        words = f'{one_line(words)} {claim.reach:g}'
    return f'{one_line(words)}, {"less" if claim.better == "min" else "more"} is better'


def published(expected: Published) -> str:
    """'6.232 ± 0.186 (n=10), tolerance 0.3'. The value as the source gives it, rounded to its ± where it is a formula
    of many digits."""
    words = published_value(expected)
    if expected.sd:
        places = max(_after_point(words), _after_point(sd := _given(expected.sd, expected.sd)))
        words, sd = _padded(words, places), _padded(sd, places)
        words += f' ± {sd}' + (f' (n={expected.n})' if expected.n is not None else '')
    return words + (f', tolerance {expected.tolerance:.4g}' if expected.tolerance else '')


def published_value(expected: Published) -> str:
    return _given(expected.value, expected.sd or expected.tolerance)


def _given(value: float, spread: float) -> str:
    words = f'{value:.7g}'
    return words if float(words) == value else number(value, max(0, 1 - exponent(spread)))


def _after_point(words: str) -> int:
    return 0 if 'e' in words else len(words.partition('.')[2])


def _padded(words: str, places: int) -> str:
    if not places or 'e' in words:
        return words
    return words + ('' if '.' in words else '.') + '0' * (places - _after_point(words))


def expected(finding: Finding) -> str:
    """The published value, or what it is to be better than, with the difference to it; '' of neither."""
    found = finding.claim.expected
    if isinstance(found, Versus):
        words = better_than(found)
        return words + (f': {difference}' if (difference := difference_words(finding)) else '')
    return published(found) if found else ''


def better_than(found: Versus) -> str:
    """'better than NAME', or 'better than 95 % of the gain of NAME over OTHER'."""
    part = f'{100 * found.share:g} % of the gain of ' if found.over else ''
    return f'better than {part}{one_line(found.than)}' + (f' over {one_line(found.over)}' if found.over else '')


def difference_words(finding: Finding) -> str:
    """'−0.92 ± 0.11' with its sign; '' where it is not known."""
    row = finding.difference
    if not math.isfinite(row.get('value', math.nan)):
        return ''
    return ('+' if row['value'] > 0 else '') + measured(row)


def source(claim: Claim) -> str:
    return one_line(claim.expected.source) if isinstance(claim.expected, Published) else ''


def p(finding: Finding) -> str:
    if not math.isfinite(finding.p):
        return ''
    return '< 0.0001' if finding.p < 1e-4 else f'{finding.p:.2g}'


def marks(finding: Finding) -> str:
    """'perfect sampler 0.012, …', with the digits of the row, and at least one that is not 0."""
    places, parts = decimals(finding.row), []
    for name, value in finding.marks.items():
        own = places
        if places is not None and value and math.isfinite(value):
            own = max(places, -exponent(value))
        parts.append(f'{one_line(MARKS.get(name, name))} {number(value, own)}')
    return ', '.join(parts)


def count(finding: Finding) -> str:
    return f'{len(finding.seeds)} of {finding.wanted}'


def hours(value: float) -> str:
    if not math.isfinite(value):
        return 'unknown'
    return f'{value:.0f}' if value >= 100 else f'{value:.3g}' if value >= 1 else f'{value:.2g}'


def values(finding: Finding) -> str:
    """'0: 6.31 1: 6.05 …' in the digits of the row; of a share which seeds reached it and which did not."""
    seeds = sorted(finding.seeds.items())
    if is_share(finding.claim) and all(one.value in (0, 1) for _, one in seeds):
        reached = [seed for seed, one in seeds if one.value]
        missed = [seed for seed, one in seeds if not one.value]
        kinds = ('reached by', reached), ('not reached by', missed)
        return '; '.join(f'{words} seed{"s" * (len(of) > 1)} {ranges(of)}' for words, of in kinds if of)
    places = decimals(finding.row)
    show = lambda one: number(one, places) if math.isfinite(one) else lost_word(finding.claim)
    return ' '.join(f'{seed}: {show(one.value)}' for seed, one in seeds)


def ranges(numbers: Sequence[int]) -> str:
    """'0–5, 7, 9–11' of sorted numbers."""
    parts: list[list[int]] = []
    for one in numbers:
        if parts and one == parts[-1][-1] + 1:
            parts[-1][1:] = [one]
        else:
            parts.append([one])
    return ', '.join('–'.join(map(str, part)) for part in parts)


def settings(claim: Claim) -> dict[str, str]:
    """What the claim's runs and their evaluation are of, in words."""
    fields = lambda of: ' '.join(f'{name}={value}' for name, value in of.items())
    found = {'config': claim.config, 'fields': fields(claim.fields), 'evaluated with': fields(claim.evaluate)}
    return {name: one_line(words) for name, words in found.items() if words}


def said(finding: Finding) -> dict[str, str]:
    """{what: words} of all that a finding says in numbers; what it does not have is left out."""
    claim = finding.claim
    lines = {'measured': mean(finding), 'seeds': count(finding), 'metric': metric(claim)}
    if finding.level == 0.05 and intervals.limits(finding.row):
        lines['measured'] += f' (at {level(finding)})'
    lines['expected'] = '; '.join(words for words in (expected(finding), source(claim)) if words)
    if finding.test:
        lines['test'] = one_line(finding.test) + (f', p {_equals(p(finding))}' if p(finding) else '')
    if finding.improvement:
        lines['probability of improvement'] = measured(finding.improvement)
    lines['for reference'] = marks(finding)
    if finding.order:
        low, high = (number(finding.order[end]) for end in ('value', 'high'))
        lines['almost stochastic order'] = f'ε = {low}, at most {high} (0: better at each quantile; 1: worse)'
    lines['each seed'] = values(finding)
    if math.isfinite(finding.iqm.get('value', math.nan)):
        lines['interquartile mean'] = measured(finding.iqm) + _by_bootstrap(finding)
    if math.isfinite(finding.bootstrap.get('value', math.nan)):
        lines['mean'] = measured(finding.bootstrap) + _by_bootstrap(finding)
    if finding.tuning:
        rows = ', '.join(f'{row}: {number(value)}' for row, value in finding.tuning.items())
        best = ' '.join(f'{name}={value}' for name, value in finding.chosen.items())
        lines['tuned on the validation split'] = one_line(rows + (f'; chosen: {best}' if best else ''))
    lines['hours'] = hours(finding.hours) if finding.seeds else ''
    lines['commit'] = ', '.join(commits(finding.seeds.values()))
    return {name: words for name, words in lines.items() if words}


def _by_bootstrap(finding: Finding) -> str:
    few = len(finding.seeds) < _FEW
    return ', by bootstrap' + (f', whose interval is too short for {len(finding.seeds)} seeds' if few else '')


def _equals(words: str) -> str:
    return words if words.startswith('<') else f'= {words}'


COLUMNS = {
    'row': lambda finding: one_line(finding.claim.name),
    'verdict': lambda finding: one_line(finding.verdict),
    'measured': mean,
    'expected': expected,
    'seeds': count,
    'p': p,
    'for reference': marks,
    'hours': lambda finding: hours(finding.hours) if finding.seeds else '',
    'claim': lambda finding: one_line(finding.claim.claim),
    'metric': lambda finding: metric(finding.claim),
    'source': lambda finding: source(finding.claim),
}
LONG = ('claim', 'metric', 'source')  # the columns of many words, which are the last


def columns(findings: Sequence[Finding]) -> dict[str, list[str]]:
    """{title: a cell of each finding} of the table of claims, without the columns that are empty."""
    found = {title: [of(finding) for finding in findings] for title, of in COLUMNS.items()}
    return {title: cells for title, cells in found.items() if any(cells) or title == 'row'}


def commits(seeds: Iterable[Seed]) -> list[str]:
    return sorted({one_line(seed.commit)[:_MOST_COMMIT] or _NO_COMMIT for seed in seeds})


def notes(report: Report) -> list[str]:
    """A sentence each: the report's own, and where its seeds were not all made by one code on one machine."""
    found, seeds = list(map(one_line, report.notes)), [s for f in report.findings for s in f.seeds.values()]
    if len(of := commits(seeds)) > 1:
        found.append(f'The seeds are of {len(of)} commits: {", ".join(of)}.')
    elif of:
        found.append(f'All seeds are of commit {of[0]}.' if of != [_NO_COMMIT] else 'The seeds are of no known commit.')
    mixed = [f.claim.name for f in report.findings if len({seed.numerics for seed in f.seeds.values()}) > 1]
    if mixed:
        of = ', '.join(mixed)
        found.append(f'The seeds of {of} do not all have the same device, threads and flags, so last bits may differ.')
    return found


def summary(report: Report) -> str:
    """'3 reproduced, 1 worse, 2 missing of 6 claims'."""
    found = collections.Counter(one_line(finding.verdict) for finding in report.findings)
    known = [*VERDICTS, *sorted(found.keys() - set(VERDICTS))]
    counts = ', '.join(f'{found[verdict]} {verdict}' for verdict in known if found[verdict])
    return f'{counts or "0"} of {len(report.findings)} claims'


def again(command: str) -> str:
    """The command that makes one number again."""
    return one_line(command) + ' --row=ROW --seed=SEED'
