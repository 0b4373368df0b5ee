"""Files that are whole or absent, disk failures that end a run with one line, and the lines of a text."""

import contextlib
import os
import pathlib

from aigc_jax.core.errors import RunError


@contextlib.contextmanager
def disk_errors(path):
    """Turns an OSError inside the block (disk full, quota, permission) into a RunError that names `path`."""
    try:
        yield
    except OSError as error:
        raise RunError(f'cannot write {path}: {error.strerror or error}') from error


def atomic_write(path, data: str | bytes) -> None:
    """Writes `data` (str as UTF-8) to `path`: a reader or a crash meets the old file or the new, no part.

    Missing parent folders are made. Raises RunError if the disk refuses; nothing is left behind then.
    """
    path = pathlib.Path(path)
    # Beside the target: os.replace is atomic only within one file system.
    temporary = path.with_name(f'.{path.name}.{os.getpid()}.tmp')
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with open(temporary, 'wb') as file:
                file.write(data.encode() if isinstance(data, str) else data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)


def lines_of(text: str) -> list[str]:
    """Its lines, without their ends; str.splitlines cuts at characters that may stand inside one, and in JSON."""
    return text.removesuffix('\n').split('\n') if text else []
