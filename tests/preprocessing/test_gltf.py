import base64
import io
import json
import struct
from typing import Any

import numpy as np
import pytest
import trimesh
from PIL import Image

from gsmae.errors import InputError
from preprocessing.meshes import load_mesh

SQUARE = [(0, 0, 0), (1, 0, 0), (1, 1, 0), (0, 1, 0)]
TWO = [0, 1, 2, 0, 2, 3]
UVS = [(0, 1), (1, 1), (1, 0), (0, 0)]  # v down: the picture upright


class Asset:
    """A glTF under construction: arrays go into one buffer, everything else is plain JSON."""

    def __init__(self, **entries: Any):
        self.json: dict[str, Any] = {"asset": {"version": "2.0"}, "bufferViews": [], "accessors": [], **entries}
        self.blob = b""

    def view(self, data: bytes) -> int:
        self.blob += bytes(-len(self.blob) % 4)
        self.json["bufferViews"].append({"buffer": 0, "byteOffset": len(self.blob), "byteLength": len(data)})
        self.blob += data
        return len(self.json["bufferViews"]) - 1

    def array(self, values: Any, dtype: str = "<f4", **more: Any) -> int:
        values = np.asarray(values, dtype)
        kinds = {"<f4": 5126, "<u1": 5121, "<u2": 5123, "<u4": 5125, "<i2": 5122}
        shape = {1: "SCALAR", 2: "VEC2", 3: "VEC3", 4: "VEC4", 16: "MAT4"}[values[0].size]
        entry = {"bufferView": self.view(values.tobytes()), "componentType": kinds[dtype], "count": len(values)}
        self.json["accessors"].append({**entry, "type": shape, **more})
        return len(self.json["accessors"]) - 1

    def square(self, **primitive: Any) -> dict[str, Any]:
        """A primitive: the unit square with an upright picture."""
        attributes = {"POSITION": self.array(SQUARE), "TEXCOORD_0": self.array(UVS)}
        more = primitive.pop("attributes", {})
        return {"attributes": attributes | more, "indices": self.array(TWO, "<u2"), **primitive}

    def mesh(self, *primitives: dict[str, Any], name: str = "") -> int:
        self.json.setdefault("meshes", []).append({"primitives": list(primitives), "name": name})
        return len(self.json["meshes"]) - 1

    def picture(self, pixels: Any, **slot: Any) -> dict[str, Any]:
        """A texture slot with a PNG of these pixels in the buffer."""
        file = io.BytesIO()
        Image.fromarray(np.array(pixels, np.uint8)).save(file, format="PNG")
        self.json.setdefault("images", []).append({"bufferView": self.view(file.getvalue()), "mimeType": "image/png"})
        self.json.setdefault("textures", []).append({"source": len(self.json["images"]) - 1})
        return {"index": len(self.json["textures"]) - 1, **slot}

    def glb(self) -> bytes:
        self.json.setdefault("buffers", [{"byteLength": len(self.blob)}])
        self.json.setdefault("nodes", [{"mesh": 0}])
        self.json.setdefault("scenes", [{"nodes": list(range(len(self.json["nodes"])))}])
        text = json.dumps(self.json).encode()
        text += b" " * (-len(text) % 4)
        blob = self.blob + bytes(-len(self.blob) % 4)
        chunks = struct.pack("<I4s", len(text), b"JSON") + text + struct.pack("<I4s", len(blob), b"BIN\0") + blob
        return b"glTF" + struct.pack("<II", 2, 12 + len(chunks)) + chunks


def corners(mesh) -> np.ndarray:
    """[F, 3, 3] in the file's frame."""
    points = trimesh.transform_points(mesh.vertices[mesh.faces].reshape(-1, 3), np.linalg.inv(mesh.mesh_to_splat))
    return points.reshape(-1, 3, 3)


def srgb(linear: float) -> float:
    return 1.055 * linear ** (1 / 2.4) - 0.055


