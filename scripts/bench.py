"""Trains and runs the same models here and in other libraries, side by side, and prints how fast each is.

    python scripts/bench.py [--only=gpt_small,lstm] [--rounds=7] [--seconds=2] [--json=FILE]
    python scripts/bench.py --platform=gpu --check --minutes=4 --save=check.md
    python scripts/bench.py --platform=gpu --rounds=5 --seconds=1 --minutes=9 --save=gpu.md

The peers come with `pip install -e '.[bench]'`; one that is missing is skipped. How it is kept fair:

- Every contender does the same work: networks (the numbers of parameters are compared), loss, optimizer and
  batch; it draws its own noise and its own shuffled batches from the same data in memory; and what its loss
  comes to after a workload's check_steps must lie within its tolerance of the known value, or, of the workloads for a
  GPU, of what the first contender comes to. One that fails is a row that says so.
- Every contender lives in a process of its own that sleeps until it is told to train, so one at a time computes.
  They take turns within each round, in an order that rotates. The workloads for a GPU are measured one contender after
  the other, so that each has the whole memory of the card; that the card is as fast for the last as it was for the
  first is seen by the matrix products. All have their default number of threads (the cores) and no custom allocator.
- A timed slice is one request: feeding the data, all its steps, and fetching the loss, or the texts, at its end.
- The share of the peak (of a GPU: model FLOP utilization) is that of the fastest large matrix product that the same
  library, in the same process and the same precision, reached in any round; it is no vendor's figure. `Text.flops`
  says what is counted.
- float32 on a GPU means products in TF32 on both sides, which is XLA's default there; bfloat16 means autocast in
  PyTorch and `precision=bfloat16` here: float32 parameters, and products in bfloat16.

--check trains the smoke configs instead: whether they run, resume bit for bit and learn what a CPU learns.
--tiny shrinks each workload, so that the same code can be tried anywhere; with --platform=cpu, those for a GPU, too.
To add a workload: an entry of WORKLOADS in bench_workloads.py or of GPU_WORKLOADS in bench_gpu_workloads.py, what
bench_worker.contenders names for it, and what builds those.
"""

import argparse
import datetime
import importlib.metadata
import json
import math
import os
import pathlib
import platform
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
from bench_checkpoints import CHECKPOINTS  # noqa: E402
from bench_worker import ALL, GPU_WORKLOADS, Failure, TimeIsUp, TooLarge, Worker, chosen, contenders, missing  # noqa: E402
from bench_workloads import COMPRESSED, WORKLOADS, Workload  # noqa: E402

CPU_WORKLOADS = {**WORKLOADS, **CHECKPOINTS, **COMPRESSED}

DOUBLINGS = 4  # of the batch, at most, where a workload asks for the largest that fits


def groups(workload: Workload, names: list[str], for_gpu: bool) -> list[list[tuple[str, str, int]]]:
    """[[(label, contender, batch or 0), …], …]: those of a group are alive at once and take turns in each round."""
    if not for_gpu:
        return [[(name, name, 0) for name in names]]
    if not getattr(workload, 'largest', False):
        return [[(name, name, 0)] for name in names]
    sizes = [workload.batch_size << i for i in range(DOUBLINGS + 1)]
    return [[(f'{name}, batch {size}', name, size)] for name in names for size in sizes]


def measure(name: str, args: argparse.Namespace, folder: str, deadline: float, found: Callable[[dict], None]) -> None:
    """Calls found({label: facts so far}) as results come: 'rates', items/s in each round, and 'share' of the peak
    where that is known; or 'failed', a line."""
    workload, for_gpu, results, full = chosen(name, args.tiny), name in GPU_WORKLOADS, {}, set()
    data_file = workload.write(os.path.join(folder, f'{name}.{workload.suffix}'))
    present = []
    for contender, (imports, *_) in contenders(workload, for_gpu).items():
        if lacking := missing(imports):
            print(f"{contender}: skipped, {lacking[0]} is missing: pip install -e '.[bench]'", file=sys.stderr)
        else:
            present.append(contender)
    for group in groups(workload, present, for_gpu):
        workers = {}
        try:
            for label, contender, batch in group:
                if contender in full:
                    continue
                try:
                    if time.monotonic() > deadline:
                        raise TimeIsUp(f'{label}: not run, the time was up')
                    more = args.platform, args.tiny, batch, deadline
                    worker = workers[label] = Worker(name, contender, data_file, folder, *more)
                    worker.check(workload)
                    workload = workload.known(worker.facts)
                    worker.scale = worker.facts['seeds'] * (batch or workload.batch_size) / workload.batch_size
                except Failure as error:
                    if isinstance(error, TooLarge):
                        full.add(contender)
                    results[label] = _failed(error, workers.pop(label, None))
            rounds(workers, workload, args, results)
        finally:
            for worker in workers.values():
                worker.close()
        found(results)


