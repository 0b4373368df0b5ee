"""images:DIR: folders of images as people have them, and the one message for those that do not fit."""

import pathlib
import re
import struct
import subprocess

import numpy as np
import pytest
from datafiles import COLOUR, IMAGES, Notes, arrays, load, sizes, user_error
from PIL import Image

from aigc_jax.core.errors import UserError


@pytest.fixture
def notes(capsys):
    return Notes(capsys)


def save(image, path, **how):
    path.parent.mkdir(parents=True, exist_ok=True)
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(path, **how)


def all_images(dataset):
    return {x.tobytes() for split in dataset.splits for x in arrays(dataset, split)['x']}


def test_a_flat_folder(tmp_path, notes):
    for i, image in enumerate(IMAGES):
        save(image, tmp_path / f'{i}.{("png", "PNG", "bmp", "pgm")[i % 4]}')
    for name in ('notes.txt', '.DS_Store', '.hidden.png'):
        (tmp_path / name).write_text('no image')
    save(IMAGES[0], tmp_path / '.git' / 'a.png')
    dataset = load(f'images:{tmp_path}', valid_examples=-1)
    assert (dataset.spec.shape, dataset.spec.levels, dataset.num_classes) == ((6, 5, 1), 255, 0)
    assert sizes(dataset) == [18, 6, 6] and all_images(dataset) == {image.tobytes() for image in IMAGES}
    assert '(3 files)' in notes()[0]
    assert load(f'images:{tmp_path}', valid_examples=-1).fingerprint == dataset.fingerprint


def test_a_folder_a_class(tmp_path, notes):
    for i, image in enumerate(COLOUR):
        save(image, tmp_path / ('dog', 'cat', 'ant')[i % 3] / f'{i}' / 'a.webp', lossless=True)
    dataset = load(f'images:{tmp_path}')
    assert (dataset.spec.shape, dataset.num_classes) == ((4, 4, 3), 3)
    assert '3 classes, 0: ant, 1: cat, 2: dog' in notes()[0]
    label_of = {image.tobytes(): 2 - i % 3 for i, image in enumerate(COLOUR)}
    for split in dataset.splits:
        part = arrays(dataset, split)
        assert [label_of[x.tobytes()] for x in part['x']] == part['label'].tolist()


def test_folders_named_as_splits(tmp_path, notes):
    for i, image in enumerate(IMAGES):
        save(image, tmp_path / ('training', 'training', 'val', 'Test')[i % 4] / f'{i // 4 % 2 + 9}' / f'{i}.png')
    save(IMAGES[0], tmp_path / 'extra' / 'a.png')
    dataset = load(f'images:{tmp_path}')
    assert (sizes(dataset), dataset.num_classes) == ([16, 7, 7], 2)
    lines = notes()
    assert 'left out' in lines[0] and 'extra' in lines[0] and 'the labels 9…10 are the classes 0…1' in lines[1]
    np.testing.assert_array_equal(arrays(dataset, 'test')['label'], [1, 1, 1, 0, 0, 0, 0])


def test_one_folder_is_no_class(tmp_path):
    for i, image in enumerate(IMAGES):
        save(image, tmp_path / 'img_align' / f'{i}.png')
    assert load(f'images:{tmp_path}').num_classes == 0


def test_grey_images_among_coloured_ones_and_palettes(tmp_path, notes):
    for i, image in enumerate(COLOUR):
        save(image if i else image[..., 0], tmp_path / f'{i:02}.png')
    save(Image.fromarray(COLOUR[1]).quantize(16), tmp_path / '01.png')
    save(Image.fromarray(COLOUR[2]).convert('RGBA'), tmp_path / '02.png')
    dataset = load(f'images:{tmp_path}')
    assert dataset.spec.shape == (4, 4, 3) and '1 of 30 images are grey' in notes()[0]
    found = all_images(dataset)
    assert COLOUR[0][..., :1].repeat(3, -1).tobytes() in found and COLOUR[2].tobytes() in found


