"""Plain torch twins: what every operation means, in any float type and on any device."""

from . import batches, images, points, splats, steps

__all__ = ["batches", "images", "points", "splats", "steps"]
