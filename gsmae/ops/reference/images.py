"""Comparing pictures in plain torch: SSIM and the photometric loss of 3D Gaussian Splatting."""

import torch
import torch.nn.functional as F
from torch import Tensor

WINDOW = 11
SIGMA = 1.5
C1, C2 = 0.01**2, 0.03**2  # for values in [0, 1]


def ssim(image: Tensor, target: Tensor) -> Tensor:
    """Mean structural similarity of each picture (Wang et al. 2004), 11 x 11 Gaussian window, zeros beyond the edge.

    image, target [V, H, W, 3] with values in [0, 1]
    returns       [V]
    """
    return ssim_map(image, target).mean((1, 2, 3))


def l1_ssim(image: Tensor, target: Tensor, weight: float = 0.2) -> Tensor:
    """(1 - weight) * mean |image - target| + weight * (1 - SSIM), the loss of 3DGS (Kerbl et al. 2023, equation 7).

    image, target [V, H, W, 3] with values in [0, 1]
    returns       a scalar
    """
    return (1 - weight) * (image - target).abs().mean() + weight * (1 - ssim(image, target).mean())


def ssim_map(image: Tensor, target: Tensor) -> Tensor:
    """Structural similarity at every pixel and channel; shapes as in `ssim`, returns [V, H, W, 3]."""
    check_pictures(image, target)
    window = gaussian_window(image.dtype, image.device)

    def smooth(values: Tensor) -> Tensor:
        planes = values.permute(0, 3, 1, 2).reshape(-1, 1, *values.shape[1:3])
        planes = F.conv2d(planes, window.view(1, 1, 1, -1), padding=(0, WINDOW // 2))
        planes = F.conv2d(planes, window.view(1, 1, -1, 1), padding=(WINDOW // 2, 0))
        return planes.reshape(values.shape[0], 3, *values.shape[1:3]).permute(0, 2, 3, 1)

    mean_x, mean_y = smooth(image), smooth(target)
    var_x = smooth(image * image) - mean_x * mean_x
    var_y = smooth(target * target) - mean_y * mean_y
    cov = smooth(image * target) - mean_x * mean_y
    luminance = (2 * mean_x * mean_y + C1) / (mean_x * mean_x + mean_y * mean_y + C1)
    return luminance * (2 * cov + C2) / (var_x + var_y + C2)


def check_pictures(image: Tensor, target: Tensor) -> None:
    """ValueError unless both are [V, H, W, 3] with the same V, H, W, none of them zero."""
    if image.shape != target.shape or image.ndim != 4 or image.shape[-1] != 3 or image.numel() == 0:
        raise ValueError(f"image and target must both be [V, H, W, 3], not {[*image.shape]} and {[*target.shape]}")


def gaussian_window(dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu") -> Tensor:
    """The 11 weights of the window, summing to one."""
    steps = torch.arange(WINDOW, dtype=torch.float64) - WINDOW // 2
    weights = torch.exp(-steps * steps / (2 * SIGMA * SIGMA))
    return (weights / weights.sum()).to(device, dtype)
