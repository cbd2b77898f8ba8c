# SPDX-License-Identifier: Apache-2.0
"""Verdicts and commits of arrays in CUDA memory: what the core makes of the same on the host."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from device_backends import BACKENDS, There, arrays_there, gpu_of_tensor
from support import only
from verifier_cases import CHAIN_ONLY, LOSSLESS

import treespec
from treespec import _core, device, placement, testing
from treespec.device import host_trees, transfers

VOCAB = 40
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
RULES = [
    {"temperature": 0.0},
    {"temperature": 0.9},
    {"temperature": 0.5, "logit_bias": {t: 3.0 * (t % 3) for t in range(1, VOCAB)}},
    {"temperature": 0.7, "top_k": 5, "top_p": 0.9, "min_p": 0.02},
    {"temperature": 1.3, "repetition_penalty": 1.3, "presence_penalty": 0.4},
    {"temperature": 0.8, "frequency_penalty": 0.5, "logit_bias": {0: 1.0}},
]


@pytest.fixture(params=BACKENDS)
def there(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> There:
    return arrays_there(request.param, monkeypatch)


class Round(NamedTuple):
    """Arguments of `verify_logits` on the host."""

    tree: treespec.TokenTree
    logits: torch.Tensor
    prefix_ids: Any
    prompt_length: int
    allowed: Any
    key: dict[str, int]


def random_round(
    rng: np.random.Generator,
    proposal: str,
    dtype: torch.dtype,
    *,
    max_children: int = 3,
    most_nodes: int = 24,
) -> Round:
    """A tree of random size; the target likes what was drafted."""
    tree = testing.core_tree(
        testing.random_tree(
            rng,
            num_nodes=int(rng.integers(1, most_nodes)),
            vocab_size=VOCAB,
            proposal=proposal,
            max_children=max_children,
            kinds=("dense", "sparse"),
        )
    )
    logits = torch.tensor(rng.normal(0, 2, (len(tree), VOCAB)))
    logits[tree.parent[1:], tree.token[1:]] += 6
    text = rng.integers(0, VOCAB + 3, int(rng.integers(1, 12))).astype(np.int32)
    allowed = rng.integers(0, 2**32, (len(tree), 2), dtype=np.uint32) | 0xF0F0F0F0
    key = {
        "seed": int(rng.integers(2**64, dtype=np.uint64)),
        "sequence_id": int(rng.integers(2**32)),
        "position": int(rng.integers(2**32)),
    }
    return Round(tree, logits.to(dtype), text, int(rng.integers(len(text) + 1)), allowed, key)


def arrays_of(rounds: list[Round], changed: bool) -> dict[str, Any]:
    """Those of `verify_logits` besides rows."""
    given: dict[str, Any] = {
        name: [one.key[name] for one in rounds] for name in ("seed", "sequence_id", "position")
    }
    if changed:
        given["allowed_tokens"] = [one.allowed for one in rounds]
    given["prefix_ids"] = [one.prefix_ids for one in rounds]
    given["prompt_length"] = [one.prompt_length for one in rounds]
    return given


def same(ours: list[treespec.Verdict], expected: list[treespec.Verdict]) -> int:
    """How many nodes were accepted, after the comparison."""
    assert len(ours) == len(expected)
    for one, other in zip(ours, expected, strict=True):
        assert one.accepted_nodes.tolist() == other.accepted_nodes.tolist()
        assert one.tokens.tolist() == other.tokens.tolist()
        assert one.next_token == other.next_token
    return sum(verdict.num_accepted for verdict in ours)


def proposals(verifier_name: str) -> tuple[str, ...]:
    return LOSSLESS[verifier_name] or LOSSLESS["target_only"]  # lossy ones take any tree


# --- verify_logits --------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_verdicts_equal_those_of_the_host(
    rng: Any, there: There, verifier_name: str, dtype: torch.dtype
) -> None:
    """With the law of the trees, and with rows that are given."""
    accepted = 0
    for count in (1, 4):
        for rule in RULES:
            proposal = str(rng.choice(proposals(verifier_name)))
            children = 1 if verifier_name in CHAIN_ONLY else 3
            rounds = [
                random_round(rng, proposal, dtype, max_children=children) for _ in range(count)
            ]
            trees, logits = [one.tree for one in rounds], [one.logits for one in rounds]
            laws = [law_of(tree) for tree in trees] if rng.integers(2) else None
            options = {
                "sampling": treespec.SamplingParams(**rule),
                "verifier": verifier_name,
                "lossy": verifier_name == "typical",
                **arrays_of(rounds, changed=bool(rng.integers(2))),
            }
            expected = verdicts_on_host(trees, logits, laws, options)
            moved = None if laws is None else [there(own) for own in laws]
            ours = treespec.verify_logits(trees, [there(rows) for rows in logits], moved, **options)
            accepted += same(ours, expected)
            assert not there.copied
    assert accepted


def law_of(tree: treespec.TokenTree) -> Any:
    """Its own; any for a root alone, from which nothing was drawn."""
    law = tree.draft_probs
    return np.full((len(tree), VOCAB), np.float32(1 / VOCAB)) if law is None else law


def verdicts_on_host(trees: Any, logits: Any, laws: Any, options: Any) -> Any:
    """Of the core, in whose place no device steps."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(placement, "gpu_of", lambda array: None)
        return treespec.verify_logits(trees, logits, laws, **options)


