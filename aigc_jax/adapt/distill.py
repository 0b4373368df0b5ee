"""Distillation (Hinton et al. 2015): a model, the student, learns the probabilities of a trained one, the teacher.

It is a change of the student's loss. The teacher is a task of the same kind with parameters that are constants, and so
have no gradient, no optimizer and no average, and are in no checkpoint. Its loss is computed on the student's own batch
with the student's draws: the same tokens are hidden, and both have logits of what stands there (Aux.logits).
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from aigc_jax.core import rng
from aigc_jax.core.errors import UserError
from aigc_jax.core.schema import Field
from aigc_jax.core.types import Array, Aux, Batch, Extra, Task, Tree, Turn

FIELDS = {
    'run': Field(
        str, '',
        doc="the teacher: a run's folder or a checkpoint of Hugging Face, with the same task.name, tokenizer and "
        'classes; empty: none',
    ),
    'step': Field(str, '', doc='of which checkpoint, a number or `best`; empty: the newest'),
    'average': Field(
        bool, True, doc='whether to take the average of the parameters, where that run keeps and evaluates one'
    ),
    'weight': Field(
        float, 0.5, least=0, most=1,
        doc="share of the loss that is about the teacher's probabilities; the rest is about the data",
    ),
    'temperature': Field(
        float, 2.0, above=0, doc='T, which the logits of both are divided by where they are compared'
    ),
}  # fmt: skip


def adapted(task: Task, teacher: Task, params: Mapping[str, Tree], config: ConfigDict) -> Task:
    """`task` with the loss (1 − w) L + w T² KL(teacher at T ‖ student at T), L its own.

    teacher: a task of the same kind. params: its parameters. config: holds FIELDS. The factor T² keeps the size of the
    gradient while T changes (Hinton et al. 2015, section 2). The metric `teacher_kl` is the KL, in nats, a mean over
    what L is a mean over. Raises UserError where one of both has no loss that such a one can be added to.
    """
    student, theirs = (_only_turn(one, whose) for one, whose in ((task, 'this model'), (teacher, 'the teacher')))
    if jax.tree.leaves(teacher.abstract[1]):
        raise UserError(
            'distill.run: the teacher keeps a state beside its parameters: statistics of batches, or that of text that '
            'is read on from window to window; train a teacher without batch norm, and with data.order=shuffled'
        )
    t, w = config.temperature, config.weight

    def loss(own: Mapping[str, Tree], extra: Extra, batch: Batch, ctx: rng.Context):
        value, aux = student.loss(own, extra, batch, ctx)
        logits, counted = _logits(aux)
        wanted, _ = _logits(theirs.loss(params, Extra({}, {}), batch, ctx)[1])
        if wanted.shape != logits.shape:
            raise UserError(
                f'distill.run: the teacher tells {wanted.shape[-1]} classes, this model {logits.shape[-1]}; where both '
                f'read the same tokens, set model.vocab_size to {wanted.shape[-1]}'
            )
        kl = divergence(wanted, logits, t)
        kl = jnp.sum(jnp.where(counted, kl, 0)) / jnp.maximum(jnp.sum(counted), 1)
        return (1 - w) * value + w * t**2 * kl, aux._replace(metrics={**aux.metrics, 'teacher_kl': kl})

    return Task(task.init, ((Turn(student.player, loss),),), task.capabilities)


def divergence(teacher: Array, student: Array, temperature: float) -> Array:
    """KL(softmax(teacher / T) ‖ softmax(student / T)) over the last axis of logits (…, classes): (…) nats."""
    p, q = (jax.nn.log_softmax(x.astype(jnp.float32) / temperature) for x in (teacher, student))
    return jnp.sum(jnp.exp(p) * (p - q), axis=-1)


def _only_turn(task: Task, whose: str) -> Turn:
    turns = [turn for turns in task.rounds for turn in turns]
    if len(turns) != 1:
        raise UserError(f'distill.run: {whose} has {len(turns)} losses a step; distillation is for a single one')
    return turns[0]


def _logits(aux: Aux) -> tuple[Array, Array]:
    if aux.logits is None:
        raise UserError(
            'distill.run: the loss of this task.name is no mean of −log p of classes; distillation is for lm, mlm, '
            'seq2seq and classify'
        )
    return aux.logits
