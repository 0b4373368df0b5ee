"""Memory of a state in shards: what each step of a run's life takes, on the host and on each device.

    python scripts/memory.py [--devices=8] [--width=3072]

A VAE whose layers are `width` wide is laid over virtual CPU devices by fsdp; its state takes 230 MB at 3072. Printed
for each phase: the peak of the process's memory above what it held before the phase (Linux alone), the most bytes of
arrays on one device at any moment, beside the share that it should hold, what the largest of its programs takes on a
device besides them (XLA's account; of training, evaluation and sampling), and seconds, without compilation. On virtual
devices the process's memory is that of all of them.
"""

import argparse
import collections
import ctypes
import dataclasses
import functools
import os
import pathlib
import tempfile
import threading
import time

MB = 1e6
LEAST = 4096
SMALL = 1e-3  # of the state's bytes: a leaf below it may stand whole on each device


@dataclasses.dataclass(frozen=True)
class Figures:
    """Bytes: host, the peak above the process's own before; device, the most that arrays took on one device; program,
    what the largest of the phase's programs takes on one besides its arguments and results, None where it is not asked.
    """

    host: int
    device: int
    seconds: float
    program: int | None = None


def on_devices() -> dict[object, int]:
    """{device: bytes of the arrays on it}, each buffer once, without arrays of less than LEAST bytes.

    Two threads that are the first to ask an array for its shards can get a part of them (jaxlib 0.10), and the digests
    of a checkpoint are summed over small arrays.
    """
    import jax

    seen, held = set(), collections.Counter()
    for array in jax.live_arrays():
        if array.nbytes < LEAST:
            continue
        try:
            for shard in array.addressable_shards:
                place = shard.device, shard.data.unsafe_buffer_pointer()
                if place not in seen:
                    seen.add(place)
                    held[shard.device] += shard.data.nbytes
        except RuntimeError:  # deleted meanwhile, by the thread that is measured
            continue
    return held


def share(state, devices: int) -> int:
    """Bytes that one of `devices` holds of a state in shards: an equal part, and the small leaves, which are whole."""
    import jax

    sizes = [leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state)]
    return sum(size if size < SMALL * sum(sizes) else -(-size // devices) for size in sizes)


def of_program(compiled) -> tuple[int, int]:
    """Bytes on one device: (arguments, temporary)."""
    found = compiled.memory_analysis()
    return found.argument_size_in_bytes, found.temp_size_in_bytes


def recorded(evaluator, programs: dict):
    """`evaluator`; what each of its compiled programs takes is put into `programs`, {name: (arguments, temporary)}, the
    most of any shape, when it is called."""

    def watched(name, function):
        compiled = {}

        def call(*arguments):
            key = str([getattr(a, 'shape', ()) for a in arguments[2:]])
            if key not in compiled:
                compiled[key] = function.lower(*arguments).compile()
            programs[name] = tuple(map(max, of_program(compiled[key]), programs.get(name, (0, 0))))
            return compiled[key](*arguments)

        return call

    compile = evaluator.compiled
    name = lambda function: function.__name__.lstrip('_')
    evaluator.compiled = functools.cache(lambda function, stream: watched(name(function), compile(function, stream)))
    return evaluator


def measured(phase) -> tuple[object, Figures]:
    """What `phase()` returns, and its figures; it is run once before, so that it is compiled."""
    phase()
    ctypes.CDLL(None).malloc_trim(0)
    pathlib.Path('/proc/self/clear_refs').write_text('5')  # the peak begins anew
    base, most, over = _status('VmRSS'), 0, threading.Event()

    def watch():
        nonlocal most
        while not over.wait(0.002):
            most = max(most, *on_devices().values(), 0)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        began = time.perf_counter()
        result = phase()
        seconds = time.perf_counter() - began
    finally:
        over.set()
        watcher.join()
    peak = _status('VmHWM')
    return result, Figures(peak - base, max(most, *on_devices().values()), seconds)


def _status(name: str) -> int:
    lines = pathlib.Path('/proc/self/status').read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))


