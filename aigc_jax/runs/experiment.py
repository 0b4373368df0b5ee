"""From a config to everything that a mode of the command line needs; nothing is written here."""

import copy
import functools
import math
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from aigc_jax import adapt, data, tasks
from aigc_jax.adapt import distill, lora, prune
from aigc_jax.core import check_task, memory, optim, parallel
from aigc_jax.core.capabilities import CausalText, Samples
from aigc_jax.core.errors import UserError
from aigc_jax.core.kept import cached_method
from aigc_jax.core.notes import note
from aigc_jax.core.step import abstract_params, draw, first_state, fuse, make_optimizers, make_step
from aigc_jax.core.types import Extra, TrainState, Tree
from aigc_jax.data import Tokenizer, augment, batching
from aigc_jax.metrics.images import NEIGHBOURS
from aigc_jax.runs import config as config_lib


class Experiment:
    """The data, the task and the compiled calls of one config. Raises UserError for what does not fit.

    seeds: (replicas,) ints, or one; a state has a leading axis of replicas where there are several.
    """

    def __init__(
        self, config: ConfigDict, devices: list | None = None, tokenizer: Tokenizer | None = None,
        dataset: data.Dataset | None = None, is_plan: bool = False,
    ):  # fmt: skip
        """dataset: in the place of that of config.data. is_plan: no state is made, so that it need not fit."""
        config_lib.check(config)
        self.plan = parallel.make_plan(
            config.parallel, config.num_seeds, config.replicas, config.batch_size, config.micro_batches, devices
        )
        self.dataset = dataset or data.load(config.data, tokenizer)
        self.config = config = _fitted(config, self.dataset)
        for split in (config.eval.split, config.eval.final_split):
            if split not in self.dataset.splits:
                raise UserError(_no_split(split, config.data, self.dataset.splits))
            if split == 'train' and isinstance(self.dataset.spec, data.Tokens):
                raise UserError('eval.split, eval.final_split: of text, train is no list of windows; choose another')
        spec = self.dataset.spec
        self.scaling = self.dataset.scaling(config.data)
        self.preprocess = spec.eval_preprocess(config.data, self.scaling)
        rows = config.batch_size // config.micro_batches // (self.plan.mesh.size if self.plan.axis_name else 1)
        self.train_preprocess = spec.train_preprocess(config.data, self.scaling, rows)
        self.task = adapt.adapted(tasks.make(config, self.dataset), config)
        if tasks.is_own(config.task.name):
            self._check_own_task(rows)
        if self.num_classes and augment.mixes(config.data):
            raise UserError(
                'data.augment.mixup: a mixed example has no class; set it to 0 for a model that reads classes'
            )
        params = abstract_params(self.task)
        chosen = lora.optimizers(config.optim, params)
        optimizers = make_optimizers(self.task, chosen, config.total_steps)
        self.optimizers = prune.optimizers(optimizers, self.task, config)
        self.frozen = optim.frozen(chosen, params)
        if not is_plan:
            seeds = f' of {config.num_seeds} seeds' if self.plan.replicas else ''
            self.want_room(self._abstract_replica, f'model, num_seeds: the state{seeds}', self.plan.replicas or 1)
        self.seeds = [config.seed + k for k in range(config.num_seeds)]

    def _check_own_task(self, rows: int) -> None:
        """Raises UserError for what its functions return; nothing is computed."""
        config, spec = self.config, self.dataset.spec

        def batches(split: str, preprocess):
            example = self.examples(split, np.arange(1))
            of = lambda n: jax.tree.map(lambda x: jnp.zeros((n, *x.shape[1:]), x.dtype), example)
            return lambda n, ctx: preprocess(of(n), ctx)

        train, evaluated = batches('train', self.train_preprocess), batches(config.eval.split, self.preprocess)
        shape = None if isinstance(spec, data.Tokens) else spec.shape
        check_task.check(self.task, config.task.name, rows, config.batch_size, train, evaluated, shape)

    def want_room(self, arrays: Tree, what: str, times: int = 1) -> None:
        """Raises UserError where the devices of this process cannot hold their share of these (abstract) arrays, so
        many times."""
        share = len(self.plan.mesh.local_devices) / self.plan.mesh.size
        limits = [(device.memory_stats() or {}).get('bytes_limit') for device in self.plan.mesh.local_devices]
        free = sum(limits) if all(limits) else None  # a CPU has the machine's
        memory.want(share * times * _bytes(arrays), what, free)

    @property
    def num_classes(self) -> int:
        """Of the labels that samples are drawn with; 0: the model is unconditional, or draws no samples."""
        samples = self.task.get(Samples)
        return samples.num_classes if samples else 0

    @functools.cached_property
    def _abstract_replica(self) -> TrainState:
        return jax.eval_shape(lambda drawn: first_state(self.optimizers, *drawn), self.task.abstract)

    @functools.cached_property
    def abstract_state(self) -> TrainState:
        """Shapes, dtypes and shardings of the state, nothing computed: the template that a checkpoint must fit."""
        state = self._abstract_replica
        if self.plan.replicas:
            state = jax.tree.map(lambda x: jax.ShapeDtypeStruct((self.plan.replicas, *x.shape), x.dtype), state)
        return parallel.abstract(state, self.plan.state_sharding(state))

    def create_state(
        self, params: Tree | None = None, stats: dict[str, Tree] | None = None, masks: dict[str, Tree] | None = None
    ) -> TrainState:  # fmt: skip
        """The state at step 0; `params` and `stats` (of init.run) take the place of the drawn ones. In `params`, None
        stands where a parameter is to be drawn. masks: of prune.run, {player: its masks}.

        Each device makes its own part. The arrays that are given are of one replica, and are used up.
        """
        sharding = jax.tree.map(lambda x: x.sharding, self.abstract_state)
        extra_sharding = Extra(sharding.stats, sharding.carry)
        # Drawing is a program of its own, because it takes memory that must be free again for the rest.
        if params is None or len(jax.tree.leaves(params)) < len(jax.tree.leaves(sharding.params)):
            draws = self.plan.compile_draw(lambda seed: draw(self.task, seed), (sharding.params, extra_sharding))
            drawn, extra = draws(self.seed_array)
            or_drawn = lambda own, where, given: own if given is None else self._given(given, where)
            params = drawn if params is None else jax.tree.map(or_drawn, drawn, sharding.params, params)
        else:
            extra = extra_sharding
            if jax.tree.leaves(extra):
                extra = self.plan.compile_draw(lambda seed: draw(self.task, seed)[1], extra_sharding)(self.seed_array)
            params = jax.tree.map(self._given, params, sharding.params)
        if stats:
            given = jax.tree.map(self._given, stats, {name: sharding.stats[name] for name in stats})
            extra = extra._replace(stats={**extra.stats, **given})
        if masks:
            given = {player: sharding.opt[player].masks for player in masks}
            masks = jax.tree.map(self._given, masks, given)
        if prune.is_on(self.config.prune):
            begin = lambda drawn: prune.begin(self.optimizers, self.config.prune, *drawn)
            return self.plan.compile_begin(begin, sharding, donate=True)((params, extra, masks))
        # A program that hands on each array of a deep model takes long to compile, so these stay as they are.
        begin = lambda drawn: first_state(self.optimizers, *drawn)._replace(params=None, stats=None, carry=None)
        made = sharding._replace(params=None, stats=None, carry=None)
        begun = self.plan.compile_begin(begin, made)((params, extra))
        return begun._replace(params=params, stats=extra.stats, carry=extra.carry)

    def _given(self, x, sharding) -> jax.Array:
        """The array of one replica, repeated for all replicas; or put on its sharding if there are none."""
        if not self.plan.replicas:
            return x if isinstance(x, jax.Array) and x.sharding == sharding else parallel.put(np.asarray(x), sharding)
        return parallel.put(np.broadcast_to(np.asarray(x), (self.plan.replicas, *x.shape)), sharding)

    @functools.cached_property
    def seed_array(self) -> jax.Array:
        seeds = np.asarray(self.seeds, np.int32)
        return parallel.put(seeds if self.plan.replicas else seeds[0], self.plan.seeds)

    def train_call(self, teacher=None):
        """call(state, seed, data, feed) -> (state, metrics), jitted or pmapped, steps_per_call steps each.

        teacher: that of distill.run (runs/teacher.py), where there is one; `data` are (resident data, its parameters).
        """
        config, rounds = self.config, len(self.task.rounds)
        examples = config.batch_size / self.plan.mesh.size * (self.plan.replicas or 1)
        one = 4 * math.prod(self.dataset.spec.shape)
        memory.want(examples * (one + 4 * rounds * config.steps_per_call), 'batch_size, steps_per_call')
        shardings = self.plan.gradient_shardings(self.abstract_state.params)
        arguments = self.train_preprocess, config.micro_batches, self.plan.axis_name, self.frozen, shardings
        gather = batching.gather_streamed if config.data.stream else self._split('train').gather
        made = lambda task: fuse(
            make_step(task, self.optimizers, *arguments, prune.gradient), gather, config.steps_per_call
        )
        if teacher is None:
            return self.plan.compile(made(self.task), self.abstract_state)

        def call(state, seed, data, feed):
            resident, params = data
            task = distill.adapted(self.task, teacher.task, params, config.distill)
            return made(task)(state, seed, resident, feed)

        places = self.plan.replicated, jax.tree.map(lambda x: x.sharding, teacher.params)
        return self.plan.compile(call, self.abstract_state, places)

    def resident_data(self) -> Tree:
        """The training split on the devices; nothing where it is streamed."""
        if self.config.data.stream:
            return {}
        return parallel.put(self._split('train').resident, self.plan.replicated)

    def sizes(self) -> dict[str, dict[str, int]]:
        """Parameters of each player, of one replica, and bytes of the whole state and of the data on the devices."""
        state, resident = self.abstract_state, {} if self.config.data.stream else self._split('train').resident
        numbers = {
            player: sum(leaf.size for leaf in jax.tree.leaves(own)) // (self.plan.replicas or 1)
            for player, own in state.params.items()
        }
        return {'parameters': numbers, 'bytes': {'state': _bytes(state), 'resident_data': _bytes(resident)}}

    def feeds(self, step: int) -> Iterator[Tree]:
        """What each call from `step` on is fed: indices into the resident data, or the streamed examples."""
        config, source = self.config, self.dataset.splits['train']
        if self.dataset.spec.contiguous:
            streams = [batching.ContiguousStream(len(source), config.batch_size)] * len(self.seeds)
        else:
            streams = [batching.IndexStream(len(source), seed) for seed in self.seeds]
        rows = self.plan.local_rows(config.batch_size)
        shape = (config.steps_per_call, len(self.task.rounds), config.batch_size, rows)
        if config.data.stream:
            if isinstance(self._stream_source(), data.Resident):
                where = '"Streaming" in aigc_jax/data/README.md'
                note(f'data.stream: {config.data.name} is held in memory whole; see {where}')
            feeds = batching.streamed_feed(self._stream_source(), streams, step, config.total_steps, *shape)
        else:
            feeds = batching.resident_feed(streams, step, *shape)
        return (self.plan.put_feed(feed, config.batch_size) for feed in feeds)

    def examples(self, split: str, index: np.ndarray) -> dict[str, np.ndarray]:
        """The examples at these places of a split, as they are stored, {name: (n, …)}."""
        streamed = split == 'train' and self.config.data.stream  # it may not fit into memory
        return (self._stream_source() if streamed else self._split(split))[index]

    @cached_method
    def _split(self, split: str):
        return self.dataset.spec.in_memory(self.config.data, split, self.dataset.splits[split])

    def _stream_source(self):
        source = self.dataset.splits['train']
        in_memory = self.dataset.spec.draws_splits(self.config.data) or isinstance(source, data.Resident)
        return self._split('train') if in_memory else source

    def replica(self, state: TrainState, k: int) -> TrainState:
        """What an evaluation needs of replica k, without the axis of replicas; the state itself if there are none."""
        return self._take(state, np.int32(k)) if self.plan.replicas else state

    @functools.cached_property
    def _take(self):
        def take(state, k):
            return jax.tree.map(lambda x: x[k], state._replace(opt=optim.without_moments(state.opt)))

        return jax.jit(take, out_shardings=self.plan.replicated)


