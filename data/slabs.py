"""Arrays that stay in their file: rows are read when asked for, into memory of the asker's own.

Not mapped, although that looks the same: a map counts every page that was ever touched as memory of this process, until
the whole set is in it, and a file that is cut off while it is mapped kills the process without a word.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from gsmae.errors import InputError


class SharedFile:
    """A file for any number of readers, opened when first read, closed on request, opened again when needed.

    Every read names its place, so that threads and forked processes do not disturb each other. Raises InputError when
    the file is shorter than it was or is not the one it was.
    """

    def __init__(self, path: Path):
        self.path = path
        self._was = _identity(path.stat())
        self._open: _Descriptor | None = None

    def read(self, out: np.ndarray, offset: int) -> None:
        """Fill an array with the bytes from `offset` on."""
        file = self._open  # held here, so that another thread that closes it does not take it away
        if file is None:
            file = self._open = self._opened()
        view, done = out.reshape(-1).view(np.uint8).data, 0
        while done < len(view):
            got = os.preadv(file.number, [view[done:]], offset + done)
            if not got:
                raise InputError(self.path, "was cut off while it was read", "copy it again, or pack again")
            done += got

    def close(self) -> None:
        """Let go of the file as soon as nobody reads it."""
        self._open = None

    def _opened(self) -> _Descriptor:
        try:
            file = _Descriptor(self.path)
        except OSError as error:
            raise InputError(self.path, error.strerror or str(error), "was the pack moved?") from None
        if _identity(os.fstat(file.number)) != self._was:
            raise InputError(self.path, "was replaced while it was in use", "start again")
        return file


class Slab:
    """Rows of one type in one piece of a file; `slab[start:stop]` reads some, as a new array."""

    def __init__(self, file: SharedFile, offset: int, dtype: np.dtype, shape: tuple[int, ...]):
        self.file, self.offset, self.dtype, self.shape = file, offset, dtype, shape
        self._stride = dtype.itemsize * int(np.prod(shape[1:], dtype=np.int64))

    @property
    def ndim(self) -> int:
        return len(self.shape)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: slice) -> np.ndarray:
        start, stop, _ = rows.indices(len(self))
        out = np.empty((max(stop - start, 0), *self.shape[1:]), dtype=self.dtype)
        self.file.read(out, self.offset + start * self._stride)
        return out


class _Descriptor:
    """An open file that is closed with its last reader."""

    def __init__(self, path: Path):
        self.number = -1
        self.number = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def __del__(self) -> None:
        if self.number >= 0:
            os.close(self.number)


def _identity(status: os.stat_result) -> tuple[int, ...]:
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns
