"""SIGINT and SIGTERM during a training: all is saved first."""

import contextlib
import os
import signal
import sys

from aigc_jax.core import processes


class Interrupted(Exception):
    """Ctrl-C or SIGTERM, after saving. exit_code is what the shell expects of it."""

    def __init__(self, number: int, step: int):
        super().__init__(f'{signal.Signals(number).name}: saved at step {step}; the same command goes on from there')
        self.number, self.step, self.exit_code = number, step, 128 + number


@contextlib.contextmanager
def handling(handler):
    """SIGINT and SIGTERM go to `handler(number, frame)` inside, and to who had them before after it. It wants the main
    thread."""
    before = {number: signal.signal(number, handler) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler_before in before.items():
            signal.signal(number, handler_before)


class Signals:
    """The first SIGINT or SIGTERM asks to stop after the present call. A SIGINT after that stops at once. A SIGTERM
    does not: Slurm, systemd and the like send it more than once before they kill, and what is being saved is not lost.

    handled: False leaves the process's handlers alone, and nothing ever asks. A handler wants the main thread.
    """

    def __init__(self, handled: bool):
        self._handling = handling(self._handle) if handled else contextlib.nullcontext()
        self._number = 0
        self._safe_at = None  # the step at which all is saved, where a signal may end the run at once

    def __enter__(self):
        self._handling.__enter__()
        return self

    def __exit__(self, *error):
        self._handling.__exit__(*error)

    def _handle(self, number, frame):
        if self._safe_at is not None:
            self._number = self._number or number
            interrupted = Interrupted(self._number, self._safe_at)
            if processes.several():
                processes.fail(interrupted)
            raise interrupted
        if self._number:
            if number == signal.SIGINT:
                processes.stop(number) if processes.several() else sys.exit(128 + number)
            return
        self._number = number
        # Not by print, which a handler may have interrupted.
        os.write(2, f'\n{signal.Signals(number).name}: stops as soon as all is saved; Ctrl-C: at once\n'.encode())

    @contextlib.contextmanager
    def heard_at_once(self, step: int):
        """Around what may be left at any moment, since all is saved at `step`: raises Interrupted there."""
        self.raise_if_asked(step)
        self._safe_at = step
        try:
            yield
        finally:
            self._safe_at = None

    def raise_if_asked(self, step: int) -> None:
        if asked := self.requested(True):
            raise Interrupted(asked, step)

    def requested(self, agree: bool) -> int:
        """The signal's number, or 0. Several processes agree on it, at the steps where all ask."""
        if not processes.several():
            return self._number
        return max(processes.gather('signal', self._number)) if agree else 0