def test_a_photograph_stands_as_it_is_shown(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn
    for i in range(9):
        save(IMAGES[i], tmp_path / f'{i}.webp', exif=exif, lossless=True)
    dataset = load(f'images:{tmp_path}', valid_examples=1)
    turned = {np.repeat(np.rot90(image, -1)[..., None], 3, -1).tobytes() for image in IMAGES[:9]}
    assert dataset.spec.shape == (5, 6, 3) and all_images(dataset) == turned


@pytest.mark.parametrize('kind, count, value', [(3, 1, b'\x09\0\0\0'), (2, 4, b'six\0')])
def test_an_orientation_that_is_none_turns_nothing(tmp_path, kind, count, value):
    """9 as a short, or a text."""
    exif = b'Exif\0\0II*\0' + struct.pack('<IHHHI4sI', 8, 1, 0x0112, kind, count, value, 0)
    for i in range(9):
        save(IMAGES[i], tmp_path / f'{i}.webp', exif=exif, lossless=True)
    dataset = load(f'images:{tmp_path}', valid_examples=1)
    as_they_are = {np.repeat(image[..., None], 3, -1).tobytes() for image in IMAGES[:9]}
    assert dataset.spec.shape == (6, 5, 3) and all_images(dataset) == as_they_are


def test_the_message_for_many_sizes_holds_the_command_that_mends_it(tmp_path):
    folder = tmp_path / 'o\'mine "$HOME" ü'
    for i in range(12):
        save(np.full((20 + i % 3, 17), 10 * i, np.uint8), folder / f'class {i % 2}' / f'{i}.png')
    save(np.full((9, 9), 77, np.uint8), pathlib.Path(f'{folder}_16') / 'kept.png')
    with pytest.raises(Exception) as caught:
        load(f'images:{folder}')
    first, command = str(caught.value).split('\n')
    assert '4 of 17×20' in first and f'images:{folder}_16-2' in first
    subprocess.run(command, shell=True, check=True)
    dataset = load(f'images:{folder}_16-2')
    assert len([*pathlib.Path(f'{folder}_16').iterdir()]) == 1
    assert (dataset.spec.shape, dataset.num_classes, sum(sizes(dataset))) == ((16, 16, 1), 2, 12)


def test_the_command_for_images_that_are_deep_or_transparent_mends_a_copy(tmp_path):
    """Also those of several sizes: as RGB of 8 bits a deep image would be white, and a transparent one its colour."""
    deep, clear = np.full((6, 5), 100 * 257, np.uint16), np.full((6, 5, 4), (200, 100, 0, 51), np.uint8)
    for name, more in (('same', ()), ('sizes', (8, 9))):
        folder = tmp_path / name
        save(deep, folder / 'a.png'), save(clear, folder / 'b.png')
        for i in range(7):
            save(np.full((*(more or (6, 5)), 3), i, np.uint8), folder / f'c{i}.png')
        before = {path: path.read_bytes() for path in folder.iterdir()}
        with pytest.raises(UserError) as caught:
            load(f'images:{folder}')
        first, command = str(caught.value).split('\n')
        (new,) = re.findall('Then use images:(.*), after this', first)
        subprocess.run(command, shell=True, check=True)
        assert {path: path.read_bytes() for path in folder.iterdir()} == before
        found = {image[:3] for image in all_images(load(f'images:{new}'))}
        assert {bytes([100] * 3), bytes([244, 224, 204])} <= found


@pytest.mark.parametrize(
    'spoil, words',
    [
        (lambda folder: (folder / 'a.png').write_bytes(b'no image'), ['a.png', 'cannot be read']),
        (lambda folder: (folder / 'a.png').write_bytes((folder / '1.png').read_bytes()[:-30]), ['a.png', 'cannot be']),
        (lambda folder: save(IMAGES[0].astype(np.uint16) * 256, folder / 'a.png'), ['a.png', '8 bits', 'images_8bit']),
        (lambda folder: save(np.full((6, 5, 4), 9, np.uint8), folder / 'a.png'), ['transparent', 'images_white']),
        (lambda folder: save(IMAGES[0], folder / 'more' / 'a.png'), ['folders of images', 'move']),
        (lambda folder: [path.unlink() for path in folder.iterdir()], ['holds no image']),
    ],
)
def test_what_does_not_fit_is_named(tmp_path, spoil, words):
    tmp_path = tmp_path / 'images'
    for i, image in enumerate(IMAGES[:9]):
        save(image, tmp_path / f'{i}.png')
    spoil(tmp_path)
    user_error(f'images:{tmp_path}', str(tmp_path), *words)
    user_error(f'images:{tmp_path}/nowhere', 'no such folder')
    for one, other in (('train', 'training'), ('val', 'valid')):
        save(IMAGES[0], tmp_path / one / one / 'a.png')
        save(IMAGES[0], tmp_path / one / other / 'a.png')
        user_error(f'images:{tmp_path}/{one}', f'{one}, {other} mean the same split')


def test_folders_that_are_given_for_splits_hold_valid_out_at_random(tmp_path, notes):
    """As one folder with train and test in it does: like images stand together, and the last ones are of a kind."""
    for i, image in enumerate(IMAGES):
        save(image, tmp_path / ('train' if i < 20 else 'test') / f'{i:02}.png')
    given, one = load(f'images:train={tmp_path}/train,test={tmp_path}/test'), load(f'images:{tmp_path}')
    assert all('drawn at random' in line for line in notes() if 'become' in line)
    assert given.fingerprint == one.fingerprint and sizes(given) == [16, 4, 10]
