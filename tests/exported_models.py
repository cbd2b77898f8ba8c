# SPDX-License-Identifier: Apache-2.0
"""Exports of tiny random models, each made once per test session, for all of its processes."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from tiny_drafters import tiny_dflash
from tiny_models import VOCAB_SIZE, tiny_model

from treespec import demo
from treespec.drafts.autoregressive import AutoregressiveDrafter
from treespec.export.to_onnx import export_drafter, export_target

LIMITS: dict[str, int] = {"max_nodes": 32, "max_context": 160}


def tiny_target(**options: Any) -> Any:
    """The model of the target that all drafters here are for."""
    return tiny_model("llama", **options)


# Drafters by name, in PyTorch.
DRAFTERS: dict[str, Callable[[], Any]] = {
    "causal_lm": lambda: AutoregressiveDrafter(tiny_model("qwen3_window", seed=1), VOCAB_SIZE),
    "dflash": lambda: tiny_dflash(tiny_target(), windows=(5, None)),
    "treeflash": lambda: tiny_dflash(tiny_target(), "treeflash", num_previous=3, width=5),
}


def _target(model: Any, folder: Path) -> None:
    export_target(model, folder, layers=(0, 1), **LIMITS)


def _demo(folder: Path, cache_style: Any) -> None:
    """The demo pair, and a block drafter beside it in `treeflash`."""
    import treespec

    export_target(demo.target_path(), folder, layers=(1, 2, 4, 5), cache_style=cache_style)
    for name, drafter in (("drafter", "demo"), ("treeflash", "demo:treeflash")):
        made = treespec.load(drafter=drafter).drafter
        export_drafter(made, folder / name, cache_style=cache_style)


_EXPORTS: dict[str, Callable[[Path], Any]] = {
    "demo": lambda folder: _demo(folder, "in_place"),
    "demo of new rows": lambda folder: _demo(folder, "new_rows"),
    "target": lambda folder: _target(tiny_target(), folder),
    "target in float16": lambda folder: _target(tiny_target(dtype=torch.float16), folder),
    "target in bfloat16": lambda folder: _target(tiny_target(dtype=torch.bfloat16), folder),
    "target with windows": lambda folder: _target(tiny_model("qwen3_window"), folder),
    "target of new rows": lambda folder: export_target(
        tiny_target(), folder, layers=(0, 1), cache_style="new_rows", **LIMITS
    ),
    **{
        name: lambda folder, make=make: export_drafter(make(), folder, **LIMITS)
        for name, make in DRAFTERS.items()
    },
}

IN_PLACE = ["target", "target in float16", "target in bfloat16", *DRAFTERS]


def exported(name: str, tmp_path_factory: Any) -> Path:
    """The folder of an export, which nobody may change."""
    root = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        root = root.parent
    folder = root / "exported" / name.replace(" ", "-")
    folder.parent.mkdir(exist_ok=True)
    with FileLock(folder.with_suffix(".lock")):
        if not folder.exists():
            _EXPORTS[name](folder)
    return folder
