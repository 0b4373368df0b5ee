"""What the tests of data share: arrays, files of them in each format, and ways to break a file."""

import bz2
import gzip
import lzma

import numpy as np
import pytest
import zstandard
from ml_collections import config_dict

from aigc_jax import data
from aigc_jax.core.errors import UserError

RNG = np.random.RandomState(0)
IMAGES = RNG.randint(0, 256, (30, 6, 5)).astype(np.uint8)
LABELS = (np.arange(30) % 7).astype(np.uint8)
BITS = RNG.randint(0, 2, (30, 9)).astype(np.uint8)
COLOUR = RNG.randint(0, 256, (30, 4, 4, 3)).astype(np.uint8)
POINTS = RNG.standard_normal((30, 3))


def load(name, folder='', num_examples=1500, valid_examples=4, **fields):
    return data.load(
        config_dict.ConfigDict(
            dict(name=name, dir=str(folder), num_examples=num_examples, valid_examples=valid_examples, **fields)
        )
    )


def user_error(name, *words, **kwargs):
    """Asserts that loading `name` is a UserError of at most three lines that holds all `words`."""
    with pytest.raises(UserError) as caught:
        load(name, **kwargs)
    message = str(caught.value)
    assert len(message.splitlines()) <= 3
    for word in words:
        assert word in message, message


def sizes(dataset):
    return [len(dataset.splits[split]) for split in ('train', 'valid', 'test')]


def arrays(dataset, split):
    return data.materialize(dataset.splits[split]).arrays


def write(path, content, suffix=''):
    openers = {'': open, '.gz': gzip.open, '.xz': lzma.open, '.bz2': bz2.open, '.zst': zstandard.open}
    with openers[suffix](f'{path}{suffix}', 'wb') as file:
        file.write(content)


def idx_bytes(array):
    return bytes([0, 0, 8, array.ndim]) + np.array(array.shape, '>u4').tobytes() + array.tobytes()


def write_idx(folder, suffix=''):
    for part, cut in (('train', slice(0, 20)), ('t10k', slice(20, 30))):
        write(folder / f'{part}-images-idx3-ubyte', idx_bytes(IMAGES[cut]), suffix)
        write(folder / f'{part}-labels-idx1-ubyte', idx_bytes(LABELS[cut]), suffix)


def amat_bytes(bits):
    return b''.join(b' '.join(b'%d' % bit for bit in row) + b'\n' for row in bits)


def write_amat(folder, suffix='', form=amat_bytes):
    for split, cut in (('train', slice(0, 20)), ('valid', slice(20, 24)), ('test', slice(24, 30))):
        write(folder / f'my_{split}.amat', form(BITS[cut]), suffix)


def cut_in_half(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2 - 3])  # inside a line of text


def flip_the_middle(path):
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 8] = bytes(byte ^ 0xFF for byte in content[middle : middle + 8])
    path.write_bytes(content)


def empty(path):
    path.write_bytes(b'')


def remove(path):
    path.unlink()


def make_a_folder_of(path):
    path.unlink()
    path.mkdir()


def fill_with_text(path):
    path.write_bytes(b'<html>404 Not Found</html>\n' * 9)


BREAKERS = [cut_in_half, flip_the_middle, empty, remove, make_a_folder_of, fill_with_text]


class Notes:
    """The notes on stderr, by capsys."""

    def __init__(self, capsys):
        self._capsys = capsys

    def __call__(self) -> list[str]:
        lines = self._capsys.readouterr().err.splitlines()
        assert all(line.startswith('note: ') for line in lines), lines
        return [line.removeprefix('note: ') for line in lines]
