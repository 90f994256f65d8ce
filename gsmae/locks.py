"""One writer at a time in a folder; the lock goes with the process, however it ends."""

from __future__ import annotations

import errno
import fcntl
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .errors import InputError

log = logging.getLogger(__name__)

LOCK = ".lock"
BUSY = (errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES)


@contextmanager
def only_writer(folder: str | Path, what: str, *, does: str = "is at work", keep: bool = False) -> Iterator[None]:
    """Make the folder and hold it: a second writer gets an InputError that says that another `what` `does` there.

    keep  leave the lock's file there, as builds and runs do; otherwise it is removed
    A file system that knows no locks is written to with a warning. OSError where the folder cannot be written.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / LOCK
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in BUSY:
                os.close(handle)
                raise InputError(folder, f"another {what} {does} in this folder", "wait for it, or stop it") from None
            log.warning("%s: this file system has no locks (%s); run one %s at a time", folder, error.strerror, what)
        if _same(handle, path):
            break
        os.close(handle)  # the one who held it before removed it between our opening and locking
    try:
        yield
    finally:
        if not keep:
            path.unlink(missing_ok=True)
        os.close(handle)


def _same(handle: int, path: Path) -> bool:
    try:
        there, ours = path.stat(), os.fstat(handle)
    except FileNotFoundError:
        return False
    return (there.st_dev, there.st_ino) == (ours.st_dev, ours.st_ino)
