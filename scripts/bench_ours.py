"""Our side of bench.py, built as the training loop and the generator of the command line build it."""

import pathlib
import time

import jax
import jax.numpy as jnp
import numpy as np
from bench_workloads import NEW_TOKENS, PROMPT, Contender, Generation, Sets, Text, Workload, fastest
from ml_collections import ConfigDict

from aigc_jax import config as config_lib
from aigc_jax.core import rng
from aigc_jax.core.types import Extra
from aigc_jax.decoding import Sampling
from aigc_jax.evals import images
from aigc_jax.experiment import Experiment

CONFIGS = pathlib.Path(__file__).resolve().parent.parent / 'configs'


def experiment_of(workload: Workload, data_file: str, steps_per_call: int) -> Experiment:
    config = config_lib.load(str(CONFIGS / workload.config), [])
    for optimizer in config.optim.values():
        optimizer.schedule = ConfigDict(dict(name='constant_schedule', value=workload.learning_rate))
    kind = 'text' if isinstance(workload, Text) else 'npz'
    common = {
        'data.name': f'{kind}:{data_file}', 'batch_size': workload.batch_size, 'steps_per_call': steps_per_call
    }  # fmt: skip
    config.update_from_flattened_dict({**common, **workload.overrides})
    config_lib.check(config)
    return Experiment(config)


def size(tree) -> int:
    return sum(x.size for x in jax.tree.leaves(tree))


def peak(precision: str) -> float:
    """FLOP/s of a matrix product."""
    product = jax.jit(jnp.matmul)

    def timed(n: int) -> float:
        x = jnp.ones((n, n), precision)
        product(x, x).block_until_ready()  # compiled, the first time
        began = time.perf_counter()
        product(x, x).block_until_ready()
        return time.perf_counter() - began

    return fastest(timed)


def train(workload: Workload, data_file: str, steps_per_call: int) -> Contender:
    experiment = experiment_of(workload, data_file, steps_per_call)
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

    precision = getattr(workload, 'precision', 'float32')
    return Contender(run, size(state.params), steps_per_call, peak=lambda: peak(precision))


def compare(workload: Sets, data_file: str, _) -> Contender:
    sets, metric = np.load(data_file), getattr(images, workload.metric)
    real, fake = sets['real'], sets['fake']

    def run(steps: int):
        for _ in range(steps):
            found = metric(real, fake)
        return found

    return Contender(run, 0, score=lambda found: found['density'] if isinstance(found, dict) else found)


def generate(workload: Generation, data_file: str, _) -> Contender:
    experiment = experiment_of(workload, data_file, 1)
    state, language, n = experiment.create_state(), experiment.task.language, workload.batch_size
    params = jax.tree.map(lambda x: x * workload.SCALE if x.ndim > 1 else x, state.params)
    extra, key = Extra(state.stats, state.carry), rng.context(0, 'generate', 0, jnp.arange(1)).key
    prompt = np.random.default_rng(0).integers(0, workload.vocab_size, (n, PROMPT)).astype(np.int32)
    start, index = np.zeros(n, np.int32), 0

    def run(steps: int):
        nonlocal index
        for _ in range(steps):
            texts = jnp.arange(index, index + n, dtype=jnp.int32)
            found = language.generate(params, extra, prompt, start, key, texts, Sampling(), NEW_TOKENS, ())
            found, index = jax.device_get(found), index + n
        return found

    return Contender(run, size(params), score=lambda found: -float(found.log_prob.sum() / found.length.sum()))
