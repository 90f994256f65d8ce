import re

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gsmae.errors import InputError
from gsmae.ply import read_ply, read_ply_bytes, write_ply

FIELDS = ("means", "quats", "log_scales", "logit_opacities", "sh")


@pytest.mark.parametrize("degree", [0, 1, 2, 3])
def test_what_is_written_is_read_back_bit_for_bit(tmp_path, make_splat, degree):
    g = make_splat(33, degree)
    write_ply(tmp_path / "a.ply", g)
    h = read_ply(tmp_path / "a.ply")
    assert all(torch.equal(getattr(g, f), getattr(h, f)) for f in FIELDS)
    write_ply(tmp_path / "b.ply", h)
    assert (tmp_path / "a.ply").read_bytes() == (tmp_path / "b.ply").read_bytes()


def test_a_degree_3_splat_has_the_62_properties_and_248_bytes_that_viewers_expect(tmp_path, make_splat):
    write_ply(tmp_path / "a.ply", make_splat(2, 3))
    head, body = (tmp_path / "a.ply").read_bytes().split(b"end_header\n")
    names = re.findall(rb"property float (\S+)", head)
    assert len(names) == 62 and len(body) == 2 * 248
    assert names[:9] == [b"x", b"y", b"z", b"nx", b"ny", b"nz", b"f_dc_0", b"f_dc_1", b"f_dc_2"]
    assert names[54:] == [b"opacity", b"scale_0", b"scale_1", b"scale_2", b"rot_0", b"rot_1", b"rot_2", b"rot_3"]


def test_f_rest_is_channel_major(tmp_path, make_splat):
    g = make_splat(1, 1)
    write_ply(tmp_path / "a.ply", g)
    row = np.frombuffer((tmp_path / "a.ply").read_bytes().split(b"end_header\n")[1], dtype="<f4")
    assert row[9:12].tolist() == g.sh[0, 1:, 0].tolist()  # all of red first


def _ply(properties: list[str], rows: np.ndarray, count: int | None = None) -> bytes:
    head = ["ply", "format binary_little_endian 1.0", f"element vertex {len(rows) if count is None else count}"]
    head += [f"property float {p}" for p in properties] + ["end_header\n"]
    return "\n".join(head).encode() + rows.astype("<f4").tobytes()


BARE = ["x", "y", "z", "f_dc_0", "f_dc_1", "f_dc_2", "opacity", "scale_0", "scale_1", "scale_2",
        "rot_0", "rot_1", "rot_2", "rot_3"]  # fmt: skip


def test_properties_may_come_in_any_order_and_without_normals(tmp_path):
    order = BARE[::-1]
    rows = np.tile(np.arange(14, dtype=np.float32), (3, 1))
    (tmp_path / "a.ply").write_bytes(_ply(order, rows))
    g = read_ply(tmp_path / "a.ply")
    assert g.means[0].tolist() == [13, 12, 11] and g.quats[0].tolist() == [3, 2, 1, 0] and g.degree == 0


GOOD = np.ones((3, 14), dtype=np.float32)
NAN = GOOD.copy()
NAN[1, 11] = np.nan
HEAD = _ply(BARE, GOOD)
BAD = {
    "empty": (b"", "empty file"),
    "a picture": (b"\x89PNG....", "does not begin with 'ply'"),
    "no end of header": (b"ply\nformat ascii 1.0\n" + b"comment x\n" * 9000, "no 'end_header'"),
    "cut off": (HEAD[:-5], "is cut off"),
    "trailing bytes": (HEAD + b"123", "trailing bytes"),
    "ten billion": (_ply(BARE, GOOD, 10**10), "promises 10000000000"),
    "none": (_ply(BARE, GOOD[:0]), "promises 0"),
    "no rotation": (_ply(BARE[:-1], GOOD[:, :-1]), "property 'rot_3' is missing"),
    "five f_rest": (_ply([*BARE, *(f"f_rest_{i}" for i in range(5))], np.ones((1, 19))), "5 'f_rest'"),
    "not a number": (_ply(BARE, NAN), "1 of 3 Gaussians have a non-finite rot"),
    "a list": (b"ply\nformat ascii 1.0\nelement vertex 1\nproperty list uchar int x\nend_header\n1 2\n", "list"),
    "a mesh": (HEAD.replace(b"end_header", b"element face 3\nend_header"), "second element 'face'"),
    "twice": (_ply([*BARE, "x"], np.ones((1, 15))), "named twice"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_file_that_is_not_a_splat_is_refused_with_its_name_and_the_cause(tmp_path, case):
    content, cause = BAD[case]
    path = tmp_path / "bad.ply"
    path.write_bytes(content)
    with pytest.raises(InputError, match=cause) as caught:
        read_ply(path)
    assert str(path) in str(caught.value)
    with pytest.raises(InputError, match=cause) as again:
        read_ply_bytes(content, path)
    assert str(again.value) == str(caught.value)


def test_a_missing_file_and_a_folder_are_refused(tmp_path):
    with pytest.raises(InputError, match="No such file"):
        read_ply(tmp_path / "none.ply")
    with pytest.raises(InputError, match="directory"):
        read_ply(tmp_path)


def test_infinities_with_a_meaning_are_kept_finite(tmp_path):
    rows = GOOD.copy()
    rows[0, 6], rows[1, 7] = np.inf, -np.inf
    (tmp_path / "a.ply").write_bytes(_ply(BARE, rows))
    g = read_ply(tmp_path / "a.ply")
    assert g.opacities[0] == 1 and g.scales[1, 0] < 1e-8 and torch.isfinite(g.log_scales).all()


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_no_mutation_of_a_good_file_crashes_the_reader(tmp_path_factory, data):
    content = bytearray(HEAD)
    for _ in range(data.draw(st.integers(1, 6))):
        i = data.draw(st.integers(0, len(content) - 1))
        content[i] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.mktemp("fuzz") / "a.ply"
    path.write_bytes(bytes(content))
    try:
        g = read_ply(path)
    except InputError as error:
        with pytest.raises(InputError) as again:
            read_ply_bytes(bytes(content), path)
        assert str(again.value) == str(error)
        return
    assert torch.isfinite(g.means).all() and len(g) == 3
    h = read_ply_bytes(bytes(content), path)
    assert all(torch.equal(getattr(g, f), getattr(h, f)) for f in FIELDS)


@pytest.mark.parametrize("form", ["ascii", "binary_little_endian", "binary_big_endian"])
def test_bytes_in_memory_are_read_like_a_file(tmp_path, make_splat, form):
    from plyfile import PlyData

    write_ply(tmp_path / "little.ply", make_splat(9, 1))
    ply = PlyData.read(str(tmp_path / "little.ply"))
    ply.text, ply.byte_order = form == "ascii", ">" if form.endswith("big_endian") else "<"
    ply.write(str(tmp_path / "a.ply"))
    g, h = read_ply(tmp_path / "a.ply"), read_ply_bytes((tmp_path / "a.ply").read_bytes(), "zip/a.ply")
    assert all(torch.equal(getattr(g, f), getattr(h, f)) for f in FIELDS)


def test_non_finite_gaussians_are_not_written(tmp_path, make_splat):
    g = make_splat(3)
    with pytest.raises(ValueError, match="non-finite"):
        write_ply(tmp_path / "a.ply", g.replace(means=g.means * float("nan")))
    assert list(tmp_path.iterdir()) == []
