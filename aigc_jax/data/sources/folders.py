"""Folders of images: PNG, JPEG, WebP, BMP, PGM and PPM, a folder a class where there are folders."""

import concurrent.futures
import os
import pathlib
import struct
from collections import Counter

import numpy as np
from PIL import ExifTags, Image, ImageOps

from aigc_jax.core import memory, mends
from aigc_jax.core.errors import UserError, first_line
from aigc_jax.core.files import new_folder
from aigc_jax.core.notes import note
from aigc_jax.core.records import regular
from aigc_jax.data.sources import arrays
from aigc_jax.data.sources.arrays import Parts

_FORMATS = {
    '.png': 'PNG', '.jpg': 'JPEG', '.jpeg': 'JPEG', '.webp': 'WEBP', '.bmp': 'BMP', '.pgm': 'PPM', '.ppm': 'PPM',
}  # fmt: skip
# What pillow raises for a damaged file, or for one that says that it is enormous.
_BROKEN = (OSError, SyntaxError, ValueError, EOFError, struct.error, Image.DecompressionBombError)
_HIDDEN = ('.', '__MACOSX')
_GREY = ('1', 'L', 'LA')
_DEEP = ('I', 'F')  # 16 bit and more: I, I;16, I;16B, F
_TURNED = ('JPEG', 'MPO', 'WEBP')  # by their EXIF orientation, as everyone shows them


def read_images(where: str) -> Parts:
    """A folder of images of one size. Its folders train, valid and test are splits; any others are a class each.

    Grey images have one channel, others three; a grey image among coloured ones gets three.

    Raises:
      UserError: if there are none, one is damaged, or they are of different sizes (with a command that resizes them).
    """
    root = pathlib.Path(where)
    if not root.is_dir():
        raise UserError(f'{where}: there is no such folder; data.name=images:DIR reads the images in a folder')
    skipped: list[pathlib.Path] = []
    inside = sorted(root.iterdir())
    folders = [path for path in inside if path.is_dir() and not path.name.startswith(_HIDDEN)]
    groups = {folder.name: paths for folder in folders if (paths := _below(folder, skipped))}
    loose = _images([path for path in inside if path.is_file()], skipped)
    splits = {name: arrays.split_of(name) for name in groups if arrays.split_of(name)}
    if len(set(splits.values())) < len(splits):
        raise UserError(f'{where}: the folders {", ".join(splits)} mean the same split; keep one of them')
    if groups and loose:
        raise UserError(
            f'{where}: holds images ({loose[0].name}, …; {len(loose)} in all) and folders of images '
            f'({", ".join(list(groups)[:3])}, …); move these images into a folder, or the folders away'
        )
    if splits:
        if rest := sorted(groups.keys() - splits.keys()):
            note(f'{where}: left out, beside {", ".join(splits)}: the folders {", ".join(rest)}')
        listed = {split: (root / name, groups[name]) for name, split in splits.items()}
    else:
        listed = {'': (root, loose or [path for paths in groups.values() for path in paths])}
    classes = {split: _classes(*there) for split, there in listed.items()}
    if skipped:
        them = str(skipped[0]) + (f', … ({len(skipped)} files)' if len(skipped) > 1 else '')
        note(f'{where}: left out, for they are no {"/".join(_FORMATS)} images: {them}')
    everything = [path for _, paths in listed.values() for path in paths]
    if not everything:
        raise UserError(f'{where}: holds no image ({" ".join(_FORMATS)}), nor do its folders')
    ends = np.cumsum([len(paths) for _, paths in listed.values()])
    parts = np.split(_read(everything, root), ends[:-1])
    return {split: (x, classes[split]) for split, x in zip(listed, parts, strict=True)}


def remake(old: str, new: str, side: str = '0') -> None:
    """Writes the images of a folder into a new one, as PNG of 8 bits, grey or RGB, on white where they are transparent,
    and, unless side is 0, cropped and resized to side × side. Raises UserError."""
    with new_folder(new) as made:
        for path in _below(pathlib.Path(old), []):
            image = _open(path, lambda image, path=path: _remade(_upright(image, path)))
            place = made / path.relative_to(old).with_name(f'{path.name}.png')
            place.parent.mkdir(parents=True, exist_ok=True)
            (ImageOps.fit(image, (int(side), int(side))) if int(side) else image).save(place)


def _below(folder: pathlib.Path, skipped: list[pathlib.Path]) -> list[pathlib.Path]:
    """The images in a folder and its folders, in the order of their names."""
    found = []
    for place, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(_HIDDEN)]
        found += _images([pathlib.Path(place, name) for name in files], skipped)
    return sorted(found)


def _images(paths: list[pathlib.Path], skipped: list[pathlib.Path]) -> list[pathlib.Path]:
    found = []
    for path in paths:
        fits = path.suffix.lower() in _FORMATS and not path.name.startswith('.')
        (found if fits else skipped).append(path)
    return found


