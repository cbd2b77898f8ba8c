# SPDX-License-Identifier: Apache-2.0
"""Verify, mask and commit on the CPU, each beside its floor (see floors.py)."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
from floors import VOCAB_SIZE, Case, FloatRows, logit_rows, pool, run

import treespec
from treespec import _core, reference
from treespec.reference import mask as reference_mask
from treespec.reference import sampling as reference_sampling
from treespec.reference.tree import Tree, from_arrays
from treespec.testing import core_tree


def verify_cases(vocab_size: int) -> list[Case]:
    """A tree of 64 drafted nodes of which the walk takes three."""
    logits = logit_rows(65, vocab_size)
    for node, child in ((0, 1), (1, 5), (5, 21)):
        logits[node, child] = 40.0
    settings = {
        "greedy": ("deterministic", 0.0),
        "target_only": ("deterministic", 0.7),
        "recursive_rejection": ("iid", 0.7),
    }
    return [
        _verify_case(verifier, proposal, temperature, logits)
        for verifier, (proposal, temperature) in settings.items()
    ]


def _four_ary_tree(proposal: str, vocab_size: int) -> Tree:
    """64 drafted nodes; a sampled one has a law of four tokens a row, as after truncation."""
    parent = [-1, *((node - 1) // 4 for node in range(1, 65))]
    law = None
    if proposal != "deterministic":
        law = np.zeros((65, vocab_size), dtype=np.float32)
        for node, row in enumerate(law):
            row[4 * node + 1 : 4 * node + 5] = 0.25
    return from_arrays(list(range(65)), parent, proposal=proposal, draft_probs=law)


def _verify(tree: Any, rows: FloatRows, params: treespec.SamplingParams, verifier: str) -> Any:
    return treespec.verify_logits(tree, rows, sampling=params, verifier=verifier, seed=3)


def _verify_case(verifier: str, proposal: str, temperature: float, logits: FloatRows) -> Case:
    oracle_tree = _four_ary_tree(proposal, logits.shape[1])
    tree = core_tree(oracle_tree)
    params = treespec.SamplingParams(temperature=temperature)
    visited = _verify(tree, logits, params, verifier).num_accepted + 1
    blocks = pool(logits, visited)

    def verify(rows: FloatRows) -> Any:
        return _verify(tree, rows, params, verifier)

    def check() -> None:
        laws = np.stack(
            [
                reference_sampling.normalise(
                    reference_sampling.process_logits(row, temperature=temperature)
                )
                for row in logits
            ]
        )
        oracle = reference.verifier(verifier)(oracle_tree, laws, oracle_tree.draft_probs, seed=3)
        verdict = verify(logits)
        assert (verdict.accepted_nodes.tolist(), verdict.next_token) == oracle

    return Case(
        f"verify {verifier}, {visited} of 65 rows of {logits.shape[1]}, cold",
        "NumPy sum over the visited rows, cold",
        lambda: verify(next(blocks)),
        lambda: next(blocks)[:visited].sum(),
        check,
        num_rows=visited,
    )


def mask_case() -> Case:
    """The additive mask of a tree of 65 rows behind 2048."""
    tree = core_tree(_four_ary_tree("deterministic", 65))
    out = np.empty((65, 2048 + 65), dtype=np.float32)

    def check() -> None:
        _core.fill_mask(tree.parent, tree.depth, 0, 2048, 0, out)
        np.testing.assert_array_equal(
            out == 0, reference_mask.bool_mask(tree.parent, prefix_length=2048)
        )

    return Case(
        "additive float32 mask [65, 2048 + 65]",
        "NumPy fill of the same array",
        lambda: _core.fill_mask(tree.parent, tree.depth, 0, 2048, 0, out),
        lambda: out.fill(0.0),
        check,
        50,
    )


def commit_case() -> Case:
    """Keys and values of 32 layers: 5 of 65 rows stay."""
    blocks = [np.zeros((2, 8, 2048, 128), dtype=np.float32) for _ in range(32)]
    nodes = np.array([0, 3, 9, 17, 40], dtype=np.int32)
    buffers = _core.KvBuffers(blocks)
    moved = np.zeros((32, 2, 8, 4, 128), dtype=np.float32)
    target = np.empty_like(moved)

    def check() -> None:
        block = np.random.default_rng(0).random((2, 8, 64, 16), dtype=np.float32)
        before = block.copy()
        treespec.commit_kv(block, 10, nodes)
        np.testing.assert_array_equal(block[..., 10:15, :], before[..., 10 + nodes, :])

    return Case(
        "commit 5 of 65 rows, 32 layers x 16 heads x 512 bytes",
        "one copy of the moved bytes",
        lambda: buffers.commit(1900, nodes),
        lambda: np.copyto(target, moved),
        check,
        20,
    )


def cases(quick: bool) -> Iterator[Case]:
    """All of them; `quick` with a small vocabulary."""
    yield from verify_cases(8192 if quick else VOCAB_SIZE)
    yield mask_case()
    yield commit_case()


if __name__ == "__main__":
    run("core", __doc__ or "", cases, sys.argv[1:])
