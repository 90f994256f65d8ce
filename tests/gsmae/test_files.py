import pickle

import pytest

from gsmae.errors import InputError
from gsmae.files import read_json, sweep, write_aside, write_folder_aside, write_json


def test_a_file_is_absent_or_whole(tmp_path):
    path = tmp_path / "deep" / "a.txt"
    with pytest.raises(RuntimeError), write_aside(path) as aside:
        aside.write_text("half")
        raise RuntimeError
    assert list(path.parent.iterdir()) == []
    with write_aside(path) as aside:
        aside.write_text("whole")
        assert not path.exists()
    assert path.read_text() == "whole" and list(path.parent.iterdir()) == [path]


def test_a_folder_is_absent_or_whole_and_replaces_the_old_one(tmp_path):
    path = tmp_path / "run"
    for content in ("one", "two"):
        with write_folder_aside(path) as folder:
            (folder / content).write_text(content)
    assert [p.name for p in path.iterdir()] == ["two"]
    with pytest.raises(RuntimeError), write_folder_aside(path) as folder:
        raise RuntimeError
    assert [p.name for p in path.iterdir()] == ["two"] and len(list(tmp_path.iterdir())) == 1


def test_what_a_kill_leaves_is_swept(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / ".aside-x.ply").write_text("half")
    (tmp_path / ".aside-folder").mkdir()
    (tmp_path / "a" / "kept.ply").write_text("whole")
    assert len(sweep(tmp_path)) == 2
    assert [p.name for p in tmp_path.rglob("*")] == ["a", "kept.ply"]


def test_json_errors_name_the_file(tmp_path):
    (tmp_path / "a.json").write_text("{")
    with pytest.raises(InputError, match=r"a\.json: not readable as JSON"):
        read_json(tmp_path / "a.json")
    with pytest.raises(ValueError):
        write_json(tmp_path / "b.json", {"x": float("nan")})
    assert not (tmp_path / "b.json").exists()


def test_an_input_error_survives_the_way_between_processes():
    error = pickle.loads(pickle.dumps(InputError("a.obj", "is empty", "write something")))
    assert str(error) == "a.obj: is empty (write something)" and error.cause == "is empty"
