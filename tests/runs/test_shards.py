"""A state that no device holds whole, from its creation to samples of the finished run.

This file, run as a program on eight virtual devices, lives through a run whose state takes 203 MB; the tests read what
it measured on the way.
"""

import contextlib
import importlib.util
import json
import pathlib
import sys
import threading

import numpy as np
import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
spec = importlib.util.spec_from_file_location('memory', ROOT / 'scripts' / 'memory.py')
memory = importlib.util.module_from_spec(spec)
spec.loader.exec_module(memory)

DEVICES, LAYERS, WIDTH = 8, 9, 1024
MB = 1e6
SMALL = 1.5 * MB  # the data, a batch, samples, pictures and the leaves that do not divide
# Many layers of one size: a program that gathers all of them at once is far from one that gathers each in turn.
LARGEST = 4 * WIDTH**2
FIELDS = {
    'total_steps': 1, 'steps_per_call': 1, 'log_every_steps': 1, 'eval_every_steps': 1, 'checkpoint_every_steps': 1,
    'batch_size': 16, 'eval.batch_size': 16, 'eval.num_shown': 16, 'eval.num_samples': 64, 'eval.extractor': '',
    'eval.ais_examples': 0, 'model.encoder.features': (WIDTH,) * LAYERS, 'model.decoder.features': (WIDTH,) * LAYERS,
    'optim.model.ema_decay': 0.0, 'parallel.mesh': {'data': 1, 'fsdp': DEVICES, 'tensor': 1},
    'parallel.rules': (('.*', 'fsdp'),),
}  # fmt: skip
PHASES = ('create', 'step', 'save', 'restore', 'evaluate', 'sample', 'draw', 'open')


@pytest.fixture(scope='module')
def life(command_line, exact_flags, tmp_path_factory):
    """What `program` wrote, and its folder."""
    folder = tmp_path_factory.mktemp('shards')
    flags = f'{exact_flags} --xla_force_host_platform_device_count={DEVICES}'
    done = command_line.python(__file__, folder, env={'XLA_FLAGS': flags}, seconds=300)
    assert done.returncode == 0, done.stderr
    return json.loads((folder / 'found.json').read_text()), folder


def test_the_state_is_large(life):
    found, _ = life
    assert found['state'] >= 200 * MB


@pytest.mark.parametrize('phase', PHASES)
def test_no_device_holds_more_than_its_share_at_any_moment(life, phase):
    found, _ = life
    assert found['on a device'][phase] <= found['state'] / DEVICES + SMALL


@pytest.mark.parametrize('phase', PHASES)
def test_nothing_is_fetched_whole(life, phase):
    found, _ = life
    assert found['fetched'][phase] <= SMALL


def test_a_program_reads_its_share_and_gathers_few_parameters_at_once(life):
    found, _ = life
    programs = found['programs']
    assert programs.keys() >= {'measure', 'sample', 'originals', 'reconstruct', 'encode', 'decode'}
    for name, (arguments, temporary) in programs.items():
        assert arguments <= found['parameters'] / DEVICES + SMALL, name
        assert temporary <= 2 * LARGEST + SMALL, name


def test_a_step_reads_its_share_and_holds_the_gradient_of_one_layer_at_once(life):
    """Of all layers it holds parts: of the gradients, and of the parameters, which XLA copies to write them in place.
    Of one layer it holds the gradient of a device's own examples and the sum of these; it was of nearly all."""
    found, _ = life
    arguments, temporary = found['step']
    assert arguments <= found['state'] / DEVICES + SMALL
    assert temporary <= 2 * found['parameters'] / DEVICES + 2 * LARGEST + SMALL


def test_a_finished_run_opens_in_shards_and_says_what_one_device_says(life):
    found, folder = life
    assert found['opened'] == {'shards': DEVICES, 'four': 4, 'one': 1}
    values, one = found['values']['shards'], found['values']['one']
    assert values.keys() == one.keys() and values
    np.testing.assert_allclose(list(values.values()), list(one.values()), rtol=2e-5)
    ours, four, theirs = (np.load(folder / f'{name}.npy') for name in ('shards', 'four', 'one'))
    np.testing.assert_allclose(ours, theirs, atol=2e-5)
    np.testing.assert_allclose(four, theirs, atol=2e-5)
    assert theirs.std() > 0.01  # samples, not a constant


