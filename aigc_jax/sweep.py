"""The command line of sweeps.

python -m aigc_jax.sweep --config=FILE.py[:variant,…] --workdir=DIR [--seeds=N] [--jobs=N] [--dry_run]
    [--launcher=slurm] [--sbatch='--partition=P --time=60'] [--wait]
    [--launcher=jobset] [--jobset=FILE.yaml]
python -m aigc_jax.sweep status --workdir=DIR [--metric=NAME]
"""

import pathlib
import shlex
import signal
import sys
from collections.abc import Callable

from absl import flags

from aigc_jax.core import command
from aigc_jax.core.errors import RunError, UserError, near
from aigc_jax.core.output import say, show
from aigc_jax.runs import config as config_lib
from aigc_jax.runs.paths import Paths
from aigc_jax.studies import queue, registration, states, status, sweeps

LAUNCHERS = ('local', 'slurm')  # which wait for runs, as a study does
_KNOWN = (*LAUNCHERS, 'jobset')
_FLAGS_OF = {'sbatch': 'slurm', 'wait': 'slurm', 'jobset': 'jobset'}
FLAGS = flags.FlagValues()  # its own, for those of aigc_jax.main are others
_own = {'flag_values': FLAGS}
flags.DEFINE_string('workdir', None, 'the folder of the sweep, with a folder for each row and seed', **_own)
flags.DEFINE_string('config', None, 'FILE.py[:variant,…], with --config.FIELD=VALUE for all rows', **_own)
flags.DEFINE_string('sweep.FIELD', None, 'VALUE,VALUE,…: every combination of these, with each row of sweep()', **_own)
flags.DEFINE_integer('seeds', None, "each row so often, from the config's seed on (default: once)", 1, 10_000, **_own)
flags.DEFINE_integer(
    'jobs', None, 'so many runs at a time (local: by default one for each core, one on an accelerator)', 1, 1000, **_own
)  # fmt: skip
flags.DEFINE_string('launcher', 'local', f'one of {", ".join(_KNOWN)}', **_own)
flags.DEFINE_string('sbatch', '', "slurm: options of sbatch, such as '--partition=gpu --gpus=1 --time=60'", **_own)
flags.DEFINE_bool('wait', False, 'slurm: wait until all runs have ended, and show the table', **_own)
flags.DEFINE_string('jobset', None, 'jobset: the YAML file of a JobSet, whose image and volumes runs have', **_own)
flags.DEFINE_integer(
    'search', None, 'choose so many settings out of search() of the config, by how those before did', 1, 10_000, **_own
)  # fmt: skip
flags.DEFINE_bool('dry_run', False, 'show the commands, or the job script, and write nothing', **_own)
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
    check_launcher(FLAGS, _KNOWN)
    if FLAGS.launcher == 'jobset' and not FLAGS.jobset:
        raise UserError('--jobset: missing; name the YAML file of a JobSet with your image and volumes')
    if FLAGS.launcher == 'jobset' and FLAGS.jobs:
        raise UserError('--jobs: Kubernetes runs what fits; a queue such as Kueue limits that')
    workdir = pathlib.Path(FLAGS.workdir).expanduser()
    check_workdir(workdir, 'sweep')
    if words:
        if config or overrides or grid:
            raise UserError('--config: status reads the sweep of the workdir; leave it out')
        return lambda: _status(workdir)
    if not config:
        raise UserError('--config: missing; name a config, such as configs/gan.py')
    if FLAGS.search:
        if grid or FLAGS.dry_run or FLAGS.launcher != 'local':
            what = f'--sweep.{grid[0][0]}' if grid else '--dry_run' if FLAGS.dry_run else '--launcher'
            raise UserError(f'{what}: --search chooses its settings as it goes, on this machine; leave out one of both')
        return lambda: _search(workdir, config, overrides)
    return lambda: _launch(workdir, config, overrides, grid)


def check_workdir(workdir: pathlib.Path, of: str) -> None:
    """Raises UserError where it is no folder for a sweep or a study. of: which of the two."""
    if workdir.exists() and not workdir.is_dir():
        raise UserError(f'--workdir: {workdir} is a file')
    records = {'run': Paths(workdir).config, 'sweep': workdir / sweeps.RECORD, 'study': workdir / registration.RECORD}
    for kind, path in records.items():
        if kind != of and path.exists():
            raise UserError(f'--workdir: {workdir} is the folder of a {kind}; name another for the {of}')


def check_launcher(values: flags.FlagValues, known: tuple[str, ...] = LAUNCHERS) -> None:
    """Raises UserError."""
    if values.launcher not in known:
        raise UserError(f'--launcher: {values.launcher!r}{near(values.launcher, known)}')
    for name, launcher in _FLAGS_OF.items():
        if name in values and values[name].value and values.launcher != launcher:
            raise UserError(f'--{name}: is for --launcher={launcher}')


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
    line = ''
    if queue.scripts(workdir) and any(state.kind != states.DONE for _, state in found):
        try:
            found = queue.beside(found, queue.read(workdir))
            line = queue.lost(found, workdir)
        except (UserError, RunError) as error:
            line = str(error)
    show(status.table(sweep, found, status.metric_of(sweep, found, FLAGS.metric)) + status.summary(found) + '\n')
    _tell_others(sweep, workdir)
    if line:
        say(f'note: {line}')
    return 0


