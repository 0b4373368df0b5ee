"""Random events strike runs of two processes, and each outcome is judged by what aigc_jax/runs/README.md promises.

    python tests/chaos.py --events=200 --seed=0 --out=chaos.jsonl [--jobs=2] [--factor=1] [--models=vae,gpt]
    python tests/chaos.py --models=vae --event='{"kind": "sigkill", "who": [1], "mark": "saving 20"}' --out=one.jsonl

For each kind of model an uninterrupted run of two processes is the reference. Then the same command is given again and
again to one folder, and a random event strikes each start of it, until the run finishes: it must equal the reference to
the bit. Both processes must end within 15 seconds (times --factor, on a machine that does other work) once the event
can be noticed, with the promised exit codes and a line that names the process and the cause; or both go on.

A line of the results is an event: its first fields, up to amount, are what --event takes (a fresh run is struck then,
by one event for each --event). The same command goes on where it was stopped. Exit code 1: there were faults.
As root each run gets a small disk of its own, which can be filled; otherwise files of one process are limited alone.
"""

import argparse
import collections
import contextlib
import dataclasses
import hashlib
import json
import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
import traceback

from strikes import CHANGED, LIMIT, MODELS, ROOT, SLOW, Event, Reference, Run, Strike, draw

STARTS = 4, 8  # of a run that events strike, before it is left to finish
TRIES = 3  # starts in a row with a fault, before a new run is begun
SHOWN = ('kind', 'detail', 'who', 'mark', 'share', 'amount')


class Chaos:
    """The events of one invocation: a thread for each kind of model, `jobs` pairs that compute at a time."""

    def __init__(self, arguments: argparse.Namespace):
        self.arguments, self.out = arguments, pathlib.Path(arguments.out).absolute()
        self.folder = self.out.with_name(self.out.name + '.runs')
        self.folder.mkdir(parents=True, exist_ok=True)
        self._unmount()
        # Its own compilation cache, warm from another: what is killed while it writes an entry leaves it torn.
        if (warm := os.environ.get('JAX_COMPILATION_CACHE_DIR')) and pathlib.Path(warm).is_dir():
            shutil.copytree(warm, self.folder / 'xla', dirs_exist_ok=True)
        os.environ['JAX_COMPILATION_CACHE_DIR'] = str(self.folder / 'xla')
        os.environ['JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS'] = '0'
        self.key = _key()
        self.rows = [json.loads(line) for line in self.out.read_text().splitlines()] if self.out.exists() else []
        if any(row['code'] != self.key for row in self.rows):
            sys.exit(f'{self.out}: results of other code; name another file')
        self.slots, self.stop = threading.Semaphore(arguments.jobs), threading.Event()
        self.lock, self.failed = threading.Lock(), False
        self.code = self.folder / 'code'
        self._copy_code()

    def _unmount(self) -> None:
        """The disks that an invocation left which was killed."""
        mounts = pathlib.Path('/proc/mounts').read_text().splitlines()
        for path in [line.split()[1] for line in mounts if line.split()[1].startswith(f'{self.folder}/')]:
            subprocess.run(['umount', '-l', path], check=True)

    def _copy_code(self) -> None:
        """The code without its clone, once as it is and once with one other line; and what makes reading slow."""
        shutil.rmtree(self.code, ignore_errors=True)
        for name in ('same', 'other'):
            shutil.copytree(ROOT / 'aigc_jax', self.code / name / 'aigc_jax', ignore=shutil.ignore_patterns('*.pyc'))
        path, old, new = self.code / 'other' / CHANGED[0], *CHANGED[1:]
        assert path.read_text().count(old) == 1, path
        path.write_text(path.read_text().replace(old, new))
        (self.code / 'slow').mkdir()
        (self.code / 'slow' / 'sitecustomize.py').write_text(SLOW)

    def run(self) -> int:
        models = self.arguments.models.split(',')
        shares = {name: len(range(k, self.arguments.events, len(models))) for k, name in enumerate(models)}
        threads = [threading.Thread(target=self._guarded, args=item) for item in shares.items()]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        print(table(self.rows))
        return 130 if self.stop.is_set() else int(self.failed or any(row['faults'] for row in self.rows))

    def _guarded(self, name: str, count: int) -> None:
        try:
            self._model(name, count)
        except KeyboardInterrupt:
            pass
        except Exception:
            traceback.print_exc()
            self.failed = True

    def _model(self, name: str, count: int) -> None:
        reference = self._reference(name)
        if self.arguments.event:
            events = [Event(**json.loads(text)) for text in self.arguments.event]
            events = [dataclasses.replace(event, who=tuple(event.who)) for event in events]
            self._chain(name, reference, events)
        while (done := self._done(name)) < count and not self.arguments.event:
            rng = random.Random(f'{self.arguments.seed}/{name}/{done}')
            self._chain(name, reference, [None] * min(rng.randint(*STARTS), count - done))

    def _done(self, name: str) -> int:
        return sum(row['model'] == name and row['kind'] != 'none' and row['verdict'] != 'missed' for row in self.rows)

    def _chain(self, name: str, reference: Reference, events: list[Event | None]) -> None:
        """Starts of one run, an event each (None: a random one), until it is finished."""
        folder = self.folder / name
        number = 1 + max((int(path.name) for path in folder.glob('[0-9]*')), default=0)
        run, faults = Run(MODELS[name], folder / str(number), disk=True), 0
        try:
            for event in [*events, Event('none')]:
                tries = sum(row['model'] == name for row in self.rows)
                event = event or draw(f'{self.arguments.seed}/{name}/{tries}', reference.ahead(run.step()))
                if event.detail == 'full' and not run.mounted:
                    event = dataclasses.replace(event, detail='limit', who=(tries % 2,))
                row = self._start(run, event, reference)
                self._add({'model': name, 'run': number, 'number': tries} | row)
                faults = faults + 1 if row['faults'] else 0
                spoilt = any(fault.startswith(('written', 'metrics', 'lost')) for fault in row['faults'])
                if row['codes'] == [0, 0] or spoilt or faults == TRIES:
                    break
        finally:
            run.close(keep=bool(faults))

    def _start(self, run: Run, event: Event, reference: Reference | None) -> dict:
        with contextlib.ExitStack() as slot:
            while not self.slots.acquire(timeout=0.5):
                if self.stop.is_set():
                    raise KeyboardInterrupt
            slot.callback(self.slots.release)
            # A pair that waits lets another compute; once it has done so it never asks for the place again.
            return Strike(run, event, reference, self.code, self.arguments.factor, slot.close, self.stop)()

    def _reference(self, name: str) -> Reference:
        """Of the uninterrupted run, made twice: two processes must give the same bits each time."""
        path = self.folder / name / f'reference-{self.key}.json'
        if path.exists():
            return Reference(**json.loads(path.read_text()))
        found = []
        for number in range(2):
            shutil.rmtree(folder := self.folder / name / f'reference{number}', ignore_errors=True)
            run = Run(MODELS[name], folder, disk=False)
            strike = Strike(run, Event('none'), None, self.code, self.arguments.factor, stop=self.stop)
            with self.slots:
                row = strike()
                assert row['codes'] == [0, 0], row
                marks = {mark: at - strike.pair.began for mark, at in strike.pair.marks.items()}
                marks = dict(sorted(marks.items(), key=lambda item: item[1]))
                metrics = (run.workdir / 'metrics.jsonl').read_text()
                found.append(Reference(marks, row['seconds'], run.result(), metrics))
        different = [key for key, value in found[0].result.items() if found[1].result.get(key) != value]
        assert not different, f'{name}: two uninterrupted runs differ: {different}'
        path.write_text(json.dumps(dataclasses.asdict(found[1])))
        return found[1]

    def _add(self, row: dict) -> None:
        row = {'code': self.key, **row}
        with self.lock:
            self.rows.append(row)
            with open(self.out, 'a') as file:
                file.write(json.dumps(row) + '\n')
            what = {name: row[name] for name in SHOWN if row[name]}
            print(f'{len(self.rows)} {row["model"]} {what}: {row["codes"]} after {row["to_end"]} s: {row["verdict"]}',
                  '; '.join(row['faults']), file=sys.stderr, flush=True)  # fmt: skip


