"""Trains the same models here, in PyTorch and in Keras, side by side on the CPU, and prints steps per second.

    python scripts/bench.py [--only=vae,gan] [--rounds=7] [--seconds=2] [--json=FILE]

The peers come with `pip install -e '.[bench]'`; one that is missing is skipped. How it is kept fair:

- Every contender does the same work: networks (the numbers of parameters are compared), loss, optimizer and
  batch; it draws its own noise and its own shuffled batches from the same data in memory; and what its loss
  comes to after CHECK_STEPS steps must lie within TOLERANCE of the known value.
- Every contender lives in a process of its own that sleeps until it is told to train, so one at a time computes.
  They take turns within each round, in an order that rotates. All have their default number of threads (the
  cores) and no custom allocator.
- A timed slice is one request: feeding the data, all its steps, and fetching the loss at its end.

To add a workload: an entry of WORKLOADS and OURS, and a function of its name in both builders of bench_peers.py.
"""

import argparse
import dataclasses
import importlib.metadata
import importlib.util
import json
import math
import os
import pathlib
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable

import numpy as np

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / 'scripts')]  # what stands beside this file is measured, installed or not

import bench_peers  # noqa: E402

CHECK_STEPS, TOLERANCE = 2000, 0.05
UNIT = 100  # steps; every contender's steps a call divide it
LEARNING_RATE = 1e-3


def images(num: int) -> np.ndarray:
    """(num, 28, 28) uint8: logistic functions of two factors, for a 2-D latent to find."""
    rng = np.random.default_rng(0)
    weights, bias = rng.normal(size=(2, 784)), rng.normal(size=784)
    logits = (rng.normal(size=(num, 2)) @ weights + bias).astype(np.float32)
    return np.round(255 / (1 + np.exp(-logits))).astype(np.uint8).reshape(num, 28, 28)


def points(num: int) -> np.ndarray:
    """(num, 2) float32, far from the origin: D's loss comes to 2 log 2 only after G has moved there."""
    return np.random.default_rng(0).normal((6.0, -4.0), (1.0, 0.5), (num, 2)).astype(np.float32)


@dataclasses.dataclass(frozen=True)
class Workload:
    """parameters: how many; loss: what it comes to, in nats; data(num_examples) -> array."""

    title: str
    parameters: int
    loss: float
    data: Callable[[int], np.ndarray]
    num_examples: int
    batch_size: int

    def write(self, path: str, num_examples: int | None = None) -> str:
        """Writes the examples as a file that `data.name=npz:FILE` reads; returns its path."""
        x = self.data(num_examples or self.num_examples)
        np.savez(path, train=x, valid=x[:200], test=x[:200])
        return path


WORKLOADS = {
    'vae': Workload('VAE 784-128-64-2, Bernoulli, batch 128', 218_644, 403.0, images, 60_000, 128),
    'gan': Workload('GAN, D 2-128-64-1 and G 2-128-64-2 in turn, batch 256', 17_475, 2 * math.log(2), points,
                    100_000, 256),
}  # fmt: skip
ADAM = {'b1': 0.5, 'b2': 0.999}
OURS = {  # what differs from configs/WORKLOAD.py
    'vae': {'model.latent_dim': 2, 'model.encoder.features': (128, 64), 'model.decoder.features': (64, 128)},
    'gan': {
        'model.latent_dim': 2, 'model.generator.features': (128, 64), 'model.discriminator.features': (128, 64),
        'task.loss': 'nonsaturating', 'task.r1': 0.0, 'task.r2': 0.0, 'optim.generator.ema_decay': 0.0,
        'optim.generator.options': ADAM, 'optim.discriminator.options': ADAM,
    },
}  # fmt: skip


