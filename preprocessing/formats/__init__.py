"""One reader per file format; `READERS` is the registry: file extension -> (path, assets) -> RawMesh."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from .assets import Assets
from .obj import read_obj
from .off import read_off
from .raw import RawMesh
from .vrml import read_vrml

Reader = Callable[[Path, Assets], RawMesh]


def _scene(path: Path, assets: Assets) -> RawMesh:
    from .scene import read_scene  # trimesh takes a while to import

    return read_scene(path, assets)


READERS: dict[str, Reader] = {
    ".obj": read_obj,
    ".off": read_off,
    ".ply": _scene,
    ".glb": _scene,
    ".gltf": _scene,
    ".stl": _scene,
    ".dae": _scene,
    ".wrl": read_vrml,
}
