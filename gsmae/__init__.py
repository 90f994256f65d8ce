"""gsmae: datasets of Gaussian splats from meshes, and a masked autoencoder that learns from them.

The public names are imported on first use, so that `import gsmae` and `gsmae --help` stay light.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

__version__ = "0.1.0"

_PUBLIC = {
    "Gaussians": "gaussians",
    "FIELDS": "gaussians",
    "read_ply": "ply",
    "write_ply": "ply",
    "FeatureSpec": "features",
    "normalize": "features",
    "denormalize": "features",
    "load": "zoo",
}

__all__ = [
    "FIELDS",
    "FeatureSpec",
    "Gaussians",
    "__version__",
    "denormalize",
    "load",
    "normalize",
    "read_ply",
    "write_ply",
]

if TYPE_CHECKING:
    from .features import FeatureSpec, denormalize, normalize
    from .gaussians import FIELDS, Gaussians
    from .ply import read_ply, write_ply
    from .zoo import load


def __getattr__(name: str):
    if name in _PUBLIC:
        return getattr(import_module(f".{_PUBLIC[name]}", __name__), name)
    raise AttributeError(f"module 'gsmae' has no attribute '{name}'")
