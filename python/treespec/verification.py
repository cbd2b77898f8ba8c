# SPDX-License-Identifier: Apache-2.0
"""Step 5 of a round in Python: verdicts, found where the logits are if that can be."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from treespec import _core
from treespec._core import TokenTree, Verdict
from treespec.generation import Generation
from treespec.targets.base import Array, in_host_memory


class Case(NamedTuple):
    """A sequence's tree and what it is judged by.

    Attributes
    ----------
    generation, tree
        The sequence with its parameters; what was drafted for it.
    logits
        ``[N, V]``: the target's, after every node.
    verifier
        A name of `treespec.verifier_names`.
    lossy
        Whether it may change the distribution of the text.
    """

    generation: Generation
    tree: TokenTree
    logits: Array
    verifier: str
    lossy: bool


def verify_cases(cases: Sequence[Case]) -> list[Verdict]:
    """One verdict per case, the same whether it was found on the host or on a GPU.

    Raises
    ------
    ValueError
        For NaN and for rows without a token that may be drawn.
    """
    there = [_is_for_device(case) for case in cases]
    found = iter(_on_device([case for case, stays in zip(cases, there, strict=True) if stays]))
    return [
        next(found) if stays else _on_host(case) for case, stays in zip(cases, there, strict=True)
    ]


def _on_host(case: Case) -> Verdict:
    g = case.generation
    return _core.verify_logits(
        case.tree,
        in_host_memory(case.logits),
        None,
        g.row_params,
        case.verifier,
        g.tokens,
        g.prompt_length,
        g.allowed(case.tree),
        *g.key,
        case.lossy,
    )


def on_gpu(logits: Array) -> bool:
    """Whether this build has functions for the memory that they are in."""
    return bool(getattr(logits, "is_cuda", False)) and _core.cuda_built()


def _is_for_device(case: Case) -> bool:
    if not on_gpu(case.logits):
        return False
    from treespec.device.decoding import takes

    return takes(case.tree, case.logits)


def _on_device(cases: Sequence[Case]) -> list[Verdict]:
    if not cases:
        return []
    from treespec.device.decoding import verify_on_device

    return verify_on_device(cases)
