"""What a run takes from the run that its init.run names, the tokenizer and the model, and from that of prune.run."""

import contextlib
import copy
import dataclasses
import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from aigc_jax import adapt, tasks
from aigc_jax.adapt import gptq, huggingface, lora, prune, quantize
from aigc_jax.core import files, optim, parallel, rng, tree
from aigc_jax.core.errors import UserError
from aigc_jax.core.notes import note
from aigc_jax.core.step import abstract_params, first_state, make_optimizers
from aigc_jax.core.types import Task, Tree
from aigc_jax.data import Text, Tokenizer
from aigc_jax.runs import classes, partial, pretrained
from aigc_jax.runs import config as config_lib
from aigc_jax.runs.checkpoint import Checkpoints, OtherModel
from aigc_jax.runs.experiment import Experiment
from aigc_jax.runs.folder import Run

_AVERAGE = r'optim\.\w+\.(name|ema_decay)'  # what of a config says which parameters are evaluated


def tokenizer(config: ConfigDict) -> Tokenizer | None:
    """The tokenizer of the run that init.run names, because its parameters stand for its tokens; or None."""
    if pretrained.is_one(config):
        found = pretrained.tokenizer(config)
        pretrained.check_tokenizer(config, found)
        return found
    found = source(config.init.run).tokenizer if config.init.run else None
    pretrained.check_tokenizer(config, found)
    if found is None or 'vocab_size' not in config.data:
        return found
    if found.kind in ('word', 'bpe') and config.data.vocab_size not in (-1, found.vocab_size):
        raise UserError(
            f'data.vocab_size: {config.data.vocab_size}, but the tokenizer of init.run has {found.vocab_size} '
            'tokens; set it to -1'
        )
    note(f'data.tokenizer: {found.kind}, of {found.vocab_size} tokens, from init.run')
    return dataclasses.replace(found, may_grow=True)


def source(folder: str, what: str = 'init.run') -> Run:
    """The run in `folder`. what: the field that names it, for messages. Raises UserError."""
    run = Run(folder)
    files.check_folder(run.folder, what)
    if not run.paths.config.exists():
        also = '' if what == 'prune.run' else ', or of a checkpoint of Hugging Face'
        raise UserError(f'{what}: {run.folder} holds no config.json; name the folder of a run{also}')
    return run


def model(experiment: Experiment) -> tuple[tuple[Tree, dict[str, Tree]] | tuple[()], int | None]:
    """(parameters, statistics) of the run that init.run names, and their step; () where it names none. In the place of
    a parameter that is to be drawn (init.drawn) stands None.

    init.step: of which checkpoint; init.average: whether it is the average of the parameters, where their run keeps
    one, which is what their run was evaluated and sampled with. Raises UserError.
    """
    found, step = as_saved(experiment)
    if found:
        _compare_classes(experiment, found[0])
    if experiment.config.quantize.method == 'gptq':
        found = _calibrated(experiment, *found)
    return found, step