# --- the program on eight devices ---


class Meter:
    """The most bytes of arrays on a device, and of one fetch, during each phase."""

    def __init__(self):
        import jax

        self.held, self.fetched, self._phase = {}, {}, None
        get = jax.device_get

        def counted(values):
            num_bytes = sum(leaf.nbytes for leaf in jax.tree.leaves(values) if isinstance(leaf, jax.Array))
            if self._phase:
                self.fetched[self._phase] = max(self.fetched[self._phase], num_bytes)
            return get(values)

        jax.device_get = counted

    @contextlib.contextmanager
    def phase(self, name: str):
        self._phase, over = name, threading.Event()
        self.held[name] = self.fetched[name] = 0

        def look():
            self.held[name] = max(self.held[name], *memory.on_devices().values(), 0)

        def watch():
            while not over.wait(0.005):
                look()

        watcher = threading.Thread(target=watch)
        watcher.start()
        try:
            yield
            look()
        finally:
            over.set()
            watcher.join()
            self._phase = None


def program(folder: pathlib.Path) -> None:
    import jax

    from aigc_jax.reports import pictures
    from aigc_jax.reports.evaluation import Evaluation
    from aigc_jax.reports.evaluator import Evaluator
    from aigc_jax.runs import config as config_lib
    from aigc_jax.runs.experiment import Experiment
    from aigc_jax.runs.folder import Run
    from aigc_jax.runs.paths import Paths

    config = config_lib.load('configs/vae.py:smoke', [])
    config.update_from_flattened_dict(FIELDS)
    config_lib.check(config)
    (folder / 'config.json').write_text(config_lib.to_json(config))
    experiment, meter, programs = Experiment(config), Meter(), {}
    with meter.phase('create'):
        state = jax.block_until_ready(experiment.create_state())
    data, feed = experiment.resident_data(), next(experiment.feeds(0))
    call = experiment.train_call().lower(state, experiment.seed_array, data, feed).compile()
    of_step = memory.of_program(call)
    with meter.phase('step'):
        state, _ = jax.block_until_ready(call(state, experiment.seed_array, data, feed))
    checkpoints = Run(folder).checkpoints(config, read_only=False)
    with meter.phase('save'):
        checkpoints.save(1, state)
    del state
    with meter.phase('restore'):
        state = checkpoints.restore(1, experiment.abstract_state)
    checkpoints.close()
    evaluator = memory.recorded(Evaluator(experiment, Paths(folder)), programs)
    with meter.phase('evaluate'):
        Evaluation(evaluator).each(state, 0, 'valid')
    with meter.phase('sample'):
        evaluator.sample(state, 0, 16)
    with meter.phase('draw'):
        pictures.draw(evaluator, '00000001', state, 0, [])
    del state, call
    devices, values, opened = jax.devices(), {}, {}
    for name, number, overrides in (('shards', 8, []), ('four', 4, [('parallel.mesh.fsdp', '4')]), ('one', 1, [])):
        jax.devices, state = lambda number=number: devices[:number], None
        with meter.phase('open') if name == 'shards' else contextlib.nullcontext():
            experiment, state = Run(folder).open(overrides=overrides)
            evaluator = Evaluator(experiment)
            samples = evaluator.sample(state, 0, 16)
            if name != 'four':
                values[name] = {key: row['value'] for key, row in Evaluation(evaluator).each(state, 0, 'valid').items()}
        kernel = max(jax.tree.leaves(state.params), key=lambda leaf: leaf.size)
        opened[name] = kernel.size // kernel.addressable_shards[0].data.size
        np.save(folder / f'{name}.npy', samples)
    sizes = experiment.sizes()
    found = {
        'state': sizes['bytes']['state'], 'parameters': 4 * sum(sizes['parameters'].values()), 'programs': programs,
        'step': of_step, 'on a device': meter.held, 'fetched': meter.fetched, 'values': values, 'opened': opened,
    }  # fmt: skip
    (folder / 'found.json').write_text(json.dumps(found))


if __name__ == '__main__':
    program(pathlib.Path(sys.argv[1]))