def _bytes(tree: Tree) -> int:
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


_SAMPLE_TOKENS = 200  # where eval.sample_tokens is -1 and there is room


def _fitted(config: ConfigDict, dataset: data.Dataset) -> ConfigDict:
    """`config` with eval.split and eval.extractor chosen where they are 'auto'; a note tells what does not go without
    saying. eval.split: valid, or test where there is none. eval.extractor: classifier, or pixels where there are no
    labels, or '' where there are too few images. eval.sample_tokens: where it is -1, 200, or as many as the context of
    the model and the held-out text have.
    """
    config = copy.deepcopy(config)
    if config.eval.split == 'auto':
        config.eval.split = 'valid' if 'valid' in dataset.splits else 'test'
        if config.eval.split == 'test':
            best = config.eval.best_metric
            chosen = f'; the best checkpoint, by {best}, is chosen by it, too' if best else ''
            note(f'eval.split: test, for the data have no valid split{chosen}')
    if config.eval.get('extractor') == 'auto':
        least = min(len(dataset.splits[split]) for split in {'train', config.eval.final_split} & dataset.splits.keys())
        config.eval.extractor = '' if least <= NEIGHBOURS else 'classifier' if dataset.num_classes else 'pixels'
        if isinstance(dataset.spec, data.Images) and config.eval.extractor != 'classifier':
            why = f'{least} images are too few to measure samples by' if least <= NEIGHBOURS else 'there are no labels'
            note(f'eval.extractor: {config.eval.extractor or repr("")}, for {why}')
    if config.eval.get('sample_tokens') == -1:
        room = [_SAMPLE_TOKENS]
        if config.eval.final_split in dataset.splits:
            room.append(len(dataset.splits[config.eval.final_split].tokens) - 1)
        text = tasks.make(config, dataset).get(CausalText)
        if text and text.context:
            room.append(text.context - 1)  # the sample begins behind a token that is not written
        config.eval.sample_tokens = max(1, min(room))
        if config.eval.sample_tokens < _SAMPLE_TOKENS:
            note(f'eval.sample_tokens: {config.eval.sample_tokens}, for the context or the held-out text has no more')
    return config


def _no_split(split: str, cfg: ConfigDict, splits) -> str:
    if split == 'valid' and cfg.get('valid_examples') == 0:
        return (
            f"eval: there is no split 'valid' with data.valid_examples=0, only {', '.join(splits)}; set eval.split and "
            f'eval.final_split to one of them, or data.valid_examples to -1'
        )
    return (
        f'eval: the data have no split {split!r}, only {", ".join(splits)}; set eval.split and eval.final_split to '
        'what there is, or give more data (aigc_jax/data/README.md)'
    )