def _calibrated(
    experiment: Experiment, params: dict[str, Tree], stats: dict[str, Tree]
) -> tuple[dict[str, Tree], dict[str, Tree]]:  # fmt: skip
    """The same model, rounded by GPTQ on examples that are drawn from the training split. Its dropout is off."""
    config, dataset = copy.deepcopy(experiment.config), experiment.dataset
    silence(config.model)
    params = {
        player: {name: leaf for name, leaf in own.items() if name != quantize.GROUP} for player, own in params.items()
    }
    leaves = jax.tree_util.tree_leaves_with_path(params, is_leaf=lambda leaf: leaf is None)
    if missing := [tree.path_name(path) for path, leaf in leaves if leaf is None]:
        raise UserError(f'quantize.method: gptq rounds a trained model, and init.drawn draws {", ".join(missing)}')
    task = tasks.make(config, dataset)
    extra = jax.jit(lambda: task.init(rng.stream(config.seed, 'init'))[1])()
    extra = extra._replace(stats={**extra.stats, **stats})
    rows = config.batch_size // config.micro_batches
    count = -(-config.quantize.examples // rows) * rows
    draws = np.random.Generator(np.random.PCG64(config.seed % 2**32))
    places = draws.integers(len(dataset.splits['train']), size=count)

    def batches():
        for begin in range(0, count, rows):
            index = np.arange(begin, begin + rows, dtype=np.int32)
            ctx = rng.context(config.seed, 'calibration', 0, index)
            yield experiment.preprocess(experiment.examples('train', places[index]), ctx), ctx

    return gptq.calibrated(task, params, extra, batches(), config.quantize), stats


def silence(model: ConfigDict) -> None:
    """Takes the dropout out of a config's `model`."""
    for name, value in model.items():
        if isinstance(value, ConfigDict):
            silence(value)
        elif name == 'dropout':
            model[name] = 0.0


def as_saved(experiment: Experiment) -> tuple[tuple[Tree, dict[str, Tree]] | tuple[()], int | None]:
    """`model`, before GPTQ rounds it."""
    wanted = experiment.config.init
    if not wanted.run:
        for name in ('step', 'rename'):
            if wanted[name]:
                raise UserError(f'init.{name}: {wanted[name]}, but init.run names no run; name its folder')
        return (), None
    if pretrained.is_one(experiment.config):
        return (_of_checkpoint(experiment), {}), 0
    with _opened(wanted.run, 'init.run', experiment.task) as (run, theirs, checkpoints):
        step = checkpoints.resolve(wanted.step or None, 'init.step')
        init = lambda task: task.init(rng.stream(experiment.config.seed, 'init'))
        spec, dataset, task = experiment.dataset.spec, experiment.dataset, experiment.task
        own = run.tokenizer if isinstance(spec, Text) else None
        grown = own is not None and not own.has_end and dataclasses.replace(own, has_end=True) == spec.tokenizer
        if grown:
            dataset = dataclasses.replace(dataset, spec=dataclasses.replace(spec, tokenizer=own))
            task = adapt.adapted(tasks.make(experiment.config, dataset), experiment.config)
        plan = experiment.plan
        abstract = lambda task: parallel.abstract(abstract_params(task), plan.param_shardings(abstract_params(task)))
        params = like = abstract(task)
        config = _with_layers_of(theirs, experiment.config)
        where = '' if config is experiment.config else f' (of layers as init.run, {run.folder}, has them)'
        try:
            if where:
                task = adapt.adapted(tasks.make(config, dataset), config)
                params = abstract(task)
            chosen = partial.of(wanted, params, checkpoints.parameters(step), str(run.folder))
        except UserError as error:
            raise UserError(f'{error}{where}') from None
        stats = task.abstract[1].stats
        stats = parallel.abstract(stats, jax.tree.map(lambda _: plan.replicated, stats))
        restacked = lambda own: tree.restacked(own, like) if where else own
        taken = tree.flatten(jax.eval_shape(restacked, chosen.taken(params))).keys()
        _tell_of_still(experiment.config, like, frozenset(tree.flatten(like).keys() - taken))
        with _compared(run, theirs, config, checkpoints.parameters(step)):
            opt = _averaging(task, theirs, plan) if wanted.average else {}
            params, stats = _restored(checkpoints, step, chosen, params, stats, opt)
        if where:
            shardings = tree.map_named(lambda name, leaf: leaf.sharding if name in taken else None, like)
            params = jax.jit(restacked, out_shardings=shardings)(params)
        if grown:  # the token that their model lacks is as it was drawn
            shardings = plan.param_shardings(abstract_params(experiment.task))
            drawn = jax.jit(lambda: init(experiment.task)[0], out_shardings=shardings)()
            params = jax.tree.map(_filled, drawn, params)
        return (params, stats), step


def _with_layers_of(theirs: ConfigDict, ours: ConfigDict) -> ConfigDict:
    """`ours`, in which the layers are one by one or in a loop as in `theirs`; itself, where they are."""
    has, now = (config_lib.flatten(ConfigDict({'model': one.model})) for one in (theirs, ours))
    differ = lambda name: name.endswith('.scan_layers') and has.get(name, now[name]) != now[name]
    fields = {name: has[name] for name in now if differ(name)}
    if not fields:
        return ours
    config = copy.deepcopy(ours)
    config.update_from_flattened_dict(fields)
    silence(config.model)  # which a loop has no room for, and parameters do not depend on
    return config


def _tell_of_still(config: ConfigDict, params: dict[str, Tree], drawn: frozenset[str]) -> None:
    """A note of what is drawn and not trained, such as a new head where adapters alone are trained."""
    if not drawn:
        return
    still = tree.flatten(optim.frozen(lora.optimizers(config.optim, params), params))
    names = sorted(name for name in drawn if still.get(name) and not quantize.is_of_scales(name))
    if names:
        player = names[0].partition('/')[0]
        heads = '|'.join(dict.fromkeys(name.split('/')[1] for name in names))
        own = config.optim[player].freeze
        mend = f'{own!r} matches them' if own else f"set it to '^(?!{lora.GROUP}/|{heads})' to train them, too"
        note(f'optim.{player}.freeze: drawn and not trained: {", ".join(names)}; {mend}')


def _compare_classes(experiment: Experiment, taken: dict[str, Tree]) -> None:
    """A note where what is taken has learned other classes. Raises UserError where it is not trained either: its
    accuracy, or what it draws for a class, would be that of other classes. taken: parameters, with None for others."""
    config = experiment.config
    depends = config_lib.depends_on_classes(config)
    is_head = {'classifier', 'tagger'} & {part for name in tree.flatten(taken) for part in name.split('/')}
    if not is_head and (config.init.drawn or not depends):
        return
    if words := classes.other(config.init.run, experiment, 'init.run'):
        if not config.total_steps:
            raise UserError(f'{words}; give data with the same names of classes')
        note(f'{words}; what depends on them is learned anew, or drawn where init.drawn names it')


def masks(experiment: Experiment) -> tuple[dict[str, Tree] | None, int | None]:
    """({player: which of its weights those of prune.run keep}, the step of these); None, None where it names none.

    The weights are those that the run was evaluated with: their average, where it keeps one. Raises UserError.
    """
    wanted, plan, task = experiment.config.prune, experiment.plan, experiment.task
    if not wanted.run:
        return None, None
    with _opened(wanted.run, 'prune.run', task) as (run, theirs, checkpoints):
        if theirs.adapt.name:
            raise UserError(f'prune.run: {run.folder} trains adapters, and not the weights; name a run without them')
        step = checkpoints.resolve(wanted.step or None, 'prune.step')
        params = abstract_params(task)
        params = parallel.abstract(params, plan.param_shardings(params))
        names = tree.flatten(prune.shares(params, wanted)).keys()
        has = checkpoints.parameters(step).keys()
        player_of = lambda some: {name.partition('/')[0] for name in some}
        others = frozenset(player_of(has) - player_of(names))
        chosen = partial.Partial(frozenset(tree.flatten(params).keys() - names), frozenset(has - names), others)
        try:
            with _compared(run, theirs, experiment.config, checkpoints.parameters(step)):
                weights, _ = _restored(checkpoints, step, chosen, params, {}, _averaging(task, theirs, plan))
        except UserError as error:
            raise UserError(f'prune.run: {error}') from None

        def ranked(weights):
            found = prune.all_masks(weights, wanted)
            zeros = lambda mask, weight: None if mask is None else jnp.any(mask & (weight == 0))
            return found, jax.tree.map(zeros, found, weights, is_leaf=lambda x: x is None)

        found, zeros = jax.jit(ranked)(weights)
        if prune.is_on(theirs.prune):
            for name, is_kept in tree.flatten(parallel.fetch(zeros)).items():
                if is_kept:
                    raise UserError(f'prune.keep: of {name} it keeps weights that prune.run, {run.folder}, has pruned')
        return found, step


@contextlib.contextmanager
def _opened(folder: str, what: str, task: Task) -> Iterator[tuple[Run, ConfigDict, Checkpoints]]:
    """(run, its config, its checkpoints), of one seed and of a model with the players of `task`. Raises UserError."""
    run = source(folder, what)
    theirs = run.config
    if theirs.num_seeds > 1:
        raise UserError(f'{what}: {run.folder} holds {theirs.num_seeds} replicas; train from a run of one seed')
    with contextlib.closing(run.checkpoints(theirs)) as checkpoints:
        if checkpoints.latest() is None:
            raise UserError(f'{what}: {run.folder} has no checkpoint')
        if not set(task.players) <= set(theirs.optim):
            raise UserError(
                f'{what}: {run.folder} has the players {", ".join(theirs.optim)}, this model '
                f'{", ".join(task.players)}; name a run of the same kind of model'
            )
        yield run, theirs, checkpoints


@contextlib.contextmanager
def _compared(run: Run, theirs: ConfigDict, ours: ConfigDict, shapes: Mapping[str, tuple]) -> Iterator[None]:
    """An error that the run is of another model also tells by which fields. shapes: of the parameters of the run.
    Raises UserError."""
    try:
        yield
    except OtherModel as error:
        has, now = (config_lib.flatten(ConfigDict({'model': one.model, 'adapt': one.adapt})) for one in (theirs, ours))
        differ = lambda name: name in now and has[name] != now[name] and not isinstance(has[name], float)
        fields = {name: value for name, value in has.items() if differ(name)}  # no float decides a shape
        for name, shape in shapes.items():  # mostly said by data.block
            if name.endswith('/position/embedding') and name in str(error) and 'positions' in ours.model:
                fields['model.positions'] = shape[0]
        of_optimizer = 'its optimizer' in str(error) or ' opt/' in str(error)
        mend, alike = '', 2 * len(has.keys() & now.keys()) > len(has.keys() | now.keys())
        if of_optimizer and ours.init.rename:
            mend = '; the regexes of its optim are of its own names; init.average=False takes the parameters themselves'
        elif fields and alike:
            mend = f'; set {", ".join(f"{name}={value}" for name, value in fields.items())}, as {run.folder} has'
        elif theirs.task.name != ours.task.name:
            mend = f'; {run.folder} is a run of task.name={theirs.task.name}'
        raise UserError(f'{error}{mend}') from None


def _restored(
    checkpoints: Checkpoints, step: int, chosen: partial.Partial, params: Tree, stats: dict[str, Tree], opt: Tree
) -> tuple[Tree, dict[str, Tree]]:
    """(what is taken of the parameters, statistics) on the shardings of these, abstract ones; the average of the
    parameters where `opt`, the optimizers' states, holds one."""
    params, opt = chosen.taken(params), chosen.taken_of_optimizers(opt)
    params, stats, opt = checkpoints.restore_model(step, params, stats, opt, chosen.leaves, chosen.own_name)
    if opt:
        params = jax.jit(optim.averaged, out_shardings=jax.tree.map(lambda x: x.sharding, params))(params, opt)
    return params, stats


def _averaging(task: Task, theirs: ConfigDict, plan: parallel.Plan) -> Tree:
    """The optimizers' states of a run, abstract, on the shardings of `plan`; {} where it keeps no average."""
    own = {player: theirs.optim[player] for player in task.players}
    if theirs.adapt.name:
        own = lora.optimizers(own, abstract_params(task))
    try:
        optimizers = prune.optimizers(make_optimizers(task, own, theirs.total_steps), task, theirs)
    except UserError as error:
        raise OtherModel(f'its optimizer is that of another model: {error}') from None
    state = jax.eval_shape(lambda drawn: first_state(optimizers, *drawn), task.abstract)
    if not any(optim.without_moments(state.opt).values()):
        return {}
    shardings = jax.tree.map(lambda _: plan.replicated, state) if plan.replicas else plan.state_sharding(state)
    return parallel.abstract(state.opt, shardings.opt)


def _of_checkpoint(experiment: Experiment) -> dict[str, Tree]:
    """The parameters of a checkpoint of Hugging Face, each device's part read by itself."""
    wanted = experiment.config.init
    if wanted.step:
        raise UserError(f'init.step: {wanted.step}, but init.run, {wanted.run}, is a single checkpoint; leave it out')
    if wanted.rename:
        raise UserError('init.rename: is of a run; of a checkpoint of Hugging Face the names fit; leave it out')
    params = abstract_params(experiment.task)
    params = parallel.abstract(params, experiment.plan.param_shardings(params))
    folder, (player,) = huggingface.Folder(wanted.run), params
    family, fields = huggingface.family_of(folder), config_lib.flatten(experiment.config)
    theirs = {f'{player}/{path}': shape for path, shape in huggingface.parameters(folder, family, fields).items()}
    chosen = partial.of(wanted, params, theirs, str(folder.path))
    _tell_of_still(experiment.config, params, chosen.drawn)
    left = [name.removeprefix(f'{player}/') for name in chosen.left]
    return {player: huggingface.read(folder, family, fields, chosen.taken(params)[player], left)}


def said(folder: str, also: str = '') -> dict[str, Any]:
    """{field: value, as JSON has it} of the config of the run in `folder`: what says which parameters are read of its
    checkpoint, and the fields that the regex `also` matches. {} of a checkpoint of Hugging Face, whose digest is over
    its config."""
    if huggingface.is_folder(folder):
        return {}
    plain = ConfigDict(json.loads(config_lib.to_json(Run(folder).config)))
    wanted = re.compile(f'{_AVERAGE}|{also}' if also else _AVERAGE)
    return {name: value for name, value in config_lib.flatten(plain).items() if wanted.fullmatch(name)}


def changed(what: str, folder: str, before: Mapping[str, Any], now: Mapping[str, Any]) -> str | None:
    """What is to be done where a field of `said` is another than it was; None where none is. A field that one of the
    two lacks is of another version. what: the field that names the folder."""
    for name in before if isinstance(before, Mapping) else ():
        if name in now and before[name] != now[name]:
            return (
                f'{what}: {name} in config.json of {folder} is {now[name]!r}, and was {before[name]!r} when this run '
                'began; bring that one back'
            )
    return None


def digest(config: ConfigDict, step: int) -> str:
    """The digest of the checkpoint of `step` in the run that init.run names, or of the checkpoint of Hugging Face."""
    if pretrained.is_one(config):
        return pretrained.digest(config)
    return digest_of(config.init.run, step)


def digest_of(run: str, step: int) -> str:
    """The digest of the checkpoint of `step` in the run of a folder."""
    with contextlib.closing(Run(run).checkpoints()) as found:
        return found.digest(step)


def _filled(drawn: jax.Array, theirs: jax.Array | None) -> jax.Array | None:
    """`drawn`, with `theirs` at the beginning of each axis."""
    if theirs is None or drawn.shape == theirs.shape:
        return theirs
    corner = (0,) * drawn.ndim
    return jax.jit(jax.lax.dynamic_update_slice, out_shardings=drawn.sharding)(drawn, theirs, corner)
