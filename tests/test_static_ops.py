# SPDX-License-Identifier: Apache-2.0
"""The custom ops: equal to the core they wrap, traceable, and clear without CUDA."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

import treespec
from treespec import _core
from treespec.device import Trees, Verdicts
from treespec.static import cuda_ops, ops
from treespec.static.ops import CandidateLists

BATCH, LEVELS, LISTS, WIDTH, VOCAB, BUDGET = 3, 3, 4, 4, 40, 9
OPS = torch.ops.treespec


def no_status(batch: int = BATCH) -> torch.Tensor:
    return torch.zeros(batch, dtype=torch.int32)


def candidate_lists(rng: np.random.Generator) -> CandidateLists:
    """Lists whose candidate k of list r goes on with list k, ranked as the ops rank them."""
    logits = torch.from_numpy(rng.normal(size=(BATCH * LEVELS, LISTS, VOCAB)))
    token, logprob = OPS.rank_candidates(logits, VOCAB, WIDTH, 1.0, no_status(9))
    shape = (BATCH, LEVELS, LISTS, WIDTH)
    follow = torch.arange(WIDTH, dtype=torch.int32).expand(shape).contiguous()
    return CandidateLists(token.view(shape), logprob.view(shape), follow)


def roots() -> torch.Tensor:
    return torch.tensor([7, 8, 9], dtype=torch.int32)


def trees(lists: CandidateLists, builder: str = "opt_tree", **options: Any) -> Trees:
    text = ops.encode_options(options)
    return Trees(*OPS.build_trees(builder, text, BUDGET, *lists, roots(), no_status()))


def verify_arguments(rng: np.random.Generator, grown: Trees, temperature: float) -> list[Any]:
    rows = torch.from_numpy(rng.normal(scale=2, size=(BATCH, BUDGET + 1, VOCAB)))
    prefix = torch.tensor([3, 5, 4], dtype=torch.int32)
    history = torch.from_numpy(rng.integers(20, VOCAB, (BATCH, 12), dtype=np.int32))
    history[torch.arange(BATCH), prefix.long()] = roots()
    rows[:, :, 7:10], rows[:, :, 11] = 10, 9  # the penalty of the root decides between these
    params = torch.tensor([[temperature, 0, 0.9, 0, 1.3, 0, 0]] * BATCH, dtype=torch.float64)
    seed = torch.tensor([1, -1, 3])
    keys = [torch.tensor([2, 2, 4], dtype=torch.int32), params, seed, torch.arange(BATCH)]
    head = ["deterministic", False, LEVELS, rows]
    return [*head, *grown[:4], *grown[5:], [], 0, history, prefix, *keys, no_status()]


def test_ranks_are_those_of_the_core(rng: np.random.Generator) -> None:
    logits = torch.from_numpy(rng.normal(size=(2, 3, 10)))
    logits[0, 0, 4] = logits[0, 0, 2] = 9.0  # a tie: the lower id first
    token, logprob = OPS.rank_candidates(logits, 8, 5, 0.7, no_status(2))
    law = torch.log_softmax(logits[..., :8] / 0.7, -1)
    best = torch.sort(law, dim=-1, descending=True, stable=True)
    assert torch.equal(token.long(), best.indices[..., :5])
    assert torch.allclose(logprob.double(), best.values[..., :5], rtol=0, atol=1e-5)
    token, logprob = OPS.rank_candidates(logits, 8, 20, 0.7, no_status(2))
    assert token.shape == (2, 3, 20)
    assert (logprob[..., 8:] == -torch.inf).all() and not token[..., 8:].any()


@pytest.mark.parametrize(
    ("builder", "options"),
    [("opt_tree", {}), ("eagle2", {"width": 2}), ("kary", {"expansion": [3, 2]}), ("chain", {})],
)
def test_trees_are_those_of_the_core(
    rng: np.random.Generator, builder: str, options: dict[str, Any]
) -> None:
    lists = candidate_lists(rng)
    grown = trees(lists, builder, **options)
    for b in range(BATCH):
        source = treespec.Transitions(*(array[b].numpy() for array in lists))
        root = int(roots()[b])
        tree = treespec.build_tree(builder, source, BUDGET, root_token=root, **options)
        n = int(grown.num_nodes[b])
        assert n == tree.num_nodes
        for name in ("token", "parent", "depth", "path_logprob"):
            own = getattr(grown, name)[b]
            assert np.array_equal(own[:n].numpy(), getattr(tree, name)), name
            assert (own[n:] == (-1 if name == "parent" else 0)).all()


def test_masks_are_those_of_the_core(rng: np.random.Generator) -> None:
    grown = trees(candidate_lists(rng), "chain", max_depth=2)
    prefix = torch.tensor([0, 5, 70], dtype=torch.int32)
    bits, positions = OPS.mask_trees(
        grown.num_nodes, grown.parent, grown.depth, prefix, no_status()
    )
    for b in range(BATCH):
        n = int(grown.num_nodes[b])
        expected = [1 << i for i in range(BUDGET + 1)]
        expected[:n] = _core.ancestor_bits(grown.parent[b, :n].numpy())[:, 0].tolist()
        assert bits[b, :, 0].tolist() == expected
        assert torch.equal(positions[b], prefix[b] + grown.depth[b])


@pytest.mark.parametrize("verifier", ["greedy", "target_only"])
def test_verdicts_are_those_of_the_core(rng: np.random.Generator, verifier: str) -> None:
    grown = trees(candidate_lists(rng))
    temperature = 0.0 if verifier == "greedy" else 0.8
    arguments = verify_arguments(rng, grown, temperature)
    rows, history, prefix, prompt = arguments[3], *arguments[12:15]
    for b in range(BATCH):  # so that something is accepted
        rows[b, 0, grown.token[b, 1]] = 20.0
    verdicts = Verdicts(*OPS.verify_trees(verifier, *arguments))
    sampling = treespec.SamplingParams(temperature, top_p=0.9, repetition_penalty=1.3)
    for b, seed in enumerate([1, 2**64 - 1, 3]):
        n, position = int(grown.num_nodes[b]), int(prefix[b])
        tree = treespec.TokenTree(grown.token[b, :n].numpy(), parent=grown.parent[b, :n].numpy())
        expected = treespec.verify_logits(
            tree,
            rows[b, :n],
            sampling=sampling,
            verifier=verifier,
            prefix_ids=history[b, : position + 1].numpy(),
            prompt_length=int(prompt[b]),
            seed=seed,
            sequence_id=b,
            position=position,
        )
        path = [0, *expected.accepted_nodes]
        assert len(path) > 1
        assert verdicts.nodes[b].tolist() == path + [-1] * (LEVELS + 1 - len(path))
        assert verdicts.num_accepted[b] == expected.num_accepted
        assert verdicts.next_token[b] == expected.next_token


def test_commits_keep_paths_and_leave_the_others() -> None:
    buffers = [torch.arange(2.0 * 3 * 10 * 4).view(2, 3, 10, 4).clone() for _ in range(2)]
    before = [buffer.clone() for buffer in buffers]
    prefix = torch.tensor([4, 1], dtype=torch.int32)
    path = torch.tensor([[0, 2, 5], [0, 3, -1]], dtype=torch.int32)
    OPS.commit_kv(buffers, prefix, path, torch.tensor([3, 0], dtype=torch.int32), no_status(2))
    for buffer, old in zip(buffers, before, strict=True):
        assert torch.equal(buffer[0, :, 4:7], old[0, :, [4, 6, 9]])
        assert torch.equal(buffer[1], old[1])


def test_the_ops_follow_the_rules_of_torch(rng: np.random.Generator) -> None:
    lists = candidate_lists(rng)
    grown = trees(lists)
    prefix = torch.zeros(BATCH, dtype=torch.int32)
    path = torch.tensor([[0, 2]] * BATCH, dtype=torch.int32)
    buffers = [torch.randn(BATCH, 2, 8, 4)]
    samples = [
        (ops.rank_candidates, (torch.zeros(2, 3, 10), 8, 4, 1.0, no_status(2))),
        (ops.build_trees, ("opt_tree", "{}", BUDGET, *lists, roots(), no_status())),
        (ops.mask_trees, (grown.num_nodes, grown.parent, grown.depth, prefix, no_status())),
        (ops.verify_trees, ("greedy", *verify_arguments(rng, grown, 0.0))),
        (ops.commit_kv, (buffers, prefix, path, prefix + 2, no_status())),
    ]
    for op, arguments in samples:
        torch.library.opcheck(op, arguments)


def test_a_program_of_all_ops_compiles_into_one_graph(rng: np.random.Generator) -> None:
    lists = candidate_lists(rng)
    buffers = [torch.randn(BATCH, 2, 20, 4)]

    def program(lists: CandidateLists, rest: list[Any], kv: list[torch.Tensor]) -> Any:
        grown = Trees(*OPS.build_trees("opt_tree", "{}", BUDGET, *lists, roots(), no_status()))
        prefix = rest[13]
        mask = OPS.mask_trees(grown.num_nodes, grown.parent, grown.depth, prefix, no_status())
        verdicts = Verdicts(
            *OPS.verify_trees("greedy", *rest[:4], *grown[:4], *grown[5:], *rest[10:])
        )
        OPS.commit_kv(kv, prefix, verdicts.nodes, verdicts.num_accepted + 1, no_status())
        return grown, mask, verdicts

    rest = verify_arguments(rng, trees(lists), 0.0)
    compiled = torch.compile(program, fullgraph=True, backend="eager")
    own, traced = [buffers[0].clone()], [buffers[0].clone()]
    expected, result = program(lists, rest, own), compiled(lists, rest, traced)
    for one, other in zip(expected, result, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
    assert torch.equal(own[0], traced[0])


def test_cuda_tensors_need_a_build_with_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_core, "cuda_built", lambda: False)
    with pytest.raises(NotImplementedError, match="CUDA tensors need a build with CUDA"):
        cuda_ops.require_cuda()
    for name in ("rank_candidates", "build_trees", "mask_trees", "verify_trees", "commit_kv"):
        assert torch._C._dispatch_has_kernel_for_dispatch_key(f"treespec::{name}", "CUDA")


def test_on_fake_cuda_tensors_outputs_are_on_the_device() -> None:
    with FakeTensorMode():
        logits = torch.empty(2, 3, 10, device="cuda")
        status = torch.zeros(2, dtype=torch.int32, device="cuda")
        token, logprob = OPS.rank_candidates(logits, 8, 4, 1.0, status)
    assert token.device.type == logprob.device.type == "cuda"
    assert (token.shape, token.dtype, logprob.dtype) == ((2, 3, 4), torch.int32, torch.float32)
