"""The command line of sweeps.

python -m aigc_jax.sweep --config=FILE.py[:variant,…] --workdir=DIR [--seeds=N] [--jobs=N] [--dry_run]
python -m aigc_jax.sweep status --workdir=DIR [--metric=NAME]
"""

import pathlib
import shlex
import signal
import sys
from collections.abc import Callable

from absl import flags

from aigc_jax.core import command
from aigc_jax.core.errors import UserError, near
from aigc_jax.core.output import say, show
from aigc_jax.runs import config as config_lib
from aigc_jax.runs.paths import Paths
from aigc_jax.studies import states, status, sweeps

LAUNCHERS = ('local',)
FLAGS = flags.FlagValues()  # its own, for those of aigc_jax.main are others
_own = {'flag_values': FLAGS}
flags.DEFINE_string('workdir', None, 'the folder of the sweep, with a folder for each row and seed', **_own)
flags.DEFINE_string('config', None, 'FILE.py[:variant,…], with --config.FIELD=VALUE for all rows', **_own)
flags.DEFINE_string('sweep.FIELD', None, 'VALUE,VALUE,…: every combination of these, with each row of sweep()', **_own)
flags.DEFINE_integer('seeds', None, "each row so often, from the config's seed on (default: once)", 1, 10_000, **_own)
flags.DEFINE_integer(
    'jobs', None, 'so many processes at a time (default: one for each core, or one on an accelerator)', 1, 1000, **_own
)  # fmt: skip
flags.DEFINE_string('launcher', 'local', f'one of {", ".join(LAUNCHERS)}', **_own)
flags.DEFINE_bool('dry_run', False, 'show the commands, and write nothing', **_own)
flags.DEFINE_string(
    'metric', None, 'in the table (default: eval.best_metric, or the first of the final evaluation)', **_own
)  # fmt: skip


def main(argv: list[str]) -> None:
    with command.mistakes():
        body = _parsed(argv)
    command.run(body)


def _parsed(argv: list[str]) -> Callable[[], int]:
    """What is to be done, which returns the exit code. Raises UserError."""
    rest, config, overrides = config_lib.split_arguments(argv)
    grid, rest = split_grid(rest)
    words = command.read(FLAGS, rest, __doc__, __name__)
    if not FLAGS.workdir:
        raise UserError('--workdir: missing; name the folder of the sweep')
    if words not in ([], ['status']):
        raise UserError(f'{words[0]!r} is no command; status is the only one')
    if FLAGS.launcher not in LAUNCHERS:
        raise UserError(f'--launcher: {FLAGS.launcher!r}{near(FLAGS.launcher, LAUNCHERS)}')
    workdir = pathlib.Path(FLAGS.workdir).expanduser()
    if workdir.exists() and not workdir.is_dir():
        raise UserError(f'--workdir: {workdir} is a file')
    if Paths(workdir).config.exists():
        raise UserError(f'--workdir: {workdir} is the folder of a run; name another for the sweep')
    if words:
        if config or overrides or grid:
            raise UserError('--config: status reads the sweep of the workdir; leave it out')
        return lambda: _status(workdir)
    if not config:
        raise UserError('--config: missing; name a config, such as configs/gan.py')
    return lambda: _launch(workdir, config, overrides, grid)


def split_grid(arguments: list[str]) -> tuple[list[tuple[str, str]], list[str]]:
    """([(field, 'value,value')] of --sweep.FIELD=…, the other arguments). Raises UserError."""
    grid, rest = [], []
    for argument in arguments:
        flag, equals, text = argument.partition('=')
        if not flag.startswith('--sweep'):
            rest.append(argument)
        elif not equals or not flag.startswith('--sweep.'):
            raise UserError(f'{flag}: give --sweep.FIELD=VALUE,VALUE')
        else:
            grid.append((flag.removeprefix('--sweep.'), text))
    return grid, rest


def _status(workdir: pathlib.Path) -> int:
    if (sweep := sweeps.read(workdir)) is None:
        raise UserError(f'{workdir}: no sweep is there ({sweeps.RECORD} is missing); run one with --config=…')
    found = status.look(sweep.trials(workdir))
    show(status.table(sweep, found, status.metric_of(sweep, found, FLAGS.metric)) + status.summary(found) + '\n')
    _tell_others(sweep, workdir)
    return 0


def _launch(workdir: pathlib.Path, config: str, overrides: list[tuple[str, str]], grid: list[tuple[str, str]]) -> int:
    from aigc_jax.studies import drift, local, rows  # these import JAX, for which `status` need not wait

    sweep = rows.load(config, overrides, grid, FLAGS.seeds)
    trials = sweep.trials(workdir)
    found = status.look(trials)
    drift.check(found)
    status.metric_of(sweep, found, FLAGS.metric)  # a misspelt one is told before anything starts, if a run is done
    todo = [trial for trial, state in found if state.kind != states.DONE]
    jobs = FLAGS.jobs or local.default_jobs()
    if FLAGS.dry_run:
        show(''.join(f'{shlex.join(local.command(trial))}\n' for trial in todo))
        return 0
    sweep.write(workdir)
    _tell_others(sweep, workdir)
    say(f'{len(trials)} runs, {len(trials) - len(todo)} of them done; {jobs} at a time, {_cores(local.shares(jobs))}')
    ended = 0

    def tell(trial, state):
        nonlocal ended
        ended += 1
        say(f'{ended}/{len(todo)} {trial.name}: {state.kind}' + (f': {state.words}' if state.words else ''))

    outcome = local.launch(todo, jobs, tell)
    found = status.look(trials)
    drift.check(found)
    if outcome.interrupted:
        say(f'{signal.Signals(outcome.interrupted).name}: the same command goes on from here')
        return 128 + outcome.interrupted
    try:
        metric = status.metric_of(sweep, found, FLAGS.metric)
    except UserError as error:  # the runs are done, and their table is shown all the same
        say(f'note: {error}')
        metric = status.metric_of(sweep, found, None)
    show(status.table(sweep, found, metric))
    say(status.summary(found))
    for line in drift.notes(found):
        say(f'note: {line}')
    return 0 if all(state.kind == states.DONE for _, state in found) else 1


def _cores(shares: list[set[int]]) -> str:
    return f'{len(shares[0])} core{"s" * (len(shares[0]) > 1)} each' if shares[0] else 'sharing the cores'


def _tell_others(sweep: sweeps.Sweep, workdir: pathlib.Path) -> None:
    if others := list(sweeps.others(sweep, workdir)):
        more = f' and {len(others) - 3} more' if len(others) > 3 else ''
        say(f'note: {workdir} holds runs that are not in this sweep: {", ".join(others[:3])}{more}')


if __name__ == '__main__':
    main(sys.argv)
