# SPDX-License-Identifier: Apache-2.0
"""The oracle: every algorithm in plain NumPy, slow and close to its source. Read this first.

One file per name: ``builders/<name>.py`` has ``build``, ``verifiers/<name>.py`` has ``verify``.
Nothing here imports the compiled core.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

from treespec.reference.tree import Tree

Build = Callable[..., Tree]
Verify = Callable[..., tuple[list[int], int]]


def builder(name: str) -> Build:
    """``build(source, *, node_budget, seed, sequence_id, position, **options)`` -> Tree."""
    return _lookup("builders", name, "build")


def verifier(name: str) -> Verify:
    """``verify(tree, target_probs, draft_probs, *, seed, sequence_id, position, coins=None)``.

    It returns (accepted node ids, next token).
    """
    return _lookup("verifiers", name, "verify")


def _lookup(kind: str, name: str, attribute: str) -> Any:
    module = f"{__name__}.{kind}.{name}"
    try:
        return getattr(import_module(module), attribute)
    except ModuleNotFoundError as error:
        if error.name != module:
            raise
        path = f"python/treespec/reference/{kind}/{name}.py"
        raise LookupError(f"reference: no oracle for {name!r}; add {path}") from None