def _failed(error: Failure, worker: Worker | None) -> dict:
    print(error, file=sys.stderr)
    if worker:
        worker.close()
    return {'failed': str(error).splitlines()[0].partition(': ')[2]}


def rounds(workers: dict[str, Worker], workload: Workload, args: argparse.Namespace, results: dict) -> None:
    """Puts what is measured of each into `results`; takes those that fail out of `workers`."""
    unit, rates, peaks = workload.unit, {}, {label: [] for label in workers}

    def each(labels, measured: Callable[[str, Worker], None]) -> None:
        for label in labels:
            if label in workers:
                try:
                    measured(label, workers[label])
                except Failure as error:
                    results[label] = _failed(error, workers.pop(label))

    def begin(label, worker):
        rates[label] = [unit / worker.train(unit)['seconds']]

    def turn(label, worker):
        steps = max(1, round(rates[label][-1] * args.seconds / unit)) * unit
        rates[label].append(steps / worker.train(steps)['seconds'])
        if workload.flops:
            peaks[label].append(worker.peak())

    def end(label, worker):
        facts = results[label] = {**worker.facts, 'memory': worker.memory()}
        own = [rate * worker.scale for rate in rates[label][1:]]
        if peaks[label]:
            facts['peak'] = max(peaks[label])
            facts['share'] = statistics.median(own) * workload.flops / facts['peak']
        facts['rates'] = [rate * workload.items_per_step for rate in own]

    labels = list(workers)
    each(labels, begin)
    for r in range(args.rounds):
        k = r % max(len(labels), 1)
        each(labels[k:] + labels[:k], turn)
    each(labels, end)


def table(results: dict, counted: str = 'steps') -> str:
    """Markdown; the ratios are to the peer with the highest median, or to the first, within each round."""
    measured = {name: facts for name, facts in results.items() if 'rates' in facts}
    failed = [f'| {name} | {facts["failed"]} |' for name, facts in results.items() if 'failed' in facts]
    if not measured:
        return '\n'.join(['| | |', '|---|---|', *failed])
    medians = {name: statistics.median(facts['rates']) for name, facts in measured.items()}
    best = max([name for name in medians if not name.startswith('ours')] or list(medians)[:1], key=medians.get)
    has_peak = any('peak' in facts for facts in measured.values())
    columns = ['', f'{counted}/s', f'× {best} (range)', *['share of peak, GFLOP/s'] * has_peak]
    columns += ['first call, s', 'import, s', 'memory, GB', 'loss']
    lines = [f'| {" | ".join(columns)} |', '|---' * len(columns) + '|']
    for name, facts in measured.items():
        ratios = sorted(a / b for a, b in zip(facts['rates'], measured[best]['rates'], strict=True))
        cells = [name, f'{medians[name]:,.0f}', f'{statistics.median(ratios):.2f} ({ratios[0]:.2f}–{ratios[-1]:.2f})']
        if has_peak:
            cells.append(f'{facts["share"]:.0%} of {facts["peak"] / 1e9:.0f}')
        cells += [f'{facts["first_s"]:.2f}', f'{facts["import_s"]:.2f}', f'{facts["memory"] / 1e9:.2f}']
        cells.append(f'{facts["loss"]:.5g}')
        lines.append(f'| {" | ".join(cells)} |')
    return '\n'.join(lines + failed).replace('|  |', '| |')


