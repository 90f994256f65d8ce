"""Splats in front of cameras, ordinary and not, and how two rasterisers are compared on them."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

NAMES = ["means", "quats", "scales", "opacities", "sh", "background", "offsets"]


class Scene(dict[str, Any]):
    """Arguments of rasterize by name."""

    def doubled(self) -> "Scene":
        return Scene({k: v.double() if isinstance(v, Tensor) else v for k, v in self.items()})

    def without(self, *names: str) -> "Scene":
        return Scene({k: v for k, v in self.items() if k not in names})

    def like(self, dtype: torch.dtype) -> "Scene":
        """A copy whose float tensors have another type, ready for gradients."""
        made = {k: v.to(dtype, copy=True) if isinstance(v, Tensor) else v for k, v in self.items()}
        for name in NAMES:
            made[name].requires_grad_()
        return Scene(made)


def scene(count: int = 60, width: int = 45, height: int = 37, views: int = 2, coefficients: int = 1, seed: int = 0):
    """Splats on a bumpy sphere in front of some cameras; float32."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    directions = torch.nn.functional.normalize(normal(count, 3), dim=1)
    size = 0.6 * math.sqrt(4 * math.pi * 0.36 / max(count, 1))
    viewmats = torch.eye(4).repeat(views, 1, 1)
    viewmats[:, 2, 3] = 2.2
    for view in range(views):
        c, s = math.cos(0.7 * view), math.sin(0.7 * view)
        viewmats[view, :3, :3] = torch.tensor([[c, 0, s], [0, 1, 0], [-s, 0, c]])
    focal = 1.1 * max(width, height)
    return Scene(
        means=directions * (0.6 + 0.1 * torch.sin(5 * directions[:, :1])),
        quats=normal(count, 4),
        scales=size * torch.exp(0.4 * normal(count, 3)),
        opacities=0.1 + 0.8 * torch.rand(count, generator=generator),
        sh=0.3 * normal(count, coefficients, 3),
        viewmats=viewmats,
        Ks=torch.tensor([[focal, 0, width / 2], [0, focal, height / 2], [0, 0, 1]]).repeat(views, 1, 1),
        width=width,
        height=height,
        background=torch.tensor([0.9, 0.5, 0.2]),
        offsets=torch.zeros(views, count, 2),
    )


def draw_and_differentiate(twin, s: Scene, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """Pictures and the gradients of a random linear function of them."""
    s = s.like(dtype)
    colors, alphas = twin.rasterize(**s)
    generator = torch.Generator().manual_seed(7)
    loss = (colors * torch.randn(colors.shape, generator=generator).to(colors)).sum()
    loss = loss + (alphas * torch.randn(alphas.shape, generator=generator).to(alphas)).sum()
    loss.backward()
    gradients = {name: torch.zeros_like(s[name]) if s[name].grad is None else s[name].grad for name in NAMES}
    return {"colors": colors.detach(), "alphas": alphas.detach(), **gradients}


def assert_agree(ours: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float = 1e-4) -> None:
    for name in ("colors", "alphas"):
        difference = (ours[name].double() - expected[name].double()).abs()
        assert difference.max() <= tolerance, f"{name}: {difference.max():.1e}"
    for name in NAMES:
        assert torch.isfinite(ours[name]).all(), f"gradient of {name} is not finite"
        error, size = (ours[name].double() - expected[name].double()).norm(), expected[name].double().norm()
        assert error <= tolerance * size + 1e-9, f"gradient of {name}: {error:.1e} of {size:.1e}"


# what can be wrong with splats


def behind_the_camera(s: Scene) -> None:
    s["means"][::2, 2] -= 4.0


def on_the_near_plane(s: Scene) -> None:
    s["means"][:20] = torch.tensor([0.0, 0.0, -2.2]) + 0.03 * s["means"][:20]


def without_size(s: Scene) -> None:
    s["scales"][::3] = 0.0


def huge(s: Scene) -> None:
    s["scales"][::7] = 20.0
    s["opacities"][::7] = 0.05


def needles(s: Scene) -> None:
    s["scales"][:, 0] *= 10.0
    s["scales"][:, 1:] *= 0.01


def flat(s: Scene) -> None:
    s["scales"][:, 2] = 0.0


def without_rotation(s: Scene) -> None:
    s["quats"][::4] = 0.0
    s["quats"][1::4] *= 1e-5


def opaque(s: Scene) -> None:
    s["opacities"][:] = 1.0


def transparent(s: Scene) -> None:
    s["opacities"][::2] = 0.0
    s["opacities"][1::4] = 0.5 / 255


def dark(s: Scene) -> None:
    s["sh"][:, 0] -= 2.0 * (torch.arange(len(s["sh"])) % 2)[:, None]


def in_one_corner(s: Scene) -> None:
    s["Ks"][:, :2, 2] = torch.tensor([0.0, 0.0])
    s["scales"][:] *= 0.3


def beside_the_frustum(s: Scene) -> None:
    s["means"][:, 0] += 0.9
    s["scales"][:] *= 3.0
    s["Ks"][:, 0, 2] += 9.3
    s["Ks"][:, 1, 2] -= 5.1


def all_out_of_sight(s: Scene) -> None:
    s["means"][:, 2] -= 10.0


def with_offsets(s: Scene) -> None:
    s["offsets"][:] = torch.randn(s["offsets"].shape, generator=torch.Generator().manual_seed(5))


CASES: list[Callable[[Scene], None]] = [
    behind_the_camera, on_the_near_plane, without_size, huge, needles, flat, without_rotation, opaque, transparent,
    dark, in_one_corner, beside_the_frustum, all_out_of_sight, with_offsets,
]  # fmt: skip
