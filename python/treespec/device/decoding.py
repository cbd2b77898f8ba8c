# SPDX-License-Identifier: Apache-2.0
"""Verdicts of a decoder's rounds from logits on a GPU: only the verdicts come to the host."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from treespec import _core
from treespec._core import TokenTree, Verdict
from treespec.device.candidates import MOST_TOKENS, ROW_DTYPES
from treespec.device.status import check_status, new_status
from treespec.device.trees import Trees
from treespec.device.verify import ScoreChanges, sampling_words, verify
from treespec.generation import Generation
from treespec.verification import Case

# Numbers in front of the nodes of a result: status, number of accepted nodes, next token.
_HEADS = 3


def takes(tree: TokenTree, logits: torch.Tensor) -> bool:
    """Whether `verify_on_device` does.

    Not for drawn trees: their law is on the host, and may be as wide as the logits.
    """
    known = logits.dtype in ROW_DTYPES and logits.shape[1] <= MOST_TOKENS
    return tree.proposal == "deterministic" and known


def verify_on_device(cases: Sequence[Case]) -> list[Verdict]:
    """One verdict per case, with the bits of the host's; waits once, for all of them."""
    with torch.cuda.device_of(cases[0].logits):
        results = [_queue(case) for case in cases]
    ends = np.cumsum([len(result) for result in results])
    found = np.split(torch.cat(results).cpu().numpy(), ends[:-1])
    status = np.zeros(1 + max(case.generation.place for case in cases), np.int32)
    for case, numbers in zip(cases, found, strict=True):
        status[case.generation.place] = numbers[0]
    check_status(status)
    return [
        Verdict(case.tree, numbers[_HEADS : _HEADS + numbers[1]].tolist(), int(numbers[2]))
        for case, numbers in zip(cases, found, strict=True)
    ]


def _queue(case: Case) -> torch.Tensor:
    """``[3 + depth]`` int32: the result of one case, in the order of `_HEADS`."""
    g, tree = case.generation, case.tree
    packed = Trees.pack([tree], device="cpu")
    changes = _score_changes(g, tree)
    given = [t for t in changes if t is not None]
    there = to_device([*packed, *_key(g), _sampling(g), *given], case.logits.device)
    trees, rest = Trees(*there[: len(packed)]), iter(there[len(packed) :])
    seed, sequence_id, position, sampling = (next(rest) for _ in range(4))
    status = new_status(1, case.logits.device)
    verdicts = verify(
        trees,
        case.logits[None],
        _core.auto_verifier("deterministic", g.params.greedy)
        if case.verifier == "auto"
        else case.verifier,
        max_depth=tree.max_depth,
        sampling=sampling,
        seed=seed,
        sequence_id=sequence_id,
        position=position,
        changes=ScoreChanges(*(None if t is None else next(rest) for t in changes)),
        lossy=case.lossy,
        status=status,
    )
    return torch.cat([status, verdicts.num_accepted, verdicts.next_token, verdicts.nodes[0, 1:]])


def _key(g: Generation) -> list[torch.Tensor]:
    seed, sequence_id, position = g.key
    words = np.array([seed], np.uint64).view(np.int64)
    ids = np.array([[sequence_id], [position]], np.uint32).view(np.int32)
    return [torch.from_numpy(words), *torch.from_numpy(ids)]


def _sampling(g: Generation) -> torch.Tensor:
    p = g.params
    columns = torch.tensor([[p.temperature], [p.top_k], [p.top_p], [p.min_p]], dtype=torch.float64)
    return sampling_words(*columns)


def _score_changes(g: Generation, tree: TokenTree) -> ScoreChanges:
    """Those that the parameters ask for, on the host."""
    p, changes = g.params, ScoreChanges()
    if p.has_penalties:
        penalties = [p.repetition_penalty, p.presence_penalty, p.frequency_penalty]
        changes = changes._replace(
            penalties=torch.tensor([penalties], dtype=torch.float64),
            history=torch.from_numpy(g.tokens)[None],
            history_length=torch.tensor([g.length], dtype=torch.int32),
            prompt_length=torch.tensor([g.prompt_length], dtype=torch.int32),
        )
    allowed = g.allowed(tree)
    if allowed is not None:
        changes = changes._replace(allowed=torch.from_numpy(allowed.view(np.int32))[None])
    if p.logit_bias:
        token, bias = zip(*p.logit_bias.items(), strict=True)
        changes = changes._replace(
            bias_token=torch.tensor([token], dtype=torch.int32),
            bias=torch.tensor([bias], dtype=torch.float64),
        )
    return changes


def to_device(tensors: Sequence[torch.Tensor], device: torch.device) -> list[torch.Tensor]:
    """Copies of host tensors, by one transfer that nobody waits for."""
    room = [-(-t.nbytes // 16) * 16 for t in tensors]  # where any type is aligned
    packed = torch.empty(sum(room), dtype=torch.uint8, pin_memory=device.type == "cuda")
    for part, t in zip(packed.split(room), tensors, strict=True):
        part[: t.nbytes] = t.new_empty(t.numel()).copy_(t.flatten()).view(torch.uint8)
    parts = packed.to(device, non_blocking=True).split(room)
    return [
        part[: t.nbytes].view(t.dtype).view(t.shape) for part, t in zip(parts, tensors, strict=True)
    ]
