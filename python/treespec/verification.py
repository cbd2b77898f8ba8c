# SPDX-License-Identifier: Apache-2.0
"""Step 5 of a round in Python: verdicts, found where the logits are if that can be."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from treespec import _core, placement
from treespec._core import TokenTree, Verdict
from treespec.growth import RoundKey
from treespec.targets.base import in_host_memory

if TYPE_CHECKING:
    from treespec.generation import Generation


class Case(NamedTuple):
    """A tree and what it is judged by.

    Attributes
    ----------
    tree
        What was drafted.
    logits
        ``[N, V]``: the target's, after every node.
    params
        How they become laws.
    key
        Of the round; its position is the root's.
    verifier
        A name of `treespec.verifier_names`, or ``"auto"``.
    lossy
        Whether it may change the distribution of the text.
    prefix_ids, prompt_length
        The committed text, the root last, and how much of it is prompt; for penalties.
    allowed
        uint32 ``[N, ceil(V / 32)]``: bits of the tokens that may follow each node. None: all.
    draft_probs
        ``[N, V]``: laws of the nodes' first children. None: the tree's own.
    place
        Of the sequence in its batch, for messages.
    """

    tree: TokenTree
    logits: Any
    params: _core.RowParams
    key: RoundKey
    verifier: str
    lossy: bool
    prefix_ids: Any
    prompt_length: int
    allowed: Any
    draft_probs: Any = None
    place: int = 0

    @classmethod
    def of(cls, g: Generation, tree: TokenTree, logits: Any, verifier: str, lossy: bool) -> Case:
        """The running round of a decoder's sequence."""
        return cls(
            tree,
            logits,
            g.row_params,
            g.key,
            verifier,
            lossy,
            g.tokens,
            g.prompt_length,
            g.allowed(tree),
            place=g.place,
        )


def verify_arrays(cases: Sequence[Case]) -> list[Verdict]:
    """One verdict per case from arrays of a caller, found where the logits are.

    Raises
    ------
    ValueError
        For what does not fit, and for logits or draft rows in different memories. Prefixes and
        allowed tokens may be on the host with logits that are on a GPU.
    NotImplementedError
        For logits on a GPU in a build without CUDA, or of a kind that its kernels do not take.
    """
    if not cases or placement.require_one_memory("verify_logits", _arrays(cases)) is None:
        return [verify_on_host(case) for case in cases]
    placement.require_cuda_build("verify_logits", "target_logits")
    from treespec.device import host_trees

    return host_trees.verify_arrays(cases)


def _arrays(cases: Sequence[Case]) -> Mapping[str, Any]:
    """By name, those that have to be in one memory."""
    arrays = {}
    for i, case in enumerate(cases):
        place = f"[{i}]" if len(cases) > 1 else ""
        arrays[f"target_logits{place}"] = case.logits
        arrays[f"draft_probs{place}"] = case.draft_probs
        for name, array in (("prefix_ids", case.prefix_ids), ("allowed_tokens", case.allowed)):
            if placement.gpu_of(array) is not None:
                arrays[name + place] = array
    return arrays


def verify_cases(cases: Sequence[Case]) -> list[Verdict]:
    """One verdict per case of a decoder, the same whether it was found on the host or on a GPU.

    What the GPU does not take is copied to the host.

    Raises
    ------
    ValueError
        For NaN and for rows without a token that may be drawn.
    """
    there = [_is_for_device(case) for case in cases]
    found = iter(_on_device([case for case, stays in zip(cases, there, strict=True) if stays]))
    return [
        next(found) if stays else verify_on_host(case._replace(logits=in_host_memory(case.logits)))
        for case, stays in zip(cases, there, strict=True)
    ]


def verify_on_host(case: Case) -> Verdict:
    """The verdict of one case whose arrays are in host memory."""
    return _core.verify_logits(
        case.tree,
        case.logits,
        case.draft_probs,
        case.params,
        case.verifier,
        case.prefix_ids,
        case.prompt_length,
        case.allowed,
        *case.key,
        case.lossy,
    )


def on_gpu(logits: Any) -> bool:
    """Whether this build has functions for the memory that they are in."""
    return placement.gpu_of(logits) is not None and _core.cuda_built()


def _is_for_device(case: Case) -> bool:
    if not on_gpu(case.logits):
        return False
    from treespec.device.host_trees import takes

    return takes(case)


def _on_device(cases: Sequence[Case]) -> list[Verdict]:
    if not cases:
        return []
    from treespec.device.host_trees import verify_on_device

    return verify_on_device(cases)
