# SPDX-License-Identifier: Apache-2.0
"""Exports of tiny random models, each made once per test session, for all of its processes.

TREESPEC_TEST_EXPORTS names a folder that keeps them for later sessions on the same sources.
"""

from __future__ import annotations

import os
import shutil
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


# A table of positions; experts; keys that are computed from a compressed form.
OTHER_MODELS: dict[str, Any] = {
    "gpt2": "in_place",
    "mixtral": "in_place",
    "deepseek_v3": "new_rows",
}

# Drafters beside the exports of the demo target. Blocks that return new rows are tested on tiny
# models alone: a block of this size takes longer to export than all else.
DEMO_DRAFTERS = {
    "demo": {"drafter": "demo", "treeflash": "demo:treeflash"},
    "demo of new rows": {"drafter": "demo"},
}


def _demo(folder: Path, name: str) -> None:
    """The demo target, with its drafters in folders of their names."""
    import treespec

    cache_style: Any = "new_rows" if name.endswith("new rows") else "in_place"
    export_target(demo.target_path(), folder, layers=(1, 2, 4, 5), cache_style=cache_style)
    for own, drafter in DEMO_DRAFTERS[name].items():
        made = treespec.load(drafter=drafter).drafter
        export_drafter(made, folder / own, cache_style=cache_style)


_EXPORTS: dict[str, Callable[[Path], Any]] = {
    **{name: lambda folder, name=name: _demo(folder, name) for name in DEMO_DRAFTERS},
    "target": lambda folder: _target(tiny_target(), folder),
    "target in float16": lambda folder: _target(tiny_target(dtype=torch.float16), folder),
    "target in bfloat16": lambda folder: _target(tiny_target(dtype=torch.bfloat16), folder),
    "target with windows": lambda folder: _target(tiny_model("qwen3_window"), folder),
    "target of new rows": lambda folder: export_target(
        tiny_target(), folder, layers=(0, 1), cache_style="new_rows", **LIMITS
    ),
    **{
        name: lambda folder, name=name, style=style: export_target(
            tiny_model(name), folder, layers=(0, 1), cache_style=style
        )
        for name, style in OTHER_MODELS.items()
    },
    **{
        name: lambda folder, make=make: export_drafter(make(), folder, **LIMITS)
        for name, make in DRAFTERS.items()
    },
    **{
        f"{name} of new rows": lambda folder, make=make: export_drafter(
            make(), folder, cache_style="new_rows", **LIMITS
        )
        for name, make in DRAFTERS.items()
    },
}

IN_PLACE = ["target", "target in float16", "target in bfloat16", *DRAFTERS]


def exported(name: str, tmp_path_factory: Any) -> Path:
    """The folder of an export, which nobody may change."""
    folder = _root(tmp_path_factory) / name.replace(" ", "-")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_suffix(".lock")):
        if not folder.exists():
            unfinished = folder.with_suffix(".unfinished")
            shutil.rmtree(unfinished, ignore_errors=True)
            _EXPORTS[name](unfinished)
            unfinished.rename(folder)
    return folder


def _root(tmp_path_factory: Any) -> Path:
    if "TREESPEC_TEST_EXPORTS" in os.environ:
        return Path(os.environ["TREESPEC_TEST_EXPORTS"])
    root: Path = tmp_path_factory.getbasetemp()
    return (root.parent if "PYTEST_XDIST_WORKER" in os.environ else root) / "exported"
