"""The names of the files and folders of a run. No other module spells them."""

import os
import pathlib
import stat

from aigc_jax.core.errors import UserError
from aigc_jax.core.files import clear_leftovers, walk

_FILES = {
    'lock': '.lock',
    'config': 'config.json',
    'evaluation': 'evaluation.json',  # of the finished run
    'partial': 'evaluation.json.partial',  # the parts of an evaluation that are done, until it is whole
    'extractor': 'extractor.npz',  # the classifier that images are measured with
    'manifest': 'manifest.json',
    'metrics': 'metrics.jsonl',
    'timing': 'timing.jsonl',
    'tokenizer': 'tokenizer.json',
}
_FOLDERS = {
    'checkpoints': 'checkpoints',
    'evaluations': 'evaluations',  # every other evaluation
    'plots': 'plots',
    'samples': 'samples',
    'tensorboard': 'tb',
}
_NAMES = _FILES | _FOLDERS
FILES, FOLDERS = tuple(_FILES.values()), tuple(_FOLDERS.values())  # all that a run writes in its folder


class Paths:
    """paths.config, paths.samples, …: where the files and folders of the run in `folder` lie."""

    def __init__(self, folder):
        self.folder = pathlib.Path(folder)

    def __getattr__(self, name: str) -> pathlib.Path:
        if name not in _NAMES:
            raise AttributeError(f'{type(self).__name__!r} object has no attribute {name!r}')
        return self.folder / _NAMES[name]

    def check(self) -> None:
        """Raises UserError if a link, a pipe or a device is in the place of what a run writes.

        The folder itself and the folders that it lies in may be links. This guards against a folder that was handed
        over with links in it. It does not guard against somebody who changes the folder during the run.
        """
        for name in (*FILES, *FOLDERS):
            path = os.path.join(self.folder, name)
            try:
                mode = os.lstat(path).st_mode
            except (FileNotFoundError, NotADirectoryError):
                continue
            except OSError as error:
                raise UserError(f'workdir: {path}: {error.strerror}') from None
            if not (stat.S_ISDIR(mode) if name in FOLDERS else stat.S_ISREG(mode)):
                raise _refusal(path, 'folder' if name in FOLDERS else 'file')
            for below, mode in walk(path):
                if not stat.S_ISDIR(mode) and not stat.S_ISREG(mode):
                    raise _refusal(below, 'file or folder')

    def clear_leftovers(self) -> None:
        """Removes the unfinished files of a process that was killed; what is being written stays."""
        clear_leftovers(self.folder, *(self.folder / name for name in FOLDERS))


def _refusal(path: str, wanted: str) -> UserError:
    what = f'a link to {os.readlink(path)}' if os.path.islink(path) else f'no {wanted}'
    return UserError(
        f'workdir: {path} is {what}; a run writes to plain files and folders alone: '
        f'put a plain {wanted} there, remove it, or name another folder'
    )