def test_base_colours_are_linear_and_become_srgb(put):
    asset = Asset(materials=[{"name": "clay", "pbrMetallicRoughness": {"baseColorFactor": [0.5, 0.2, 0, 1]}}])
    asset.mesh(asset.square(material=0))
    mesh = load_mesh(put("a.glb", asset.glb()))
    assert np.allclose(mesh.colors, [srgb(0.5), srgb(0.2), 0, 1], atol=1e-6)
    assert [mesh.material_names[i] for i in mesh.materials] == ["clay", "clay"] and len(mesh.faces) == 2


def test_a_texture_stands_upright_and_is_tinted_by_the_factor(put):
    asset = Asset()
    slot = asset.picture([[[255, 0, 0]], [[0, 0, 255]]])
    asset.json["materials"] = [{"pbrMetallicRoughness": {"baseColorFactor": [1, 1, 0.5, 1], "baseColorTexture": slot}}]
    asset.mesh(asset.square(material=0))
    mesh = load_mesh(put("a.glb", asset.glb()))
    assert mesh.textures[0][:, 0].tolist() == [[255, 0, 0, 255], [0, 0, 255, 255]]
    assert np.allclose(mesh.colors, [1, 1, srgb(0.5), 1])
    high = corners(mesh)[..., 1].reshape(-1)
    assert np.allclose(mesh.uvs.reshape(-1, 2)[:, 1], high)  # v is up here, and so is the picture's first row


@pytest.mark.parametrize(("kind", "top"), [("<f4", 1), ("<u1", 255), ("<u2", 65535)])
def test_vertex_colours_multiply_the_material(put, kind, top):
    asset = Asset(materials=[{"pbrMetallicRoughness": {"baseColorFactor": [1, 0.5, 1, 1]}}])
    values = np.array([(1, 0, 0, 1), (0, 1, 0, 1), (0, 0, 1, 1), (1, 1, 1, 1)]) * top
    color = asset.array(values, kind, normalized=top > 1)
    asset.mesh(asset.square(material=0, attributes={"COLOR_0": color}))
    mesh = load_mesh(put("a.glb", asset.glb()))
    assert np.allclose(mesh.colors[0], [[1, 0, 0, 1], [0, srgb(0.5), 0, 1], [0, 0, 1, 1]], atol=1e-5)


@pytest.mark.parametrize(
    ("mode", "cutoff", "alphas", "opacity"),
    [("OPAQUE", None, [255, 255, 255], 1), ("MASK", None, [0, 255, 255], 1), ("MASK", 0.7, [0, 0, 255], 1),
     ("BLEND", None, [64, 160, 255], 0.8)],
)  # fmt: skip
def test_alpha_is_ignored_cut_or_blended_as_the_material_says(put, mode, cutoff, alphas, opacity):
    asset = Asset()
    slot = asset.picture([[[255, 0, 0, 64], [255, 0, 0, 160], [255, 0, 0, 255]]])
    material = {
        "alphaMode": mode,
        "pbrMetallicRoughness": {"baseColorTexture": slot, "baseColorFactor": [1, 1, 1, 0.8]},
    }
    asset.json["materials"] = [material | ({"alphaCutoff": cutoff} if cutoff else {})]
    asset.mesh(asset.square(material=0, attributes={"COLOR_0": asset.array([(1, 1, 1, 0.5)] * 4)}))
    mesh = load_mesh(put("a.glb", asset.glb()))
    assert mesh.textures[0][0, :, 3].tolist() == alphas
    assert np.allclose(mesh.colors[..., 3], opacity * (0.5 if mode == "BLEND" else 1))


