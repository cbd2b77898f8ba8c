# SPDX-License-Identifier: Apache-2.0
"""Verdicts on trees of the host from logits on a GPU: only the verdicts come back."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from treespec import _core, placement
from treespec._core import Verdict
from treespec.device.candidates import MOST_TOKENS, ROW_DTYPES
from treespec.device.status import check_status, new_status
from treespec.device.transfers import copied, moved, stacked
from treespec.device.trees import MOST_NODES, Trees
from treespec.device.verify import (
    MOST_TRAVERSAL_DEPTH,
    Law,
    ScoreChanges,
    Verdicts,
    sampling_words,
    verify,
)
from treespec.verification import Case

# Numbers in front of the nodes of a result: status, node whose draft row is no law (-1: none),
# number of accepted nodes, next token.
_HEADS = 4
_LARGEST_SUM_ERROR = 1e-3


class _Given(NamedTuple):
    """What `verify` is given of a launch besides logits."""

    trees: Trees
    seed: torch.Tensor
    sequence_id: torch.Tensor
    position: torch.Tensor
    sampling: torch.Tensor
    changes: ScoreChanges
    law: Law | None


def takes(case: Case) -> bool:
    """Whether a decoder's round is verified where its logits are.

    Not with drawn trees: their law is on the host, and may be as wide as the logits.
    """
    return case.tree.proposal == "deterministic" and not any(_refusals(case))


def verify_arrays(cases: Sequence[Case]) -> list[Verdict]:
    """`verify_on_device` for arrays of any library that were not checked yet.

    Raises
    ------
    ValueError
        As `treespec.verify_logits` on the host does.
    NotImplementedError
        For what the kernels do not take.
    """
    return verify_on_device([_checked(case) for case in cases])


def verify_on_device(cases: Sequence[Case]) -> list[Verdict]:
    """One verdict per case, with the bits of the host's; waits once, for all of them.

    Cases whose rows have the same dtype and vocabulary, and whose trees go to the same verifier,
    share a launch.
    """
    launches = defaultdict(list)
    for i, case in enumerate(cases):
        launches[_kind(case)].append(i)
    with torch.cuda.device_of(cases[0].logits):
        results = [_queue([cases[i] for i in launch]) for launch in launches.values()]
    order = [i for launch in launches.values() for i in launch]
    found = dict(zip(order, _on_host(results), strict=True))
    rows = [found[i] for i in range(len(cases))]
    _raise_for_data(cases, rows)
    return [_verdict(case, row) for case, row in zip(cases, rows, strict=True)]


def _on_host(results: Sequence[torch.Tensor]) -> Iterator[npt.NDArray[np.int32]]:
    """Their rows one after the other, by one copy."""
    numbers = torch.cat([result.flatten() for result in results]).cpu().numpy()
    for result in results:
        rows, numbers = np.split(numbers, [result.numel()])
        yield from rows.reshape(result.shape)


def _raise_for_data(cases: Sequence[Case], rows: Sequence[npt.NDArray[np.int32]]) -> None:
    """Raise ValueError for what the device has found in its data."""
    status = np.zeros(1 + max(case.place for case in cases), np.int32)
    for case, (word, unsound, *_) in zip(cases, rows, strict=True):
        if unsound >= 0:
            raise ValueError(
                f"draft_probs: row {unsound} must have no NaN or negative entries, and sum to 1 "
                f"within {_LARGEST_SUM_ERROR}, got another in sequence {case.place} of the batch"
            )
        status[case.place] = word
    check_status(status)


def _verdict(case: Case, row: npt.NDArray[np.int32]) -> Verdict:
    num_accepted, next_token = row[2:_HEADS].tolist()
    return Verdict(case.tree, row[_HEADS : _HEADS + num_accepted].tolist(), next_token)


def _refusals(case: Case) -> Iterator[str]:
    """What the kernels do not take: argument, rule and value."""
    logits, tree, law = case.logits, case.tree, case.draft_probs
    if logits.dtype not in ROW_DTYPES:
        yield f"target_logits must be float32, bfloat16 or float16, got {logits.dtype}"
    if logits.shape[1] > MOST_TOKENS:
        yield f"target_logits must have at most {MOST_TOKENS} tokens, got {logits.shape[1]}"
    if law is not None and law.dtype != torch.float32:
        yield f"draft_probs must be float32, got {law.dtype}"
    if tree.num_nodes > MOST_NODES:
        yield f"tree must have at most {MOST_NODES} nodes, got {tree.num_nodes}"
    if _verifier(case) in ("traversal", "block") and tree.max_depth > MOST_TRAVERSAL_DEPTH:
        yield (
            f"tree must have a depth of at most {MOST_TRAVERSAL_DEPTH} for {_verifier(case)}, got "
            f"{tree.max_depth}"
        )


def _checked(case: Case) -> Case:
    """With tensors where the device reads; raises for what does not fit."""
    law = None if case.draft_probs is None else placement.as_tensor(case.draft_probs)
    case = case._replace(
        logits=placement.as_tensor(case.logits),
        draft_probs=law,
        prefix_ids=placement.in_host_memory(case.prefix_ids),
    )
    for name, rows in (("target_logits", case.logits), ("draft_probs", law)):
        if rows is not None and rows.dim() != 2:
            raise ValueError(f"{name}: shape must be [rows, V], got {list(rows.shape)}")
    _core.check_logit_round(
        case.tree,
        case.logits.shape,
        None if law is None else law.shape,
        case.params,
        case.verifier,
        case.prefix_ids,
        case.prompt_length,
        case.lossy,
    )
    refusal = next(_refusals(case), None)
    if refusal is not None:
        raise NotImplementedError(f"verify_logits: in CUDA memory {refusal}")
    return case


def _verifier(case: Case) -> str:
    if case.verifier != "auto":
        return case.verifier
    return _core.auto_verifier(case.tree.proposal, case.params.temperature == 0)


def _kind(case: Case) -> tuple[Any, ...]:
    """What the cases of a launch have in common."""
    name, law = _verifier(case), case.draft_probs
    allowed = None if case.allowed is None else placement.gpu_of(case.allowed) is None
    return (
        (name, case.tree.proposal, case.lossy, case.logits.dtype, case.logits.shape[1]),
        _core.needs_draft_law(name) and (None if law is None else law.shape[1]),
        (allowed, case.params.has_penalties, bool(case.params.logit_bias)),
    )


def _queue(cases: Sequence[Case]) -> torch.Tensor:
    """``[B, 4 + depth]`` int32: results in the order of `_HEADS`, and accepted nodes; -1 pads."""
    logits = stacked([case.logits for case in cases])
    given: _Given = moved(_given(cases, logits.shape[1]), logits.device)
    status = new_status(len(cases), logits.device)
    verdicts = verify(
        given.trees,
        logits,
        _verifier(cases[0]),
        max_depth=max(case.tree.max_depth for case in cases),
        sampling=given.sampling,
        seed=given.seed,
        sequence_id=given.sequence_id,
        position=given.position,
        proposal=cases[0].tree.proposal,
        law=given.law,
        changes=given.changes,
        lossy=cases[0].lossy,
        status=status,
    )
    return _result(status, given.law, verdicts)


def _result(status: torch.Tensor, law: Law | None, verdicts: Verdicts) -> torch.Tensor:
    unsound = torch.full_like(status, -1)
    if law is not None and law.token is None:
        unsound = _unsound_nodes(law)
    heads = [status, unsound, verdicts.num_accepted, verdicts.next_token]
    return torch.cat([torch.stack(heads, 1), verdicts.nodes[:, 1:]], 1)


def _unsound_nodes(law: Law) -> torch.Tensor:
    """``[B]`` int32: the first node whose dense row is no law, or -1."""
    error = (law.prob.sum(1, dtype=torch.float64) - 1).abs()
    sound = (law.prob.amin(1) >= 0) & (error <= _LARGEST_SUM_ERROR)  # false for NaN
    unsound = (law.row_of_node >= 0) & ~sound[law.row_of_node.clamp(min=0).long()]
    return torch.where(unsound.any(1), unsound.int().argmax(1), -1).int()


def _given(cases: Sequence[Case], max_nodes: int) -> _Given:
    """On the host, but for draft rows and allowed tokens that are on the device."""
    seed, sequence_id, position = (
        torch.from_numpy(column)
        for column in (
            np.array([case.key.seed for case in cases], np.uint64).view(np.int64),
            np.array([case.key.sequence_id for case in cases], np.uint32).view(np.int32),
            np.array([case.key.position for case in cases], np.uint32).view(np.int32),
        )
    )
    trees = Trees.pack([case.tree for case in cases], max_nodes, device="cpu")
    changes, law = _score_changes(cases, max_nodes), _law(cases, trees)
    return _Given(trees, seed, sequence_id, position, _sampling(cases), changes, law)


def _sampling(cases: Sequence[Case]) -> torch.Tensor:
    rows = [(p.temperature, p.top_k, p.top_p, p.min_p) for p in (case.params for case in cases)]
    return sampling_words(*torch.tensor(rows, dtype=torch.float64).T)


def _score_changes(cases: Sequence[Case], max_nodes: int) -> ScoreChanges:
    """Those that the parameters ask for."""
    changes, params = ScoreChanges(), cases[0].params
    if params.has_penalties:
        texts = [np.asarray(case.prefix_ids, np.int32) for case in cases]
        changes = changes._replace(
            penalties=torch.tensor(
                [_penalties(case.params) for case in cases], dtype=torch.float64
            ),
            history=_padded(texts, 0),
            history_length=torch.tensor([len(text) for text in texts], dtype=torch.int32),
            prompt_length=torch.tensor([case.prompt_length for case in cases], dtype=torch.int32),
        )
    if cases[0].allowed is not None:
        changes = changes._replace(allowed=copied([_words(case) for case in cases], max_nodes))
    if params.logit_bias:
        pairs = [np.array(case.params.logit_bias) for case in cases]
        changes = changes._replace(
            bias_token=_padded([own[:, 0].astype(np.int32) for own in pairs], -1),
            bias=_padded([own[:, 1] for own in pairs], 0),
        )
    return changes


def _penalties(p: _core.RowParams) -> tuple[float, float, float]:
    return p.repetition_penalty, p.presence_penalty, p.frequency_penalty


def _padded(rows: Sequence[npt.NDArray[Any]], fill: int) -> torch.Tensor:
    tensors = [torch.from_numpy(row) for row in rows]
    return torch.nn.utils.rnn.pad_sequence(tensors, batch_first=True, padding_value=fill)


def _words(case: Case) -> torch.Tensor:
    """Allowed tokens ``[N, ceil(V / 32)]``, the same bits as int32."""
    on_host = placement.gpu_of(case.allowed) is None
    words = np.asarray(case.allowed) if on_host else placement.as_tensor(case.allowed)
    nodes, width = case.tree.num_nodes, -(-case.logits.shape[1] // 32)
    fits = tuple(words.shape) in ((nodes, width), (width,)[: nodes == 1])
    if not fits or words.dtype not in (np.uint32, torch.uint32):
        raise ValueError(
            f"allowed_tokens: must be uint32 [{nodes}, {width}], a bitmask per node, got "
            f"{words.dtype} {list(words.shape)}"
        )
    signed = torch.from_numpy(words.view(np.int32)) if on_host else words.view(torch.int32)
    return signed.reshape(nodes, width)


def _law(cases: Sequence[Case], trees: Trees) -> Law | None:
    """The rows that are given, else those of the trees; None if the verifier reads none."""
    if not _core.needs_draft_law(_verifier(cases[0])):
        return None
    if cases[0].draft_probs is None:
        return _own_law(cases, trees)
    rows = stacked([case.draft_probs for case in cases])
    row_of_node = np.full(trees.parent.shape, -1, np.int32)
    for b, case in enumerate(cases):
        drew = np.flatnonzero([len(draws) for draws in case.tree.draws])
        row_of_node[b, drew] = b * rows.shape[1] + drew
    return Law(torch.from_numpy(row_of_node), rows.flatten(0, 1).contiguous())


def _own_law(cases: Sequence[Case], trees: Trees) -> Law:
    """The laws that are in the trees, end to end."""
    row_of_node = np.full(trees.parent.shape, -1, np.int32)
    # An entry of no row at the end: without any the arrays would have no address.
    ends, token, prob = [np.zeros(1, np.int64)], [np.zeros(1, np.int32)], [np.zeros(1, np.float32)]
    vocab_size = num_rows = num_entries = 0
    for rows, case in zip(row_of_node, cases, strict=True):
        law = case.tree.draft_rows
        if law is None:  # a root alone
            continue
        size, own, offset, *entries = law
        rows[: len(own)] = np.where(own < 0, -1, own + num_rows)
        ends.append(offset[1:] + num_entries)
        token.insert(-1, entries[0])
        prob.insert(-1, entries[1])
        vocab_size = max(vocab_size, size)
        num_rows += len(offset) - 1
        num_entries += len(entries[0])
    row_offset = np.concatenate(ends)
    arrays = (row_of_node, np.concatenate(prob), np.concatenate(token), row_offset)
    longest = int(np.diff(row_offset).max(initial=0))
    return Law.sparse([torch.from_numpy(a) for a in arrays], vocab_size, longest)
