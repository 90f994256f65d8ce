"""What is fuzzed: for each kind of file good examples, how they are damaged, and the entry point that reads them."""

from __future__ import annotations

import hashlib
import io
import json
import random
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fuzz_seeds as seeds
import numpy as np
import torch
from fuzz_mutations import mutated, mutated_json
from fuzz_seeds import Files
from safetensors.torch import save as save_tensors

from data import SplatDataset
from data.archives import places
from data.lists import read_list
from data.manifest import read_build
from data.packs import read_index, read_pack
from data.released import read_released
from data.repairs import repair
from data.shardfile import Shard
from data.shards import check, pack, verify
from data.surface import read_points
from gsmae import checkpoint
from gsmae.config import from_yaml
from gsmae.convert import build as network
from gsmae.convert import import_released, to_released
from gsmae.features import FeatureSpec
from gsmae.gaussians import Gaussians
from gsmae.models import ClassifierConfig, EncoderConfig, MAEConfig
from gsmae.ply import read_ply, read_ply_bytes, write_ply
from gsmae.recipes import RECIPES
from gsmae.zoo import load_trained
from preprocessing.meshes import load_mesh
from preprocessing.parts import read_part_patterns
from preprocessing.sources import SOURCES, detect, skipped
from preprocessing.surface import part_labels, sample_surface

Damage = Callable[[bytes, list[bytes], random.Random], bytes]


@dataclass(frozen=True)
class Target:
    """One kind of input.

    examples  sets of files that are read without an error
    damaged   which files of a set are damaged, by the end of their name
    read      what gsmae does with a folder of such files; given the folder
    damage    how a file is changed
    mend      what an attacker would put right afterwards: hashes and sizes that are written elsewhere
    """

    examples: list[Files]
    damaged: tuple[str, ...]
    read: Callable[[Path], Any]
    damage: Damage
    mend: Callable[[Files], Files] = lambda files: files

    def case(self, seed: str) -> Files:
        """The files of one damaged example; the same seed gives the same."""
        dice = random.Random(seed)
        files = dict(dice.choice(self.examples))
        name = dice.choice([name for name in files if name.endswith(self.damaged)])
        suffix = "." + name.rpartition(".")[2]
        others = [content for f in self.examples for n, content in f.items() if n.endswith(suffix)]
        files[name] = self.damage(files[name], others, dice)
        return self.mend(files)


def as_text(content: bytes, others: list[bytes], dice: random.Random) -> bytes:
    """Damage of a text."""
    return mutated(content, others, dice, text=True)


def as_bytes(content: bytes, others: list[bytes], dice: random.Random) -> bytes:
    """Damage of a binary file."""
    return mutated(content, others, dice, text=False)


def _mesh(folder: Path) -> Any:
    """Everything that a build does with a mesh before it is rendered."""
    path = next(
        p
        for p in sorted(folder.iterdir())
        if p.suffix in (".obj", ".off", ".stl", ".ply", ".dae", ".wrl", ".glb", ".gltf")
    )
    mesh = load_mesh(path)
    samples = sample_surface(mesh, 200, 0)
    assert np.isfinite(samples.points).all() and np.isfinite(mesh.uvs).all() and np.isfinite(mesh.normals).all()
    return part_labels(mesh, samples.faces, {"a": ["*wood*"], "b": ["*"]})


def _glb_json(content: bytes, others: list[bytes], dice: random.Random) -> bytes:
    """The JSON of a GLB changed as JSON half of the time, else its bytes."""
    if dice.random() < 0.5 or content[:4] != b"glTF":
        return as_bytes(content, others, dice)
    size = int.from_bytes(content[12:16], "little")
    text = mutated_json(content[20 : 20 + size], [content[20 : 20 + size]], dice)
    text += b" " * (-len(text) % 4)
    rest = len(text).to_bytes(4, "little") + b"JSON" + text + content[20 + size :]
    return content[:8] + (12 + len(rest)).to_bytes(4, "little") + rest


def _splat(count: int, degree: int, seed: int) -> Gaussians:
    g = torch.Generator().manual_seed(seed)
    k = (degree + 1) ** 2
    return Gaussians(*(torch.randn(count, *shape, generator=g) * 0.3 for shape in ((3,), (4,), (3,), (), (k, 3))))