def test_nodes_nest_mirror_and_place_one_mesh_often(put):
    half = np.sqrt(0.5)
    asset = Asset(
        nodes=[
            {"name": "root", "translation": [10, 0, 0], "children": [1, 2]},
            {"name": "left", "mesh": 0, "rotation": [0, 0, half, half], "scale": [2, 1, 1]},
            {"mesh": 0, "matrix": [-1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1, 0, 0, 0, 5, 1]},
            {"name": "elsewhere", "mesh": 0},
        ],
        scenes=[{"nodes": [3]}, {"nodes": [0]}],
        scene=1,
    )  # fmt: skip
    asset.mesh(asset.square(), name="tile")
    mesh = load_mesh(put("a.glb", asset.glb()))
    found = corners(mesh)
    assert np.allclose(found[0], [(10, 0, 0), (10, 2, 0), (9, 2, 0)], atol=1e-5)
    assert np.allclose(found[2], [(9, 1, 5), (9, 0, 5), (10, 0, 5)], atol=1e-5)
    assert [mesh.group_names[i] for i in mesh.groups] == ["left/tile"] * 2 + ["tile"] * 2
    assert np.allclose(mesh.normals[:, 0], [0, -1, 0], atol=1e-5)  # +z of the file; the mirrored ones, too
    assert "2 scenes" in mesh.warnings[0]


@pytest.mark.parametrize(("mode", "index", "expected"), [
    (4, [0, 1, 2, 0, 2, 3], [(0, 1, 2), (0, 2, 3)]),
    (5, [0, 1, 3, 2], [(0, 1, 3), (1, 2, 3)]),
    (6, [0, 1, 2, 3], [(0, 1, 2), (0, 2, 3)]),
])  # fmt: skip
def test_lists_strips_and_fans_give_the_same_square(put, mode, index, expected):
    asset = Asset()
    primitive = asset.square(mode=mode)
    primitive["indices"] = asset.array(index, "<u4")
    lines = asset.square(mode=1)
    asset.mesh(primitive, lines)
    mesh = load_mesh(put("a.glb", asset.glb()))
    assert len(mesh.faces) == 2 and np.allclose(mesh.normals, [0, -1, 0], atol=1e-5)
    assert np.allclose(corners(mesh), np.array(SQUARE)[np.array(expected)], atol=1e-5)


def test_texture_transforms_are_applied(put):
    asset = Asset(extensionsRequired=["KHR_texture_transform"])
    change = {"offset": [0.25, 0.5], "scale": [2, 1], "rotation": np.pi / 2}
    slot = asset.picture([[[255, 0, 0]]], extensions={"KHR_texture_transform": change})
    asset.json["materials"] = [{"pbrMetallicRoughness": {"baseColorTexture": slot}}]
    asset.mesh(asset.square(material=0))
    mesh = load_mesh(put("a.glb", asset.glb()))
    u, v = np.array(UVS)[TWO].T
    turned = np.stack([v + 0.25, 1 - (0.5 - 2 * u)], axis=1).reshape(2, 3, 2)
    assert np.allclose(mesh.uvs - mesh.uvs[:, :1], turned - turned[:, :1], atol=1e-6)


def test_skins_stand_in_the_pose_of_their_joints(put):
    inverse = np.eye(4)[None].repeat(2, 0)
    inverse[1, 1, 3] = -1  # the second joint is bound at y = 1 and stands at y = 3
    asset = Asset(
        nodes=[{"mesh": 0, "skin": 0, "translation": [99, 0, 0]}, {"children": [2]}, {"translation": [0, 3, 0]}]
    )
    asset.json["scenes"] = [{"nodes": [0, 1]}]
    matrices = asset.array(inverse.swapaxes(1, 2).reshape(2, 16))
    asset.json["skins"] = [{"joints": [1, 2], "inverseBindMatrices": matrices}]
    joints = asset.array([(0, 0, 0, 0), (0, 0, 0, 0), (1, 0, 0, 0), (1, 0, 0, 0)], "<u1")
    weights = asset.array([(1, 0, 0, 0)] * 4)
    asset.mesh(asset.square(attributes={"JOINTS_0": joints, "WEIGHTS_0": weights}))
    mesh = load_mesh(put("a.glb", asset.glb()))
    assert np.allclose(corners(mesh)[0], [(0, 0, 0), (1, 0, 0), (1, 3, 0)], atol=1e-5)


