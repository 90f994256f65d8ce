"""Small good files of every kind that gsmae reads: what the fuzzer damages. Written anew by each run."""

from __future__ import annotations

import base64
import io
import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

Files = dict[str, bytes]

OBJ = """# all that the reader knows
mtllib a.mtl
o thing
v 0 0 0 1 0 0
v 1 0 0 0 1 0
v 1 1 0 0 0 1
v 0 1 0 1 1 0
v 0.5 0.2 1 0.5 0.5 0.5
vt 0 0
vt 1 0
vt 1 1
vt 0.5
vn 0 0 1
vn 1 0 0
g side one
usemtl wood
f 1/1/1 2/2/1 3/3/1 4/4/1
f -5 -4 -1
g top
usemtl glass
f 1//1 2//1 \\
5//2
f 1/1 2/2 5/3 4/4 3/1
s off
"""
MTL = """newmtl wood
Kd 0.6 0.4 0.2
map_Kd -s 1 1 1 -clamp on wood.png
map_d wood.png
newmtl glass
Kd 0.5
d -halo 0.5
newmtl other
Kd spectral x.rfl
Tr 0.25
map_Kd images/a b.jpg
"""
OFF = (
    "OFF 6 3 0\n0 0 0\n1 0 0\n1 1 0\n0 1 0\n.5 .5 1\n2 2 2 # last\n"
    "4 0 1 2 3\n3 0 1 4 255 0 0\n5 0 1 2 4 3 .5 .5 .5 1\n",
    "COFF\n4 2 0\n0 0 0 255 0 0 255\n1 0 0 0 255 0 255\n1 1 0 0 0 255 255\n0 1 1 9 9 9 9\n3 0 1 2\n3 0 2 3\n",
    "NOFF\n4 1\n0 0 0 0 0 1\n1 0 0 0 0 1\n1 1 0 0 0 1\n0 1 0 0 0 1\n4 0 1 2 3\n",
)
STL = """solid one
facet normal 0 0 1
 outer loop
  vertex 0 0 0
  vertex 1 0 0
  vertex 0 1 0
 endloop
endfacet
endsolid one
solid two
facet normal 0 1 0
 outer loop
  vertex 0 0 0
  vertex 1e0 0 0
  vertex 0 0 1
 endloop
endfacet
endsolid two
"""
PLY = """ply
format ascii 1.0
comment TextureFile wood.png
element vertex 5
property float x
property float y
property float z
property uchar red
property uchar green
property uchar blue
property float s
property float t
element face 3
property list uchar int vertex_indices
property int texnumber
end_header
0 0 0 255 0 0 0 0
1 0 0 0 255 0 1 0
1 1 0 0 0 255 1 1
0 1 0 9 9 9 0 1
0 0 1 1 1 1 0 0
4 0 1 2 3 0
3 0 1 4 0
5 0 1 2 4 3 1
"""
DAE = """<?xml version="1.0"?>
<COLLADA xmlns="http://www.collada.org/2005/11/COLLADASchema" version="1.4.1"><asset><up_axis>Z_UP</up_axis></asset>
<library_images><image id="i"><init_from>wood.png</init_from></image></library_images>
<library_materials><material id="m" name="oak"><instance_effect url="#e"/></material></library_materials>
<library_effects><effect id="e"><profile_COMMON>
<newparam sid="surface"><surface type="2D"><init_from>i</init_from></surface></newparam>
<newparam sid="sampler"><sampler2D><source>surface</source></sampler2D></newparam>
<technique sid="common"><phong><diffuse><texture texture="sampler" texcoord="t"/></diffuse>
<transparent opaque="A_ONE"><color>1 1 1 0.5</color></transparent><transparency><float>0.9</float></transparency>
</phong></technique></profile_COMMON></effect></library_effects>
<library_geometries><geometry id="g"><mesh>
<source id="p"><float_array id="pa" count="18">0 0 0 2 0 0 2 1 0 1 1 0 1 2 0 0 2 0</float_array><technique_common>
<accessor source="#pa" count="6" stride="3"/></technique_common></source>
<source id="t"><float_array id="ta" count="6">0 0 1 0 1 1</float_array><technique_common>
<accessor source="#ta" count="3" stride="2"/></technique_common></source>
<source id="c"><float_array id="ca" count="6">1 0 0 0 1 0</float_array><technique_common>
<accessor source="#ca" count="2" stride="3"/></technique_common></source>
<vertices id="v"><input semantic="POSITION" source="#p"/></vertices>
<polylist count="2" material="s"><input semantic="VERTEX" source="#v" offset="0"/>
<input semantic="TEXCOORD" source="#t" offset="1"/><input semantic="COLOR" source="#c" offset="2"/>
<vcount>6 3</vcount><p>0 0 0 1 1 1 2 2 0 3 0 1 4 1 0 5 2 1 0 0 0 1 1 1 2 2 0</p></polylist>
<tristrips count="1" material="s"><input semantic="VERTEX" source="#v" offset="0"/><p>0 1 5 3</p></tristrips>
<polygons count="1"><input semantic="VERTEX" source="#v" offset="0"/><p>0 1 2 3 4 5</p></polygons>
</mesh></geometry></library_geometries>
<library_controllers><controller id="k"><skin source="#g"><bind_shape_matrix>1 0 0 0 0 1 0 0 0 0 1 0 0 0 0 1
</bind_shape_matrix></skin></controller></library_controllers>
<library_nodes><node id="n" name="leg"><scale>2 1 1</scale><instance_geometry url="#g"><bind_material><technique_common>
<instance_material symbol="s" target="#m"/></technique_common></bind_material></instance_geometry></node>
</library_nodes>
<library_visual_scenes><visual_scene id="all"><node name="chair"><translate>1 0 0</translate><rotate>0 0 1 90</rotate>
<instance_node url="#n"/><node><matrix>-1 0 0 0 0 1 0 0 0 0 1 5 0 0 0 1</matrix><instance_controller url="#k"/></node>
</node></visual_scene></library_visual_scenes><scene><instance_visual_scene url="#all"/></scene></COLLADA>
"""
WRL = """#VRML V2.0 utf8
# "as is" [without] {warranty}
Shape {
 appearance Appearance {material DEF PIN-01 Material {
  diffuseColor 0.824 0.82 0.781
  transparency 0.25
 } }
}
DEF BODY Transform { translation 1 0 0 rotation 0 0 1 0.5 scale 1 2 -1 center 0 0 1 children [
 DEF S Shape { geometry IndexedFaceSet
  { creaseAngle 0.50 ccw FALSE coordIndex [0,1,2,-1,3,1,0,-1]
  coord Coordinate { point [0 0 0,2 0 0,0 1 0,
  1 0 0.5 # the tip
  ]} color Color { color [1 0 0, 0 1 0] } colorPerVertex FALSE }
 appearance Appearance{material USE PIN-01 }
 }
 Switch { whichChoice 0 choice [ Group { children USE S } ] }
 LOD { level [ USE S ] }
] }
Shape { geometry IndexedFaceSet
 { coordIndex [0,1,2,3,4,5,-1,0,1,-1]
 coord Coordinate { point [0 0 4,2 0 4,2 1 4,1 1 4,1 2 4,0 2 4]}
 color Color { color [1 0 0, 0 1 0, 0 0 1] } colorIndex [0 1 2 0 1 2 -1 0 1 -1] }
 appearance Appearance{ material Material { } texture ImageTexture { url "wood.png" } }
}
Viewpoint { description "a \\" b" }
ROUTE A.b TO C.d
"""
YAML = """train:
  epochs: 3
  batch_size: 8
  lr: 1.0e-3
  seed: 1
model:
  encoder: {width: 96, depth: 3, heads: 4, groups: 16, group_size: 16, pooling: true}
  decoder_depth: 2
  decoder_heads: 4
  weights: &w {means: 1.0, sh: 0.5}
spec:
  embed: [means, opacities, scales, quats, sh]
  group: [means]
"""
PARTS = {"chair": {"leg": ["*leg*", "PIN-*"], "seat": ["*seat*", "[ab]?"]}, "table": {"top": ["top"]}}