def _ascii(content: bytes) -> bytes:
    """A binary splat as text."""
    from plyfile import PlyData

    read, out = PlyData.read(io.BytesIO(content)), io.BytesIO()
    read.text = True
    read.write(out)
    return out.getvalue()


def _splat_head(content: bytes, others: list[bytes], dice: random.Random) -> bytes:
    """Damage of the header as text, or of the whole."""
    end = content.find(b"end_header\n") + 11
    if dice.random() < 0.5:
        return as_text(content[:end], [other[:1500] for other in others], dice) + content[end:]
    return mutated(content, others, dice, text=content[:30].find(b"ascii") > 0)


def _read_splat(folder: Path) -> Any:
    file, outcomes = folder / "a.ply", []
    for read in (lambda: read_ply(file), lambda: read_ply_bytes(file.read_bytes(), file)):
        try:
            splat = read()
            assert all(torch.isfinite(v).all() for v in (splat.means, splat.scales, splat.rotations, splat.colors))
            outcomes.append(len(splat))
        except Exception as error:
            outcomes.append(error)
    if isinstance(outcomes[0], Exception) != isinstance(outcomes[1], Exception):
        raise AssertionError(f"a file and its bytes are read differently: {outcomes}")
    if isinstance(outcomes[0], Exception):
        raise outcomes[0]
    return outcomes


def _zip(folder: Path) -> Any:
    files = places(folder / "a.zip")
    for _, place in files:
        place.read_bytes()
    return read_released(folder / "a.zip").records


def _shard(folder: Path) -> Any:
    shard = Shard(folder / "shard_00000.h5")
    for i in range(len(shard)):
        shard.rows(i)
        shard.points(i)
    dataset = SplatDataset(folder, "train")
    verify(folder)
    return [dataset[i] for i in range(len(dataset))]


def _pack_json(folder: Path) -> Any:
    read_index(folder, read_pack(folder))
    check(folder)
    dataset = SplatDataset(folder)
    return [dataset[i] for i in range(len(dataset))]


def _build_folder(folder: Path) -> Any:
    check(folder)
    build = read_build(folder, rebuild=True)
    read_build(folder)
    for record in build.done:
        build.gaussians(record)
    repair(folder)
    return pack(folder, folder.parent / "packed")


def _trained(folder: Path) -> Any:
    with torch.no_grad():
        trained = load_trained(folder)
        encoder: Any = trained.model.encoder
        return encoder(_splat(60, 0, 0)).tokens.sum()


def _sized(files: Files) -> Files:
    """pack.json with the sizes and hashes of the files that it lists."""
    info = json.loads(files["pack.json"])
    for entry in (info["index"], *info["shards"]):
        content = files[entry["file"]]
        entry["bytes"], entry["sha256"] = len(content), hashlib.sha256(content).hexdigest()
    return {**files, "pack.json": json.dumps(info).encode()}


def _hashed(files: Files) -> Files:
    """state.json with the hash of the weights."""
    state = json.loads(files["state.json"])
    state["sha256"]["weights.safetensors"] = hashlib.sha256(files["weights.safetensors"]).hexdigest()
    return {**files, "state.json": json.dumps(state).encode()}


def _safetensors(content: bytes, others: list[bytes], dice: random.Random) -> bytes:
    """The JSON header of a safetensors file changed as JSON, or the bytes."""
    size = int.from_bytes(content[:8], "little")
    if dice.random() < 0.4 or size > len(content):
        return as_bytes(content, others, dice)
    text = mutated_json(content[8 : 8 + size], [content[8 : 8 + size]], dice)
    return len(text).to_bytes(8, "little") + text + content[8 + size :]


def _zipped(files: dict[str, bytes], method: int) -> bytes:
    import zipfile

    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", method) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return out.getvalue()


def _files(folder: Path) -> Files:
    return {
        p.relative_to(folder).as_posix(): p.read_bytes()
        for p in sorted(folder.rglob("*"))
        if p.is_file() and p.name != ".lock"
    }


