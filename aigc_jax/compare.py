"""Runs beside each other: those that differ only in their seeds are one arm; the first arm is compared with the others.

python -m aigc_jax.compare RUN RUN … [--metric=M] [--better=min|max] [--html=FILE]

RUN: the folder of a run, a folder that holds runs, or a pattern.
"""

import pathlib
import sys

from absl import flags

from aigc_jax.core import command
from aigc_jax.core.errors import printable
from aigc_jax.core.output import show

FLAGS = flags.FlagValues()  # its own, for those of aigc_jax.main are others
_own = {'flag_values': FLAGS}
flags.DEFINE_multi_string(
    'metric', [], "a metric of the final evaluation or a pattern, 'samples/*'; train:M and eval:M are those of "
    'metrics.jsonl (default: all of the final evaluation)', **_own
)  # fmt: skip
flags.DEFINE_string(
    'better', '', 'min or max: which values are the best, so that diverged seeds count as the worst (default: '
    "the runs' eval.best_mode for their eval.best_metric)", **_own
)  # fmt: skip
flags.DEFINE_string('html', None, 'write a page with the tables, the curves and each seed, too', **_own)


def main(argv: list[str]) -> None:
    with command.mistakes():
        runs = command.read(FLAGS, argv, __doc__, __name__)
    command.run(lambda: _run(runs))


def _run(runs: list[str]) -> None:
    from aigc_jax.studies import comparison, comparison_page

    compared = comparison.Comparison(runs, FLAGS.metric, FLAGS.better)
    if FLAGS.html:
        path = pathlib.Path(FLAGS.html).expanduser()
        comparison_page.check(path, compared)
    show(printable(comparison.text(compared)))
    if FLAGS.html:
        comparison_page.write(path, compared)
        print(printable(f'page: {path}'), file=sys.stderr)


if __name__ == '__main__':
    main(sys.argv)
