# SPDX-License-Identifier: Apache-2.0
"""The machine and the software of a measurement, in general words."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import treespec
from treespec.machine import cpu_model

_PACKAGES = ("numpy", "torch", "transformers")


def machine(threads: int) -> dict[str, Any]:
    """Processor, cores, threads used, system and versions; a package that is absent is None."""
    return {
        "processor": cpu_model(),
        "cores": os.cpu_count(),
        "threads": threads,
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "treespec": treespec.__version__,
        **{name: _version(name) for name in _PACKAGES},
    }


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
