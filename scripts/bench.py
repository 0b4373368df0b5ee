"""Trains and runs the same models here and in other libraries, side by side on the CPU, and prints how fast each is.

    python scripts/bench.py [--only=gpt_small,lstm] [--rounds=7] [--seconds=2] [--json=FILE]

The peers come with `pip install -e '.[bench]'`; one that is missing is skipped. How it is kept fair:

- Every contender does the same work: networks (the numbers of parameters are compared), loss, optimizer and
  batch; it draws its own noise and its own shuffled batches from the same data in memory; and what its loss
  comes to after a workload's check_steps must lie within its tolerance of the known value.
- Every contender lives in a process of its own that sleeps until it is told to train, so one at a time computes.
  They take turns within each round, in an order that rotates. All have their default number of threads (the
  cores) and no custom allocator.
- A timed slice is one request: feeding the data, all its steps, and fetching the loss, or the texts, at its end.
- The share of the peak is that of the fastest large matrix product that the same library, in the same process
  and the same precision, reached in any round; `Text.flops` says what is counted.

To add a workload: an entry of WORKLOADS in bench_workloads.py, one of CONTENDERS, and what builds its contenders.
"""

import argparse
import importlib
import importlib.metadata
import importlib.util
import json
import os
import pathlib
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / 'scripts')]  # what stands beside this file is measured, installed or not

from bench_workloads import WORKLOADS, Contender, Generation, Sets, Text, Workload  # noqa: E402

OURS, TORCH, KERAS = ('jax', 'aigc_jax.experiment'), ('torch',), ('tensorflow', 'keras')


def contenders(workload: Workload) -> dict[str, tuple]:
    """{name: (what it imports, its builder 'module.function', an option of it)}; 'ours…' are no peers."""
    if isinstance(workload, Sets):
        peers = {'prdc': (('prdc',), 'bench_peers.prdc', None)} if workload.metric == 'prdc' else {}
        return {'ours': (('aigc_jax.evals.images',), 'bench_ours.compare', None), **peers}
    if isinstance(workload, Generation):
        return {
            'ours': (OURS, 'bench_ours.generate', None),
            'PyTorch, own loop': (TORCH, 'bench_language.loop', None),
            'transformers': (('torch', 'transformers'), 'bench_language.transformers', None),
        }
    if isinstance(workload, Text):
        return {
            'ours': (OURS, 'bench_ours.train', workload.unit),
            'PyTorch': (TORCH, 'bench_language.train', False),
            'PyTorch, compiled': (TORCH, 'bench_language.train', True),
        }
    if workload.config == 'gan.py:dcgan':
        return {
            'ours': (OURS, 'bench_ours.train', workload.unit),
            'ours, 1 step a call': (OURS, 'bench_ours.train', 1),
            'PyTorch': (TORCH, 'bench_conv.pytorch', 'contiguous'),
            'PyTorch, channels last': (TORCH, 'bench_conv.pytorch', 'channels_last'),
            'PyTorch, compiled': (TORCH, 'bench_conv.pytorch', 'compiled'),
            'Keras': (KERAS, 'bench_conv.keras', 10),
        }
    return {
        'ours': (OURS, 'bench_ours.train', workload.unit),
        'ours, 1 step a call': (OURS, 'bench_ours.train', 1),
        'PyTorch': (TORCH, 'bench_peers.pytorch', False),
        'PyTorch, compiled': (TORCH, 'bench_peers.pytorch', True),
        'Keras': (KERAS, 'bench_peers.keras', 1),
        'Keras, 50 steps a call': (KERAS, 'bench_peers.keras', 50),
    }


def missing(imports: tuple[str, ...]) -> list[str]:
    return [m for m in imports if importlib.util.find_spec(m.partition('.')[0]) is None]


def build(workload: Workload, name: str, data_file: str) -> Contender:
    _, builder, option = contenders(workload)[name]
    module, _, function = builder.rpartition('.')
    return getattr(importlib.import_module(module), function)(workload, data_file, option)


def most_memory() -> int:
    """Bytes that this process has held at most."""
    if sys.platform == 'linux':  # getrusage would count what the parent held when it started this process
        status = pathlib.Path('/proc/self/status').read_text()
        return int(status.split('VmHWM:')[1].split()[0]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def serve(workload: str, name: str, data_file: str) -> None:
    """A contender's process: a JSON line of facts, and one for each request, a number of steps, 'peak' or 'memory'."""
    replies = os.fdopen(os.dup(1), 'w')
    os.dup2(2, 1)  # whatever the libraries print is no reply
    began = time.perf_counter()
    for module in contenders(WORKLOADS[workload])[name][0]:
        importlib.import_module(module)
    imported = time.perf_counter()
    contender = build(WORKLOADS[workload], name, data_file)
    contender.run(contender.steps_per_call)
    facts = {'import_s': imported - began, 'first_s': time.perf_counter() - imported}
    facts |= {'parameters': contender.parameters, 'steps': contender.steps_per_call}
    print(json.dumps(facts), file=replies, flush=True)
    for line in sys.stdin:
        if line.strip() == 'peak':
            reply = {'peak': contender.peak()}
        elif line.strip() == 'memory':
            reply = {'memory': most_memory()}
        else:
            began, found = time.perf_counter(), contender.run(int(line))
            reply = {'seconds': time.perf_counter() - began, 'loss': contender.score(found)}
        print(json.dumps(reply), file=replies, flush=True)


class Worker:
    """A contender in its process. facts: {parameters, import_s, steps: of its first call,
    first_s: of building, compiling and that call}."""

    def __init__(self, workload: str, name: str, data_file: str, folder: str):
        environment = os.environ | {
            'JAX_PLATFORMS': 'cpu', 'CUDA_VISIBLE_DEVICES': '', 'KERAS_BACKEND': 'tensorflow',
            'TORCHINDUCTOR_CACHE_DIR': tempfile.mkdtemp(dir=folder), 'JAX_ENABLE_COMPILATION_CACHE': 'false',
        }  # fmt: skip
        environment.pop('LD_PRELOAD', None)
        self.name, self.log = name, tempfile.TemporaryFile('w+', dir=folder)
        self.process = subprocess.Popen(
            [sys.executable, __file__, '--serve', workload, name, data_file], text=True, env=environment,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.log,
        )  # fmt: skip
        self.facts = self._reply()

    def _reply(self) -> dict:
        line = self.process.stdout.readline()
        if not line:
            self.log.seek(0)
            raise RuntimeError(f'{self.name}: its process ended\n{self.log.read()[-3000:]}')
        return json.loads(line)

    def _ask(self, request) -> dict:
        print(request, file=self.process.stdin, flush=True)
        return self._reply()

    def train(self, steps: int) -> dict:
        """{seconds, loss} of that many steps."""
        return self._ask(steps)

    def peak(self) -> float:
        """FLOP/s of its library's matrix product, now."""
        return self._ask('peak')['peak']

    def memory(self) -> float:
        """Bytes that its process has held at most."""
        return self._ask('memory')['memory']

    def check(self, workload: Workload) -> None:
        """Trains check_steps; RuntimeError where that was not the workload's work."""
        if rest := -self.facts['steps'] % workload.unit:  # so that all come from the same number of steps
            self.train(rest)
        losses = [self.train(workload.unit)['loss'] for _ in range(workload.check_steps // workload.unit)]
        last = losses[-(len(losses) // 2 or 1) :][-10:]
        loss = self.facts['loss'] = statistics.median(last)  # a game's loss may jump
        if self.facts['parameters'] != workload.parameters:
            raise RuntimeError(f'{self.name}: {self.facts["parameters"]} parameters, not {workload.parameters}')
        if not abs(loss - workload.loss) <= workload.tolerance * workload.loss:
            raise RuntimeError(f'{self.name}: the loss comes to {loss:.4g}, not {workload.loss:.4g}: {losses}')

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait()


def measure(name: str, rounds: int, seconds: float, folder: str) -> dict:
    """{contender: its facts, with 'rates', items/s in each round, and 'share' of the peak where that is known}."""
    workload, workers = WORKLOADS[name], []
    data_file, unit = workload.write(os.path.join(folder, f'{name}.{workload.suffix}')), workload.unit
    try:
        for contender, (imports, *_) in contenders(workload).items():
            if lacking := missing(imports):
                print(f"{contender}: skipped, {lacking[0]} is missing: pip install -e '.[bench]'", file=sys.stderr)
                continue
            workers.append(worker := Worker(name, contender, data_file, folder))
            worker.check(workload)
            worker.facts['rates'], worker.facts['peaks'] = [unit / worker.train(unit)['seconds']], []
        for r in range(rounds):
            for worker in workers[r % len(workers) :] + workers[: r % len(workers)]:
                steps = max(1, round(worker.facts['rates'][-1] * seconds / unit)) * unit
                worker.facts['rates'].append(steps / worker.train(steps)['seconds'])
                if workload.flops:
                    worker.facts['peaks'].append(worker.peak())
        for worker in workers:
            facts = worker.facts
            facts['memory'] = worker.memory()
            rates = facts.pop('rates')[1:]
            if peaks := facts.pop('peaks'):
                facts['peak'] = max(peaks)
                facts['share'] = statistics.median(rates) * workload.flops / facts['peak']
            facts['rates'] = [rate * workload.items_per_step for rate in rates]
        return {worker.name: worker.facts for worker in workers}
    finally:
        for worker in workers:
            worker.close()


def table(results: dict, counted: str = 'steps') -> str:
    """Markdown; the ratios are to the peer with the highest median, within each round."""
    medians = {name: statistics.median(facts['rates']) for name, facts in results.items()}
    best = max([name for name in medians if not name.startswith('ours')] or ['ours'], key=medians.get)
    has_peak = any('peak' in facts for facts in results.values())
    columns = ['', f'{counted}/s', f'× {best} (range)', *['share of peak, GFLOP/s'] * has_peak]
    columns += ['first call, s', 'import, s', 'memory, GB', 'loss']
    lines = [f'| {" | ".join(columns)} |', '|---' * len(columns) + '|']
    for name, facts in results.items():
        ratios = sorted(a / b for a, b in zip(facts['rates'], results[best]['rates'], strict=True))
        cells = [name, f'{medians[name]:,.0f}', f'{statistics.median(ratios):.2f} ({ratios[0]:.2f}–{ratios[-1]:.2f})']
        if has_peak:
            cells.append(f'{facts["share"]:.0%} of {facts["peak"] / 1e9:.0f}')
        cells += [f'{facts["first_s"]:.2f}', f'{facts["import_s"]:.2f}', f'{facts["memory"] / 1e9:.2f}']
        cells.append(f'{facts["loss"]:.5g}')
        lines.append(f'| {" | ".join(cells)} |')
    return '\n'.join(lines).replace('|  |', '| |')


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
    parser.add_argument('--only', default=','.join(WORKLOADS), help='workloads, separated by commas')
    parser.add_argument('--rounds', type=int, default=7)
    parser.add_argument('--seconds', type=float, default=2.0, help='of each contender in each round')
    parser.add_argument('--json', type=pathlib.Path, help='file for all values')
    parser.add_argument('--serve', nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        return serve(*args.serve)
    workloads = args.only.split(',')
    if unknown := set(workloads) - set(WORKLOADS):
        parser.error(f'--only: there is no {", ".join(unknown)}; the workloads are {", ".join(WORKLOADS)}')
    installed = {str(d.metadata['Name']).replace('_', '-'): d.version for d in importlib.metadata.distributions()}
    packages = ('jax', 'flax', 'optax', 'torch', 'transformers', 'keras', 'tensorflow', 'tensorflow-cpu')
    versions = ', '.join(f'{package} {installed[package]}' for package in packages if package in installed)
    results = {'setting': (
        f'{len(os.sched_getaffinity(0))} cores, default threads, no custom allocator; Python '
        f'{platform.python_version()}, {versions}; {args.rounds} rounds of {args.seconds:g} s taken in turn, medians; '
        f'load of the machine before: {os.getloadavg()[0]:.2f}'
    )}  # fmt: skip
    print(results['setting'])
    with tempfile.TemporaryDirectory() as folder:
        for workload in workloads:
            results[workload] = measure(workload, args.rounds, args.seconds, folder)
            title, counted = WORKLOADS[workload].title, WORKLOADS[workload].counted
            print(f'\n{title}\n\n{table(results[workload], counted)}', flush=True)
    if args.json:
        args.json.write_text(json.dumps(results, indent=1) + '\n')


if __name__ == '__main__':
    main()
