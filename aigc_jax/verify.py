"""Runs a run again, and compares it bit for bit.

python -m aigc_jax.verify --workdir=RUN [--from_step=N]

Exit codes: 0 identical; 1 different, with the first step, leaf or row and by how much; 2 not comparable, and why; 3 the
program failed before it had a verdict.
"""

import sys

from absl import flags

from aigc_jax.core import command, processes
from aigc_jax.core.errors import UserError, printable
from aigc_jax.core.output import show

FLAGS = flags.FlagValues()  # its own, for those of aigc_jax.main are others
_own = {'flag_values': FLAGS}
flags.DEFINE_string('workdir', None, "the run's folder, to which nothing is written", **_own)
flags.DEFINE_integer('from_step', 0, 'the checkpoint to go on from (default: the beginning)', lower_bound=0, **_own)


def main(argv: list[str]) -> None:
    with command.mistakes():
        if words := command.read(FLAGS, argv, __doc__, __name__):
            raise UserError(f'{words[0]!r} is no flag; flags begin with --')
        if not FLAGS.workdir:
            raise UserError('workdir: missing; name the folder of the run')
    command.run(_run, command.NO_VERDICT)


def _run() -> int:
    command.check_start()
    command.set_up_jax()
    from aigc_jax.studies import verification

    verdict = verification.verify(FLAGS.workdir, FLAGS.from_step, progress=sys.stderr)
    if processes.first():
        show(printable(str(verdict)) + '\n')
    return verdict.exit_code


if __name__ == '__main__':
    main(sys.argv)
