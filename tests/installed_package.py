# SPDX-License-Identifier: Apache-2.0
"""The C++ package as another project meets it: where it is, and projects built against it."""

import os
import subprocess
import sys
from pathlib import Path

from filelock import FileLock

import treespec

ROOT = Path(__file__).resolve().parents[1]
IS_EDITABLE = Path(treespec.__file__).resolve().parent == ROOT / "python/treespec"


def run(*command, **options):
    """Run a command and return its standard output; on failure show all it printed."""
    words = [str(word) for word in command]
    done = subprocess.run(words, capture_output=True, text=True, **options)
    assert done.returncode == 0, f"{words} failed\n{done.stdout}\n{done.stderr}"
    return done.stdout


def ask_cmake_dir():
    command = [sys.executable, "-m", "treespec", "--cmake-dir"]
    return subprocess.run(command, capture_output=True, text=True)


def build_with_cmake(source, build, *options):
    run("cmake", "-S", source, "-B", build, "-G", "Ninja", "-DCMAKE_BUILD_TYPE=Release", *options)
    run("cmake", "--build", build)


def find_cmake_dir(tmp_path_factory):
    """The CMake package of the install; an editable install has none: there one is made apart,
    by the first of the workers that needs it.
    """
    if not IS_EDITABLE:
        return Path(ask_cmake_dir().stdout.strip())
    base = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        base = base.parent  # shared by the workers
    build, prefix = base / "treespec-build", base / "treespec-prefix"
    with FileLock(base / "treespec-build.lock"):
        if not prefix.exists():
            build_with_cmake(ROOT, build, "-DTREESPEC_CUDA=OFF", "-DCMAKE_INSTALL_LIBDIR=lib")
            run("cmake", "--install", build, "--prefix", prefix)
    return prefix / "lib/cmake/treespec"
