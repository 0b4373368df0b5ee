"""Our side of bench.py, built as the training loop and the generator of the command line build it."""

import pathlib
import time
import zlib

import jax
import jax.numpy as jnp
import numpy as np
from bench_checkpoints import NEW_TOKENS as BEAM_TOKENS
from bench_checkpoints import PAD, Beams, FineTuning, Loading, Peak
from bench_workloads import NEW_TOKENS, ON_GPU, PROMPT, Contender, Generation, Sets, Text, Workload, fastest
from ml_collections import ConfigDict

import aigc_jax
from aigc_jax.core import rng
from aigc_jax.core.capabilities import CausalText, WritesText
from aigc_jax.core.types import Extra
from aigc_jax.decoding import Sampling, TextDecoder
from aigc_jax.metrics import images
from aigc_jax.runs import config as config_lib
from aigc_jax.runs import initial
from aigc_jax.runs.experiment import Experiment

CONFIGS = pathlib.Path(__file__).resolve().parent.parent / 'configs'


def experiment_of(workload: Workload, data_file: str, steps_per_call: int, **more) -> Experiment:
    """more: fields of the config, by name, that a contender sets."""
    config = config_lib.load(str(CONFIGS / workload.config), [])
    for optimizer in config.optim.values():
        optimizer.schedule = ConfigDict(dict(name='constant_schedule', value=workload.learning_rate))
    kind = 'text' if isinstance(workload, Text) else 'npz'
    common = {
        'data.name': f'{kind}:{data_file}', 'batch_size': workload.batch_size, 'steps_per_call': steps_per_call
    }  # fmt: skip
    config.update_from_flattened_dict({**common, **workload.overrides, **more})
    config_lib.check(config)
    return Experiment(config)


def size(tree) -> int:
    return sum(x.size for x in jax.tree.leaves(tree))


def peak(precision: str) -> float:
    """FLOP/s of a matrix product."""
    product = jax.jit(jnp.matmul)

    def timed(n: int) -> float:
        x = jax.random.normal(jax.random.key(0), (n, n), precision)  # a GPU is faster on equal numbers
        product(x, x).block_until_ready()  # compiled, the first time
        began = time.perf_counter()
        product(x, x).block_until_ready()
        return time.perf_counter() - began

    return fastest(timed)


def memory() -> int | None:
    """Bytes of the GPU that were held at most; None on a CPU."""
    return jax.local_devices()[0].memory_stats()['peak_bytes_in_use'] if ON_GPU else None


def train(workload: Workload, data_file: str, steps_per_call: int, **more) -> Contender:
    experiment = experiment_of(workload, data_file, steps_per_call, **more)
    return trained(workload, experiment, experiment.create_state(), steps_per_call)