def _launch(workdir: pathlib.Path, config: str, overrides: list[tuple[str, str]], grid: list[tuple[str, str]]) -> int:
    command.check_start('a sweep')
    from aigc_jax.studies import drift, rows  # these import JAX, for which `status` need not wait

    sweep = rows.load(config, overrides, grid, FLAGS.seeds)
    trials = sweep.trials(workdir)
    found = status.look(trials)
    drift.check(found)
    if status.metric_of(sweep, found, FLAGS.metric) == '' and FLAGS.metric:  # no run is done, which would have it
        rows.check_metric(sweep, FLAGS.metric)
    todo = [trial for trial, state in found if state.kind != states.DONE]
    launch = {'local': _train, 'slurm': _submit, 'jobset': _emit}[FLAGS.launcher]
    if (outcome := launch(sweep, workdir, todo)) is None:
        return 0
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


def _search(workdir: pathlib.Path, config: str, overrides: list[tuple[str, str]]) -> int:
    command.check_start('a sweep')
    from aigc_jax.studies import local, search

    # What is tried depends on how many settings are chosen at a time, and so not on this machine's cores.
    found = search.Search(config, overrides, FLAGS.search, FLAGS.seeds or 1, FLAGS.jobs or 4, FLAGS.metric, workdir)
    jobs = FLAGS.jobs or local.default_jobs()
    launch = lambda trials, tell, unwanted: local.launch(trials, jobs, tell, unwanted)
    number = found.run(launch, lambda trial, state: say(status.ended(trial, state)))
    sweep = found.sweep()
    looked = status.look(sweep.trials(workdir))
    if number:
        say(f'{signal.Signals(number).name}: the same command goes on from here')
        return 128 + number
    show(status.table(sweep, looked, status.metric_of(sweep, looked, found.metric)))
    say(status.summary(looked))
    say(found.words())
    return 0 if found.best() else 1


def _train(sweep: sweeps.Sweep, workdir: pathlib.Path, todo: list[sweeps.Trial]):
    """The outcome of the local launcher; None where nothing is to be trained."""
    from aigc_jax.studies import local

    jobs = FLAGS.jobs or local.default_jobs()
    if FLAGS.dry_run:
        show(''.join(f'{shlex.join(local.command(trial))}\n' for trial in todo))
        return None
    sweep.write(workdir)
    _tell_others(sweep, workdir)
    say(f'{_count(sweep, todo)}; {jobs} at a time, {_cores(local.shares(jobs))}')
    return local.launch(todo, jobs, _teller(len(todo)))


def _submit(sweep: sweeps.Sweep, workdir: pathlib.Path, todo: list[sweeps.Trial]):
    """The outcome of the Slurm launcher; None where it is not waited for, or nothing is to be submitted."""
    from aigc_jax.studies import slurm
    from aigc_jax.studies.local import Outcome

    options = slurm.Options(FLAGS.sbatch, FLAGS.jobs)
    slurm.check(options, workdir)
    if FLAGS.dry_run:
        found = queue.beside(status.look(todo), queue.read(workdir) if queue.scripts(workdir) else {})
        show(''.join(slurm.scripts(slurm.missing(found), options)))
        return None
    jobs, submitted = [], []
    try:
        if todo:
            jobs, submitted = slurm.submit(todo, options)
    finally:  # sbatch may have taken some arrays and refused others
        if not todo or queue.scripts(workdir):
            sweep.write(workdir)
    _tell_others(sweep, workdir)
    say(
        f'{_count(sweep, todo)}, {len(todo) - len(submitted)} queued or running before; {len(submitted)} submitted'
        + (f', as job {", ".join(jobs)}' if jobs else '')
    )
    if FLAGS.wait or not todo:
        return slurm.wait(todo, _teller(len(todo))) if todo else Outcome({}, 0)
    say(f'python -m aigc_jax.sweep status --workdir={shlex.quote(str(workdir))} shows how they stand')
    return None


def _emit(sweep: sweeps.Sweep, workdir: pathlib.Path, todo: list[sweeps.Trial]) -> None:
    from aigc_jax.studies import jobset

    template = jobset.read(FLAGS.jobset)
    show(''.join(jobset.manifests(todo, template)))
    if not FLAGS.dry_run:
        sweep.write(workdir)
        _tell_others(sweep, workdir)
        say(f'{_count(sweep, todo)}; {len(todo)} JobSets for kubectl apply -f -')


def _count(sweep: sweeps.Sweep, todo: list[sweeps.Trial]) -> str:
    total = len(sweep.rows) * len(sweep.seeds)
    return f'{total} runs, {total - len(todo)} of them done'


def _teller(total: int) -> Callable[[sweeps.Trial, states.State], None]:
    ended = 0

    def tell(trial, state):
        nonlocal ended
        ended += 1
        say(f'{ended}/{total} {status.ended(trial, state)}')

    return tell


def _cores(shares: list[set[int]]) -> str:
    return f'{len(shares[0])} core{"s" * (len(shares[0]) > 1)} each' if shares[0] else 'sharing the cores'


def _tell_others(sweep: sweeps.Sweep, workdir: pathlib.Path) -> None:
    if others := list(sweeps.others(sweep, workdir)):
        more = f' and {len(others) - 3} more' if len(others) > 3 else ''
        say(f'note: {workdir} holds runs that are not in this sweep: {", ".join(others[:3])}{more}')


if __name__ == '__main__':
    main(sys.argv)
