# SPDX-License-Identifier: Apache-2.0
"""The ops take NumPy and torch alike, one tree or a list, and refuse what does not fit."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import treespec
from treespec import testing

VOCAB = 7
SAMPLED = ["iid", "without_replacement"]


def sampled_tree(seed, proposal="iid", budget=9):
    laws = testing.random_laws(seed, VOCAB)
    options = {"proposal": proposal}
    return treespec.build_tree(
        "kary", testing.ToyDrafter(laws), node_budget=budget, seed=seed, **options
    )


def logits_for(tree, seed):
    return np.random.default_rng(seed).normal(scale=2, size=(len(tree), VOCAB))


def probs_for(tree, seed):
    scores = np.exp(logits_for(tree, seed))
    return scores / scores.sum(axis=1, keepdims=True)


def same(a, b):
    assert a.accepted_nodes.tolist() == b.accepted_nodes.tolist()
    assert a.tokens.tolist() == b.tokens.tolist()


@pytest.mark.parametrize("proposal", SAMPLED)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_verify_takes_numpy_and_torch_alike(proposal, dtype):
    for seed in range(20):
        tree = sampled_tree(seed, proposal)
        probs = probs_for(tree, seed).astype(dtype)
        law = tree.draft_probs
        expected = treespec.verify(tree, probs, seed=seed)
        same(treespec.verify(tree, torch.from_numpy(probs), seed=seed), expected)
        same(treespec.verify(tree, torch.from_numpy(probs), law, seed=seed), expected)
        same(treespec.verify(tree, probs, torch.from_numpy(law), seed=seed), expected)


@pytest.mark.parametrize("proposal", ["deterministic", *SAMPLED])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32", "float64"])
@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_verify_logits_takes_numpy_and_torch_alike(proposal, dtype, temperature):
    sampling = treespec.SamplingParams(temperature=temperature, top_k=5, repetition_penalty=1.2)
    for seed in range(20):
        tree = sampled_tree(seed, proposal)
        rows = torch.from_numpy(logits_for(tree, seed)).to(getattr(torch, dtype))
        options = {"sampling": sampling, "seed": seed, "prefix_ids": [1, 2, 3], "prompt_length": 2}
        # Wider rows of the same values must give the same verdict.
        expected = treespec.verify_logits(tree, rows.double().numpy(), **options)
        same(treespec.verify_logits(tree, rows, **options), expected)
        if dtype != "bfloat16":
            same(treespec.verify_logits(tree, rows.numpy(), **options), expected)


def test_rows_of_a_strided_view_are_read_right():
    tree = sampled_tree(3)
    logits = logits_for(tree, 3).astype(np.float32)
    wide = np.zeros((len(tree), 3 * VOCAB), np.float32)
    wide[:, :VOCAB] = logits
    expected = treespec.verify_logits(tree, logits, seed=1)
    same(treespec.verify_logits(tree, wide[:, :VOCAB], seed=1), expected)
    same(treespec.verify_logits(tree, torch.from_numpy(wide)[:, :VOCAB], seed=1), expected)


def test_a_list_of_trees_equals_the_trees_one_by_one():
    trees = [sampled_tree(seed, SAMPLED[seed % 2], 3 + seed) for seed in range(8)]
    probs = [probs_for(tree, seed) for seed, tree in enumerate(trees)]
    logits = [
        torch.from_numpy(logits_for(tree, seed)).bfloat16() for seed, tree in enumerate(trees)
    ]
    seeds, ids, positions = list(range(8)), [3] * 8, list(range(100, 108))
    keys = {"seed": seeds, "sequence_id": ids, "position": positions}
    for op, rows in ((treespec.verify, probs), (treespec.verify_logits, logits)):
        batch = op(trees, rows, **keys)
        for place, verdict in enumerate(batch):
            own = {name: column[place] for name, column in keys.items()}
            same(verdict, op(trees[place], rows[place], **own))
        shared = op(trees, rows, seed=5)
        for place, verdict in enumerate(shared):
            same(verdict, op(trees[place], rows[place], seed=5))


def test_keys_matter():
    tree = sampled_tree(1)
    probs = np.full((len(tree), VOCAB), 1 / VOCAB)
    for name in ("seed", "sequence_id", "position"):
        tokens = {tuple(treespec.verify(tree, probs, **{name: n}).tokens) for n in range(40)}
        assert len(tokens) > 1, name


WRONG = {
    "too few rows": (lambda tree, rows: treespec.verify(tree, rows[:-1]), "target_probs: shape"),
    "one axis": (lambda tree, rows: treespec.verify(tree, rows[0]), "target_probs"),
    "three axes": (lambda tree, rows: treespec.verify(tree, rows[None]), "target_probs"),
    "integers": (lambda tree, rows: treespec.verify(tree, rows.astype(np.int64)), "target_probs"),
    "half precision": (
        lambda tree, rows: treespec.verify(tree, rows.astype(np.float16)),
        "float32 or float64",
    ),
    "no law": (lambda tree, rows: treespec.verify(tree, rows * 0.9), "row 0 must sum to 1"),
    "negative": (lambda tree, rows: treespec.verify(tree, rows * 2 - rows[::-1] * 2), "row 0"),
    "NaN": (lambda tree, rows: treespec.verify(tree, rows * np.nan), "row 0 must not contain NaN"),
    "a draft law of another length": (
        lambda tree, rows: treespec.verify(tree, rows, rows[:-1]),
        "draft_probs: shape",
    ),
    "a draft law of half precision": (
        lambda tree, rows: treespec.verify(tree, rows, torch.from_numpy(rows).half()),
        "draft_probs: dtype",
    ),
    "a draft law of a larger vocabulary": (
        lambda tree, rows: treespec.verify(tree, rows, np.pad(rows, ((0, 0), (0, 1)))),
        "draft_probs: vocabulary",
    ),
    "logits of integers": (
        lambda tree, rows: treespec.verify_logits(tree, np.ones(rows.shape, np.int32)),
        "target_logits",
    ),
    "logits of too few rows": (
        lambda tree, rows: treespec.verify_logits(tree, rows[1:]),
        "target_logits: shape",
    ),
    "NaN logits": (
        lambda tree, rows: treespec.verify_logits(tree, rows * np.nan),
        "(?i)row 0.*nan",
    ),
    "a prompt longer than the prefix": (
        lambda tree, rows: treespec.verify_logits(tree, rows, prefix_ids=[1], prompt_length=2),
        "prompt_length",
    ),
    "lists of different lengths": (
        lambda tree, rows: treespec.verify([tree, tree], [rows]),
        r"one entry per tree \(2\), got 1",
    ),
    "a list of seeds for one tree": (
        lambda tree, rows: treespec.verify(tree, rows, seed=[1, 2]),
        "seed must be an integer",
    ),
    "one prefix for a list of two trees": (
        lambda tree, rows: treespec.verify_logits([tree, tree], [rows, rows], prefix_ids=[[1]]),
        "prefix_ids must have one entry per tree",
    ),
    "an unknown verifier": (
        lambda tree, rows: treespec.verify(tree, rows, verifier="coin"),
        "coin",
    ),
    "a biased pair": (
        lambda tree, rows: treespec.verify(
            treespec.TokenTree(token=[0, 1], parent=[-1, 0]), rows[:2], verifier="token_level"
        ),
        "would bias.*verifiers that fit",
    ),
}


@pytest.mark.parametrize(("call", "message"), WRONG.values(), ids=WRONG)
def test_what_does_not_fit_is_refused(call, message):
    tree = sampled_tree(2)
    with pytest.raises((ValueError, TypeError), match=message):
        call(tree, probs_for(tree, 2))


def test_arrays_on_no_device_are_refused():
    tree = sampled_tree(2)
    rows = torch.empty(len(tree), VOCAB, device="meta")
    for op in (treespec.verify, treespec.verify_logits):
        with pytest.raises((ValueError, TypeError, BufferError, NotImplementedError)):
            op(tree, rows)


def test_a_tensor_with_a_gradient_is_no_reason_to_fail_in_silence():
    tree = sampled_tree(2)
    logits = torch.from_numpy(logits_for(tree, 2)).requires_grad_()
    expected = treespec.verify_logits(tree, logits.detach(), seed=3)
    try:
        verdict = treespec.verify_logits(tree, logits, seed=3)
    except (ValueError, TypeError, BufferError) as error:
        assert "grad" in str(error)
    else:
        same(verdict, expected)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "int8", "float64"])
def test_commit_moves_rows_of_torch_tensors_of_any_dtype(dtype):
    rows, base, nodes = 12, 4, [0, 2, 5]
    before = torch.arange(2 * rows * 3).reshape(2, rows, 3).to(getattr(torch, dtype))
    expected = before.clone()
    expected[:, base : base + 3] = before[:, [base + node for node in nodes]]
    treespec.commit_kv(before, base, nodes)
    kept = base + len(nodes)
    assert torch.equal(before[:, :kept], expected[:, :kept])


def test_commit_takes_numpy_and_torch_alike():
    array = np.random.default_rng(0).normal(size=(2, 3, 10, 4)).astype(np.float32)
    tensor = torch.from_numpy(array.copy())
    nodes = np.array([0, 1, 4], np.int64)
    treespec.commit_kv(array, 5, nodes)
    treespec.commit_kv(tensor, 5, torch.from_numpy(nodes))
    np.testing.assert_array_equal(array, tensor.numpy())


def test_masks_of_every_format_agree_with_each_other():
    tree = sampled_tree(6, budget=12)
    mask = treespec.ancestor_mask(tree, prefix_length=3)
    assert mask[:, :3].all()
    for node in range(len(tree)):
        up, path = node, set()
        while up >= 0:
            path.add(up)
            up = int(tree.parent[up])
        assert set(np.flatnonzero(mask[node, 3:])) == path
    for name in ("float16", "bfloat16", "float32", "float64"):
        additive = torch.as_tensor(treespec.ancestor_mask(tree, format=name, prefix_length=3))
        assert additive.dtype == getattr(torch, name)
        assert torch.equal(additive == 0, torch.from_numpy(mask))
        hidden = additive[additive != 0]
        assert torch.equal(hidden, torch.full_like(hidden, torch.finfo(hidden.dtype).min))


def test_coins_and_histories_of_a_list_of_trees_reach_their_tree():
    trees = [sampled_tree(seed) for seed in (3, 4)]
    rows = [probs_for(tree, seed) for seed, tree in enumerate(trees)]
    coins = [
        ([[0.3] * len(draws) for draws in tree.draws], torch.full((len(tree),), 0.7))
        for tree in trees
    ]
    listed = treespec.verify(trees, rows, coins=coins)
    for tree, row, own, verdict in zip(trees, rows, coins, listed, strict=True):
        same(verdict, treespec.verify(tree, row, coins=own))

    sampling = treespec.SamplingParams(frequency_penalty=3.0)
    texts = [[1, 2, 2, 2], [5, 5]]
    logits = [logits_for(tree, seed) for seed, tree in enumerate(trees)]
    listed = treespec.verify_logits(
        trees, logits, sampling=sampling, prefix_ids=texts, prompt_length=[1, 0], seed=5
    )
    for i, verdict in enumerate(listed):
        one = treespec.verify_logits(
            trees[i],
            logits[i],
            sampling=sampling,
            prefix_ids=texts[i],
            prompt_length=[1, 0][i],
            seed=5,
        )
        same(verdict, one)


def test_sources_take_torch_tensors_of_any_floating_type():
    token = torch.tensor([[0, 1], [2, 3]])
    logprob = torch.tensor([[0.5, 0.25], [0.5, 0.5]]).log()
    wanted = treespec.build_tree("opt_tree", treespec.Marginals(token, logprob), 3)
    for given in (logprob.clone().requires_grad_(), logprob.double()):
        tree = treespec.build_tree("opt_tree", treespec.Marginals(token, given), 3)
        assert tree.path_logprob.tolist() == wanted.path_logprob.tolist()
    rounded = treespec.Marginals(token, logprob.bfloat16())
    assert treespec.build_tree("opt_tree", rounded, 3).token.tolist() == wanted.token.tolist()