def device(on: str) -> str:
    """The card's name, memory and driver, or the processor's model. Raises Failure where there is no card."""
    if on == 'gpu':
        query = ['nvidia-smi', '--query-gpu=name,memory.total,driver_version', '--format=csv,noheader']
        try:
            cards = subprocess.run(query, capture_output=True, text=True, check=True, timeout=60).stdout.split('\n')
            return cards[0]
        except (OSError, subprocess.SubprocessError) as error:
            raise Failure(f'--platform=gpu: nvidia-smi finds no card here: {error}') from None
    info = pathlib.Path('/proc/cpuinfo')
    names = [line.partition(': ')[2] for line in info.read_text().splitlines() if line.startswith('model name')]
    return f'{len(os.sched_getaffinity(0))} cores of {names[0] if names else platform.processor()}'


def setting(args: argparse.Namespace) -> str:
    """What was measured on, with what, when and how."""
    installed = {str(d.metadata['Name']).replace('_', '-'): d.version for d in importlib.metadata.distributions()}
    packages = ('jax', 'flax', 'optax', 'torch', 'transformers', 'keras', 'tensorflow', 'tensorflow-cpu')
    versions = ', '.join(f'{package} {installed[package]}' for package in packages if package in installed)
    return (
        f'{device(args.platform)}; default threads, no custom allocator; Python '
        f'{platform.python_version()}, {versions}; {args.rounds} rounds of {args.seconds:g} s taken in turn, medians; '
        f'load of the machine before: {os.getloadavg()[0]:.2f}; {datetime.date.today().isoformat()}; '
        f'`python {shlex.join(["scripts/bench.py", *sys.argv[1:]])}`'
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
    parser.add_argument('--platform', choices=('cpu', 'gpu'), default='cpu')
    parser.add_argument('--only', help='workloads, separated by commas; all of those for the platform')
    parser.add_argument('--rounds', type=int, default=7)
    parser.add_argument('--seconds', type=float, default=2.0, help='of each contender in each round')
    parser.add_argument('--minutes', type=float, default=math.inf, help='after which the rest is left out')
    parser.add_argument('--save', type=pathlib.Path, help='file for the tables, written as they come')
    parser.add_argument('--json', type=pathlib.Path, help='file for all values, written as they come')
    parser.add_argument('--tiny', action='store_true', help='each workload in a size for a test; nothing is measured')
    parser.add_argument('--check', action='store_true', help='whether the smoke configs run, resume and learn instead')
    args = parser.parse_args()
    workloads = args.only.split(',') if args.only else list(GPU_WORKLOADS if args.platform == 'gpu' else CPU_WORKLOADS)
    if unknown := set(workloads) - set(ALL):
        parser.error(f'--only: there is no {", ".join(unknown)}; the workloads are {", ".join(ALL)}')
    try:
        results = {'setting': setting(args)}
    except Failure as error:
        parser.error(str(error))
    deadline, tables, failed = time.monotonic() + 60 * args.minutes, {'': results['setting']}, False
    print(results['setting'], flush=True)

    def write() -> None:
        for path, text in ((args.save, '\n\n'.join(tables.values())), (args.json, json.dumps(results, indent=1))):
            if path:
                path.with_name(f'{path.name}.part').write_text(text + '\n')
                os.replace(f'{path}.part', path)

    if args.check:
        import bench_check

        results['checks'] = []

        def add(row: dict) -> None:
            results['checks'].append(row)
            tables['checks'] = bench_check.table(results['checks'])
            print(row, flush=True)
            write()

        bench_check.run(args.platform, deadline, add)
        print(f'\n{tables.get("checks", "")}')
        return int(not results['checks'] or any('failed' in row for row in results['checks']))
    with tempfile.TemporaryDirectory() as folder:
        for name in workloads:

            def found(facts: dict, name=name) -> None:
                results[name] = facts
                tables[name] = f'{ALL[name].title} (`{name}`)\n\n{table(facts, ALL[name].counted)}'
                write()

            measure(name, args, folder, deadline, found)
            print(f'\n{tables[name]}', flush=True)
            failed |= any('failed' in facts for facts in results[name].values())
    return int(failed)


if __name__ == '__main__':
    sys.exit(main())
