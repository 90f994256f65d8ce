"""Where objects are fitted."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Literal

from gsmae.errors import GsmaeError

LAUNCH = 64  # objects at once on a GPU, where nobody says otherwise and memory allows it


def chosen_device(wanted: str) -> Literal["cpu", "cuda"]:
    """Where to build: "cpu" or "cuda"; "auto" is a GPU where torch sees one and the extra `gpu` is installed.

    Raises GsmaeError where "cuda" is wanted and cannot be.
    """
    installed = find_spec("warp") is not None
    if wanted == "cpu" or (wanted == "auto" and not installed):
        return "cpu"
    import torch  # only here: most builds are started by a process that needs none

    seen = torch.version.cuda is not None and torch.cuda.is_available()
    if wanted == "cuda" and not (seen and installed):
        missing = "the extra `gpu` is not installed: pip install 'gsmae[gpu]'" if seen else "torch sees no GPU"
        raise GsmaeError(f"--device cuda: {missing}")
    return "cuda" if seen else "cpu"