def trained(workload: Workload, experiment: Experiment, state, steps_per_call: int) -> Contender:
    seed_array, data = experiment.seed_array, experiment.resident_data()
    call, feeds = experiment.train_call(), experiment.feeds(0)
    loss = f'{experiment.task.players[0]}/loss'

    def run(steps: int) -> float:
        nonlocal state
        before = {}
        for _ in range(steps // steps_per_call):
            state, metrics = call(state, seed_array, data, next(feeds))
            jax.device_get(before)  # the loop fetches a call's metrics while the next one computes
            before = metrics
        return float(jax.device_get(metrics)[loss][..., -1].mean())  # over the seeds

    precision = getattr(workload, 'precision', 'float32')
    seeds = experiment.config.num_seeds
    return Contender(run, size(state.params) // seeds, steps_per_call, peak=lambda: peak(precision), seeds=seeds)


def compare(workload: Sets, data_file: str) -> Contender:
    sets, metric = np.load(data_file), getattr(images, workload.metric)
    real, fake = sets['real'], sets['fake']

    def run(steps: int):
        for _ in range(steps):
            found = metric(real, fake)
        return found

    return Contender(run, 0, score=lambda found: found['density'] if isinstance(found, dict) else found)


def generate(workload: Generation, data_file: str, **more) -> Contender:
    experiment = experiment_of(workload, data_file, 1, **more)
    state, n = experiment.create_state(), workload.batch_size
    decoder = TextDecoder(experiment.task.get(CausalText))
    params = jax.tree.map(lambda x: x * workload.SCALE if x.ndim > 1 else x, state.params)
    extra, key = Extra(state.stats, state.carry), rng.context(0, 'generate', 0, jnp.arange(1)).key
    prompt = np.random.default_rng(0).integers(0, workload.vocab_size, (n, PROMPT)).astype(np.int32)
    start, index = np.zeros(n, np.int32), 0

    def run(steps: int):
        nonlocal index
        for _ in range(steps):
            texts = jnp.arange(index, index + n, dtype=jnp.int32)
            found = decoder.generate(params, extra, prompt, start, key, texts, Sampling(), NEW_TOKENS, ())
            found, index = jax.device_get(found), index + n
        return found

    return Contender(run, size(params), score=lambda found: -float(found.log_prob.sum() / found.length.sum()))


def finetune(workload: FineTuning, folder: str, steps_per_call: int) -> Contender:
    """Goes on from the checkpoint as `--config.init.run=FOLDER` does; each loss has its dropout."""
    of_bert = workload.kind == 'bert'
    overrides = {
        'init.run': folder, 'init.drawn': '', 'init.unused': '', 'batch_size': workload.batch_size,
        'steps_per_call': steps_per_call, 'data.block': workload.block,
        'data.name': f'{"labelled" if of_bert else "pairs"}:{folder}/train.jsonl',
        **({} if of_bert else {'data.target_block': workload.target_block, 'data.columns': ('source', 'target')}),
        'optim.model.weight_decay_regex': 'kernel|embedding',
    }  # fmt: skip
    path = CONFIGS / ('finetune_classify.py' if of_bert else 'finetune_seq2seq.py')
    config = config_lib.load(
        str(path), [(name, value if isinstance(value, str) else repr(value)) for name, value in overrides.items()]
    )
    config.optim.model.schedule = ConfigDict(dict(name='constant_schedule', value=workload.learning_rate))
    experiment = Experiment(config, tokenizer=initial.tokenizer(config))
    model, _ = initial.model(experiment)
    return trained(workload, experiment, experiment.create_state(*model), steps_per_call)


def beams(workload: Beams, folder: str) -> Contender:
    run, n = aigc_jax.from_pretrained(folder), workload.batch_size
    decoder, state = TextDecoder(run.experiment.task.get(WritesText)), run.state
    extra, key = Extra(state.stats, state.carry), jax.random.key(0)
    prompt, start = workload.rows()[0][:n].astype(np.int32), np.zeros(n, np.int32)
    how = Sampling(beam_size=4)

    def run_steps(steps: int) -> np.ndarray:
        for _ in range(steps):
            found = decoder.generate(state.params, extra, prompt, start, key, start, how, BEAM_TOKENS, ())
            found = jax.device_get(found)
        return found

    def number(found) -> float:
        whole = np.where(np.arange(BEAM_TOKENS) < found.length[:, None], found.tokens, PAD)
        return float(zlib.crc32(whole.astype(np.int32).tobytes()))

    return Contender(run_steps, size(state.params), score=number)


def load(workload: Loading, folder: str) -> Contender:
    """As a notebook has it, with the tokenizer."""
    peak = Peak()

    def run(steps: int) -> float:
        for _ in range(steps):
            with peak:
                model = aigc_jax.from_pretrained(folder)
                flat = [np.asarray(x).reshape(-1) for x in jax.tree.leaves(model.state.params)]
                squares = sum(float(x @ x) for x in flat)
            found = squares / size(model.state.params)
            del model, flat
        return found

    return Contender(run, workload.parameters, memory=lambda: peak.most)