def _classes(root: pathlib.Path, paths: list[pathlib.Path]) -> np.ndarray | None:
    """The folder below `root` that each image lies in; None where there are not two folders."""
    classes = [path.relative_to(root).parts[0] if path.parent != root else '' for path in paths]
    if '' in classes and set(classes) != {''}:
        raise UserError(f'{root}: holds images, and folders of images; move its images into a folder of their class')
    return np.array(classes) if len(set(classes)) > 1 else None


def _read(paths: list[pathlib.Path], root: pathlib.Path) -> np.ndarray:
    """uint8 (N, H, W, C), C 1 or 3."""
    threads = min(os.cpu_count() or 1, 16)
    with concurrent.futures.ThreadPoolExecutor(threads) as pool:
        kinds = list(pool.map(lambda path: _open(path, _kind), paths))
        sizes = Counter(size for size, _ in kinds)
        greys = sum(mode in _GREY for _, mode in kinds)
        mode = 'L' if greys == len(paths) else 'RGB'
        if len(sizes) > 1:
            raise UserError(_of_many_sizes(sizes, root))
        if 0 < greys < len(paths):
            note(f'{root}: {greys} of {len(paths)} images are grey, and get three channels as the others have')
        ((width, height),) = sizes
        num_bytes = height * width * len(mode)
        memory.want((len(paths) + threads) * num_bytes, str(root))
        x = np.empty((len(paths), height, width, len(mode)), np.uint8)

        def fill(i):
            x[i] = _open(paths[i], lambda image: _pixels(image, mode, paths[i], root)).reshape(x.shape[1:])

        for _ in pool.map(fill, range(len(paths))):
            pass
    return x


def _open(path: pathlib.Path, then):
    try:
        with open(path, 'rb', opener=regular) as file:
            with Image.open(file, formats=sorted(set(_FORMATS.values()))) as image:
                return then(image)
    except _BROKEN as e:
        reason = first_line(getattr(e, 'strerror', None) or e)
        raise UserError(f'{path}: cannot be read ({reason}); replace it, or remove it') from e


def _kind(image: Image.Image) -> tuple[tuple[int, int], str]:
    """((width, height) as it is shown, mode)."""
    turned = image.format in _TURNED and image.getexif().get(ExifTags.Base.Orientation) in (5, 6, 7, 8)  # on its side
    return (image.size[::-1] if turned else image.size), image.mode


def _upright(image: Image.Image, path: pathlib.Path) -> Image.Image:
    """As everyone shows it."""
    if image.format in ('PNG', 'WEBP') and getattr(image, 'is_animated', False):
        raise UserError(f'{path}: is animated; keep one frame of it, or remove it')
    return ImageOps.exif_transpose(image) if image.format in _TURNED else image


def _has_alpha(image: Image.Image) -> bool:
    return 'A' in image.getbands() or 'transparency' in image.info


def _pixels(image: Image.Image, mode: str, path: pathlib.Path, root: pathlib.Path) -> np.ndarray:
    image = _upright(image, path)
    if image.mode.startswith(_DEEP):
        raise UserError(f'{path}: has more than 8 bits a channel (mode {image.mode}){_remaking(root, "8bit")}')
    if _has_alpha(image):
        image = image.convert('RGBA')
        if image.getextrema()[3][0] < 255:
            raise UserError(f'{path}: is transparent{_remaking(root, "white")}')
    return np.asarray(image.convert(mode))


def _remaking(root: pathlib.Path, end: str) -> str:
    old = os.path.abspath(root)
    new = mends.unused(f'{old}_{end}')
    return (
        f'. Then use images:{new}, after this, which makes all images 8 bits deep and lays them on white:\n'
        f'  {mends.calling(remake, old, new)}'
    )


def _remade(image: Image.Image) -> Image.Image:
    """With 8 bits a channel, grey or RGB, on white."""
    if image.mode.startswith(_DEEP):
        image = Image.fromarray((np.asarray(image).astype(np.float64) / 257).round().clip(0, 255).astype(np.uint8))
    mode = 'L' if image.mode in _GREY else 'RGB'
    if _has_alpha(image):
        image = image.convert('RGBA')
        image = Image.alpha_composite(Image.new('RGBA', image.size, 'white'), image)
    return image.convert(mode)


def _of_many_sizes(sizes: Counter, root: pathlib.Path) -> str:
    smallest = min(sizes, key=min)
    side = max(min(64, min(smallest)) // 8 * 8, 8)
    old = os.path.abspath(root)
    new = mends.unused(f'{old}_{side}')
    command = mends.calling(remake, old, new, side)
    shown = ', '.join(f'{count} of {w}×{h}' for (w, h), count in sizes.most_common(3))
    return (
        f'{root}: images must be of one size; these are of {len(sizes)} ({shown}{", …" if len(sizes) > 3 else ""}). '
        f'Then use images:{new}, after this, which crops and resizes them to {side}×{side}:\n  {command}'
    )
