"""Wavefront material libraries: diffuse colour, dissolve and diffuse texture, which is all that the views show."""

from __future__ import annotations

import numpy as np

from .assets import Assets
from .raw import GREY, Material

# options of map_Kd and how many values each takes; "3?" is one to three numbers
OPTIONS = {
    "-blendu": 1, "-blendv": 1, "-cc": 1, "-clamp": 1, "-mm": 2, "-o": "3?", "-s": "3?", "-t": "3?", "-texres": 1,
    "-imfchan": 1, "-bm": 1, "-boost": 1, "-type": 1, "-colorspace": 1,
}  # fmt: skip


def read_mtl(text: str, owner: str, assets: Assets) -> dict[str, Material]:
    """Materials by name. `owner` is the library's file name, for warnings.

    A texture replaces Kd instead of being multiplied by it: exporters write Kd 0 0 0 or 0.64 beside a texture that
    is meant to be seen as it is (Blender reads it so too). `d` is the opacity, `Tr` its complement where `d` is
    absent; a lone `Tr 1` is taken as opaque, for it is always an exporter that swapped the two.
    """
    entries: dict[str, dict[str, str]] = {}
    values: dict[str, str] = {}
    for line in text.splitlines():
        key, _, rest = (
            line.strip().partition(" ") if "\t" not in line else line.strip().replace("\t", " ").partition(" ")
        )
        if key.lower() == "newmtl":
            values = entries.setdefault(rest.strip(), {})
        elif rest and not key.startswith("#"):
            values[key.lower()] = rest.strip()
    return {name: _material(name, values, owner, assets) for name, values in entries.items()}


def _material(name: str, values: dict[str, str], owner: str, assets: Assets) -> Material:
    color = _numbers(values.get("kd", ""))
    if len(color) == 1:
        color *= 3
    alpha = _opacity(values)
    image = None
    if "map_kd" in values:
        file, ignored = _texture_name(values["map_kd"])
        if ignored:
            assets.warn(f"options {' '.join(ignored)} of texture {file} in {owner} are ignored")
        image = assets.image(file, owner)
    if "map_d" in values and _texture_name(values["map_d"])[0] != _texture_name(values.get("map_kd", ""))[0]:
        assets.warn(f"opacity texture {_texture_name(values['map_d'])[0]} in {owner} is ignored")
    r, g, b = color[:3] if len(color) >= 3 else GREY[:3]
    return Material(name, color=(r, g, b, alpha), tint=(1.0, 1.0, 1.0, alpha), image=image)


def _opacity(values: dict[str, str]) -> float:
    dissolve = _numbers(values.get("d", "").rpartition(" ")[2])  # "d -halo 0.5" too
    if dissolve:
        return dissolve[0]
    transparency = _numbers(values.get("tr", ""))
    return 1 - transparency[0] if transparency and transparency[0] < 1 else 1.0


def _numbers(text: str) -> list[float]:
    """Leading numbers of a line, clipped to 0..1; none where it holds something else (`spectral`, `xyz`)."""
    out = []
    for token in text.split():
        try:
            value = float(token)
        except ValueError:
            break
        out.append(float(np.clip(value, 0, 1)) if np.isfinite(value) else 1.0)
    return out


def _texture_name(text: str) -> tuple[str, list[str]]:
    """File name (which may contain spaces) and the options before it."""
    tokens, ignored = text.split(" "), []
    while tokens and tokens[0].lower() in OPTIONS:
        count = OPTIONS[tokens[0].lower()]
        if count == "3?":
            count = next((i for i in range(3) if i + 1 >= len(tokens) or not _numbers(tokens[i + 1])), 3)
        ignored.append(tokens[0])
        tokens = tokens[1 + int(count) :]
    return " ".join(tokens).strip(), ignored
