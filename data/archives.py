"""Zips read like folders: listed, guarded, and read member by member into memory; nothing is ever unpacked to disk."""

from __future__ import annotations

import io
import os
import re
import stat
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gsmae.errors import InputError

MAX_TABLE = 64 << 20  # bytes read in one piece, which the table of contents is: about half a million members
MAX_MEMBERS = 500_000
MAX_MEMBER = 2 << 30  # bytes of a member once unpacked: it is held in memory
MAX_RATIO = 100  # splats shrink to a half, those padded with zeros to a fifth
BLOCK = 1 << 22
FREE = 1 << 20  # bytes to which the ratio does not apply
CURE = "refused: download it again from a source you trust"


@dataclass(frozen=True)
class Member:
    """One file of a zip; `read_bytes` and `str` are as of a Path."""

    archive: Archive = field(repr=False, compare=False)
    path: Path
    name: str
    size: int
    crc: int

    def read_bytes(self) -> bytes:
        """Its content, checked against the checksum in the zip; InputError when it is damaged."""
        return self.archive.read(self.name)

    def is_file(self) -> bool:
        """True, as of a Path."""
        return True

    def __str__(self) -> str:
        return f"{self.path}/{self.name}"


@dataclass(frozen=True)
class Made:
    """A file that is nowhere: its bytes are made, always the same ones, when it is read; errors name its `source`."""

    source: str
    make: Callable[[], bytes] = field(repr=False, compare=False)

    def read_bytes(self) -> bytes:
        """Its content, made anew."""
        return self.make()

    def is_file(self) -> bool:
        """True, as of a Path."""
        return True

    def __str__(self) -> str:
        return self.source


Place = Path | Member | Made
"""Where the bytes of a file lie: on the disk, in a zip, or nowhere until they are read"""


class Archive:
    """The files of one zip by name. It is opened once, when it is first read; copies in other processes open it again.

    Raises InputError when it is not a zip or not an honest one: absolute names, `..`, links and other special files,
    encryption, a name twice, too many members, members that unpack to more than MAX_MEMBER bytes or MAX_RATIO times
    their size, overlapping members.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self._zip: zipfile.ZipFile | None = None
        infos = self._open().infolist()
        if len(infos) > MAX_MEMBERS:
            raise InputError(self.path, f"has {len(infos)} members", f"at most {MAX_MEMBERS} are accepted")
        size = self.path.stat().st_size
        if sum(info.file_size for info in infos) > MAX_RATIO * size + FREE:
            total = sum(info.file_size for info in infos)
            raise InputError(self.path, f"{size} bytes promise to unpack to {total}", CURE)
        self.members: dict[str, Member] = {}
        for info in infos:
            why = _refused(info)
            if why:
                raise InputError(self.path, f"member '{info.orig_filename[:200]}' {why}", CURE)
            if info.is_dir():
                continue
            if info.filename in self.members:
                raise InputError(self.path, f"has two members '{info.filename}'", CURE)
            self.members[info.filename] = Member(self, self.path, info.filename, info.file_size, info.CRC)

    def read(self, name: str) -> bytes:
        """The bytes of a member; InputError when it is damaged or encrypted."""
        try:
            with self._open().open(name) as file:
                return b"".join(iter(lambda: file.read(BLOCK), b""))
        except (zipfile.BadZipFile, zlib.error, EOFError, OSError, KeyError, ValueError, RuntimeError) as error:
            cause = f"is damaged: {error or type(error).__name__}"
            raise InputError(f"{self.path}/{name}", cause, "download the zip again") from None

    def close(self) -> None:
        """Give the file handle back; the next read opens it again."""
        if self._zip is not None:
            file, self._zip = self._zip.fp, None
            if file is not None:
                file.close()

    def __del__(self) -> None:
        if getattr(self, "_zip", None) is not None:
            self.close()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_zip": None}

    def _open(self) -> zipfile.ZipFile:
        if self._zip is None:
            file = None
            try:
                file = _Capped(self.path)
                self._zip = zipfile.ZipFile(file)
            except (OSError, ValueError, zipfile.BadZipFile, NotImplementedError, EOFError, IndexError) as error:
                if file is not None:
                    file.close()
                cause = getattr(error, "strerror", None) or f"not readable as a zip: {error}"
                raise InputError(self.path, cause, "is the download complete?") from None
        return self._zip


def places(path: str | Path) -> list[tuple[str, Place]]:
    """Every file below a folder, in it and in the zips below it, or in one zip, with its name below `path`.

    A zip counts as a folder of its name: `03001627_0.zip` holds `03001627_0/03001627-1a2b.ply`. Hidden files and what
    macOS adds are passed over. Sorted by name. Raises InputError for a zip that is refused.
    """
    path = Path(path)
    if path.is_file() and path.suffix.lower() == ".zip":
        return sorted(_of_zip(path, path.stem), key=_order)
    found: list[tuple[str, Place]] = []
    seen: set[str] = set()
    for folder, names, files in os.walk(path, followlinks=True):
        real = os.path.realpath(folder)
        names[:] = [name for name in names if not _hidden(name) and real not in seen]  # a link may lead back up
        if real in seen:
            continue
        seen.add(real)
        below = Path(folder).relative_to(path).as_posix()
        for name in files:
            if _hidden(name):
                continue
            key, file = name if below == "." else f"{below}/{name}", Path(folder, name)
            if name.lower().endswith(".zip"):
                found += _of_zip(file, key[: -len(".zip")])
            else:
                found.append((key, file))
    return sorted(found, key=_order)


def size_of(place: Place) -> int:
    """Bytes of a file once it is read."""
    if isinstance(place, Made):
        return len(place.read_bytes())
    return place.size if isinstance(place, Member) else place.stat().st_size


def _of_zip(file: Path, prefix: str) -> Iterator[tuple[str, Place]]:
    for name, member in Archive(file).members.items():
        if not any(_hidden(part) for part in name.split("/")):
            yield f"{prefix}/{name}", member


def _order(item: tuple[str, Place]) -> tuple[str, str]:
    return item[0], str(item[1])


def _hidden(name: str) -> bool:
    return name.startswith(".") or name == "__MACOSX"


def _refused(info: zipfile.ZipInfo) -> str:
    """Why a member is not accepted, "" where it is."""
    name, kind = info.orig_filename, stat.S_IFMT(info.external_attr >> 16)
    if not name or name.startswith("/") or re.match(r"[A-Za-z]:", name) or "\\" in name or "\0" in name:
        return "has an absolute name or one of another system"
    if ".." in name.split("/"):
        return "leads outside"
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        return "is a link or a special file"
    if info.flag_bits & 1:
        return "is encrypted"
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        return f"is compressed by method {info.compress_type}; stored and deflated are read"
    if info.file_size > MAX_MEMBER:
        return f"unpacks to {info.file_size} bytes, more than {MAX_MEMBER}"
    if info.file_size > MAX_RATIO * info.compress_size + FREE:
        return f"unpacks {info.compress_size} bytes to {info.file_size}"
    return ""


class _Capped(io.FileIO):
    """A file that refuses to be read in one enormous piece: zipfile trusts the size that a table of contents claims."""

    def __init__(self, path: Path):
        super().__init__(path, "rb")

    def read(self, size: int | None = -1, /) -> bytes:
        left = os.fstat(self.fileno()).st_size - self.tell()
        if (left if size is None or size < 0 else min(size, left)) > MAX_TABLE:
            raise zipfile.BadZipFile(f"a piece of more than {MAX_TABLE} bytes")
        return super().read(size) or b""