def ours(workload: str, data_file: str, batch_size: int, learning_rate: float, steps_per_call: int):
    """A builder as those of bench_peers: config, task and compiled call, as the training loop runs them."""
    import jax
    from ml_collections import ConfigDict

    from aigc_jax import config as config_lib
    from aigc_jax.experiment import Experiment

    config = config_lib.load(str(ROOT / 'configs' / f'{workload}.py'), [])
    for optimizer in config.optim.values():
        optimizer.schedule = ConfigDict(dict(name='constant_schedule', value=learning_rate))
    common = {'data.name': f'npz:{data_file}', 'batch_size': batch_size, 'steps_per_call': steps_per_call}
    config.update_from_flattened_dict({**common, **OURS[workload]})
    config_lib.check(config)
    experiment = Experiment(config)
    state, seeds, data = experiment.create_state(), experiment.seed_array, experiment.resident_data()
    call, feeds = experiment.train_call(), experiment.feeds(0)
    loss = f'{experiment.task.players[0]}/loss'

    def run(steps: int) -> float:
        nonlocal state
        before = {}
        for _ in range(steps // steps_per_call):
            state, metrics = call(state, seeds, data, next(feeds))
            jax.device_get(before)  # the loop fetches a call's metrics while the next one computes
            before = metrics
        return float(jax.device_get(metrics)[loss][-1])

    return run, sum(x.size for x in jax.tree.leaves(state.params)), steps_per_call


CONTENDERS = {  # name: (what it imports, builder, its option); 'ours…' are no peers
    'ours': (('jax', 'aigc_jax.experiment'), ours, 100),
    'ours, 1 step a call': (('jax', 'aigc_jax.experiment'), ours, 1),
    'PyTorch': (('torch',), bench_peers.pytorch, False),
    'PyTorch, compiled': (('torch',), bench_peers.pytorch, True),
    'Keras': (('tensorflow', 'keras'), bench_peers.keras, 1),
    'Keras, 50 steps a call': (('tensorflow', 'keras'), bench_peers.keras, 50),
}


def serve(workload: str, name: str, data_file: str) -> None:
    """A contender's process: one JSON line of facts, then one for each number of steps read from stdin."""
    replies = os.fdopen(os.dup(1), 'w')
    os.dup2(2, 1)  # whatever the libraries print is no reply
    imports, build, option = CONTENDERS[name]
    began = time.perf_counter()
    for module in imports:
        importlib.import_module(module)
    imported = time.perf_counter()
    run, parameters, steps_per_call = build(workload, data_file, WORKLOADS[workload].batch_size, LEARNING_RATE, option)
    run(steps_per_call)
    facts = {'import_s': imported - began, 'first_s': time.perf_counter() - imported, 'parameters': parameters}
    print(json.dumps(facts), file=replies, flush=True)
    for line in sys.stdin:
        began, loss = time.perf_counter(), run(int(line))
        print(json.dumps({'seconds': time.perf_counter() - began, 'loss': loss}), file=replies, flush=True)


class Worker:
    """A contender in its process. facts: {parameters, import_s, first_s: of building, compiling and one call}."""

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

    def train(self, steps: int) -> dict:
        """{seconds, loss} of that many steps."""
        print(steps, file=self.process.stdin, flush=True)
        return self._reply()

    def check(self, workload: Workload) -> None:
        """Trains CHECK_STEPS; RuntimeError where that was not the workload's work."""
        losses = [self.train(UNIT)['loss'] for _ in range(CHECK_STEPS // UNIT)]
        loss = self.facts['loss'] = statistics.mean(losses[-10:])
        if self.facts['parameters'] != workload.parameters:
            raise RuntimeError(f'{self.name}: {self.facts["parameters"]} parameters, not {workload.parameters}')
        if not abs(loss - workload.loss) <= TOLERANCE * workload.loss:
            raise RuntimeError(f'{self.name}: the loss comes to {loss:.4g}, not {workload.loss:.4g}: {losses}')

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait()


def measure(workload: str, rounds: int, seconds: float, folder: str) -> dict:
    """{contender: its facts, with 'rates', steps/s in each round}."""
    data_file, workers = WORKLOADS[workload].write(os.path.join(folder, f'{workload}.npz')), []
    try:
        for name, (imports, *_) in CONTENDERS.items():
            missing = [m for m in imports if importlib.util.find_spec(m.partition('.')[0]) is None]
            if missing:
                print(f"{name}: skipped, {missing[0]} is missing: pip install -e '.[bench]'", file=sys.stderr)
                continue
            workers.append(worker := Worker(workload, name, data_file, folder))
            worker.check(WORKLOADS[workload])
            worker.facts['rates'] = [10 * UNIT / worker.train(10 * UNIT)['seconds']]
        for r in range(rounds):
            for worker in workers[r % len(workers) :] + workers[: r % len(workers)]:
                steps = max(1, round(worker.facts['rates'][-1] * seconds / UNIT)) * UNIT
                worker.facts['rates'].append(steps / worker.train(steps)['seconds'])
        return {worker.name: {**worker.facts, 'rates': worker.facts['rates'][1:]} for worker in workers}
    finally:
        for worker in workers:
            worker.close()


def table(results: dict) -> str:
    """Markdown; the ratios are to the peer with the highest median, within each round."""
    medians = {name: statistics.median(facts['rates']) for name, facts in results.items()}
    best = max([name for name in medians if not name.startswith('ours')] or ['ours'], key=medians.get)
    lines = [f'| | steps/s | × {best} (range) | first call, s | import, s | loss |', '|---|---|---|---|---|---|']
    for name, facts in results.items():
        ratios = sorted(a / b for a, b in zip(facts['rates'], results[best]['rates'], strict=True))
        ratio = f'{statistics.median(ratios):.2f} ({ratios[0]:.2f}–{ratios[-1]:.2f})'
        rest = f'{facts["first_s"]:.2f} | {facts["import_s"]:.2f} | {facts["loss"]:.5g}'
        lines.append(f'| {name} | {medians[name]:,.0f} | {ratio} | {rest} |')
    return '\n'.join(lines)


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
    packages = ('jax', 'flax', 'optax', 'torch', 'keras', 'tensorflow', 'tensorflow-cpu')
    versions = ', '.join(f'{package} {installed[package]}' for package in packages if package in installed)
    results = {'setting': (
        f'{len(os.sched_getaffinity(0))} cores, default threads, no custom allocator; Python '
        f'{platform.python_version()}, {versions}; {args.rounds} rounds of {args.seconds:g} s taken in turn, medians; '
        f'loss after {CHECK_STEPS} steps; load of the machine before: {os.getloadavg()[0]:.2f}'
    )}  # fmt: skip
    print(results['setting'])
    with tempfile.TemporaryDirectory() as folder:
        for workload in workloads:
            results[workload] = measure(workload, args.rounds, args.seconds, folder)
            print(f'\n{WORKLOADS[workload].title}\n\n{table(results[workload])}', flush=True)
    if args.json:
        args.json.write_text(json.dumps(results, indent=1) + '\n')


if __name__ == '__main__':
    main()
