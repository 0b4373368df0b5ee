"""What images are compared by: the features of a small classifier that is trained here, raw pixels, an ONNX network.

Images are (n, H, W, C) float in [0, 1]. An extractor's name says which it is, to the bits of its weights.
"""

import dataclasses
import functools
import hashlib
import io
import math
import pathlib
import zipfile
from collections.abc import Callable, Iterator, Mapping

import jax
import jax.numpy as jnp
import numpy as np
import optax

from aigc_jax.core import memory, npy, progress, rng
from aigc_jax.core.errors import UserError, cause, first_line
from aigc_jax.core.files import atomic_write
from aigc_jax.core.records import regular
from aigc_jax.core.types import Array

DIGITS = 10  # classes of each channel of stacked images
_LEAST_SIDE = 8  # pixels; a layer halves larger images
_KERNEL = 3
_CHANNELS, _MOST_CHANNELS = 16, 128  # of the first layer, doubled by each further one
_HIDDEN = 128  # features
_BATCH, _CHUNK = 128, 1000  # images of a training step, and of a call of the trained network
_STEPS_A_CALL = 50
_EPOCHS, _LEAST_CALLS, _MOST_CALLS = 6, 16, 40
_ONNX_CHUNK = 100
_LEARNING_RATE, _WEIGHT_DECAY, _SMOOTHING, _DROPOUT = 3e-3, 1e-2, 0.05, 0.3

Params = dict[str, Array]


@dataclasses.dataclass(frozen=True)
class Extractor:
    """What images are compared by.

    name: of the network, and the first 8 hex digits of the sha256 of its weights.
    extract(images) -> (features (n, D) float32, classes (n,) int, or None). Raises UserError for images of a shape that
        it does not take.
    num_classes: that it knows; 0: none.
    """

    name: str
    extract: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray | None]]
    num_classes: int = 0


PIXELS = Extractor('pixels', lambda x: (np.asarray(x, np.float32).reshape(len(x), -1), None))


@dataclasses.dataclass(frozen=True, eq=False)
class Classifier:
    """A trained classifier: the weights {name: float32 array}, and the shape (H, W, C) of its images."""

    weights: Mapping[str, np.ndarray]
    shape: tuple[int, int, int]

    @property
    def extractor(self) -> Extractor:
        """Its features are the values of its hidden layer, (n, 128)."""
        digest = hashlib.sha256()
        for name, value in sorted(self.weights.items()):
            digest.update(f'{name} {value.shape}\n'.encode() + np.ascontiguousarray(value, '<f4').tobytes())
        name = f'classifier-{digest.hexdigest()[:8]}'

        def extract(x):
            if x.shape[1:] != self.shape:
                raise UserError(f'eval.extractor: {name} takes images of {self.shape}; these are {x.shape[1:]}')
            return _in_chunks(lambda chunk: _outputs(self.weights, chunk), x, _CHUNK)

        return Extractor(name, extract, len(self.weights['out/bias']))

    def save(self, path: pathlib.Path) -> None:
        buffer = io.BytesIO()
        np.savez(buffer, shape=np.array(self.shape), **self.weights)
        atomic_write(path, buffer.getvalue())

    @classmethod
    def load(cls, path: pathlib.Path) -> 'Classifier':
        """Raises UserError."""
        try:
            with open(path, 'rb', opener=regular) as file, zipfile.ZipFile(file) as archive:
                weights = {name: npy.member(archive, name, f'eval.extractor: {path}') for name in npy.shapes(archive)}
            shape = weights.pop('shape')
            shape = tuple(shape.tolist()) if shape.shape == (3,) else shape.shape
            if len(shape) != 3 or not all(type(size) is int and size > 0 for size in shape):
                raise ValueError(f'shape is {shape}')
            wanted = {}
            for name, fan_in, out in _layers(shape, len(weights['out/bias'])):
                wanted |= {f'{name}/kernel': (fan_in, out), f'{name}/bias': (out,)}
            if {name: weight.shape for name, weight in weights.items()} != wanted:
                raise ValueError('its weights are of another network')
            if any(weight.dtype != np.float32 for weight in weights.values()):
                raise ValueError('its weights are not float32')
        except FileNotFoundError:
            raise UserError(f'eval.extractor: there is no file {path}; name the extractor.npz of a run') from None
        except (*npy.BROKEN, TypeError) as error:
            raise UserError(f'eval.extractor: {path} is not the extractor.npz of a run: {cause(error)}') from None
        return cls(weights, shape)


