"""Small meshes for the tests of one property each."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

QUAD = "v 0 0 0\nv 1 0 0\nv 1 1 0\nv 0 1 0\nvt 0 0\nvt 1 0\nvt 1 1\nvt 0 1\n"
FACE = "f 1/1 2/2 3/3 4/4\n"


@pytest.fixture
def put(tmp_path):
    """put("a/b.obj", text, bytes or picture array) -> path, below the test's folder."""

    def write(name: str, content: str | bytes | np.ndarray) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, np.ndarray):
            Image.fromarray(content).save(path)
        elif isinstance(content, bytes):
            path.write_bytes(content)
        else:
            path.write_text(content)
        return path

    return write


@pytest.fixture
def textured(put):
    """textured(line) -> path of an upright unit square with the material line `map_Kd ...` of models/a.mtl."""

    def make(line: str) -> Path:
        put("models/a.mtl", f"newmtl paint\nKd 0.2 0.4 0.6\n{line}\n")
        return put("models/a.obj", f"mtllib a.mtl\n{QUAD}usemtl paint\n{FACE}")

    return make


@pytest.fixture
def one_mesh(tmp_path, examples) -> Path:
    """A collection of one real object, chair/foldingChair."""
    shutil.copytree(examples / "meshes" / "chair" / "foldingChair", tmp_path / "meshes" / "chair" / "foldingChair")
    return tmp_path / "meshes"
