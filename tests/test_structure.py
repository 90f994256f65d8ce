"""What keeps the project the shape it was meant to have."""

from __future__ import annotations

import ast
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("gsmae", "data", "preprocessing")
ALLOWED = {"gsmae": {"gsmae"}, "data": {"data", "gsmae"}, "preprocessing": {"preprocessing", "gsmae"}}


def modules() -> list[Path]:
    return [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]


def imports(tree: ast.AST) -> set[str]:
    """Top-level names of absolute imports anywhere below a node."""
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            found.add(node.module.split(".")[0])
    return found


@pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(ROOT)))
def test_stages_meet_on_disk_and_not_in_memory(path):
    """preprocessing -> gsmae <- data; gsmae imports neither, but for its command line inside functions."""
    package = path.relative_to(ROOT).parts[0]
    tree = ast.parse(path.read_text())
    if path.is_relative_to(ROOT / "gsmae" / "cli"):
        tree = ast.Module([node for node in tree.body if not isinstance(node, ast.FunctionDef)], [])
    foreign = imports(tree) & set(PACKAGES) - ALLOWED[package]
    assert not foreign, f"{path.relative_to(ROOT)} imports {foreign}"


def test_only_one_module_knows_plyfile():
    """plyfile is GPLv3: one module imports it."""
    users = [str(p.relative_to(ROOT)) for p in modules() if "plyfile" in imports(ast.parse(p.read_text()))]
    assert users == ["gsmae/ply.py"]


def test_nothing_is_unpickled():
    for path in modules():
        for node in ast.walk(ast.parse(path.read_text())):
            name = ast.unparse(node.func) if isinstance(node, ast.Call) else ""
            if name in ("torch.load", "np.load", "numpy.load"):
                given = {k.arg: ast.unparse(k.value) for k in node.keywords}  # type: ignore[union-attr]
                safe = (
                    given.get("weights_only") == "True"
                    if name == "torch.load"
                    else given.get("allow_pickle") == "False"
                )
                assert safe, f"{path}:{node.lineno} {ast.unparse(node)}"  # type: ignore[attr-defined]
        assert not imports(ast.parse(path.read_text())) & {"pickle", "dill", "shelve", "joblib"}, path


def test_importing_is_light_and_help_answers_at_once():
    code = "import sys, gsmae; assert 'torch' not in sys.modules and 'tyro' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
    start = time.monotonic()
    out = subprocess.run([sys.executable, "-m", "gsmae.cli", "--help"], check=True, cwd=ROOT, capture_output=True)
    assert b"pretrain" in out.stdout and b"Exit codes" in out.stdout
    assert time.monotonic() - start < 5  # half a second is the aim; a loaded machine is not a failure


def requirements() -> dict[str, str]:
    """name -> version range, from every list in pyproject.toml."""
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        tomllib = pytest.importorskip("tomli")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lists = [project["dependencies"], *project["optional-dependencies"].values()]
    return dict(_split(line) for requirements in lists for line in requirements)


def _split(line: str) -> tuple[str, str]:
    line = line.partition(";")[0]
    for i, character in enumerate(line):
        if character in "<>=!~":
            return line[:i].strip(), line[i:].strip()
    return line.strip(), ""


def test_pyproject_constraints_and_conda_agree():
    from packaging.specifiers import SpecifierSet

    ranges = requirements()
    pins = dict(_split(line) for line in (ROOT / "constraints.txt").read_text().split("\n") if line and line[0] != "#")
    for name, pin in pins.items():
        assert pin.removeprefix("==") in SpecifierSet(ranges[name]), f"constraints.txt pins {name}{pin}"
    conda = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    pip = next(entry["pip"] for entry in conda if isinstance(entry, dict))
    for name, wanted in (_split(line) for line in pip if not line.startswith("-e")):
        assert wanted == pins.get(name, ranges.get(name)), f"environment.yml asks for {name}{wanted}"
    assert "-e .[test,full]" in pip
    for named in ("torch", "plyfile", "open3d", "h5py", "tqdm"):
        assert any(line.startswith(named) for line in pip)
    assert (
        "torch-scatter" in ranges
        and "torch-scatter" + ranges["torch-scatter"] in (ROOT / "environment.yml").read_text()
    )


def test_the_code_is_formatted_and_linted():
    for command in (["check", "-q"], ["format", "--check", "-q"]):
        result = subprocess.run([sys.executable, "-m", "ruff", *command, "."], cwd=ROOT, capture_output=True, text=True)
        assert result.returncode == 0, result.stdout + result.stderr


def test_types_agree():
    """pyright brings its own Node.js when the machine has none, which a closed network may refuse."""
    pyright = [sys.executable, "-m", "pyright"]
    try:
        subprocess.run([*pyright, "--version"], cwd=ROOT, capture_output=True, timeout=120, check=True)
    except subprocess.SubprocessError:
        pytest.skip("pyright cannot start here")
    result = subprocess.run([*pyright, "--pythonpath", sys.executable], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout


def test_the_command_that_ci_runs_is_the_readmes():
    assert "scripts/test.sh" in (ROOT / ".ci" / "run").read_text()
    readme = (ROOT / "README.md").read_text()
    assert "bash scripts/quickstart.sh" in readme and "bash scripts/test.sh" in readme


@pytest.mark.slow
def test_a_wheel_has_kernels_templates_and_examples(tmp_path):
    import zipfile

    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", str(tmp_path), str(ROOT)]
    subprocess.run(command, check=True)
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert any(name.startswith("gsmae/ops/native/_kernels_") for name in names)
    assert "gsmae/report/templates/page.html.j2" in names and "preprocessing/examples/parts.json" in names
