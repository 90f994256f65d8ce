import struct

import numpy as np
import pytest
import trimesh

from gsmae.errors import InputError
from preprocessing.meshes import load_mesh

BOX = trimesh.creation.box(extents=(1, 2, 4))
TEXT = trimesh.exchange.stl.export_stl_ascii(BOX).encode()
BINARY = trimesh.exchange.stl.export_stl(BOX)


@pytest.mark.parametrize(
    "data",
    [TEXT, BINARY, TEXT.upper(), TEXT.replace(b"\n", b"\r\n"), b"solid by a CAD program".ljust(80) + BINARY[80:],
     BINARY + b"a comment"],
)  # fmt: skip
def test_binary_and_text_give_the_same_box(put, data):
    mesh = load_mesh(put("a.stl", data))
    assert len(mesh.faces) == 12 and mesh.warnings == ()
    assert np.allclose(np.ptp(mesh.vertices, axis=0) * np.sqrt(21) / 2, [1, 2, 4], atol=1e-5)  # z is up
    centres = mesh.vertices[mesh.faces].mean(1)
    assert ((mesh.normals[:, 0] * centres).sum(1) > 0).all()


def test_the_solids_of_a_text_file_are_groups(put):
    facet = b"facet normal 0 0 1\nouter loop\nvertex 0 0 0\nvertex 1 0 0\nvertex 0 1 %d\nendloop\nendfacet\n"
    text = b"solid left leg\n" + facet % 0 + b"endsolid left leg\nsolid empty\nendsolid\nsolid seat\n"
    mesh = load_mesh(put("a.stl", text + facet % 1 + facet % 2 + b"endsolid seat\n"))
    assert [mesh.group_names[i] for i in mesh.groups] == ["left leg", "seat", "seat"]


@pytest.mark.parametrize(
    ("data", "cause"),
    [
        (BINARY[:-60], "promises 12 facets"),
        (BINARY[:80] + struct.pack("<I", 2**31) + BINARY[84:], "promises 2147483648"),
        (TEXT[: TEXT.find(b"vertex", 600) + 3], "not three for each"),
        (b"solid nothing\nendsolid", "no faces"),
        (b"solid" + b"\0" * 79 + b"\0\0\0\0", "no faces"),
        (b"hello", "promises 0 facets|not an STL"),
        (TEXT.replace(b"0.5", b"half"), "a vertex"),
        (TEXT.replace(b"0.5", b"nan"), "not finite"),
    ],
)
def test_a_bad_file_is_an_error_that_says_why(put, data, cause):
    with pytest.raises(InputError, match=cause):
        load_mesh(put("a.stl", data))


def test_a_text_that_stops_between_two_facets_is_told(put):
    stop = TEXT.find(b"endfacet", 900) + 9
    mesh = load_mesh(put("a.stl", TEXT[:stop]))
    assert len(mesh.faces) < 12 and "facets may be missing" in mesh.warnings[0]