def by_channel(one: Extractor) -> Extractor:
    """Of images whose channels are images of their own: the features of all, and the class Σ_c 10^(C−1−c) · class_c."""

    def extract(x):
        n, _, _, channels = x.shape
        features, classes = one.extract(split_channels(x))
        if classes is not None:
            classes = classes.reshape(n, channels) @ DIGITS ** np.arange(channels - 1, -1, -1)
        return features.reshape(n, -1), classes

    return dataclasses.replace(one, extract=extract)


def split_channels(x: np.ndarray) -> np.ndarray:
    """(n, H, W, C) -> (n · C, H, W, 1), the channels of an image one after the other."""
    return np.moveaxis(x, -1, 1).reshape(-1, *x.shape[1:3], 1)


def onnx(path: pathlib.Path) -> Extractor:
    """The first output of the ONNX network in a file, flattened: such as the Inception network of the Fréchet Inception
    distance (Heusel et al. 2017).

    Its one input is (n, C, H, W) or (n, H, W, C) with C 1 or 3. Images are resized to its H and W, where these are
    fixed (linear, antialiased), a single channel is repeated; float inputs are given [0, 1], uint8 0 to 255. Raises
    UserError.
    """
    try:
        import onnxruntime
    except ImportError:
        raise UserError("eval.extractor: onnx: wants onnxruntime; pip install 'aigc_jax[onnx]'") from None
    try:
        with open(path, 'rb', opener=regular) as file:
            data = memory.read_whole(file, f'eval.extractor: {path}')
        session = onnxruntime.InferenceSession(data, providers=onnxruntime.get_available_providers())
    except OSError as error:
        raise UserError(f'eval.extractor: {path}: {error.strerror}') from None
    except UserError:
        raise
    except Exception as error:  # of the library's own kinds, which have no base of their own
        raise UserError(f'eval.extractor: {path} is no ONNX network: {first_line(error)}') from None
    given = session.get_inputs()
    shape, kind = (given[0].shape, given[0].type) if len(given) == 1 else ((), '')
    channel = next((axis for axis in (1, 3) if len(shape) == 4 and shape[axis] in (1, 3)), 0)
    if not channel or kind not in ('tensor(float)', 'tensor(uint8)'):
        what = ', '.join(f'{one.name} {one.type} {one.shape}' for one in given) or 'nothing'
        raise UserError(f'eval.extractor: {path}: one input of images is wanted, float or uint8; it has {what}')
    sides, channels = (shape[2:] if channel == 1 else shape[1:3]), shape[channel]
    size = shape[0] if isinstance(shape[0], int) else _ONNX_CHUNK

    def run(x):
        if channels != x.shape[3] and x.shape[3] != 1:
            raise UserError(f'eval.extractor: {path} takes {channels} channels; these images have {x.shape[3]}')
        image_shape = x.shape[1:]
        wanted = [side if isinstance(side, int) else have for side, have in zip(sides, x.shape[1:3], strict=True)]
        x = np.asarray(jax.image.resize(x, (len(x), *wanted, x.shape[3]), 'linear'))
        x = np.broadcast_to(x, (*x.shape[:3], channels))
        x = np.moveaxis(x, -1, 1) if channel == 1 else x
        x = np.rint(255 * x).astype(np.uint8) if kind == 'tensor(uint8)' else x
        try:
            found = session.run([session.get_outputs()[0].name], {given[0].name: np.ascontiguousarray(x)})[0]
        except Exception as error:  # as above
            why = first_line(error)
            raise UserError(f'eval.extractor: {path}: fails for images of {image_shape}: {why}') from None
        return np.asarray(found, np.float32).reshape(len(x), -1)

    name = f'onnx-{hashlib.sha256(data).hexdigest()[:8]}'
    return Extractor(name, lambda x: (_in_chunks(run, np.asarray(x, np.float32), size), None))


def _in_chunks(function: Callable, x: np.ndarray, size: int):
    """`function` of chunks of one size (the last is filled up, and cut), joined."""
    starts = range(0, len(x), size)
    parts = [function(x[np.minimum(np.arange(start, start + size), len(x) - 1)]) for start in starts]
    return jax.tree.map(lambda *leaves: np.concatenate(leaves)[: len(x)], *parts)


