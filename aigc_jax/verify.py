"""Runs a run again and compares it bit for bit: python -m aigc_jax.verify --workdir=RUN [--from_step=N]

Exit codes: 0 identical; 1 different, with the first step, leaf or row and by how much; 2 not comparable, and why.
"""

import argparse
import sys

from aigc_jax import main as main_lib
from aigc_jax.core import processes
from aigc_jax.core.errors import UserError, printable
from aigc_jax.core.output import show


class _Parser(argparse.ArgumentParser):
    def error(self, message):
        raise UserError(f'{message} (see --help)')


def parse(argv: list[str]) -> argparse.Namespace:
    """Raises UserError."""
    about, codes = __doc__.split('\n\n')
    parser = _Parser(prog='python -m aigc_jax.verify', description=about.partition(':')[0], epilog=codes,
                     allow_abbrev=False)  # fmt: skip
    parser.add_argument('--workdir', required=True, help="the run's folder; nothing is written there")
    parser.add_argument('--from_step', type=int, default=0, help='the checkpoint to go on from; 0: the beginning')
    return parser.parse_args(argv)


def main(argv: list[str]) -> None:
    def work() -> int:
        flags = parse(argv)
        main_lib.set_up_jax()
        from aigc_jax.studies import verification

        verdict = verification.verify(flags.workdir, flags.from_step, progress=sys.stderr)
        if processes.first():
            show(printable(str(verdict)) + '\n')
        return verdict.exit_code

    main_lib.guarded(work)


if __name__ == '__main__':
    main(sys.argv[1:])