def _make_build(folder: Path) -> None:
    """A build of four objects, as `gsmae build` writes it."""
    from gsmae.files import sha256, write_json

    patterns = {"chair": {"leg": ["leg*"], "seat": ["seat"]}}
    write_json(folder / "build.json", {"schema": 1, "frame": "z-up", "source": "folder", "root": "/nowhere", "seed": 0,
                                       "config_hash": "c0ffee", "config": {}, "part_patterns": patterns})  # fmt: skip
    write_json(folder / "parts.json", {"chair": ["leg", "seat"]})
    rng = np.random.default_rng(0)
    for number, uid in enumerate(("chair/a", "chair/b", "table/c", "table/d")):
        file = folder / "splats" / f"{uid}.ply"
        write_ply(file, _splat(20 + number, number % 2, number))
        parts = ["leg", "seat"] if uid.startswith("chair") else []
        points = folder / "points" / f"{uid}.npz"
        points.parent.mkdir(parents=True, exist_ok=True)
        np.savez_compressed(
            points, points=rng.uniform(-1, 1, (9, 3)).astype("f4"), normals=rng.normal(size=(9, 3)).astype("f4"),
            colors=rng.integers(0, 255, (9, 3)).astype("u1"),
            parts=rng.integers(-1, max(len(parts), 0), 9).astype("i2"),
        )  # fmt: skip
        write_json(folder / "records" / f"{uid}.json", {
            "schema": 1, "uid": uid, "category": uid.split("/")[0], "split": ("train", "test")[number % 2],
            "status": "done", "reason": "", "stage": "", "mesh": f"{uid}.obj", "mesh_sha256": f"{number}",
            "mesh_to_splat": np.eye(4).tolist(), "gaussians": 20 + number, "psnr": 30.0, "ssim": 0.9, "seconds": 1.0,
            "seed": 0, "config_hash": "c0ffee", "sha256": sha256(file), "bytes": file.stat().st_size,
            "part_names": parts, "warnings": [],
        })  # fmt: skip


def targets() -> dict[str, Target]:
    """Every kind by its name, with examples made anew."""
    out = {}
    for kind, objects in seeds.meshes().items():
        damage = {"stl": as_bytes, "ply": _splat_head, "glb": _glb_json, "gltf": mutated_json}.get(kind, as_text)
        out[kind] = Target(objects, (f".{kind}",), _mesh, damage)
    out["stl"] = Target(
        out["stl"].examples, (".stl",), _mesh, lambda c, o, d: (as_text if c[:5] == b"solid" else as_bytes)(c, o, d)
    )
    square = b"mtllib a.mtl\nv 0 0 0\nv 1 0 0\nv 1 1 0\nvt 0 0\nvt 1 0\nvt 1 1\nusemtl m\nf 1/1 2/2 3/3\n"
    pictures = [
        {"a.obj": square, "a.mtl": f"newmtl m\nmap_Kd {name}\n".encode(), name: content}
        for name, content in seeds.textures().items()
    ]
    endings = tuple(name for name in seeds.textures())
    out["image"] = Target(pictures, endings, _mesh, as_bytes)
    with tempfile.TemporaryDirectory() as name:
        _fill(Path(name), out)
    return out


