"""One reader per file format; `READERS` is the registry: file extension -> (path, assets) -> RawMesh."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from .assets import Assets
from .dae import read_dae
from .gltf import read_gltf
from .obj import read_obj
from .off import read_off
from .ply import read_ply
from .raw import RawMesh
from .stl import read_stl
from .vrml import read_vrml

Reader = Callable[[Path, Assets], RawMesh]


READERS: dict[str, Reader] = {
    ".obj": read_obj,
    ".off": read_off,
    ".ply": read_ply,
    ".glb": read_gltf,
    ".gltf": read_gltf,
    ".stl": read_stl,
    ".dae": read_dae,
    ".wrl": read_vrml,
}
