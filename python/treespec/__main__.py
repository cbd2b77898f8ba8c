# SPDX-License-Identifier: Apache-2.0
"""`python -m treespec`: the command line; with `--cmake-dir` the CMake folder for C++ projects."""

from __future__ import annotations

import sys
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent


def print_cmake_dir() -> int:
    """Print the folder with treespecConfig.cmake and return the exit code."""
    folder = PACKAGE / "lib" / "cmake" / "treespec"
    if folder.is_dir():
        print(folder)
        return 0
    print(
        f"error: no CMake package in {folder}\n"
        "An editable install has none: the headers and the library are installed only by a regular "
        "install.\nRun `pip install .` in the source folder, or build with `cmake --install`.",
        file=sys.stderr,
    )
    return 1


def run() -> None:
    """Answer `--cmake-dir` without loading the command line, else hand over to it."""
    if sys.argv[1:] == ["--cmake-dir"]:
        raise SystemExit(print_cmake_dir())
    from treespec.cli import main

    main()


if __name__ == "__main__":
    run()
