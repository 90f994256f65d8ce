"""Compact formats of the viewers, .splat, .spz and .sog, through the optional package gaussforge.

Three things are put right on the way, so that what is written is what the formats say and comes back as it was:
gaussforge takes quaternions for unit ones when it writes SOG; it writes the axes of a PLY into an SPZ, which by its own
definition is RUB (x right, y up, z back) where a PLY is RDF, so that other readers would turn it over; and an opacity
that rounds to 0 would read back as minus infinity.
"""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

from gsmae.errors import GsmaeError, InputError
from gsmae.gaussians import Gaussians
from gsmae.ply import read_ply, write_ply

from .augment import rotate

PACKAGE, CURE = "gaussforge", "pip install 'gsmae[formats]'"
SPZ_VERSION = 3  # gzip, as most readers know it, but with the finer quaternions that version 2 did not have
FAINTEST = 1 / 255  # opacity below which nothing is drawn, and the smallest step of the formats
RDF_TO_RUB = torch.diag(torch.tensor([1.0, -1.0, -1.0], dtype=torch.float64))  # its own inverse

# gaussforge reports on standard output when it reads an SPZ; in a process of its own that disturbs nobody
_READ = """
import sys, gaussforge
from pathlib import Path
kind, source, target = sys.argv[1:]
made = gaussforge.GaussForge().convert(Path(source).read_bytes(), kind, "ply")
if "data" not in made:
    sys.exit(str(made.get("error")))
Path(target).write_bytes(made["data"])
"""


def require() -> None:
    """Raise GsmaeError with the cure when gaussforge is not installed."""
    if importlib.util.find_spec(PACKAGE) is None:
        raise GsmaeError(f"this format needs the package {PACKAGE}: {CURE}")


def encode(gaussians: Gaussians, kind: str) -> bytes:
    """A splat as the bytes of a .splat, .spz or .sog file.

    kind  "splat": 32 bytes a splat, colours 0..1 in 8 bits, no view-dependent colours, rotations in 8 bits.
          "spz": version 3; positions in steps of 1/4096, logarithms of scales of 1/16, opacities of 1/255, base colour
          coefficients of 1/38; higher SH in 4 to 5 bits.
          "sog": positions in 16 bits of a logarithm; scales, colours and higher SH from palettes of the object.
    Raises GsmaeError without gaussforge, or where it refuses.
    """
    require()
    import gaussforge

    g = gaussians.replace(quats=gaussians.rotations)
    g = g.replace(logit_opacities=g.logit_opacities.clamp_min(torch.tensor(FAINTEST).logit()))
    if kind == "spz":
        g = rotate(g, RDF_TO_RUB)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "splat.ply"
        write_ply(file, g)
        made = gaussforge.GaussForge().convert(file.read_bytes(), "ply", kind, strict=True, spz_version=SPZ_VERSION)
    if "data" not in made:
        raise GsmaeError(f"{PACKAGE} could not write {kind}: {made.get('error')}")
    return made["data"]


def decode(path: str | Path, kind: str) -> Gaussians:
    """Read what `encode` wrote, in our frame again. Opacities of 255/255 come back as 1 - 1e-13."""
    require()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "splat.ply"
        command = [sys.executable, "-c", _READ, kind, str(path), str(file)]
        result = subprocess.run(command, capture_output=True, text=True)
        if result.returncode != 0:
            raise InputError(path, f"{PACKAGE} could not read it: {result.stderr.strip()[-300:]}")
        g = read_ply(file)
    return rotate(g, RDF_TO_RUB) if kind == "spz" else g
