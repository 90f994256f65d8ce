import pytest
from pydantic import ValidationError

from gsmae.config import Config, digest, from_mapping, from_yaml, to_yaml
from gsmae.errors import InputError


class Inner(Config):
    depth: int = 12
    """how deep"""


class Outer(Config):
    inner: Inner = Inner()
    rate: float = 0.1


def test_a_configuration_survives_yaml(tmp_path):
    config = Outer(inner=Inner(depth=3))
    to_yaml(config, tmp_path / "c.yaml")
    assert from_yaml(Outer, tmp_path / "c.yaml") == config
    assert digest(config) == digest(from_yaml(Outer, tmp_path / "c.yaml")) != digest(Outer())


def test_a_misspelt_key_is_refused_with_the_nearest_name_at_any_depth(tmp_path):
    with pytest.raises(InputError, match=r"unknown key 'inner.depht' \(did you mean 'depth'\?\)"):
        from_mapping(Outer, {"inner": {"depht": 3}})
    (tmp_path / "c.yaml").write_text("raet: 1\n")
    with pytest.raises(InputError, match=r"c.yaml: unknown key 'raet' \(did you mean 'rate'\?\)"):
        from_yaml(Outer, tmp_path / "c.yaml")


def test_configurations_are_values():
    with pytest.raises(ValidationError):
        Outer().rate = 3  # type: ignore[misc]


def test_what_a_file_does_not_say_comes_from_the_configuration_below_it(tmp_path):
    (tmp_path / "c.yaml").write_text("rate: 0.5\n")
    assert from_yaml(Outer, tmp_path / "c.yaml", Outer(inner=Inner(depth=3))) == Outer(inner=Inner(depth=3), rate=0.5)


@pytest.mark.parametrize("text", ["a: [1", "!!python/object/apply:os.system ['true']", "- 1\n- 2\n"])
def test_broken_or_hostile_yaml_is_an_error_that_names_the_file(tmp_path, text):
    (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(InputError, match="c.yaml"):
        from_yaml(Outer, tmp_path / "c.yaml")
