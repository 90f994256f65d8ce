"""Batched twins by NVIDIA Warp: many objects in one launch, on a GPU, or on one slow thread of the CPU for tests.

Nothing here imports Warp before a function is called; without it the first call says what to install. What is not
deterministic: on a GPU gradients of splats are added up by atomic additions, in whatever order the threads come, so two
runs differ in the last bits. On the CPU there is one thread, and the same inputs give the same bytes.
"""

from . import images, points, runtime, splats, steps

__all__ = ["images", "points", "runtime", "splats", "steps"]
