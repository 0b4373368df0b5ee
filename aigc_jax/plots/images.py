"""Grids of images: samples, samples by class and over training time, reconstructions, neighbours."""

import io
import math

import numpy as np

from aigc_jax.core.files import atomic_write
from aigc_jax.plots.figure import DPI, new_figure, save_figure

_TILE = 48  # pixels: the least side of an image in a grid
_GAP = 2  # pixels


def image_grid(x, path, columns: int = 0) -> None:
    """Tiles images x (N, H, W, C), C 1 or 3, in [0, 1] (clipped), row by row; `columns` 0 makes a square.

    Small images are enlarged by a whole factor, each pixel a square. Raises ValueError on another shape.
    """
    from matplotlib.image import imsave

    tiles = _tiles(x)
    columns = min(columns or math.ceil(math.sqrt(len(tiles))), len(tiles))
    buffer = io.BytesIO()
    imsave(buffer, _grid(tiles, columns), format='png')
    atomic_write(path, buffer.getvalue())


def image_classes(x, classes: list[str], path) -> None:
    """Images (N, H, W, C) in order of their classes, each named: a line or more of each class where the picture becomes
    at most twice as tall as wide by that, else a square whose images have their classes above them.

    classes: N names, equal ones side by side. Values and errors as in `image_grid`.
    """
    columns, names = math.ceil(math.sqrt(len(x))), list(dict.fromkeys(classes))
    if len(names) ** 2 > 2 * len(x):
        rows, heads = _lines(x, classes, columns)
        return image_rows(rows, path, heads=heads)
    rows = []
    for name in names:
        own = np.flatnonzero(np.asarray(classes) == name)
        lines = [own[start : start + columns] for start in range(0, len(own), columns)]
        rows += [('' if i else name, np.asarray(x)[line]) for i, line in enumerate(lines)]
    image_rows(rows, path)


def _lines(x, heads: list[str], columns: int) -> tuple[list, list[list[str]]]:
    """Rows without labels, and the texts above them, for `image_rows`."""
    starts = range(0, len(x), columns)
    return [('', x[start : start + columns]) for start in starts], [heads[start : start + columns] for start in starts]


def image_pairs(upper, lower, path, labels: tuple[str, str], classes: list[str] | None = None) -> None:
    """Rows of `upper` (N, H, W, C), each with its row of `lower` (the same shape) below, labelled.

    classes: N names, to stand above the pairs. Values and errors as in `image_grid`.
    """
    if np.shape(upper) != np.shape(lower):
        raise ValueError(f'shapes differ: {np.shape(upper)} and {np.shape(lower)}')
    wide = _tiles(upper[:1]).shape[2]
    columns = min(len(upper), max(1, 800 // (wide + _GAP)))
    rows = []
    for start in range(0, len(upper), columns):
        rows += [(label, x[start : start + columns]) for label, x in zip(labels, (upper, lower), strict=True)]
    image_rows(rows, path, together=2, heads=classes and _lines(upper, classes, columns)[1])


def reconstructions(original, reconstruction, path, classes: list[str] | None = None) -> None:
    """Rows of `original` (N, H, W, C), each with its row of `reconstruction` below; classes as in `image_pairs`."""
    image_pairs(original, reconstruction, path, ('original', 'reconstruction'), classes)


def image_rows(rows, path, together: int = 1, heads: list[list[str]] | None = None) -> None:
    """Rows of images, [(label, (N, H, W, C)), …], N at most as in the longest; each `together` rows are set apart.

    heads: of each set of rows, the texts above its columns. Values and errors as in `image_grid`.
    """
    columns = max(len(x) for _, x in rows)
    strips = [_grid(_tiles(x), columns) for _, x in rows]
    tall, wide = strips[0].shape[:2]
    between = 18 if heads else 12 if together > 1 else 0  # pixels between sets of rows
    margin = 130 if any(label for label, _ in rows) else 12  # pixels left of them, for the labels
    width, height = margin + wide + 12, len(strips) * tall + (-(-len(strips) // together) + 1) * between
    figure = new_figure(width / DPI, height / DPI)
    for index, (strip, (label, _)) in enumerate(zip(strips, rows, strict=True)):
        top = between + index * tall + index // together * between
        # figimage copies pixel for pixel; imshow would resample.
        figure.figimage(strip, margin, height - top - tall, origin='upper')
        if label:
            x, y = (margin - 8) / width, 1 - (top + tall / 2) / height
            _write(figure, x, y, label, margin - 8, 9, ha='right', va='center')
        if heads and index % together == 0:
            each = (wide - _GAP) / columns
            for column, head in enumerate(heads[index // together]):
                x, y = (margin + _GAP / 2 + (column + 0.5) * each) / width, 1 - (top - 1) / height
                _write(figure, x, y, head, each, 7, ha='center', va='bottom')
    save_figure(figure, path)


def _write(figure, x: float, y: float, text: str, room: float, size: int, **how) -> None:
    """A text in a place `room` pixels wide: smaller than `size` points where it is long, and cut where that is too."""
    written = figure.text(x, y, text, fontsize=size, parse_math=False, **how)
    if written.get_window_extent().width > room:
        written.set_fontsize(5)
    while len(text) > 1 and written.get_window_extent().width > room:
        text = text[:-1]
        written.set_text(text + '…')


def _tiles(x) -> np.ndarray:
    """(N, H, W, C) in [0, 1] to uint8 (N, sH, sW, 3), enlarged by the whole factor s; the first three channels are the
    colours, the first is grey where there are fewer."""
    x = np.asarray(x, np.float32)
    if x.ndim != 4 or not x.size:
        raise ValueError(f'images must have shape (N, H, W, C) with N > 0, got {x.shape}')
    x = x[..., : 3 if x.shape[-1] >= 3 else 1]
    pixels = np.rint(255 * np.clip(np.nan_to_num(x), 0, 1)).astype(np.uint8)
    scale = math.ceil(_TILE / min(x.shape[1:3]))
    return np.broadcast_to(pixels, x.shape[:3] + (3,)).repeat(scale, axis=1).repeat(scale, axis=2)


def _grid(tiles: np.ndarray, columns: int) -> np.ndarray:
    """uint8 (N, H, W, 3) to one picture with gaps around every tile; empty places look like the gaps."""
    count, height, width, _ = tiles.shape
    lines = math.ceil(count / columns)
    tall, wide = height + _GAP, width + _GAP
    picture = np.full((lines * tall + _GAP, columns * wide + _GAP, 3), 255, np.uint8)
    for index, tile in enumerate(tiles):
        top, left = _GAP + index // columns * tall, _GAP + index % columns * wide
        picture[top : top + height, left : left + width] = tile
    return picture