def test_one_tree_is_verified_like_a_list_of_one(rng: Any, there: There) -> None:
    for _ in range(10):
        one = random_round(rng, "iid", torch.float32)
        ours = treespec.verify_logits(one.tree, there(one.logits), **one.key)
        same([ours], [verdicts_on_host(one.tree, one.logits, None, one.key)])


def test_prefixes_and_allowed_tokens_may_be_on_either_side(
    rng: Any, there: There, launches: Any
) -> None:
    sampling = treespec.SamplingParams(presence_penalty=2.0)
    rounds = [random_round(rng, "deterministic", torch.float32) for _ in range(4)]
    trees, logits = [one.tree for one in rounds], [one.logits for one in rounds]
    options = {"sampling": sampling, **arrays_of(rounds, changed=True)}
    expected = verdicts_on_host(trees, logits, None, options)
    options["prefix_ids"] = [there(one.prefix_ids) for one in rounds]
    options["allowed_tokens"][1:3] = [there(one.allowed) for one in rounds[1:3]]
    same(treespec.verify_logits(trees, [there(rows) for rows in logits], **options), expected)
    assert len(launches) == 2


def test_texts_of_different_lengths_are_counted_apart(there: There) -> None:
    root = treespec.TokenTree([3], parent=[-1])
    logits = [there(np.float32([[1, 0, 0, 0, 0.5, 0]])) for _ in range(2)]
    sampling = treespec.SamplingParams(temperature=0, presence_penalty=2.0)
    found = treespec.verify_logits(
        [root, root], logits, sampling=sampling, prefix_ids=[[0, 0, 3], [4]], prompt_length=0
    )
    assert [verdict.next_token for verdict in found] == [4, 0]


def test_a_list_of_no_trees_has_no_verdicts(there: There) -> None:
    assert treespec.verify_logits([], []) == []


@pytest.fixture
def launches(monkeypatch: pytest.MonkeyPatch) -> list[torch.Tensor]:
    """The logits of every launch of `device.verify`."""
    seen: list[torch.Tensor] = []
    verify = host_trees.verify

    def recorded(trees: Any, logits: torch.Tensor, *args: Any, **options: Any) -> Any:
        seen.append(logits)
        return verify(trees, logits, *args, **options)

    monkeypatch.setattr(host_trees, "verify", recorded)
    return seen


