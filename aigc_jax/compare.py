"""Runs beside each other: python -m aigc_jax.compare RUN RUN … [--metric=M] [--better=min|max] [--html=FILE]"""

import argparse
import pathlib
import sys

from aigc_jax.core import command
from aigc_jax.core.errors import UserError, printable
from aigc_jax.core.output import show


class _Parser(argparse.ArgumentParser):
    def error(self, message: str):
        raise UserError(f'{message} (see --help)')


def parser() -> argparse.ArgumentParser:
    made = _Parser(
        prog='python -m aigc_jax.compare', allow_abbrev=False,
        description='Compares runs: those that differ only in their seeds are one arm, and the first arm is what the '
        'others are compared with.',
    )  # fmt: skip
    made.add_argument('runs', nargs='+', metavar='RUN', help='the folder of a run, a folder that holds runs, a pattern')
    made.add_argument(
        '--metric', action='append', default=[], metavar='M',
        help="a metric of the final evaluation or a pattern, 'samples/*'; train:M and eval:M are those of "
        'metrics.jsonl; it may be given again (default: all of the final evaluation)',
    )  # fmt: skip
    made.add_argument(
        '--better', default='', metavar='min|max',
        help="which values are the best, so that diverged seeds count as the worst (default: the runs' eval.best_mode "
        'for their eval.best_metric)',
    )  # fmt: skip
    made.add_argument('--html', metavar='FILE', help='write a page with the tables, the curves and each seed, too')
    return made


def main(argv: list[str]) -> None:
    with command.mistakes():
        given = parser().parse_intermixed_args(argv)
    command.run(lambda: _run(given))


def _run(given: argparse.Namespace) -> None:
    from aigc_jax.studies import comparison, comparison_page

    compared = comparison.Comparison(given.runs, given.metric, given.better)
    if given.html:
        path = pathlib.Path(given.html).expanduser()
        comparison_page.check(path, compared)
    show(printable(comparison.text(compared)))
    if given.html:
        comparison_page.write(path, compared)
        print(printable(f'page: {path}'), file=sys.stderr)


if __name__ == '__main__':
    main(sys.argv[1:])