def experiment_of(devices: int, width: int):
    from aigc_jax.runs import config as config_lib
    from aigc_jax.runs.experiment import Experiment

    path = pathlib.Path(__file__).resolve().parent.parent / 'configs' / 'vae.py'
    fields = {
        'model.encoder.features': (width, width), 'model.decoder.features': (width, width), 'batch_size': 16,
        'steps_per_call': 1, 'eval.batch_size': 64, 'eval.num_shown': 64,
        'parallel.mesh': {'data': 1, 'fsdp': devices, 'tensor': 1}, 'parallel.rules': (('.*', 'fsdp'),),
    }  # fmt: skip
    config = config_lib.load(str(path), [])
    config.update_from_flattened_dict(fields)
    config_lib.check(config)
    return Experiment(config)


def phases(experiment, folder: pathlib.Path):
    """Yields (phase, figures), in the order of a run's life."""
    import jax

    from aigc_jax.reports import pictures
    from aigc_jax.reports.evaluation import Evaluation
    from aigc_jax.reports.evaluator import Evaluator
    from aigc_jax.runs.checkpoint import Checkpoints
    from aigc_jax.runs.paths import Paths

    state, figures = measured(lambda: jax.block_until_ready(experiment.create_state()))
    yield 'create', figures
    data, feed = experiment.resident_data(), next(experiment.feeds(0))
    call = experiment.train_call().lower(state, experiment.seed_array, data, feed).compile()

    def step():
        nonlocal state
        state, _ = jax.block_until_ready(call(state, experiment.seed_array, data, feed))

    yield 'step', dataclasses.replace(measured(step)[1], program=of_program(call)[1])
    first = iter((True, False))

    def save():  # the first that a process saves is read back
        Checkpoints(folder / str(next(first))).save(1, state)

    yield 'save', measured(save)[1]
    checkpoints = Checkpoints(folder / 'True')
    checkpoints.save(2, state)
    steps = iter((3, 4))
    yield 'save again', measured(lambda: checkpoints.save(next(steps), state))[1]
    state = None
    state, figures = measured(lambda: checkpoints.restore(4, experiment.abstract_state))
    yield 'restore', figures
    checkpoints.close()
    programs = {}
    evaluator = recorded(Evaluator(experiment, Paths(folder)), programs)
    evaluation = Evaluation(evaluator)
    for name, use in {
        'evaluate': lambda: evaluation.each(state, 0, experiment.config.eval.split),
        'sample': lambda: evaluator.sample(state, 0, experiment.config.eval.num_shown),
        'draw': lambda: pictures.draw(evaluator, '00000001', state, 0, []),
    }.items():
        programs.clear()
        _, figures = measured(use)
        yield name, dataclasses.replace(figures, program=max(temporary for _, temporary in programs.values()))


def main(devices: int, width: int) -> None:
    flags = os.environ.get('XLA_FLAGS', '')
    os.environ.setdefault('JAX_PLATFORMS', 'cpu')
    os.environ['XLA_FLAGS'] = f'{flags} --xla_force_host_platform_device_count={devices}'
    experiment = experiment_of(devices, width)
    total = experiment.sizes()['bytes']['state']
    bound = share(experiment.abstract_state, devices)
    print(f'state {total / MB:.0f} MB on {devices} devices, {bound / MB:.1f} MB each')
    print('phase        host, MB  device, MB  of its share  program, MB  seconds')
    with tempfile.TemporaryDirectory() as folder:
        for name, found in phases(experiment, pathlib.Path(folder)):
            program = '' if found.program is None else f'{found.program / MB:.1f}'
            row = f'{name:11} {found.host / MB:9.0f} {found.device / MB:11.1f} {found.device / bound:13.2f}'
            print(f'{row} {program:>12} {found.seconds:8.2f}', flush=True)


if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--devices', type=int, default=8)
    parser.add_argument('--width', type=int, default=3072)
    main(**vars(parser.parse_args()))
