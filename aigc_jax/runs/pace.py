"""How fast a run trains and when it will end: the progress line."""

import contextlib
import datetime
import math
import time

# Metrics that a progress line has room for.
_SHOWN = 6
_SMOOTHED = 30.0  # seconds of training that the speed is smoothed over


class Pace:
    """How fast the training itself is, and the time that is left with what stands between its steps.

    every: {name: steps from one to the next} of what is done between steps, such as evaluations; each is timed by
    `pause`. clock: seconds, for tests.
    """

    def __init__(self, total_steps: int, start_step: int, every: dict[str, int], clock=time.monotonic):
        self._total, self._every, self._clock = total_steps, every, clock
        self._seen = {name: [] for name in every}  # seconds of each
        self._upto = dict.fromkeys(every, start_step)  # the step of the last one
        self._step, self._began, self._paused = start_step, clock(), 0.0
        self._steps = self._seconds = 0.0  # of the training, older ones weighing less

    @contextlib.contextmanager
    def pause(self, name: str, step: int):
        """Around one of `every`; what it takes is no time of the training."""
        began = self._clock()
        yield
        self._paused += (seconds := self._clock() - began)
        self._seen[name].append(seconds)
        self._upto[name] = step

    def last(self, name: str) -> float:
        """Seconds that the last one took."""
        return self._seen[name][-1]

    def measure(self, step: int) -> float:
        """Steps a second of the training since the last call; the smoothed speed follows it."""
        now = self._clock()
        steps, seconds = step - self._step, max(now - self._began - self._paused, 1e-9)
        self._step, self._began, self._paused = step, now, 0.0
        kept = math.exp(-seconds / _SMOOTHED)
        self._steps, self._seconds = kept * self._steps + steps, kept * self._seconds + seconds
        return steps / seconds

    def words(self) -> list[str]:
        """['800 steps/s', '0:00:12 left']; what has not been seen yet is named, not counted."""
        if not self._steps:
            return []
        speed = self._steps / self._seconds
        left, unknown = (self._total - self._step) / speed, []
        for name, every in self._every.items():
            ahead, seen = self._total // every - self._upto[name] // every, self._seen[name]
            seen = seen[1:] or seen  # the first one compiles
            left += ahead * sum(seen) / len(seen) if seen else 0
            unknown += [f'{ahead} {name}' + 's' * (ahead > 1)] if ahead and not seen else []
        more = f' and {", ".join(unknown)}' if unknown else ''
        shown = f'{speed:.3g}' if speed < 1000 else f'{speed:.0f}'
        return [f'{shown} steps/s', f'{datetime.timedelta(seconds=round(left))}{more} left']


class Progress:
    """Where the run stands: a bar on a terminal, elsewhere one plain line per `log`.

    `total_steps` and `start_step` are training steps; `stream` is a text file, such as stderr.
    """

    def __init__(self, total_steps: int, start_step: int, stream):
        self._total = total_steps
        self._stream = stream
        self._bar = None
        if self._stream.isatty():
            from tqdm import tqdm

            # Its own speed would count evaluations.
            form = '{l_bar}{bar}| {n_fmt}/{total_fmt} [{elapsed}{postfix}]'
            self._bar = tqdm(
                total=total_steps, initial=start_step, file=self._stream, dynamic_ncols=True, bar_format=form
            )

    def update(self, step: int) -> None:
        """Says that `step` steps are done; cheap enough for every call of the step function."""
        if self._bar is not None:
            self._bar.update(step - self._bar.n)

    def log(self, step: int, values: dict[str, float], pace: list[str]) -> None:
        """Shows the first few of `values`, in their order, and the words of `pace`."""
        shown = [f'{name} {value:.4g}' for name, value in list(values.items())[:_SHOWN]]
        if self._bar is not None:
            self._bar.set_postfix_str(', '.join([*pace, *shown]), refresh=False)
            self._bar.update(step - self._bar.n)
            return
        print('  '.join([self._at(step), *shown, *pace]), file=self._stream, flush=True)

    def evaluated(self, step: int, values: dict[str, float]) -> None:
        """One line with the first few of an evaluation's `values`."""
        line = '  '.join([self._at(step), 'evaluation'] + [f'{n} {v:.4g}' for n, v in list(values.items())[:_SHOWN]])
        if self._bar is not None:
            self._bar.write(line, file=self._stream)
        else:
            print(line, file=self._stream, flush=True)

    def _at(self, step: int) -> str:
        return f'step {step:>{len(str(self._total))}}/{self._total}'

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()


class NullProgress:
    """The Progress of a run that nobody watches, and of every process but the first: nothing is shown."""

    def update(self, step: int) -> None: ...
    def log(self, step: int, values: dict[str, float], pace: list[str]) -> None: ...
    def evaluated(self, step: int, values: dict[str, float]) -> None: ...
    def close(self) -> None: ...
