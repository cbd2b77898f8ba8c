# SPDX-License-Identifier: Apache-2.0
"""The bundled demo pair: a small target and its drafter, trained on Python source (README.md)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

_FOLDER = Path(__file__).parent


def target_path() -> Path:
    """Folder of the target, in Hugging Face format with its tokenizer."""
    return _existing("target")


def drafter_path(name: str = "draft") -> Path:
    """Folder of a drafter: ``"draft"``, the autoregressive one, or a kind of head."""
    return _existing(name)


def prompts() -> list[str]:
    """Starts of Python code that make a nice demo."""
    return list(_read("prompts.json"))


def held_out() -> list[Any]:
    """Excerpts of files that neither the tokenizer nor a model has seen, for benchmarks."""
    return list(_read("held_out.json"))


def _read(name: str) -> Any:
    return json.loads((_FOLDER / name).read_text(encoding="utf-8"))


def _existing(name: str) -> Path:
    path = _FOLDER / name
    if not (path / "config.json").is_file():
        raise FileNotFoundError(
            f"demo: the bundled {name} is missing from this installation; reinstall treespec, or "
            "train it with examples/train_demo.py"
        )
    return path
