"""Plain torch twins: what every operation means, in any float type and on any device."""

from . import images, splats

__all__ = ["images", "splats"]