def test_quantised_and_sparse_arrays(put):
    asset = Asset(extensionsRequired=["KHR_mesh_quantization"], nodes=[{"mesh": 0, "scale": [2, 2, 2]}])
    primitive = asset.square()
    grid = np.array(SQUARE) * 32767
    primitive["attributes"]["POSITION"] = asset.array(np.insert(grid, 3, 0, axis=1)[:, :3], "<i2", normalized=True)
    indices, values = (
        asset.view(np.array([2], "<u2").tobytes()),
        asset.view(np.array([(32767, 32767, 32767)], "<i2").tobytes()),
    )
    asset.json["accessors"][primitive["attributes"]["POSITION"]]["sparse"] = {
        "count": 1, "indices": {"bufferView": indices, "componentType": 5123}, "values": {"bufferView": values},
    }  # fmt: skip
    asset.mesh(primitive)
    mesh = load_mesh(put("a.glb", asset.glb()))
    assert np.allclose(corners(mesh)[0], [(0, 0, 0), (2, 0, 0), (2, 2, 2)], atol=1e-4)


def test_a_gltf_finds_what_it_names_in_its_folder_only(put, tmp_path):
    asset = Asset()
    asset.mesh(asset.square(material=0))
    asset.json |= {"materials": [{"pbrMetallicRoughness": {"baseColorTexture": {"index": 0}}}],
                   "textures": [{"source": 0}], "images": [{"uri": "my%20red.png"}],
                   "nodes": [{"mesh": 0}], "buffers": [{"uri": "a%20b.bin", "byteLength": 0}]}  # fmt: skip
    put("one/a b.bin", asset.blob)
    put("one/my red.png", np.full((2, 2, 3), (255, 0, 0), np.uint8))
    assert load_mesh(put("one/a.gltf", json.dumps(asset.json))).textures[0][0, 0].tolist() == [255, 0, 0, 255]
    mesh = load_mesh(
        put(
            "two/a.gltf",
            json.dumps(asset.json)
            .replace("a%20b.bin", "data:;base64," + base64.b64encode(asset.blob).decode())
            .replace("my%20", "../one/my%20"),
        )
    )
    assert mesh.textures == () and "outside" in mesh.warnings[0] and len(mesh.faces) == 2
    with pytest.raises(InputError, match="outside"):
        load_mesh(put("two/a.gltf", json.dumps(asset.json).replace("a%20b.bin", "../one/a%20b.bin")))
    with pytest.raises(InputError, match="missing"):
        load_mesh(put("two/a.gltf", json.dumps(asset.json)))


def test_what_glows_in_the_dark_is_shown(put):
    asset = Asset(materials=[{"emissiveFactor": [0, 1, 0], "pbrMetallicRoughness": {"baseColorFactor": [0, 0, 0, 1]}}])
    asset.mesh(asset.square(material=0))
    assert np.allclose(load_mesh(put("a.glb", asset.glb())).colors, [0, 1, 0, 1])


def test_morph_targets_and_the_rest_of_a_list_are_told(put):
    asset = Asset(nodes=[{"mesh": 0, "weights": [0.5]}])
    primitive = asset.square()
    primitive["indices"] = asset.array([*TWO, 0], "<u2")
    asset.mesh(primitive)
    warnings = load_mesh(put("a.glb", asset.glb())).warnings
    assert any("morph" in w for w in warnings) and any("1 corner(s)" in w for w in warnings)


def broken(change) -> bytes:
    asset = Asset()
    asset.mesh(asset.square())
    asset.json |= {"nodes": [{"mesh": 0}], "scenes": [{"nodes": [0]}]}
    change(asset.json)
    return asset.glb()


