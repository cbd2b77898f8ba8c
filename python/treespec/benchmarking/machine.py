# SPDX-License-Identifier: Apache-2.0
"""The machine and the software of a measurement, in general words."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import treespec

_PACKAGES = ("numpy", "torch", "transformers")


def machine(threads: int) -> dict[str, Any]:
    """Processor, cores, threads used, system and versions; a package that is absent is None."""
    return {
        "processor": _cpu_model(),
        "cores": os.cpu_count(),
        "threads": threads,
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "treespec": treespec.__version__,
        **{name: _version(name) for name in _PACKAGES},
    }


def _cpu_model() -> str:
    facts = Path("/proc/cpuinfo")
    for line in facts.read_text(encoding="utf-8").splitlines() if facts.exists() else ():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor() or "unknown"


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
