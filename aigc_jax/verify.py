"""Runs a run again and compares it bit for bit: python -m aigc_jax.verify --workdir=RUN [--from_step=N]"""

import argparse
import sys

from aigc_jax.core import command, processes
from aigc_jax.core.errors import UserError, printable
from aigc_jax.core.output import show


class _Parser(argparse.ArgumentParser):
    def error(self, message: str):
        raise UserError(f'{message} (see --help)')


def parser() -> argparse.ArgumentParser:
    made = _Parser(
        prog='python -m aigc_jax.verify', allow_abbrev=False,
        description='Runs a run again and compares it bit for bit.',
        epilog='Exit codes: 0 identical; 1 different, with the first step, leaf or row and by how much; 2 not '
        'comparable, and why.',
    )  # fmt: skip
    made.add_argument('--workdir', required=True, metavar='RUN', help="the run's folder, to which nothing is written")
    made.add_argument(
        '--from_step', type=int, default=0, metavar='N', help='the checkpoint to go on from (default: the beginning)'
    )
    return made


def main(argv: list[str]) -> None:
    with command.mistakes():
        given = parser().parse_args(argv)
    command.run(lambda: _run(given))


def _run(given: argparse.Namespace) -> int:
    command.set_up_jax()
    from aigc_jax.studies import verification

    verdict = verification.verify(given.workdir, given.from_step, progress=sys.stderr)
    if processes.first():
        show(printable(str(verdict)) + '\n')
    return verdict.exit_code


if __name__ == '__main__':
    main(sys.argv[1:])