def picture(kind: str, size: int = 8, mode: str = "RGBA") -> bytes:
    """An encoded picture of noise."""
    rng = np.random.default_rng(1)
    shape = (size, size) if mode in ("L", "P", "1", "I;16") else (size, size, len(mode))
    pixels = rng.integers(0, 255, shape).astype(np.uint16 if mode == "I;16" else np.uint8)
    image = Image.fromarray(pixels[..., 0] if pixels.ndim == 3 and shape[-1] == 1 else pixels)
    if mode in ("P", "1"):
        image = image.convert(mode)
    file = io.BytesIO()
    image.save(file, format=kind)
    return file.getvalue()


def textures() -> dict[str, bytes]:
    """Pictures of every format that is read, and of some kinds within it."""
    kinds = [("PNG", "RGBA"), ("PNG", "RGB"), ("PNG", "P"), ("PNG", "L"), ("PNG", "I;16"), ("PNG", "1"),
             ("JPEG", "RGB"), ("JPEG", "L"), ("BMP", "RGB"), ("BMP", "P"), ("TGA", "RGBA"),
             ("WEBP", "RGBA")]  # fmt: skip
    return {f"{kind}_{mode.replace(';', '')}.{kind.lower()}": picture(kind, 16, mode) for kind, mode in kinds}