BAD = {
    "version": (lambda j: j["asset"].update(version="1.0"), "only glTF 2"),
    "draco": (lambda j: j.update(extensionsRequired=["KHR_draco_mesh_compression"]), "KHR_draco"),
    "loop": (lambda j: j["nodes"][0].update(children=[0]), "no tree"),
    "node": (lambda j: j["scenes"][0].update(nodes=[7]), "number 7 of its nodes"),
    "mesh": (lambda j: j["nodes"][0].update(mesh=-1), "number -1 of its meshes"),
    "index": (lambda j: j["accessors"][0].update(count=2), "names vertex 3 of 2|4 positions|2 positions"),
    "long": (lambda j: j["accessors"][0].update(count=2**40), "beyond its buffer"),
    "blank": (lambda j: (j["accessors"][0].pop("bufferView"), j["accessors"][0].update(count=2**40)), "without data"),
    "view": (lambda j: j["bufferViews"][0].update(byteOffset=2**40), "beyond its buffer"),
    "negative": (lambda j: j["bufferViews"][0].update(byteOffset=-4), "not a count"),
    "type": (lambda j: j["accessors"][0].update(type="VEC2"), "type VEC2"),
    "component": (lambda j: j["accessors"][0].update(componentType=5130), "unknown type"),
    "lines": (lambda j: j["meshes"][0]["primitives"][0].update(mode=1), "no faces"),
    "words": (lambda j: j["nodes"][0].update(translation=["a", "b", "c"]), "not readable"),
    "list": (lambda j: j.update(nodes="all"), "its nodes|not readable"),
    "infinite": (lambda j: j["nodes"][0].update(translation=[float("inf"), 0, 0]), "not finite"),
    "flat": (lambda j: j["nodes"][0].update(scale=[0, 1, 1]), "without area"),
    "mode": (lambda j: j["meshes"][0]["primitives"][0].update(mode=9), "unknown mode"),
    "buffer": (lambda j: j.update(buffers=[{"uri": "data:;base64,AAAA", "byteLength": 3}]), "beyond its buffer"),
    "base64": (lambda j: j.update(buffers=[{"uri": "data:;base64,???", "byteLength": 3}]), "base64"),
    "nothing": (lambda j: j.update(scenes=[{}]), "no faces"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_file_is_an_error_that_says_why(put, name):
    change, cause = BAD[name]
    with pytest.raises(InputError, match=cause):
        load_mesh(put("a.glb", broken(change)))


def test_damaged_bytes_give_a_mesh_or_an_input_error_and_nothing_else(put):
    random = np.random.default_rng(0)
    asset = Asset(nodes=[{"mesh": 0, "children": [1], "rotation": [0, 0, 0, 1]}, {"mesh": 0, "scale": [1, 2, 3]}])
    asset.json["scenes"] = [{"nodes": [0]}]
    slot = asset.picture(np.zeros((4, 4, 4)))
    asset.json["materials"] = [{"alphaMode": "MASK", "pbrMetallicRoughness": {"baseColorTexture": slot}}]
    asset.mesh(asset.square(material=0, attributes={"COLOR_0": asset.array([(1, 1, 1)] * 4)}))
    whole, outcomes = asset.glb(), set()
    for _ in range(300):
        data = bytearray(whole)
        for _ in range(random.integers(1, 5)):
            place = int(random.integers(20, len(data)))
            if random.random() < 0.7:
                data[place] = random.choice(list(b'0123456789-"[]{},e.')) if place < 1600 else random.integers(256)
            else:
                del data[place : place + int(random.integers(1, 9))]
        if random.random() < 0.7:  # so that the JSON is reached
            text = bytes(data[20:]).partition(b"BIN\0")[0][:-4]
            data[12:20] = struct.pack("<I4s", len(text), b"JSON")
        try:
            assert np.isfinite(load_mesh(put("x.glb", bytes(data))).vertices).all()
            outcomes.add("mesh")
        except InputError:
            outcomes.add("error")
    assert outcomes == {"mesh", "error"}
