"""Builds csrc/ into plain shared libraries that gsmae.ops.native loads with ctypes; the rest is in pyproject.toml.

Nothing here may fail an install: without a C++ compiler the package still works, on the plain torch twins in
gsmae.ops.reference. The libraries use no Python headers, so one build serves every Python version.
"""

import platform
import shutil
import warnings
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py

ROOT = Path(__file__).parent
SOURCES = sorted(str(path.relative_to(ROOT)) for path in ROOT.glob("csrc/*.cpp"))
DEPENDS = sorted(str(path.relative_to(ROOT)) for path in ROOT.glob("csrc/*.h")) + ["setup.py"]

# No -ffast-math: the kernels test for NaN, and sums must be taken in the order they are written.
FLAGS = [
    "-std=c++17",
    "-O3",
    "-g0",
    "-pthread",
    "-fPIC",
    "-fvisibility=hidden",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-ffp-contract=fast",
    "-Wall",
    "-Wextra",
    "-Wno-psabi",  # vectors never cross the library's border
]
VARIANTS = {"baseline": []}
if platform.machine().lower() in ("x86_64", "amd64"):
    VARIANTS["avx2"] = ["-mavx2", "-mfma"]
    VARIANTS["avx512"] = [
        "-mavx2",
        "-mfma",
        *(f"-mavx512{part}" for part in ("f", "bw", "dq", "vl")),
        "-DGSMAE_LANES=16",
    ]


class BuildKernels(build_ext):
    """Compiles each variant; a failure is a warning and a missing file."""

    def get_ext_filename(self, fullname: str) -> str:
        return str(Path(*fullname.split("."))) + ".so"

    def build_extension(self, ext: Extension) -> None:
        target = Path(self.get_ext_fullpath(ext.name))
        files = [Path(name) for name in [*ext.sources, *ext.depends]]
        if not self.force and target.exists() and all(f.stat().st_mtime < target.stat().st_mtime for f in files):
            return
        try:
            self.compile_variant(ext, target)
        except Exception as error:  # distutils has no single base class for "the compiler did not work"
            target.unlink(missing_ok=True)
            cure = "without it gsmae uses slower kernels, or slower plain torch operations"
            warnings.warn(f"{ext.name} was not built, {cure}: {error}", stacklevel=1)

    def compile_variant(self, ext: Extension, target: Path) -> None:
        folder = Path(self.build_temp) / target.stem
        flags = [*FLAGS, *VARIANTS[ext.name.rpartition("_")[2]]]
        objects = self.compiler.compile(
            ext.sources, output_dir=str(folder), extra_postargs=flags, depends=[*ext.sources, *ext.depends]
        )
        target.parent.mkdir(parents=True, exist_ok=True)
        self.compiler.link_shared_object(
            objects, str(target), extra_postargs=["-pthread"], build_temp=str(folder), target_lang="c++"
        )


class WithExamples(build_py):
    """Puts the example meshes into a wheel; an editable install finds them in the checkout."""

    def run(self) -> None:
        super().run()
        if not self.editable_mode:
            shutil.copytree(ROOT / "examples", Path(self.build_lib) / "preprocessing" / "examples", dirs_exist_ok=True)


class PlatformWheel(bdist_wheel):
    """The wheel depends on the platform, not on the Python version."""

    def get_tag(self) -> tuple[str, str, str]:
        return "py3", "none", super().get_tag()[2]


setup(
    ext_modules=[
        Extension(f"gsmae.ops.native._kernels_{variant}", SOURCES, depends=DEPENDS, language="c++", optional=True)
        for variant in VARIANTS
    ],
    cmdclass={"build_py": WithExamples, "build_ext": BuildKernels, "bdist_wheel": PlatformWheel},
)