class Scene:
    """A glTF under construction: arrays go into one buffer, the rest is plain JSON."""

    def __init__(self) -> None:
        self.json: dict[str, Any] = {"asset": {"version": "2.0"}, "bufferViews": [], "accessors": []}
        self.blob = b""

    def view(self, data: bytes) -> int:
        """A new buffer view of these bytes."""
        self.blob += bytes(-len(self.blob) % 4)
        self.json["bufferViews"].append({"buffer": 0, "byteOffset": len(self.blob), "byteLength": len(data)})
        self.blob += data
        return len(self.json["bufferViews"]) - 1

    def array(self, values: Any, dtype: str = "<f4", **more: Any) -> int:
        """A new accessor of these values."""
        values = np.asarray(values, dtype)
        kinds = {"<f4": 5126, "<u1": 5121, "<u2": 5123, "<u4": 5125, "<i2": 5122}
        shape = {1: "SCALAR", 2: "VEC2", 3: "VEC3", 4: "VEC4", 16: "MAT4"}[values[0].size]
        entry = {"bufferView": self.view(values.tobytes()), "componentType": kinds[dtype], "count": len(values)}
        self.json["accessors"].append({**entry, "type": shape, **more})
        return len(self.json["accessors"]) - 1


def scene() -> Scene:
    """Squares as list, strip and fan, with a picture, colours, a skin, a sparse array and nodes in nodes."""
    s = Scene()
    square = [(0, 0, 0), (1, 0, 0), (1, 1, 0), (0, 1, 0)]
    plain = {"POSITION": s.array(square), "TEXCOORD_0": s.array([(0, 1), (1, 1), (1, 0), (0, 0)])}
    normal = {
        **plain,
        "NORMAL": s.array([(0, 0, 1)] * 4),
        "COLOR_0": s.array([(255, 9, 9, 99)] * 4, "<u1", normalized=True),
    }
    joints = {"JOINTS_0": s.array([(0, 1, 0, 0)] * 4, "<u1"), "WEIGHTS_0": s.array([(0.5, 0.5, 0, 0)] * 4)}
    sparse = s.array(square)
    s.json["accessors"][sparse]["sparse"] = {
        "count": 1, "indices": {"bufferView": s.view(struct.pack("<I", 1)), "componentType": 5125},
        "values": {"bufferView": s.view(struct.pack("<3f", 2, 2, 2))},
    }  # fmt: skip
    s.json["images"] = [{"bufferView": s.view(picture("PNG", 4)), "mimeType": "image/png"},
                        {"uri": "data:image/png;base64," + base64.b64encode(picture("PNG", 2)).decode()}]  # fmt: skip
    s.json["textures"] = [{"source": 0}, {"source": 1}]
    transform = {"KHR_texture_transform": {"offset": [0.1, 0], "rotation": 0.5, "scale": [2, 2]}}
    s.json["materials"] = [
        {"name": "oak", "pbrMetallicRoughness": {"baseColorTexture": {"index": 0, "extensions": transform}}},
        {"name": "glass", "alphaMode": "BLEND", "pbrMetallicRoughness": {"baseColorFactor": [1, 0, 0, 0.5]}},
        {
            "alphaMode": "MASK",
            "alphaCutoff": 0.3,
            "pbrMetallicRoughness": {"baseColorTexture": {"index": 1, "texCoord": 0}},
        },
        {"emissiveFactor": [1, 1, 0], "pbrMetallicRoughness": {"baseColorFactor": [0, 0, 0, 1]}},
    ]
    two = s.array([0, 1, 2, 0, 2, 3], "<u2")
    s.json["meshes"] = [
        {"name": "list", "primitives": [{"attributes": normal, "indices": two, "material": 0}]},
        {"name": "strip", "primitives": [{"attributes": plain, "mode": 5, "material": 2},
                                         {"attributes": {"POSITION": sparse}, "mode": 6, "material": 1}]},
        {"primitives": [{"attributes": {**plain, **joints}, "indices": two, "material": 3}], "weights": [0.5]},
    ]  # fmt: skip
    s.json["skins"] = [{"joints": [1, 2], "inverseBindMatrices": s.array([np.eye(4).ravel()] * 2)}]
    s.json["nodes"] = [
        {"name": "top", "mesh": 0, "children": [1, 2], "scale": [1, 2, 1]},
        {"mesh": 1, "translation": [0, 0, 1], "rotation": [0, 0, 0.7, 0.7]},
        {"matrix": np.diag([-1.0, 1, 1, 1]).ravel().tolist(), "children": [3]},
        {"mesh": 2, "skin": 0},
    ]
    s.json["scenes"], s.json["scene"] = [{"nodes": [0]}], 0
    return s