def _key() -> str:
    """Of the code, the configs and XLA's flags."""
    files = sorted([*ROOT.glob('aigc_jax/**/*.py'), *ROOT.glob('configs/*.py')])
    flags = [model.flags() for model in MODELS.values()]
    digest = hashlib.sha256(f'{os.environ.get("XLA_FLAGS")}{flags}'.encode())
    for path in files:
        digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def table(rows: list[dict]) -> str:
    """The counts, by kind of event, by model and by phase, and the faults."""
    struck = [row for row in rows if row['verdict'] != 'missed' and row['kind'] != 'none']
    with_faults = sum(bool(row['faults']) for row in struck)
    others = sum(bool(row['faults']) for row in rows) - with_faults
    done = sum(row['codes'] == [0, 0] and not row['faults'] for row in rows)
    lines = [f'{len(struck)} events, {with_faults} with faults; {others} faults of starts that none struck; '
             f'{done} runs finished and equal the reference']  # fmt: skip
    for by in ('kind', 'model', 'phase'):
        groups = collections.defaultdict(list)
        for row in struck:
            groups[f'{row[by]} {row["detail"]}'.strip() if by == 'kind' else row[by]].append(row)
        lines += ['', f'{by:<24}{"events":>8}{"ended":>8}{"went on":>8}{"faults":>8}{"slowest":>9}']
        for name, group in sorted(groups.items()):
            ended = [row for row in group if row['codes'] != [0, 0]]
            slowest = max((row['to_end'] or 0 for row in ended), default=0)
            counts = [len(group), len(ended), len(group) - len(ended), sum(bool(row['faults']) for row in group)]
            lines.append(f'{name:<24}' + ''.join(f'{count:>8}' for count in counts) + f'{slowest:>8} s')
    for row in rows:
        if row['faults']:
            event = json.dumps({name: row[name] for name in SHOWN})
            lines += ['', f'{row["model"]} from step {row["step"]}: {event} {row["codes"]}']
            lines += [f'    {fault}' for fault in row['faults']]
    return '\n'.join(lines)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--events', type=int, default=200)
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--out', required=True, help='the results, a line for each event')
    parser.add_argument('--jobs', type=int, default=1, help='pairs that compute at a time')
    parser.add_argument('--factor', type=float, default=1.0, help=f'of the limit of {LIMIT:.0f} s and of all others')
    parser.add_argument('--models', default=','.join(MODELS))
    parser.add_argument('--event', action='append', default=[], help='this one, for each of the models, in JSON')
    chaos = Chaos(parser.parse_args(arguments))
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: chaos.stop.set())
    return chaos.run()


if __name__ == '__main__':
    began = time.monotonic()
    code = main()
    print(f'\n{time.monotonic() - began:.0f} s')
    sys.exit(code)
