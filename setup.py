# SPDX-License-Identifier: Apache-2.0
"""Builds the extension with CMake and puts headers, archive and CMake package into the wheel.

Environment:
    TREESPEC_CUDA       auto (default: when nvcc is found), 0 or 1
    TREESPEC_BUILD_DIR  a build folder to keep, so that the next build compiles what changed only
    TREESPEC_WERROR     1: warnings are errors
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pybind11
from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
CUDA_SWITCH = {"auto": "AUTO", "0": "OFF", "1": "ON"}


def read_version() -> str:
    text = (ROOT / "cpp/include/treespec/version.h").read_text()
    match = re.search(r'define TREESPEC_VERSION "(.+)"', text)
    assert match is not None
    return match.group(1)


class CleanBuildPy(build_py):
    """`build_py` that starts empty: files since deleted or renamed stay out of the wheel."""

    def run(self) -> None:
        if not self.editable_mode:
            shutil.rmtree(self.build_lib, ignore_errors=True)
        super().run()


class CMakeBuild(build_ext):
    """`build_ext` that leaves the work to cmake and ninja."""

    def build_extension(self, ext: Extension) -> None:
        choice = os.environ.get("TREESPEC_CUDA", "auto").lower()
        if choice not in CUDA_SWITCH:
            raise ValueError(f"setup: TREESPEC_CUDA must be auto, 0 or 1, got {choice!r}")
        prefix = Path(self.get_ext_fullpath(ext.name)).resolve().parent
        build_dir = Path(os.environ.get("TREESPEC_BUILD_DIR") or self.build_temp).resolve()
        build_dir.mkdir(parents=True, exist_ok=True)

        # Every path of the (temporary) build environment is passed anew: a kept cache has old ones.
        configure = [
            *("cmake", "-S", str(ROOT), "-B", str(build_dir), "-G", "Ninja"),
            f"-DCMAKE_MAKE_PROGRAM={shutil.which('ninja')}",
            f"-DPython_EXECUTABLE={sys.executable}",
            f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
            f"-DTREESPEC_CUDA={CUDA_SWITCH[choice]}",
            f"-DTREESPEC_WERROR={'ON' if os.environ.get('TREESPEC_WERROR') == '1' else 'OFF'}",
            *("-DTREESPEC_PYTHON=ON", "-DCMAKE_INSTALL_LIBDIR=lib"),
        ]
        jobs = ["-j", str(self.parallel)] if self.parallel else []
        install = ["cmake", "--install", str(build_dir), "--prefix", str(prefix), "--strip"]
        # In an editable install the sources keep only the extension beside them.
        components = ["python"] if self.editable_mode or self.inplace else ["python", "cpp"]

        subprocess.run(configure, check=True)
        subprocess.run(["cmake", "--build", str(build_dir), *jobs], check=True)
        for component in components:
            subprocess.run([*install, "--component", component], check=True)


setup(
    version=read_version(),
    packages=find_packages("python"),  # python/treespec/export is a link to export/
    package_dir={"": "python"},
    package_data={"treespec": ["py.typed", "_core/*.pyi", "cli/*.jinja", "demo/**"]},
    ext_modules=[Extension("treespec._core", sources=[])],
    cmdclass={"build_py": CleanBuildPy, "build_ext": CMakeBuild},
)
