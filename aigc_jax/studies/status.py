"""The table of a sweep: for each row the mean of a metric over its seeds, and what is not done, with the reason."""

import collections
import datetime
import math
from collections.abc import Sequence

from aigc_jax.core.errors import UserError, near, printable
from aigc_jax.metrics.names import named
from aigc_jax.runs import results as results_lib
from aigc_jax.studies import states
from aigc_jax.studies.states import DONE, FAILED, RUNNING, State
from aigc_jax.studies.sweeps import Row, Sweep, Trial

States = list[tuple[Trial, State]]
_ORDER = DONE, RUNNING, states.QUEUED, states.STOPPED, FAILED, states.MISSING, states.OTHER


def look(trials: Sequence[Trial]) -> States:
    return [(trial, states.look(trial)) for trial in trials]


def metric_of(sweep: Sweep, found: States, wanted: str | None) -> str:
    """`wanted`, else eval.best_metric, else the first metric of the final evaluation; '' where nothing is done yet.

    Raises UserError for a metric that no run has.
    """
    known = list(dict.fromkeys(name for _, state in found for name in state.results or ()))
    if not known:
        return ''
    if wanted and (name := named(wanted, known)) is None:
        raise UserError(f'--metric: no finished run has {wanted!r}{near(wanted, known)}')
    return name if wanted else named(sweep.metric, known) or known[0]


def table(sweep: Sweep, found: States, metric: str) -> str:
    """A line for each row, in their order: its name, how many seeds are done, the mean ± standard deviation over them.
    It depends on the results alone, not on when and by whom they were made. Below it what is not done, a line each."""
    by_row: dict[str, States] = collections.defaultdict(list)
    for trial, state in found:
        by_row[trial.row.name].append((trial, state))
    width = max(len('row'), *(len(row.name) for row in sweep.rows))
    lines = [f'{"row":<{width}}  done  {metric or "metric"}']
    lines += [_line(row, by_row[row.name], metric, width) for row in sweep.rows]
    open_ones = [(trial, state) for trial, state in found if state.kind not in (DONE, states.MISSING)]
    lines += [f'{trial.name}: {words_of(trial, state)}' for trial, state in open_ones]
    return ''.join(printable(line).rstrip() + '\n' for line in lines)


def summary(found: States) -> str:
    """How many are done, running, …, the hours spent, and about how many are left."""
    counts = collections.Counter(state.kind for _, state in found)
    words = [', '.join(f'{counts[kind]} {kind}' for kind in _ORDER if counts[kind])]
    spent = {trial.name: states.hours(trial) for trial, state in found if state.kind != states.MISSING}
    words.append(f'{_hours(sum(spent.values()))} spent')
    done = [spent[trial.name] for trial, state in found if state.kind == DONE]
    if done and (left := len(found) - counts[DONE]):
        whole = sum(done) / len(done) * left
        begun = sum(spent[trial.name] for trial, state in found if state.kind in (RUNNING, states.STOPPED))
        words.append(f'about {_hours(max(0.0, whole - begun))} of one process left')
    return f'{len(found)} runs: {"; ".join(words)}'


def _line(row: Row, found: States, metric: str, width: int) -> str:
    done = [(trial.seed, state.results.get(metric, {'value': None})) for trial, state in found if state.kind == DONE]
    values = [value for seed, of in done for value in results_lib.of_seeds(of, seed).values()]
    return f'{row.name:<{width}}  {len(done):>2}/{len(found):<2} {mean_words(values)}'


def mean_words(values: Sequence[float]) -> str:
    """'0.123 ± 0.004'; the deviation has n − 1, and a value that is not finite is counted, not averaged."""
    finite = [value for value in values if math.isfinite(value)]
    lost = len(values) - len(finite)
    words = ''
    if finite:
        mean = math.fsum(finite) / len(finite)
        words = f'{mean:.5g}'
        if len(finite) > 1:
            deviation = math.sqrt(math.fsum((value - mean) ** 2 for value in finite) / (len(finite) - 1))
            words += f' ± {deviation:.2g}'
    return words + (f' ({lost} of {len(values)} not finite)' if lost else '')


def ended(trial: Trial, state: State) -> str:
    """A line about a trial that has ended, for the person who waits."""
    # A signal came before it had written anything.
    kind = 'interrupted before its first step' if state.kind == states.MISSING else state.kind
    return f'{trial.name}: {kind}' + (f': {state.words}' if state.words else '')


def words_of(trial: Trial, state: State) -> str:
    """What a trial that is not done does, or why it does not."""
    at = f'step {state.step} of {trial.row.total_steps}'
    if state.kind == RUNNING and state.speed > 1e-6:  # less stands in a damaged line
        left = datetime.timedelta(seconds=round((trial.row.total_steps - state.step) / state.speed))
        return f'running, {at}, {state.speed:.3g} steps/s, {left} left without evaluations'
    return ': '.join(filter(None, (f'{state.kind}, {at}' if state.step else state.kind, state.words)))


def _hours(hours: float) -> str:
    return f'{hours:.2g} h' if hours < 10 else f'{hours:.0f} h'
