"""Classes of images, told by a network of nn/networks.py; of texts, and of each token of a text, told by an encoder
(Devlin et al. 2019, section 4). One player, 'model'. A run on text mostly begins with a masked language model
(tasks/mlm.py):

    init.run=RUN init.drawn='pooler|classifier|tagger' init.unused='mask_|pooler|classifier|tagger|generator/'
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from aigc_jax.core import rng, schema
from aigc_jax.core.capabilities import Classifies, Measures, SplitStatistic
from aigc_jax.core.errors import UserError
from aigc_jax.core.schema import Field, Group
from aigc_jax.core.types import Array, Aux, Batch, Extra, Task, Turn
from aigc_jax.data import NO_TAG, Dataset, Images, Labelled, Tagged, augment, reads_examples, reads_text
from aigc_jax.nn import encoder, networks
from aigc_jax.tasks.mlm import judged, model_fields

IMAGE_MODEL = {'kind': networks.KIND, 'classifier': networks.field('Classifier', 'the network')}


def _model(model, around) -> Group:
    data = around.get('data')
    of_text = schema.named(data, 'name') is None or reads_text(data) or reads_examples(data)
    return model_fields(model) if of_text else IMAGE_MODEL


FIELDS = {
    'task': {
        'label_smoothing': Field(
            float, 0.0, least=0, below=1, doc='share of the target that all classes have alike (Szegedy et al. 2016)'
        ),
    },
    'model': _model,
}  # fmt: skip


@dataclasses.dataclass(frozen=True, eq=False)
class Classifier:
    """The functions of the task. Of a text there is one class, or one of each token where `by_token`."""

    module: encoder.Encoder
    by_token: bool
    label_smoothing: float
    context: int = 0

    def init(self, key: Array):
        return {'model': encoder.init(self.module, rng.named(key, 'model'))}, Extra({}, {})

    def logits(self, params, extra: Extra, batch: Batch, ctx: rng.Context, draw=None) -> Array:
        """(n, …, classes)."""
        types = batch.get('types') if self.module.token_types > 1 else None
        found = self.module.apply(
            {'params': params['model']}, batch['tokens'], batch['tokens_length'], types, draw=draw
        )
        return found.tags if self.by_token else found.label

    def targets(self, batch: Batch) -> tuple[Array, Array]:
        """(classes (n, …), whether there is one to tell (n, …))."""
        if not self.by_token:
            return batch['label'], jnp.ones_like(batch['label'], bool)
        return jnp.maximum(batch['tags'], 0), batch['tags'] != NO_TAG

    def trained(self, params, extra: Extra, batch: Batch, ctx: rng.Context) -> tuple[Array, Extra]:
        """(logits in training, the renewed rest of the state)."""
        return self.logits(params, extra, batch, ctx, ctx.uniform if self.module.dropout else None), extra

    def loss(self, params, extra: Extra, batch: Batch, ctx: rng.Context):
        logits, extra = self.trained(params, extra, batch, ctx)
        targets, counted = self.targets(batch)
        nats, right = judged(logits, targets)
        count = jnp.sum(counted).astype(jnp.float32)
        mean = lambda x: jnp.sum(jnp.where(counted, x, 0)) / jnp.maximum(count, 1)
        value = mean(nats)
        metrics = {'nats': value, 'accuracy': mean(right)}
        if self.label_smoothing:
            spread = mean(-jnp.mean(jax.nn.log_softmax(logits), axis=-1))
            value = (1 - self.label_smoothing) * value + self.label_smoothing * spread
        return value, Aux(metrics, extra, count, (logits, counted))

    def per_example(self, params, extra: Extra, batch: Batch, ctx: rng.Context) -> dict[str, Any]:
        logits, (targets, counted) = self.logits(params, extra, batch, ctx), self.targets(batch)
        nats, right = judged(logits, targets)
        if not self.by_token:
            return {'nats': nats, 'accuracy': right}
        total = lambda x: jnp.sum(jnp.where(counted, x, 0), axis=1).astype(jnp.float32)
        return {name: (total(x), total(1)) for name, x in (('nats', nats), ('accuracy', right))}

    def collect(self, params, extra: Extra, batch: Batch, ctx: rng.Context) -> dict[str, Array]:
        logits, (targets, counted) = self.logits(params, extra, batch, ctx), self.targets(batch)
        return {'predicted': jnp.argmax(logits, axis=-1), 'target': jnp.where(counted, targets, NO_TAG)}

    def summarize(self, found: dict[str, np.ndarray]) -> dict[str, float]:
        """The mean of the F1 of each class that the split has or the model names, and the accuracy of naming the most
        frequent class always."""
        from sklearn.metrics import f1_score

        there = found['target'] != NO_TAG
        target, predicted = found['target'][there], found['predicted'][there]
        return {
            'macro_f1': f1_score(target, predicted, average='macro', zero_division=0),
            'most_frequent/accuracy': np.bincount(target).max() / len(target),
        }

    def task(self) -> Task:
        return Task(
            init=self.init,
            rounds=((Turn('model', self.loss),),),
            capabilities=(
                Measures(self.per_example), SplitStatistic(self.collect, self.summarize),
                Classifies(self.logits, self.by_token, self.context),
            ),
        )  # fmt: skip


@dataclasses.dataclass(frozen=True, eq=False)
class ImageClassifier(Classifier):
    """The same of images (n, H, W, C) with a class each."""

    module: networks.Network
    shape: tuple[int, int, int] = ()

    def init(self, key: Array):
        params, stats = self.module.init(rng.named(key, 'model'), jnp.zeros((1, *self.shape)))
        return {'model': params}, Extra({'model': stats} if stats else {}, {})

    def logits(self, params, extra: Extra, batch: Batch, ctx: rng.Context) -> Array:
        return self.module(params['model'], extra.stats.get('model', {}), batch['x'])

    def trained(self, params, extra: Extra, batch: Batch, ctx: rng.Context) -> tuple[Array, Extra]:
        logits, stats = self.module.train(params['model'], extra.stats.get('model', {}), batch['x'])
        return logits, extra._replace(stats={'model': stats} if stats else {})


def _of_images(config, dataset: Dataset) -> Task:
    if not dataset.num_classes:
        raise UserError(f'task.name: classify tells classes; the images of {config.data.name} have none; name others')
    if augment.mixes(config.data):
        raise UserError('data.augment.mixup: a mixed example has no class; set it to 0 for classify')
    shape, outputs = dataset.spec.shape, dataset.num_classes
    network = networks.make(config, 'Classifier', config.model.classifier, shape, outputs=outputs)
    return ImageClassifier(network, False, config.task.label_smoothing, shape=shape).task()


def make(config, dataset: Dataset) -> Task:
    """The task of a config that holds FIELDS. Raises UserError for fields that fit neither each other nor the data."""
    spec = dataset.spec
    if isinstance(spec, Images):
        return _of_images(config, dataset)
    if not isinstance(spec, Labelled | Tagged):
        raise UserError(
            f'task.name: classify reads images, labelled or tagged texts; {config.data.name} holds {spec.words}'
        )
    by_token = isinstance(spec, Tagged)
    heads = {'tags' if by_token else 'classes': dataset.num_classes}
    module = encoder.make(config, spec.tokenizer.vocab_size, spec.block, 'a text of data.block', **heads)
    return Classifier(module, by_token, config.task.label_smoothing, spec.block).task()
