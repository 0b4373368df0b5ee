"""What a run takes from the run that its `init_from` names: the tokenizer and the model."""

import contextlib
import dataclasses

import jax
from ml_collections import ConfigDict

from aigc_jax import tasks
from aigc_jax.core import rng
from aigc_jax.core.errors import UserError
from aigc_jax.core.notes import note
from aigc_jax.core.step import abstract_params
from aigc_jax.core.types import Tree
from aigc_jax.data import Tokenizer, Tokens
from aigc_jax.runs.experiment import Experiment
from aigc_jax.runs.folder import Run


def tokenizer(config: ConfigDict) -> Tokenizer | None:
    """The tokenizer of the run that `init_from` names, because its parameters stand for its tokens; or None."""
    found = Run(config.init_from).tokenizer if config.init_from else None
    if found is None or 'vocab_size' not in config.data:
        return found
    if found.kind in ('word', 'bpe') and config.data.vocab_size not in (-1, found.vocab_size):
        raise UserError(
            f'data.vocab_size: {config.data.vocab_size}, but the tokenizer of init_from has {found.vocab_size} '
            'tokens; set it to -1'
        )
    note(f'data.tokenizer: {found.kind}, of {found.vocab_size} tokens, from init_from')
    return dataclasses.replace(found, may_grow=True)


def model(experiment: Experiment) -> tuple[tuple[Tree, dict[str, Tree]] | tuple[()], int | None]:
    """(parameters, statistics), the newest of the run that `init_from` names, and their step; () where it names none.

    Raises UserError.
    """
    if not experiment.config.init_from:
        return (), None
    run = Run(experiment.config.init_from)
    if not run.folder.is_dir():
        raise UserError(f'init_from: there is no folder {run.folder}; name the folder of a run')
    theirs = run.config
    if theirs.num_seeds > 1:
        raise UserError(f'init_from: {run.folder} holds {theirs.num_seeds} replicas; train from a run of one seed')
    with contextlib.closing(run.checkpoints(theirs)) as checkpoints:
        step = checkpoints.latest()
        if step is None:
            raise UserError(f'init_from: {run.folder} has no checkpoint')
        init = lambda task: task.init(rng.stream(experiment.config.seed, 'init'))
        spec, task = experiment.dataset.spec, experiment.task
        own = run.tokenizer if isinstance(spec, Tokens) else None
        grown = own is not None and not own.has_end and dataclasses.replace(own, has_end=True) == spec.tokenizer
        if grown:
            theirs = dataclasses.replace(experiment.dataset, spec=dataclasses.replace(spec, tokenizer=own))
            task = tasks.make(experiment.config, theirs)
        plan, placed = experiment.plan, lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)
        params, extra = jax.eval_shape(lambda: init(task))
        params = jax.tree.map(placed, params, plan.param_shardings(params))
        stats = jax.tree.map(lambda x: placed(x, plan.replicated), extra.stats)
        params, stats = checkpoints.restore_model(step, params, stats)
        if grown:  # the token that their model lacks is as it was drawn
            shardings = plan.param_shardings(abstract_params(experiment.task))
            drawn = jax.jit(lambda: init(experiment.task)[0], out_shardings=shardings)()
            params = jax.tree.map(_filled, drawn, params)
        return (params, stats), step


def digest(config: ConfigDict, step: int) -> str:
    """The digest of the checkpoint of `step` in the run that `init_from` names."""
    with contextlib.closing(Run(config.init_from).checkpoints()) as found:
        return found.digest(step)


def _filled(drawn: jax.Array, theirs: jax.Array) -> jax.Array:
    """`drawn`, with `theirs` at the beginning of each axis."""
    if drawn.shape == theirs.shape:
        return theirs
    corner = (0,) * drawn.ndim
    return jax.jit(jax.lax.dynamic_update_slice, out_shardings=drawn.sharding)(drawn, theirs, corner)
