# SPDX-License-Identifier: Apache-2.0
"""Tree-based speculative decoding: several tokens per target forward, the target's exact law.

    >>> import treespec
    >>> decoder = treespec.load()  # the bundled demo pair                # doctest: +SKIP
    >>> decoder.generate("def fibonacci(n):").text                       # doctest: +SKIP

The six steps of a round are functions too: `build_tree`, `ancestor_mask`, `verify`, `commit_kv`.
Torch and transformers are imported by `load`, not by this module.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from treespec._core import (
    Marginals,
    TokenTree,
    Transitions,
    Trie,
    Verdict,
    __version__,
    check_tree,
)
from treespec._core import builder_table as _builder_table
from treespec._core import cuda_device_count as _cuda_device_count
from treespec._core import verifier_table as _verifier_table
from treespec.calibration import Calibration
from treespec.config import SamplingParams
from treespec.drafts import drafter_names, drafter_summaries
from treespec.growth_map import GrowthMap
from treespec.ops import (
    ExpectedAcceptance,
    alpha_star,
    ancestor_mask,
    build_tree,
    commit_kv,
    expected_acceptance,
    tree_positions,
    verify,
    verify_logits,
)
from treespec.profile import Profile
from treespec.stats import Stats

if TYPE_CHECKING:
    from treespec.decoder import SpeculativeDecoder
    from treespec.generation import GenerateResult, Piece, RoundRecord
    from treespec.loading import load

# Loaded when first asked for: what drives models may import torch.
_LAZY = {
    "SpeculativeDecoder": "decoder",
    "GenerateResult": "generation",
    "Piece": "generation",
    "RoundRecord": "generation",
    "load": "loading",
}

__all__ = [
    "Calibration",
    "ExpectedAcceptance",
    "GenerateResult",
    "GrowthMap",
    "Marginals",
    "Piece",
    "Profile",
    "RoundRecord",
    "SamplingParams",
    "SpeculativeDecoder",
    "Stats",
    "TokenTree",
    "Transitions",
    "Trie",
    "Verdict",
    "__version__",
    "alpha_star",
    "ancestor_mask",
    "build_tree",
    "builder_names",
    "builder_summaries",
    "check_tree",
    "commit_kv",
    "cuda_available",
    "drafter_names",
    "drafter_summaries",
    "expected_acceptance",
    "load",
    "tree_positions",
    "verifier_names",
    "verifier_summaries",
    "verify",
    "verify_logits",
]


def builder_names() -> list[str]:
    """Names for `build_tree` and `load`."""
    return [name for name, _ in _builder_table()]


def verifier_names() -> list[str]:
    """Names for `verify` and `load`, besides ``"auto"``."""
    return [name for name, _ in _verifier_table()]


def builder_summaries() -> dict[str, str]:
    """One line per builder."""
    return dict(_builder_table())


def verifier_summaries() -> dict[str, str]:
    """One line per verifier."""
    return dict(_verifier_table())


def cuda_available() -> bool:
    """Whether the core was built with CUDA and the driver offers a GPU."""
    return _cuda_device_count() > 0


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(f"treespec.{_LAZY[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