def _fill(home: Path, out: dict[str, Target]) -> None:
    """The targets whose examples gsmae writes itself."""
    splats = []
    for number, degree in enumerate((0, 1, 3)):
        write_ply(home / "a.ply", _splat(6, degree, number))
        splats.append((home / "a.ply").read_bytes())
    splats.append(_ascii(splats[0]))
    out["splat"] = Target([{"a.ply": content} for content in splats], (".ply",), _read_splat, _splat_head)
    members = {"03001627-1a.ply": splats[0], "03001627-2b.ply": splats[1], "chair/train/x/point_cloud.ply": splats[0]}
    out["zip"] = Target([{"a.zip": _zipped(members, method)} for method in (0, 8)], (".zip",), _zip, as_bytes)

    _make_build(home / "build")
    build = _files(home / "build")
    out["build"] = Target([build], (".json",), _build_folder, mutated_json)
    out["points"] = Target(
        [{"a.npz": content} for name, content in build.items() if name.endswith(".npz")]
        + [{"a.npz": _npz_stored(build["points/chair/a.npz"])}],
        (".npz",), lambda folder: read_points(folder / "a.npz", 2), as_bytes,
    )  # fmt: skip
    packs = []
    for quantize in (None, "u16"):
        pack(home / "build", home / f"pack{quantize}", quantize=quantize)
        packs.append(_files(home / f"pack{quantize}"))
    out["hdf5"] = Target(packs, (".h5",), _shard, as_bytes, _sized)
    out["parquet"] = Target(packs, (".parquet",), _pack_json, as_bytes, _sized)
    out["pack.json"] = Target(packs, ("pack.json",), _pack_json, mutated_json)

    encoder = EncoderConfig(width=12, depth=2, heads=2, groups=4, group_size=4, points=32)
    configs = (
        MAEConfig(encoder=encoder, decoder_depth=1, decoder_heads=2),
        ClassifierConfig(encoder=encoder, classes=3),
    )
    trained, released = [], []
    for config, task in zip(configs, ("pretrain", "classify"), strict=True):
        model, folder = network(config, FeatureSpec()), home / task
        state = {"task": task, "spec": model.spec.model_dump(mode="json"), "model": config.model_dump(mode="json"),
                 "classes": ["a", "b", "c"], "parts": [], "train": {}, "step": 1, "epoch": 0.5, "best": {}}  # fmt: skip
        checkpoint.save(folder, state, model, None)
        trained.append(_files(folder))
        file = io.BytesIO()
        torch.save({"base_model": to_released(model), "epoch": 3}, file)
        released.append({"a.pth": file.getvalue()})
        released.append({"a.safetensors": save_tensors({k: v.contiguous() for k, v in to_released(model).items()})})
    file = io.BytesIO()
    torch.save(to_released(model), file, _use_new_zipfile_serialization=False)
    released.append({"a.pth": file.getvalue()})
    out["state.json"] = Target(trained, ("state.json",), _trained, mutated_json)
    out["safetensors"] = Target(trained, (".safetensors",), _trained, _safetensors, _hashed)
    out["released"] = Target(
        released, (".pth", ".safetensors"),
        lambda folder: import_released(next(folder.iterdir()), heads=2, groups=4, group_size=4), as_bytes,
    )  # fmt: skip

    from gsmae.config import to_yaml

    recipe = RECIPES["pretrain"]["tiny"]
    to_yaml(recipe, home / "a.yaml")
    yamls = [{"a.yaml": (home / "a.yaml").read_bytes()}, {"a.yaml": seeds.YAML.encode()}]
    out["yaml"] = Target(
        yamls, (".yaml",),
        lambda folder: (from_yaml(type(recipe), folder / "a.yaml"), from_yaml(type(recipe), folder / "a.yaml", recipe)),
        as_text,
    )  # fmt: skip
    out["parts"] = Target([{"parts.json": json.dumps(seeds.PARTS).encode()}], (".json",), _patterns, mutated_json)
    lists = [
        {"train.txt": b"03001627-1a2b.ply\nchair/train/chair_0001/point_cloud.ply\n# no\nchair_0002\n\\a\\b.off\n"},
        {"train.json": json.dumps(["shape_data/03001627/1a", "a/b.ply"]).encode()},
        {"a.json": json.dumps({"train": ["chair/a"], "val": [], "testing": ["x"]}).encode()},
        {"all.csv": b"id,synsetId,subSynsetId,modelId,split\n1,02691156,02691156,1a04,train\n2,2691156,1,1b,val\n"},
    ]
    out["lists"] = Target(
        lists, (".txt", ".json", ".csv"), _lists, lambda c, o, d: (mutated_json if c[:1] in b"[{" else as_text)(c, o, d)
    )
    shutil.rmtree(home / "build")


def _npz_stored(content: bytes) -> bytes:
    """The same arrays, not compressed: their headers lie open to damage."""
    out = io.BytesIO()
    with np.load(io.BytesIO(content)) as arrays:
        np.savez(out, **dict(arrays))
    return out.getvalue()


def _patterns(folder: Path) -> Any:
    return read_part_patterns(folder / "parts.json")


def _lists(folder: Path) -> Any:
    return [read_list(file) for file in sorted(folder.iterdir())]


def read_tree(folder: Path) -> Any:
    """A collection of meshes, listed."""
    name = detect(folder)
    return list(SOURCES[name](folder)), skipped(folder, name)
