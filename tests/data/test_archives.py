"""Zips are read in place; a hostile or damaged one is refused by name and nothing is written."""

from __future__ import annotations

import pickle
import stat
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest

import data.archives
from data.archives import Archive, places
from gsmae.errors import InputError


def zipped(path: Path, files: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", method) as file:
        for name, content in files.items():
            file.writestr(name, content)
    return path


def noise(count: int, seed: int = 0) -> bytes:
    return np.random.default_rng(seed).bytes(count)


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_members_are_read_where_they_lie(tmp_path, method):
    files = {"a/b.ply": noise(9_000_000), "c.txt": b"hello", "empty": b""}
    archive = Archive(zipped(tmp_path / "x.zip", files, method))
    assert {name: member.read_bytes() for name, member in archive.members.items()} == files
    assert str(archive.members["c.txt"]) == f"{tmp_path}/x.zip/c.txt" and archive.members["a/b.ply"].size == 9_000_000
    assert [p.name for p in tmp_path.iterdir()] == ["x.zip"]


def test_an_archive_survives_being_sent_to_another_process_and_being_closed(tmp_path):
    member = Archive(zipped(tmp_path / "x.zip", {"a": b"1"})).members["a"]
    assert member.read_bytes() == b"1"
    assert pickle.loads(pickle.dumps(member)).read_bytes() == b"1"
    member.archive.close()
    assert member.read_bytes() == b"1"


def test_a_zip_counts_as_a_folder_of_its_name(tmp_path):
    (tmp_path / "deep" / ".cache").mkdir(parents=True)
    (tmp_path / "deep" / "b.ply").write_bytes(b"b")
    (tmp_path / "deep" / ".cache" / "c.ply").write_bytes(b"no")
    (tmp_path / "deep" / "loop").symlink_to(tmp_path)
    zipped(tmp_path / "deep" / "z_0.zip", {"a.ply": b"a", "__MACOSX/._a.ply": b"no", "d/": b"", "d/.DS_Store": b"no"})
    found = places(tmp_path)
    assert [name for name, _ in found] == ["deep/b.ply", "deep/z_0/a.ply"]
    assert [place.read_bytes() for _, place in found] == [b"b", b"a"]
    assert [name for name, _ in places(tmp_path / "deep" / "z_0.zip")] == ["z_0/a.ply"]


def link(path: Path) -> None:
    info = zipfile.ZipInfo("link.ply")
    info.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(path, "w") as file:
        file.writestr(info, "/etc/passwd")


def twice(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("a.ply", b"1")
        with pytest.warns(UserWarning, match="Duplicate name"):
            file.writestr("a.ply", b"2")


def edited(path: Path, old: bytes, new: bytes) -> None:
    content = zipped(path, {"abcdefgh.ply": noise(100)}, zipfile.ZIP_STORED).read_bytes()
    assert old in content and len(old) == len(new)
    path.write_bytes(content.replace(old, new))


def encrypted(path: Path) -> None:
    content = bytearray(zipped(path, {"a": b"x" * 50}).read_bytes())
    content[content.index(b"PK\1\2") + 8] |= 1
    path.write_bytes(content)


def overlapping(path: Path) -> None:
    """A hundred and twenty names for one and the same stored megabyte."""
    content = zipped(path, {"a000.ply": noise(1 << 20)}, zipfile.ZIP_STORED).read_bytes()
    at, end = content.index(b"PK\1\2"), content.rindex(b"PK\5\6")
    entries = b"".join(content[at:end].replace(b"a000", b"a%03d" % k) for k in range(120))
    tail = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 120, 120, len(entries), at, 0)
    path.write_bytes(content[:at] + entries + tail)


HOSTILE = {
    "absolute": (lambda p: zipped(p, {"/etc/passwd": b"x"}), "absolute"),
    "drive": (lambda p: zipped(p, {"C:/x.ply": b"x"}), "absolute"),
    "backslash": (lambda p: zipped(p, {"..\\x.ply": b"x"}), "absolute name or one of another system"),
    "nul": (lambda p: edited(p, b"abcdefgh.ply", b"a.ply\0gh.ply"), "absolute name or one of another system"),
    "dotdot": (lambda p: zipped(p, {"a/../../x.ply": b"x"}), "leads outside"),
    "link": (link, "is a link"),
    "twice": (twice, "two members"),
    "encrypted": (encrypted, "encrypted"),
    "method": (lambda p: zipped(p, {"a": b"x"}, zipfile.ZIP_BZIP2), "method 12"),
    "bomb": (lambda p: zipped(p, {"a": bytes(50_000_000)}), "promise to unpack to 50000000"),
    "hidden bomb": (lambda p: zipped(p, {"a": bytes(3_000_000), "b": noise(90_000)}), "to 3000000"),
    "overlap": (overlapping, "promise to unpack to 125829120"),
    "empty": (lambda p: p.write_bytes(b""), "not readable as a zip"),
    "picture": (lambda p: p.write_bytes(noise(5000)), "not readable as a zip"),
    "cut off": (lambda p: p.write_bytes(zipped(p, {"a": noise(5000)}).read_bytes()[:-30]), "not readable as a zip"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_zip_that_is_not_honest_is_refused(tmp_path, case):
    make, cause = HOSTILE[case]
    make(tmp_path / "x.zip")
    with pytest.raises(InputError, match=cause) as error:
        Archive(tmp_path / "x.zip")
    assert error.value.path == str(tmp_path / "x.zip")


def test_a_table_of_contents_or_a_member_beyond_the_limits_is_refused_before_it_is_read(tmp_path, monkeypatch):
    path = zipped(tmp_path / "x.zip", {f"{k:04d}": noise(10, k) for k in range(100)})
    for name, value, cause in (
        ("MAX_TABLE", 1000, "a piece of more than 1000 bytes"),
        ("MAX_MEMBERS", 99, "100 members"),
        ("MAX_MEMBER", 9, "unpacks to 10 bytes"),
    ):
        with monkeypatch.context() as patch, pytest.raises(InputError, match=cause):
            patch.setattr(data.archives, name, value)
            Archive(path)


def test_whatever_bytes_of_a_zip_are_changed_it_reads_alike_or_is_refused(tmp_path):
    files = {f"{k}.ply": noise(300, k) + bytes(300) for k in range(5)}
    whole = zipped(tmp_path / "x.zip", files).read_bytes()
    rng, refused = np.random.default_rng(0), 0
    for _ in range(400):
        spoilt = bytearray(whole)
        for at in rng.integers(0, len(whole), 2):
            spoilt[at] = int(rng.integers(256))
        (tmp_path / "x.zip").write_bytes(spoilt)
        try:
            for member in Archive(tmp_path / "x.zip").members.values():
                assert member.read_bytes() in files.values()
        except InputError as error:
            assert error.path.startswith(str(tmp_path / "x.zip"))
            refused += 1
    assert refused > 100
