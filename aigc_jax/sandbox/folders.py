"""The temporary folder of a sandbox's server.

A server locks its folder as long as it lives. So a folder that can be locked belongs to a server that was killed.
"""

import fcntl
import os
import re

_NAME = re.compile(r'aigc_jax_[0-9a-f]{16}')


def make(base: str) -> str:
    """A new folder, locked as long as this process lives."""
    while True:
        folder = os.path.join(base, f'aigc_jax_{os.urandom(8).hex()}')
        os.mkdir(folder, 0o700)
        try:
            opened = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            if _locks(opened) is not False and os.path.samestat(os.fstat(opened), os.lstat(folder)):
                return folder
        except FileNotFoundError:  # `clean` came between
            continue
        os.close(opened)


def clean(base: str) -> None:
    """Removes the folders that killed servers of this user have left there."""
    try:
        names = os.listdir(base)
    except OSError:  # `base` may be writable without being listable
        return
    for name in filter(_NAME.fullmatch, names):
        folder = os.path.join(base, name)
        try:
            opened = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        except OSError:  # it is a link, a file or another user's, or it is gone
            continue
        try:
            if os.fstat(opened).st_uid == os.getuid() and _locks(opened):
                remove(folder)
        finally:
            os.close(opened)


def remove(folder: str) -> None:
    try:
        os.rmdir(folder)
    except OSError:  # without the kernel's layer a program may have left files in it
        import shutil

        shutil.rmtree(folder, ignore_errors=True)


def _locks(opened: int) -> bool | None:
    """None: there are no locks on this file system."""
    try:
        fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True