def train_classifier(x: np.ndarray, labels: np.ndarray, num_classes: int) -> Classifier:
    """A classifier of images (n, H, W, C) with labels (n,), by one fixed recipe: a function of these alone, up to
    rounding.

    Layers that halve the image, until neither side is over 8, each 2 × 2 pixels to one and a 3 × 3 convolution; then
    one hidden layer, whose values are the features. AdamW in batches of 128 for 6 epochs, but 800 to 2,000 steps, a
    one-cycle learning rate, labels smoothed by 0.05, dropout of 0.3 on the features.
    """
    n = len(x)
    calls = int(np.clip(math.ceil(_EPOCHS * n / (_BATCH * _STEPS_A_CALL)), _LEAST_CALLS, _MOST_CALLS))
    schedule = optax.cosine_onecycle_schedule(calls * _STEPS_A_CALL, _LEARNING_RATE, pct_start=0.2)
    optimizer = optax.adamw(schedule, weight_decay=_WEIGHT_DECAY)

    def loss(params, images, targets, key):
        hidden = _hidden(params, images)
        keep = jax.random.bernoulli(key, 1 - _DROPOUT, hidden.shape)
        logits = _logits(params, jnp.where(keep, hidden / (1 - _DROPOUT), 0))
        targets = optax.smooth_labels(jax.nn.one_hot(targets, num_classes), _SMOOTHING)
        return optax.softmax_cross_entropy(logits, targets).mean()

    @functools.partial(jax.jit, donate_argnums=0)
    def call(carry, images, targets, key):
        def step(carry, batch):
            params, state = carry
            gradient = jax.grad(loss)(params, *batch)
            updates, state = optimizer.update(gradient, state, params)
            return (optax.apply_updates(params, updates), state), None

        keys = rng.fold_in(key, jnp.arange(_STEPS_A_CALL))
        return jax.lax.scan(step, carry, (images, targets, keys))[0]

    params = _init(x.shape[1:], num_classes)
    carry = params, optimizer.init(params)
    draw, order = np.random.Generator(np.random.PCG64(0)), np.zeros(0, np.int64)
    for i in progress.each(range(calls), 'the classifier'):
        wanted = _STEPS_A_CALL * _BATCH
        while len(order) < wanted:
            order = np.concatenate([order, draw.permutation(n)])
        index, order = order[:wanted].reshape(_STEPS_A_CALL, _BATCH), order[wanted:]
        carry = call(carry, x[index].astype(np.float32), labels[index], rng.stream(i, 'classifier'))
    return Classifier({name: np.asarray(value) for name, value in carry[0].items()}, x.shape[1:])


def _init(shape: tuple[int, int, int], num_classes: int) -> Params:
    draw = np.random.Generator(np.random.PCG64(1))
    params = {}
    for name, fan_in, out in _layers(shape, num_classes):
        # He et al. 2015, eq. 10.
        params[f'{name}/kernel'] = jnp.asarray(draw.normal(0, math.sqrt(2 / fan_in), (fan_in, out)), jnp.float32)
        params[f'{name}/bias'] = jnp.zeros(out)
    return params


def _layers(shape: tuple[int, int, int], num_classes: int) -> Iterator[tuple[str, int, int]]:
    """(name, inputs, outputs) of each."""
    (height, width, channels), depth, wide = shape, 0, _CHANNELS
    while depth == 0 or max(height, width) > _LEAST_SIDE:
        yield f'conv{depth}', 4 * channels * _KERNEL**2, wide
        height, width, channels, depth = -(-height // 2), -(-width // 2), wide, depth + 1
        wide = min(2 * wide, _MOST_CHANNELS)
    yield 'hidden', height * width * channels, _HIDDEN
    yield 'out', _HIDDEN, num_classes


def _hidden(params: Params, x: Array) -> Array:
    """The features (n, 128): slices and matrix products, for a CPU's convolution inside a scan is 20 times slower."""
    x = x - 0.5
    for depth in range(sum(name.startswith('conv') for name in params) // 2):
        n, h, w, c = x.shape
        x = jnp.pad(x, ((0, 0), (0, h % 2), (0, w % 2), (0, 0)))
        h, w = -(-h // 2), -(-w // 2)
        x = x.reshape(n, h, 2, w, 2, c).transpose(0, 1, 3, 2, 4, 5).reshape(n, h, w, 4 * c)
        x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
        patches = [x[:, i : i + h, j : j + w] for i in range(_KERNEL) for j in range(_KERNEL)]
        x = jnp.concatenate(patches, axis=-1).reshape(n * h * w, -1) @ params[f'conv{depth}/kernel']
        x = jax.nn.relu(x + params[f'conv{depth}/bias']).reshape(n, h, w, -1)
    return jax.nn.relu(x.reshape(x.shape[0], -1) @ params['hidden/kernel'] + params['hidden/bias'])


def _logits(params: Params, hidden: Array) -> Array:
    return hidden @ params['out/kernel'] + params['out/bias']


@jax.jit
def _outputs(params: Params, x: Array) -> tuple[Array, Array]:
    hidden = _hidden(params, x.astype(jnp.float32))
    return hidden, _logits(params, hidden).argmax(axis=1)