def gltf() -> Files:
    """A .gltf with its buffer and a picture beside it."""
    s = scene()
    s.json["images"][1] = {"uri": "images/a%20b.png"}
    s.json["buffers"] = [{"uri": "a.bin", "byteLength": len(s.blob)}]
    return {"a.gltf": json.dumps(s.json, indent=1).encode(), "a.bin": s.blob, "images/a b.png": picture("PNG")}


def glb(s: Scene | None = None) -> bytes:
    """A scene in one file."""
    s = s or scene()
    s.json.setdefault("buffers", [{"byteLength": len(s.blob)}])
    text = json.dumps(s.json).encode()
    text += b" " * (-len(text) % 4)
    blob = s.blob + bytes(-len(s.blob) % 4)
    chunks = struct.pack("<I4s", len(text), b"JSON") + text + struct.pack("<I4s", len(blob), b"BIN\0") + blob
    return b"glTF" + struct.pack("<II", 2, 12 + len(chunks)) + chunks


def stl() -> bytes:
    """A binary STL of three triangles."""
    facet = struct.pack("<12fH", 0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0)
    return bytes(80) + struct.pack("<I", 3) + facet * 2 + struct.pack("<12fH", 0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 1, 3, 0)


def mesh_plys() -> list[bytes]:
    """Text; binary, of triangles only; binary of either byte order with lists of several lengths."""
    out = [PLY.encode()]
    points = np.array([(0, 0, 0), (1, 0, 0), (1, 1, 0), (0, 1, 0), (0, 0, 1)])
    head = "ply\nformat {} 1.0\ncomment TextureFile wood.png\nelement vertex 5\n"
    head += "property {} x\nproperty {} y\nproperty {} z\n"
    three = np.array([(3, 0, 1, 2), (3, 0, 2, 3), (3, 0, 1, 4)])
    body = b"".join(struct.pack("<B3i", *row) for row in three.tolist())
    text = head.format("binary_little_endian", *["float"] * 3)
    text += "element face 3\nproperty list uchar int vertex_indices\nend_header\n"
    out.append(text.encode() + points.astype("<f4").tobytes() + body)
    for order, name in (("<", "binary_little_endian"), (">", "binary_big_endian")):
        text = head.format(name, *["double"] * 3) + "element face 2\nproperty list uchar ushort vertex_index\n"
        text += "property list uchar float texcoord\nproperty uchar texnumber\nend_header\n"
        rows = [((0, 1, 2, 3), (0, 0, 1, 0, 1, 1, 0, 1)), ((0, 1, 4), (0, 0, 1, 0, 1, 1))]
        body = b"".join(struct.pack(f"{order}B{len(i)}HB{len(t)}fB", len(i), *i, len(t), *t, 0) for i, t in rows)
        out.append(text.encode() + points.astype(order + "f8").tobytes() + body)
    return out


def meshes() -> dict[str, list[Files]]:
    """Objects by the extension of the file that is to be damaged; the first file is the mesh."""
    wood = {"wood.png": picture("PNG"), "images/a b.jpg": picture("JPEG", 8, "RGB")}
    examples = Path(__file__).resolve().parents[2] / "examples" / "meshes"
    real = []
    for name in ("cabinet/upperShelves", "container/ammoBox"):
        folder = examples / name / "models"
        files = sorted(folder.iterdir(), key=lambda p: (p.suffix != ".obj", p.name))
        real.append({f.name: f.read_bytes() for f in files})
    objs = [{"a.obj": OBJ.encode(), "a.mtl": MTL.encode(), **wood}, *real]
    return {
        "obj": objs,
        "mtl": objs,
        "off": [{"a.off": text.encode()} for text in OFF],
        "stl": [{"a.stl": STL.encode()}, {"a.stl": stl()}],
        "ply": [{"a.ply": content, **wood} for content in mesh_plys()],
        "dae": [{"a.dae": DAE.encode(), **wood}],
        "wrl": [{"a.wrl": WRL.encode()}],
        "glb": [{"a.glb": glb()}],
        "gltf": [gltf()],
    }
