"""The command line of studies.

python -m aigc_jax.study --config=configs/studies/oracles.py --workdir=DIR [--row=R] [--until='p<0.01'] [--budget=HOURS]
python -m aigc_jax.study --config=configs/studies/oracles.py --workdir=DIR --render
python -m aigc_jax.study --config=configs/studies/oracles.py --workdir=DIR --row=R --seed=S
"""

import pathlib
import re
import shlex
import signal
import sys
from collections.abc import Callable

from absl import flags

from aigc_jax import sweep
from aigc_jax.core import command
from aigc_jax.core.errors import RunError, UserError, near
from aigc_jax.core.output import say, show
from aigc_jax.runs import config as config_lib

FLAGS = flags.FlagValues()
_own = {'flag_values': FLAGS}
flags.DEFINE_string('workdir', None, 'the folder of the study: its runs and its report', **_own)
flags.DEFINE_string('config', None, 'FILE.py[:ARGUMENT], which defines study()', **_own)
flags.DEFINE_string('row', None, 'only this claim; with --seed its number of that seed once more', **_own)
flags.DEFINE_integer('seed', None, 'with --row: make this single number again, and compare it to the bit', **_own)
flags.DEFINE_string('until', None, 'p<ALPHA: add seeds until verdicts stand; ALPHA is spent over all looks', **_own)
flags.DEFINE_float('budget', None, 'hours of training after which no run is started', 0.0, **_own)
flags.DEFINE_bool('render', False, 'write the report of the runs that are there, and run nothing', **_own)
flags.DEFINE_integer(
    'jobs', None, 'so many processes at a time (default: one for each core, or one on an accelerator)', 1, 1000, **_own
)  # fmt: skip
flags.DEFINE_string('launcher', 'local', f'one of {", ".join(sweep.LAUNCHERS)}', **_own)
flags.DEFINE_string('sbatch', '', "slurm: options of sbatch, such as '--partition=gpu --gpus=1 --time=60'", **_own)
flags.DEFINE_bool('dry_run', False, 'show the commands, or the job script, and write nothing', **_own)


def main(argv: list[str]) -> None:
    with command.mistakes():
        body = _parsed(argv)
    command.run(body, RunError.exit_code if FLAGS.seed is None else command.NO_VERDICT)


def _parsed(argv: list[str]) -> Callable[[], int]:
    rest, config, overrides = config_lib.split_arguments(argv)
    if words := command.read(FLAGS, rest, __doc__, __name__):
        raise UserError(f'{words[0]!r} is no flag; flags begin with --')
    if overrides:
        raise UserError(f'--config.{overrides[0][0]}: a study sets its fields in its file; write a claim there')
    if not config:
        raise UserError('--config: missing; name a study, such as configs/studies/oracles.py')
    if not FLAGS.workdir:
        raise UserError('--workdir: missing; name the folder of the study')
    workdir = pathlib.Path(FLAGS.workdir).expanduser()
    sweep.check_workdir(workdir, 'study')
    if FLAGS.seed is not None and not FLAGS.row:
        raise UserError('--seed: missing --row, the claim whose number is to be made again')
    sweep.check_launcher(FLAGS)
    alpha = _alpha(FLAGS.until)
    if FLAGS.render and (given := [name for name in ('row', 'seed', 'until', 'budget') if FLAGS[name].present]):
        raise UserError(f'--{given[0]}: --render runs nothing; leave out one of the two')
    return lambda: _run(config, workdir, alpha)


def _alpha(text: str | None) -> float | None:
    if text is None:
        return None
    found = re.fullmatch(r'\s*p\s*<\s*([0-9.eE-]+)\s*', text)
    try:
        alpha = float(found[1])
        if 0 < alpha < 0.5:
            return alpha
    except (TypeError, ValueError):
        pass
    raise UserError(f"--until: {text!r}; give 'p<0.01', in quotes, with a number between 0 and 0.5")


def _run(config: str, workdir: pathlib.Path, alpha: float | None) -> int:
    command.check_start('a study')
    from aigc_jax.studies import conduct, local, planning, registration, report, slurm

    plan = planning.load(config)
    if FLAGS.row and FLAGS.row not in plan.claims:
        raise UserError(f'--row: {plan.path.name} has no claim {FLAGS.row!r}{near(FLAGS.row, plan.claims)}')
    claims = [FLAGS.row] if FLAGS.row else list(plan.claims)
    of_slurm, options = FLAGS.launcher == 'slurm', slurm.Options(FLAGS.sbatch, FLAGS.jobs)
    jobs = FLAGS.jobs or (slurm.MOST if of_slurm else local.default_jobs())
    launch = lambda trials, tell: local.launch(trials, jobs, tell)
    if of_slurm:
        slurm.check(options, workdir)
        launch = lambda trials, tell: slurm.launch(trials, options, tell)
    if FLAGS.seed is not None:
        return _again(plan, plan.claims[FLAGS.row], workdir, launch)
    spent = alpha if alpha is not None else registration.read(workdir).alpha
    study = conduct.Conduct(plan, workdir, claims, spent, FLAGS.budget, launch, jobs, say)
    if not FLAGS.render:
        plan.check_metrics(study.unmeasured())
    if FLAGS.dry_run:
        train, evaluate = study.todo()
        commands = (f'{shlex.join(local.command(trial))}\n' for trial in [*train, *evaluate])
        show(''.join(slurm.scripts([*train, *evaluate], options) if of_slurm else commands))
        return 0
    interrupted = 0
    if not FLAGS.render:
        workdir.mkdir(parents=True, exist_ok=True)
        registration.register(workdir, plan.registration, alpha)
        interrupted = study.run()
    elif not workdir.is_dir():
        raise UserError(f'--workdir: there is no folder {workdir}; run the study without --render')
    found = study.gathered()
    made_by = ['python', '-m', 'aigc_jax.study', f'--config={config}', f'--workdir={workdir}']
    show(report.write(found, shlex.join(made_by)))
    say(f'written: {", ".join(str(workdir / name) for name in report.files(plan.name))}')
    if interrupted:
        say(f'{signal.Signals(interrupted).name}: the same command goes on from here')
        return 128 + interrupted
    return 1 if conduct.unfinished(found, claims) else 0


def _again(plan, claim, workdir: pathlib.Path, launch) -> int:
    from aigc_jax.studies import again, status

    plan = again.settled(plan, claim, workdir)
    old = again.before(plan, claim, FLAGS.seed, workdir)
    for trial in again.trials(plan, claim, FLAGS.seed, workdir).trials:
        outcome = launch([trial], lambda trial, state: say(status.ended(trial, state)))
        if outcome.interrupted:
            return 128 + outcome.interrupted
    if (now := again.made(plan, claim, FLAGS.seed, workdir)) is None:
        return command.NO_VERDICT
    words, code = again.words(claim, FLAGS.seed, now, old, again.grounds(workdir, now, old))
    show(words + '\n')
    return code


if __name__ == '__main__':
    main(sys.argv)
