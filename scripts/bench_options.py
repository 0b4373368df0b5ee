"""Times XLA's options for a program on this CPU: whether the fastest of them, chosen for each workload, is worth it.

    python scripts/bench_options.py [--only=gpt_small,lstm] [--rounds=8] [--seconds=1.0] [--options=eigen]

All candidates of a workload are compiled in one process and take turns within each round, in an order that rotates;
ratios are to XLA's default within a round. The candidate is chosen by the rounds with an even number and measured by
the others, so that the luckiest does not win. A candidate that learns something else than the default is no candidate.
"""

import argparse
import math
import os
import pathlib
import statistics
import sys
import tempfile
import time

sys.path[:0] = [str(pathlib.Path(__file__).resolve().parent.parent), str(pathlib.Path(__file__).resolve().parent)]

import bench_ours  # noqa: E402
import jax  # noqa: E402
from bench_workloads import WORKLOADS  # noqa: E402

# oneDNN's fusions (xla_cpu_experimental_onednn_fusion_type) end the process on GPT ('partition compile failed', jax
# 0.10.2), so they are left out.
OPTIONS = {
    'default': {},
    # Matrix products by Eigen instead of YNNPACK.
    'eigen': {'xla_cpu_experimental_ynn_fusion_type': ''},
    'vectors of 512': {'xla_cpu_prefer_vector_width': 512},
    'eigen and 512': {'xla_cpu_experimental_ynn_fusion_type': '', 'xla_cpu_prefer_vector_width': 512},
    'memory scheduler': {'xla_cpu_scheduler_type': 'CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED'},
    'concurrency scheduler': {'xla_cpu_enable_concurrency_optimized_scheduler': True},
}  # fmt: skip
NEAR = 0.05  # of the default's loss after as many steps, in the median over rounds


def measure(name: str, options: dict[str, dict], rounds: int, seconds: float) -> tuple[str, float]:
    """(the candidate that the even rounds choose, its steps/s over the default's in the odd ones); prints them all."""
    workload = WORKLOADS[name]
    with tempfile.TemporaryDirectory() as folder:
        path = workload.write(os.path.join(folder, f'data.{workload.suffix}'))
        experiment = bench_ours.experiment_of(workload, path, workload.unit)
    data, seeds, call = experiment.resident_data(), experiment.seed_array, experiment.train_call()
    feeds = {}
    states, programs, losses = {}, {}, {}
    state, feed = experiment.create_state(), next(experiment.feeds(0))
    lowered = call.lower(state, seeds, data, feed)
    loss = f'{experiment.task.players[0]}/loss'
    took = {}
    for label, chosen in options.items():
        began = time.perf_counter()
        try:
            programs[label] = lowered.compile(compiler_options=chosen)
        except Exception as error:  # whatever a version of XLA says of an option that it does not have
            print(f'{name}: {label} does not compile: {str(error).splitlines()[0][:120]}', flush=True)
            continue
        took[label] = time.perf_counter() - began
        states[label], feeds[label], losses[label] = experiment.create_state(), experiment.feeds(0), []

    def run(label: str, calls: int) -> float:
        began = time.perf_counter()
        for _ in range(calls):
            states[label], metrics = programs[label](states[label], seeds, data, next(feeds[label]))
            losses[label].append(metrics[loss])
        jax.block_until_ready(states[label])
        return (time.perf_counter() - began) / calls

    labels = list(programs)
    calls = max(1, round(seconds / min(run(label, 2) for label in labels)))
    rates = {label: [] for label in labels}
    for r in range(rounds):
        for label in labels[r % len(labels) :] + labels[: r % len(labels)]:
            rates[label].append(1 / run(label, calls))
    ratios = {label: [a / b for a, b in zip(rates[label], rates['default'], strict=True)] for label in labels}
    learnt = {label: statistics.median(float(x.mean()) for x in losses[label]) for label in labels}
    for label in labels:
        own = sorted(ratios[label])
        print(
            f'{name:12} {label:24} {statistics.median(own):.3f} ({own[0]:.2f}–{own[-1]:.2f})  '
            f'{statistics.median(rates[label]) * workload.unit:8.2f} steps/s  compiled in {took[label]:5.1f} s  '
            f'loss {learnt[label]:.6g}, first {float(losses[label][0][-1]):.9g}',
            flush=True,
        )
    near = [label for label in labels if abs(learnt[label] / learnt['default'] - 1) <= NEAR]
    best = max(near, key=lambda label: statistics.median(ratios[label][::2]))
    return best, statistics.median(ratios[best][1::2])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
    parser.add_argument('--only', default='gpt_small,gpt,lstm,lstm_10000,dcgan', help='workloads, separated by commas')
    parser.add_argument('--options', default=','.join(OPTIONS), help='candidates, separated by commas')
    parser.add_argument('--rounds', type=int, default=8)
    parser.add_argument('--seconds', type=float, default=1.0, help='of each candidate in each round')
    args = parser.parse_args()
    jax.config.update('jax_enable_compilation_cache', False)
    options = {label: OPTIONS[label] for label in ['default', *args.options.split(',')]}
    found = {name: measure(name, options, args.rounds, args.seconds) for name in args.only.split(',')}
    for name, (label, ratio) in found.items():
        print(f'{name}: {label}, {ratio:.3f} in the rounds that did not choose it')
    print(f'geometric mean: {math.exp(statistics.mean(math.log(ratio) for _, ratio in found.values())):.3f}')


if __name__ == '__main__':
    main()
