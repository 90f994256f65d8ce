"""Plain torch twins: what every operation means, in any float type and on any device."""

from . import images, points, splats

__all__ = ["images", "points", "splats"]