def test_a_list_is_one_launch_and_one_copy(
    rng: Any, there: There, launches: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    copies = []
    real_cpu = torch.Tensor.cpu
    monkeypatch.setattr(torch.Tensor, "cpu", lambda t: copies.append(t.numel()) or real_cpu(t))
    rounds = [random_round(rng, "without_replacement", torch.float32) for _ in range(6)]
    trees = [one.tree for one in rounds]
    treespec.verify_logits(trees, [there(one.logits) for one in rounds])
    assert [logits.shape[0] for logits in launches] == [6]
    deepest = max(tree.max_depth for tree in trees)
    assert copies == [6 * (4 + deepest)]


def test_trees_of_different_kinds_are_launched_apart_and_keep_their_places(
    rng: Any, there: There, launches: Any
) -> None:
    modes = ("iid", "deterministic", "top_plus_one", "deterministic", "iid")
    rounds = [random_round(rng, mode, torch.float32) for mode in modes]
    trees, logits = [one.tree for one in rounds], [one.logits for one in rounds]
    keys = arrays_of(rounds, changed=False)
    expected = verdicts_on_host(trees, logits, None, keys)
    same(treespec.verify_logits(trees, [there(rows) for rows in logits], **keys), expected)
    assert sorted(len(logits) for logits in launches) == [1, 2, 2]


def test_evenly_spaced_logits_are_not_copied(rng: Any, there: There, launches: Any) -> None:
    """A target's `[B, M, V]`, and the rows of it that trees of different sizes have."""
    rounds = [random_round(rng, "deterministic", torch.float32, most_nodes=12) for _ in range(4)]
    trees = [one.tree for one in rounds]
    whole = there(rng.normal(0, 2, (5, 12, VOCAB)).astype(np.float32))
    rows = [whole[1 + b, : len(tree)] for b, tree in enumerate(trees)]
    ours = treespec.verify_logits(trees, rows, seed=3)
    same(ours, verdicts_on_host(trees, [own.cpu() for own in rows], None, {"seed": 3}))
    assert launches[0].data_ptr() == whole[1].data_ptr()
    full = [one for one in trees if len(one) <= 12][:1] * 5
    tensor = there(rng.normal(0, 2, (5, len(full[0]), VOCAB)).astype(np.float32))
    treespec.verify_logits(full, tensor)
    assert launches[1].data_ptr() == tensor.data_ptr()


def test_rows_are_stacked_in_place_only_where_they_are_evenly_spaced() -> None:
    whole = torch.arange(48.0).reshape(12, 4)
    rows = {
        "even": ([whole[0:2], whole[3:6], whole[6:7]], True),
        "alone": ([whole[2:5]], True),
        "uneven": ([whole[0:2], whole[3:5], whole[7:9]], False),
        "uneven and close": ([whole[0:2], whole[2:5], whole[6:8]], False),
        "overlapping": ([whole[0:3], whole[2:5]], False),
        "backwards": ([whole[3:6], whole[0:3]], False),
        "twice the same": ([whole[0:3], whole[0:3]], False),
        "of two tensors": ([whole[0:3], whole.clone()[3:6]], False),
        "beyond the end": ([whole[4:6], whole[10:12]], False),
        "of parts of rows": ([whole[0:2, :3], whole[3:5, 1:]], False),
        "of columns": ([whole[0:2, :3], whole[3:5, :3]], True),
        "of other strides": ([whole[0:4:2], whole[6:8]], False),
    }
    for name, (parts, in_place) in rows.items():
        out = transfers.stacked(parts)
        assert (out.data_ptr() == parts[0].data_ptr()) == in_place, name
        for ours, part in zip(out, parts, strict=True):
            assert torch.equal(ours[: len(part)], part), name


def test_work_is_queued_on_the_gpu_of_the_arrays(
    rng: Any, there: There, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which need not be the current one, where kernels are launched."""
    entered: list[Any] = []
    real_device_of, queue, to_device = torch.cuda.device_of, host_trees._queue, transfers.to_device

    @contextmanager
    def device_of(tensor: torch.Tensor) -> Iterator[None]:
        entered.append(tensor)
        with real_device_of(tensor):
            yield
        entered.pop()

    def checked(work: Any) -> Any:
        def do(*args: Any) -> Any:
            assert entered
            return work(*args)

        return do

    monkeypatch.setattr(torch.cuda, "device_of", device_of)
    monkeypatch.setattr(host_trees, "_queue", checked(queue))
    monkeypatch.setattr(device.commit, "to_device", checked(to_device))
    one = random_round(rng, "iid", torch.float32)
    treespec.verify_logits(one.tree, there(one.logits))
    treespec.commit_kv(there(np.zeros((4, 3))), 0, [0, 2])


CHAIN = treespec.TokenTree([0, 1, 2], parent=[-1, 0, 1])
DRAWN = treespec.TokenTree(
    [0, 1, 2],
    parent=[-1, 0, 1],
    proposal="iid",
    draws=[[1], [2], []],
    draft_probs=np.full((3, 4), 0.25, np.float32),
)
UNSOUND = treespec.TokenTree(
    [0, 1, 2],
    parent=[-1, 0, 1],
    proposal="iid",
    draws=[[1], [2], []],
    draft_probs=np.full((3, 4), 0.2, np.float32),
)
LAW = np.full((3, 4), 0.25, np.float32)
BITS = np.full((3, 1), 15, np.uint32)


def deep_chain(nodes: int, **options: Any) -> treespec.TokenTree:
    draws = [[i + 1] for i in range(nodes - 1)] + [[]]
    parent = np.arange(-1, nodes - 1)
    return treespec.TokenTree(np.zeros(nodes, np.int32), parent=parent, draws=draws, **options)


def zeros(there: There, *shape: int, **options: Any) -> torch.Tensor:
    return there(torch.zeros(*shape, **options))


REFUSED = {
    "float64 logits": (
        lambda there: treespec.verify_logits(CHAIN, zeros(there, 3, 4, dtype=torch.float64)),
        "target_logits must be float32, bfloat16 or float16, got torch.float64",
    ),
    "a large vocabulary": (
        lambda there: treespec.verify_logits(CHAIN, zeros(there, 3, 2**18 + 1)),
        "target_logits must have at most 262144 tokens, got 262145",
    ),
    "a float64 law": (
        lambda there: treespec.verify_logits(
            DRAWN, zeros(there, 3, 4), there(LAW.astype(np.float64))
        ),
        "draft_probs must be float32, got torch.float64",
    ),
    "a large tree": (
        lambda there: treespec.verify_logits(deep_chain(4097), zeros(there, 4097, 2)),
        "tree must have at most 4096 nodes, got 4097",
    ),
    "a deep tree": (
        lambda there: treespec.verify_logits(
            deep_chain(130, proposal="iid"),
            zeros(there, 130, 2),
            there(np.tile(np.float32([1, 0]), (130, 1))),
        ),
        "tree must have a depth of at most 128 for traversal, got 129",
    ),
    "a long path": (
        lambda there: treespec.commit_kv(zeros(there, 5000, 1), 0, np.arange(4097)),
        "nodes must be at most 4096, got 4097",
    ),
}


@pytest.mark.parametrize(("call", "message"), REFUSED.values(), ids=REFUSED)
def test_what_the_kernels_do_not_take_is_refused(call: Any, message: str, there: There) -> None:
    with pytest.raises(NotImplementedError, match=message):
        call(there)


WRONG = {
    "too few rows": (
        lambda there: treespec.verify_logits(CHAIN, zeros(there, 2, 4)),
        r"target_logits: shape must be \[3, V >= 1\]",
    ),
    "three axes": (
        lambda there: treespec.verify_logits(CHAIN, zeros(there, 1, 3, 4)),
        r"target_logits: shape must be \[rows, V\], got \[1, 3, 4\]",
    ),
    "a law of one axis": (
        lambda there: treespec.verify_logits(DRAWN, zeros(there, 3, 4), there(LAW[0])),
        r"draft_probs: shape must be \[rows, V\], got \[4\]",
    ),
    "a law of too few rows": (
        lambda there: treespec.verify_logits(DRAWN, zeros(there, 3, 4), there(LAW[1:])),
        r"draft_probs: shape must be \[3, V\], got \[2, 4\]",
    ),
    "a law of a larger vocabulary": (
        lambda there: treespec.verify_logits(DRAWN, zeros(there, 3, 3)),
        r"draft_probs: vocabulary must be at most the target's \(3\), got 4",
    ),
    "a law that sums to less than 1": (
        lambda there: treespec.verify_logits(DRAWN, zeros(there, 3, 4), there(LAW * 0.99)),
        "draft_probs: row 0 must have no NaN or negative entries, and sum to 1 within 0.001",
    ),
    "a law with a negative entry": (
        lambda there: treespec.verify_logits(DRAWN, zeros(there, 3, 4), there(LAW + SWAP)),
        "draft_probs: row 1 must have no NaN",
    ),
    "a law with NaN": (
        lambda there: treespec.verify_logits(DRAWN, zeros(there, 3, 4), there(LAW * np.nan)),
        "draft_probs: row 0 must have no NaN",
    ),
    "a tree whose law sums to less than 1": (
        lambda there: treespec.verify_logits(UNSOUND, zeros(there, 3, 4)),
        "draft_probs: row of node 0 must sum to 1",
    ),
    "a drawn tree without a law": (
        lambda there: treespec.verify_logits(deep_chain(3, proposal="iid"), zeros(there, 3, 4)),
        "draft_probs must be given",
    ),
    "tokens that the target has not": (
        lambda there: treespec.verify_logits(CHAIN, zeros(there, 3, 2)),
        r"tree: token\[2\] must be below the target's vocabulary \(2\), got 2",
    ),
    "a biased token that the target has not": (
        lambda there: treespec.verify_logits(
            CHAIN, zeros(there, 3, 4), sampling=treespec.SamplingParams(logit_bias={4: 1})
        ),
        r"logit_bias token must be in \[0, 4\), got 4",
    ),
    "a prompt longer than the prefix": (
        lambda there: treespec.verify_logits(
            CHAIN, zeros(there, 3, 4), prefix_ids=[1], prompt_length=2
        ),
        r"prompt_length: must be in \[0, 1\], got 2",
    ),
    "a prefix of fractions": (
        lambda there: treespec.verify_logits(CHAIN, zeros(there, 3, 4), prefix_ids=[0.5]),
        "prefix_ids: must be integers",
    ),
    "penalties without a prefix": (
        lambda there: treespec.verify_logits(
            CHAIN, zeros(there, 3, 4), sampling=treespec.SamplingParams(presence_penalty=1.0)
        ),
        "prefix_ids must be given",
    ),
    "allowed tokens of another shape": (
        lambda there: treespec.verify_logits(CHAIN, zeros(there, 3, 4), allowed_tokens=BITS[1:]),
        r"allowed_tokens: must be uint32 \[3, 1\], a bitmask per node, got uint32 \[2, 1\]",
    ),
    "allowed tokens of another type": (
        lambda there: treespec.verify_logits(
            CHAIN, zeros(there, 3, 4), allowed_tokens=there(BITS.astype(np.int64))
        ),
        r"allowed_tokens: must be uint32 \[3, 1\].*got torch.int64 \[3, 1\]",
    ),
    "NaN in the second tree": (
        lambda there: treespec.verify_logits(
            [CHAIN, CHAIN], [zeros(there, 3, 4), zeros(there, 3, 4) * torch.nan]
        ),
        "sequence 1 of the batch: NaN",
    ),
    "a biased pair": (
        lambda there: treespec.verify_logits(CHAIN, zeros(there, 3, 4), verifier="traversal"),
        "would bias a deterministic tree",
    ),
    "a lossy verifier": (
        lambda there: treespec.verify_logits(CHAIN, zeros(there, 3, 4), verifier="typical"),
        "must be asked for with lossy",
    ),
    "a branching tree for a verifier of chains": (
        lambda there: treespec.verify_logits(
            treespec.TokenTree(
                [0, 1, 2], parent=[-1, 0, 0], proposal="iid", draws=[[1, 2], [], []]
            ),
            zeros(there, 3, 4),
            there(LAW),
            verifier="block",
        ),
        "tree must be a chain",
    ),
    "probabilities that are none": (
        lambda there: treespec.verify(CHAIN, zeros(there, 3, 4)),
        "row 0 must sum to 1",
    ),
    "nodes that do not ascend": (
        lambda there: treespec.commit_kv(zeros(there, 9, 2), 0, [0, 3, 2]),
        "nodes must ascend from 0 or more, got 2 after 3",
    ),
    "nodes beyond the rows": (
        lambda there: treespec.commit_kv(zeros(there, 2, 9, 2), 5, [0, 4]),
        r"base \+ node must be below the number of rows 9, got 5 \+ 4",
    ),
    "a base below zero": (
        lambda there: treespec.commit_kv(zeros(there, 9, 2), -1, [0, 4]),
        "base must be >= 0, got -1",
    ),
    "a cache of one axis": (
        lambda there: treespec.commit_kv(zeros(there, 9), 0, [0, 1]),
        "arrays must be",
    ),
    "a cache of rows that are not contiguous": (
        lambda there: treespec.commit_kv(zeros(there, 9, 4)[:, ::2], 0, [0, 1]),
        "contiguous rows",
    ),
}
SWAP = np.float32([[0, 0, 0, 0], [-0.5, 0.5, 0, 0], [0, 0, 0, 0]])


@pytest.mark.parametrize(("call", "message"), WRONG.values(), ids=WRONG)
def test_what_does_not_fit_is_refused(call: Any, message: str, there: There) -> None:
    with pytest.raises(ValueError, match=message):
        call(there)


def test_what_no_walk_reads_is_not_refused(there: There) -> None:
    """Rows of nodes that drew nothing, and laws that the verifier does not look at."""
    law = there(np.concatenate([LAW[:2], LAW[2:] * np.nan]))
    treespec.verify_logits(DRAWN, zeros(there, 3, 4), law)
    greedy = treespec.SamplingParams(temperature=0)
    treespec.verify_logits(DRAWN, zeros(there, 3, 4), law * np.nan, sampling=greedy)
    treespec.verify_logits(UNSOUND, zeros(there, 3, 4), sampling=greedy)
    root = treespec.TokenTree([0], parent=[-1], proposal="iid")
    treespec.verify_logits(root, zeros(there, 1, 4), law[2:])


def on_gpu_1(array: torch.Tensor) -> torch.Tensor:
    array.gpu = 1  # as `gpu_of_tensor` reads it
    return array


MIXED = {
    "a law on the host": (
        lambda there: treespec.verify_logits(DRAWN, zeros(there, 3, 4), LAW),
        "verify_logits: draft_probs must be where target_logits is, in CUDA memory of GPU 0, "
        "got one in host memory",
    ),
    "logits on the host": (
        lambda there: treespec.verify_logits(DRAWN, np.zeros((3, 4)), there(LAW)),
        "draft_probs must be where target_logits is, in host memory, got one in CUDA memory of "
        "GPU 0",
    ),
    "one tree of two": (
        lambda there: treespec.verify_logits(
            [CHAIN, CHAIN], [zeros(there, 3, 4), np.zeros((3, 4))]
        ),
        r"target_logits\[1\] must be where target_logits\[0\] is",
    ),
    "the law of one tree of two": (
        lambda there: treespec.verify_logits(
            [DRAWN, DRAWN], [zeros(there, 3, 4)] * 2, [there(LAW), LAW]
        ),
        r"draft_probs\[1\] must be where target_logits\[0\] is",
    ),
    "allowed tokens that the host would read": (
        lambda there: treespec.verify_logits(
            CHAIN, np.zeros((3, 4)), allowed_tokens=there(BITS.view(np.int32))
        ),
        "allowed_tokens must be where target_logits is, in host memory",
    ),
    "a prefix that the host would read": (
        lambda there: treespec.verify_logits(CHAIN, np.zeros((3, 4)), prefix_ids=there([1])),
        "prefix_ids must be where target_logits is, in host memory",
    ),
    "probabilities": (
        lambda there: treespec.verify(DRAWN, there(LAW), LAW),
        "verify: draft_probs must be where target_probs is, in CUDA memory of GPU 0",
    ),
    "probabilities to average": (
        lambda there: treespec.expected_acceptance(DRAWN, LAW, there(LAW)),
        "expected_acceptance: draft_probs must be where target_probs is, in host memory",
    ),
}


@pytest.mark.parametrize(("call", "message"), MIXED.values(), ids=MIXED)
def test_arrays_in_different_memories_are_refused(call: Any, message: str, there: There) -> None:
    with pytest.raises(ValueError, match=message):
        call(there)


@only(lambda there: there != "cuda")
def test_trees_on_two_gpus_are_refused(there: There) -> None:
    """There need not be two: the emulation takes a tensor's word."""
    with pytest.raises(ValueError, match=r"GPU 0, got one in CUDA memory of GPU 1"):
        treespec.verify_logits([CHAIN, CHAIN], [zeros(there, 3, 4), on_gpu_1(zeros(there, 3, 4))])


# --- probabilities, which are verified on the host ------------------------------------------------


def test_probabilities_are_verified_on_the_host(rng: Any, there: There) -> None:
    for proposal in ("iid", "without_replacement"):
        one = random_round(rng, proposal, torch.float64)
        probs = one.logits.softmax(1).numpy()
        law = law_of(one.tree)
        coins = ([[0.3] * len(draws) for draws in one.tree.draws], np.full(len(one.tree), 0.7))
        for options in ({"seed": 5}, {"coins": coins}):
            expected = treespec.verify(one.tree, probs, **options)
            there.copied.clear()
            rows = there(probs)
            same([treespec.verify(one.tree, rows, **options)], [expected])
            assert there.copied[-1] is rows
            same([treespec.verify(one.tree, there(probs), there(law), **options)], [expected])
        same(
            treespec.verify([one.tree] * 2, there(np.stack([probs] * 2)), seed=5),
            [treespec.verify(one.tree, probs, seed=5)] * 2,
        )
        accept = [there(np.full(len(draws), 0.3)) for draws in one.tree.draws]
        moved = (accept, there(coins[1]))
        same(
            [treespec.verify(one.tree, there(probs), coins=moved)],
            [treespec.verify(one.tree, probs, coins=coins)],
        )
        ours = treespec.expected_acceptance(one.tree, there(probs)).node_probability
        expected = treespec.expected_acceptance(one.tree, probs).node_probability
        assert np.array_equal(ours, expected)
    row = there([0.5, 0.5])
    assert treespec.alpha_star(row, there([1.0, 0.0]), 2) == 0.5


# --- commit_kv ------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [*DTYPES, torch.int8, torch.float64], ids=str)
def test_rows_are_committed_in_place(rng: Any, there: There, dtype: torch.dtype) -> None:
    for shape in ((14, 3), (2, 14, 3), (2, 3, 14, 16), (2, 2, 3, 14, 5)):
        host = torch.tensor(rng.integers(-99, 99, shape)).to(dtype)
        array = there(host.clone())
        for base, nodes in ((4, [0, 2, 5]), (0, [0]), (9, [1, 4]), (3, []), (2, there([0, 1, 2]))):
            commit_on_host(host, base, nodes)
            assert treespec.commit_kv(array, base, nodes) is None
            assert torch.equal(array.cpu(), host)


def commit_on_host(array: torch.Tensor, base: int, nodes: Any) -> None:
    path = np.asarray(nodes.cpu() if isinstance(nodes, torch.Tensor) else nodes, np.int32)
    _core.KvBuffers([array]).commit(base, path)


def test_strided_caches_are_committed_in_place(rng: Any, there: There) -> None:
    """Rows outside heads, and parts of a larger cache."""
    host = torch.tensor(rng.normal(size=(2, 3, 14, 2, 8)))
    array = there(host.clone())
    for cache in (host, array):
        view = cache.transpose(2, 3)[:, 1:, :, 2:]
        assert not view.is_contiguous()
        commit = commit_on_host if cache is host else treespec.commit_kv
        commit(view, 1, [0, 3, 6])
    assert torch.equal(array.cpu(), host)


def test_a_cache_may_require_gradients(there: There) -> None:
    array = zeros(there, 4, 2)
    array[3] = 1
    leaf = array.requires_grad_()
    treespec.commit_kv(leaf, 1, [0, 2])
    assert leaf[2].tolist() == [1, 1]


@pytest.mark.parametrize(
    "call",
    [
        lambda: treespec.verify_logits(CHAIN, torch.zeros(3, 4)),
        lambda: treespec.commit_kv(torch.zeros(4, 2), 0, [0, 2]),
    ],
    ids=["verify_logits", "commit_kv"],
)
def test_a_build_without_cuda_says_how_to_get_one(
    call: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(placement, "gpu_of", gpu_of_tensor)
    monkeypatch.setattr(_core, "cuda_built", lambda: False)
    with pytest.raises(NotImplementedError, match="install it with a CUDA compiler on PATH"):
        call()
