"""The files that a mesh names (material libraries, textures, buffers), read only from inside its object's folder."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
from PIL import Image

from gsmae.errors import InputError

MAX_BYTES = 64 << 20  # of one referenced file
MAX_BUFFER = 2 << 30  # of one that holds a mesh's numbers
MAX_SIDE = 8192  # pixels of a texture
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TGA")


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
    not be used is told in `warnings`.
    """

    def __init__(self, path: Path, root: Path | None = None):
        self.path = path
        self.folder = path.absolute().parent.resolve()
        self.root = (root if root is not None else object_folder(path)).resolve()
        self.warnings: list[str] = []
        self._images: dict[Path, np.ndarray | None] = {}

    def find(self, name: str) -> Path | None:
        """The file that `name` stands for, or None where there is none or it lies outside."""
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
        """A texture as [h, w, 4] uint8, or None and a warning; `owner` is the file that names it.

        Raises InputError for a texture of more than 8192 pixels a side.
        """
        path = self.find(name)
        if path is None:
            self.warn(f"texture {name} named by {owner} {self.absence(name)}; its material's colour is used")
            return None
        if path not in self._images:
            try:
                self._images[path] = decode(self._bytes(path, MAX_BYTES), path)
            except (OSError, ValueError, SyntaxError) as error:
                self.warn(f"texture {name} named by {owner} is not readable ({error}); its material's colour is used")
                self._images[path] = None
        return self._images[path]

    def warn(self, text: str) -> None:
        """Remember a warning once."""
        if text not in self.warnings:
            self.warnings.append(text)

    def _bytes(self, path: Path, limit: int) -> bytes:
        size = path.stat().st_size
        if size > limit:
            raise InputError(path, f"{size / 2**20:.0f} MB; such a file named by a mesh may have {limit >> 20} MB")
        return path.read_bytes()


def decode(data: bytes, path: Path) -> np.ndarray:
    """An encoded picture of an allowed format as [h, w, 4] uint8; OSError or ValueError where it is not one."""
    with _bombs_are_errors(path):
        picture = Image.open(io.BytesIO(data), formats=FORMATS)
        return rgba(picture, path)


def rgba(picture: Image.Image, path: Path) -> np.ndarray:
    """A Pillow image, possibly not yet decoded, as [h, w, 4] uint8; `path` is named where it is too large."""
    if picture.format is not None and picture.format not in FORMATS:
        raise ValueError(f"{picture.format} pictures are not read")
    if max(picture.size) > MAX_SIDE:
        raise InputError(path, f"a texture of {picture.width} x {picture.height} pixels; at most {MAX_SIDE} a side")
    with _bombs_are_errors(path):
        if picture.mode.startswith("I"):  # 16 bits per pixel, which Pillow would clip instead of scale
            picture = Image.fromarray((np.asarray(picture) >> 8).clip(0, 255).astype(np.uint8))
        out = np.array(picture.convert("RGBA"))
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
