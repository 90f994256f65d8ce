"""The files that a mesh names (material libraries, textures, buffers), read only from inside its object's folder."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from gsmae.errors import InputError, printable

MAX_BYTES = 64 << 20  # of one referenced file
MAX_BUFFER = 2 << 30  # of one that holds a mesh's numbers
MAX_NAMES = 5000  # distinct files that a mesh may name
MAX_WARNINGS = 100
LONGEST = 400  # characters of a warning
STRIP = 256  # rows of a picture that are unpacked at once
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TGA")


@dataclass(frozen=True)
class Limits:
    """How large an object may be before it is refused, which is before it is read as far as that can be told.

    faces   triangles; each takes about 0.3 kB of memory while a binary file is read, 0.5 kB of a text
    side    pixels of a texture's longer side
    texels  pixels of all textures together; each takes 10 bytes
    """

    faces: int = 20_000_000
    side: int = 8192
    texels: int = 1 << 27


def object_folder(path: Path) -> Path:
    """The tightest folder that holds everything which the mesh at `path` may name.

    It is the mesh's own folder, or that folder's parent where it is called "models": ShapeNetCore v2 keeps
    `<id>/models/model_normalized.obj` and names its textures `../images/texture0.jpg`.
    """
    folder = path.absolute().parent
    return folder.parent if folder.name.lower() == "models" else folder


class Assets:
    """Reads referenced files: regular files of at most 64 MB whose real path lies inside `root`, nothing else.

    A name counts from the mesh's folder; backslashes separate folders too, case is ignored where the exact name is
    missing, and the last part of the name is tried in the mesh's folder, for paths of the maker's machine. What could
    not be used is told in `warnings`; what is larger than `limits` is an InputError.
    """

    def __init__(self, path: Path, root: Path | None = None, limits: Limits | None = None):
        self.path, self.limits = path, limits or Limits()
        self._texels = 0
        self.folder = path.absolute().parent.resolve()
        self.root = (root if root is not None else object_folder(path)).resolve()
        self._warnings: dict[str, None] = {}
        self._found: dict[str, Path | None] = {}
        self._images: dict[Path, np.ndarray | None] = {}

    @property
    def warnings(self) -> tuple[str, ...]:
        """What could not be used, in words; of very many the first."""
        told = tuple(self._warnings)
        more = len(told) - MAX_WARNINGS
        return told if more <= 0 else (*told[:MAX_WARNINGS], f"and {more} more such warnings")

    def find(self, name: str) -> Path | None:
        """The file that `name` stands for, or None where there is none or it lies outside."""
        if name not in self._found:
            if len(self._found) >= MAX_NAMES:
                raise InputError(self.path, f"names more than {MAX_NAMES} files", "is it one object?")
            self._found[name] = self._look_for(name)
        return self._found[name]

    def _look_for(self, name: str) -> Path | None:
        for path in self._candidates(name):
            try:
                found = _any_case(self.root, path.relative_to(self.root)) if path.is_relative_to(self.root) else None
                if found is not None and found.is_relative_to(self.root) and found.is_file():
                    return found
            except (OSError, RuntimeError):  # too long a name, a loop of links
                continue
        return None

    def absence(self, name: str) -> str:
        """Why `find` has nothing, in words that follow the name."""
        outside = any(not path.is_relative_to(self.root) for path in self._candidates(name))
        return "lies outside the object's folder" if outside else "is missing"

    def _candidates(self, name: str) -> Iterator[Path]:
        """Real paths that a name may mean: as it stands, then its last part alone."""
        clean = name.strip().strip('"').replace("\\", "/")
        for candidate in dict.fromkeys([clean, clean.rpartition("/")[2]]):
            if candidate and "\0" not in candidate:
                with suppress(OSError, RuntimeError):
                    yield (self.folder / candidate).resolve()

    def read(self, name: str, buffer: bool = False) -> bytes:
        """Bytes of a referenced file; FileNotFoundError where there is none, InputError where it is too large.

        buffer  the file holds the mesh's own numbers and may have 2 GB
        """
        path = self.find(name)
        if path is None:
            raise FileNotFoundError(name)
        return self._bytes(path, MAX_BUFFER if buffer else MAX_BYTES)

    def image(self, name: str, owner: str) -> np.ndarray | None:
        """A texture as [h, w, 4] uint8, or None and a warning; `owner` is the file that names it."""
        path = self.find(name)
        if path is None:
            self.warn(f"texture {name} named by {owner} {self.absence(name)}; its material's colour is used")
            return None
        if path not in self._images:
            try:
                self._images[path] = self.decode(self._bytes(path, MAX_BYTES), path)
            except (OSError, ValueError, SyntaxError) as error:
                self.warn(f"texture {name} named by {owner} is not readable ({error}); its material's colour is used")
                self._images[path] = None
        return self._images[path]

    def decode(self, data: bytes, path: Path) -> np.ndarray:
        """An encoded picture as [h, w, 4] uint8; OSError or ValueError where it is none of an allowed format.

        path  the file that it is of, for messages
        """
        with _bombs_are_errors(path):
            picture = Image.open(io.BytesIO(data), formats=FORMATS)
            width, height = picture.size
            if max(picture.size) > self.limits.side:
                cause = f"a texture of {width} x {height} pixels; at most {self.limits.side} a side"
                raise InputError(path, cause, "make it smaller")
            self._texels += width * height
            if self._texels > self.limits.texels:
                cause = f"textures of more than {self.limits.texels >> 20} megapixels together"
                raise InputError(self.path, cause, "make them smaller")
            return _rgba(picture)

    def count_faces(self, count: int) -> None:
        """InputError where a mesh of so many faces is too large; readers call it as soon as they know."""
        if count > self.limits.faces:
            raise InputError(self.path, f"{count} faces; at most {self.limits.faces}", "simplify the mesh")

    def warn(self, text: str) -> None:
        """Remember a warning once."""
        self._warnings.setdefault(printable(text[:LONGEST]))

    def _bytes(self, path: Path, limit: int) -> bytes:
        size = path.stat().st_size
        if size > limit:
            raise InputError(path, f"{size / 2**20:.0f} MB; such a file named by a mesh may have {limit >> 20} MB")
        return path.read_bytes()


def _rgba(picture: Image.Image) -> np.ndarray:
    """A picture, unpacked, as [h, w, 4] uint8."""
    if picture.mode.startswith("I"):  # 16 bits per pixel, which Pillow would clip instead of scale
        picture = Image.fromarray((np.asarray(picture) >> 8).clip(0, 255).astype(np.uint8))
    picture.load()
    out = np.empty((picture.height, picture.width, 4), dtype=np.uint8)
    for top in range(0, picture.height, STRIP):  # whole, a large picture would be in memory four times
        strip = picture.crop((0, top, picture.width, min(top + STRIP, picture.height)))
        out[top : top + STRIP] = np.asarray(strip.convert("RGBA"))
    if out[..., 3].max(initial=0) == 0:  # an alpha channel that nobody filled in
        out[..., 3] = 255
    return out


@contextmanager
def _bombs_are_errors(path: Path) -> Iterator[None]:
    """Inside, Pillow's warning about a decompression bomb and its error are both InputErrors."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            yield
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise InputError(path, f"a texture that unpacks to too much: {error}") from None


def _any_case(root: Path, name: Path) -> Path | None:
    """The real path of `name` below `root`, or of the one that differs from it in case only; None if there is none."""
    here = root
    for part in name.parts:
        if not (here / part).exists():
            same = (
                [entry.name for entry in here.iterdir() if entry.name.lower() == part.lower()] if here.is_dir() else []
            )
            if not same:
                return None
            part = min(same)
        here = here / part
    return here.resolve()
