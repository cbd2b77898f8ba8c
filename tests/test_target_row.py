# SPDX-License-Identifier: Apache-2.0
"""Rows of many blocks: sums over blocks of 4096 tokens and draws in heats must not show."""

from __future__ import annotations

import numpy as np
import pytest
from test_sampling import PARAMS, assert_weights, core_weights

import treespec
from treespec import _core, reference, testing
from treespec.reference import sampling as oracle
from treespec.reference.tree import from_arrays
from treespec.testing import chi_square

# Just below, at and above multiples of 256 and 4096, and several blocks.
SIZES = (255, 256, 257, 4095, 4096, 4097, 4353, 8192, 8193, 12_345)


def far_apart(rng, vocab_size):
    """Logits with likely tokens in every block, some blocks unlikely, one impossible."""
    row = rng.normal(size=vocab_size) * 3
    for block in range(0, vocab_size, 4096):
        row[block : block + 4096] += rng.choice([0.0, -5.0, -60.0])
        row[int(rng.integers(block, min(block + 4096, vocab_size)))] += 6
    if vocab_size > 8192:
        row[4096:8192] = -np.inf
    return row


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16])
@pytest.mark.parametrize("vocab_size", SIZES)
def test_a_row_of_several_blocks_equals_the_oracle(rng, vocab_size, dtype):
    row = far_apart(rng, vocab_size).astype(dtype)
    allowed = rng.random(vocab_size) < 0.8
    for params in PARAMS:
        for mask in (None, allowed):
            core = core_weights(row, allowed=mask, **params)
            expected = oracle.process_logits(row, allowed=mask, **params)
            assert_weights(core, expected, narrow=dtype != np.float64)


@pytest.mark.parametrize("place", [0, 4095, 4096, 9000])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_bad_logit_is_found_in_any_block(place, bad):
    row = np.zeros(9001, np.float32)
    row[place] = bad
    for params in ({}, {"top_k": 3}, {"top_p": 0.5}, {"temperature": 0.0}):
        with pytest.raises(ValueError, match="target_logits: row 0 must not contain NaN or"):
            core_weights(row, **params)


def test_top_k_keeps_ties_of_other_blocks():
    row = np.zeros(9000, np.float32)
    row[[5, 4096, 8999]] = 2.0
    row[[17, 4999]] = 3.0
    for temperature in (1.0, 0.7):
        kept = np.flatnonzero(core_weights(row, top_k=3, temperature=temperature))
        np.testing.assert_array_equal(kept, [5, 17, 4096, 4999, 8999])
    np.testing.assert_array_equal(
        np.flatnonzero(core_weights(row, top_k=5, top_p=0.85)), [5, 17, 4096, 4999]
    )


@pytest.mark.parametrize("vocab_size", SIZES)
def test_a_draw_from_several_blocks_equals_the_oracle(rng, vocab_size):
    for trial in range(20):
        weights = np.exp(far_apart(rng, vocab_size))
        weights[rng.random(vocab_size) < rng.choice([0.0, 0.5, 0.999])] = 0.0
        weights[int(rng.integers(vocab_size))] = 1.0
        key = (int(rng.integers(2**63)), trial, int(rng.integers(2**32)))
        assert _core.sample_at_position(weights, *key) == oracle.sample_at_position(weights, *key)


def test_the_three_heats_draw_from_the_weights():
    # Rivals in another block, in another lane of one block, and in one lane.
    tokens = np.array([3, 259, 4, 4096, 4096 + 256, 9999])
    law = np.array([0.3, 0.2, 0.05, 0.15, 0.25, 0.05])
    weights = np.zeros(10_000)
    weights[tokens] = law * 11.0
    counts = np.zeros(10_000)
    for position in range(40_000):
        counts[_core.sample_at_position(weights, 9, 1, position)] += 1
    statistic, bound = chi_square(counts[tokens], law)
    assert counts.sum() == counts[tokens].sum()
    assert statistic < bound


def test_inverse_cdf_over_blocks_is_that_of_the_row(rng):
    tree = treespec.TokenTree(token=[0], parent=[-1], proposal="iid", draws=[[]])
    law = rng.dirichlet(np.full(9000, 0.02))
    edge = np.cumsum(law)
    for u in rng.random(300):
        if np.min(np.abs(edge - u)) < 1e-12:
            continue
        verdict = treespec.verify(
            tree, law[None], verifier="recursive_rejection", coins=([[]], [float(u)])
        )
        assert verdict.next_token == oracle.inverse_cdf(law, float(u))


FEW, ALL = "few tokens", "all tokens"
CASES = [
    (name, proposal, support)
    for name, proposals in {
        "target_only": ("iid",),
        "recursive_rejection": ("iid", "without_replacement"),
        "naive_tree": ("iid",),
        "spectr": ("iid",),
        "khisti": ("iid",),
        "traversal": ("iid", "without_replacement"),
    }.items()
    for proposal in proposals
    for support in (FEW, ALL)
    if (name, support) != ("khisti", ALL)  # minutes in its oracle
]


def two_levels(rng, laws, proposal):
    """A tree of three draws per node: token, parent, draws, and the rows they came from."""
    token, parent, draws, rows, path = [0], [-1], [], [], [()]
    for node in range(100):
        if node == len(token):
            break
        row = laws(path[node])
        deep = len(path[node]) == 2
        drawn = [] if deep else testing.laws.random_draws(rng, row, 3, proposal)
        for t in dict.fromkeys(drawn):
            token.append(t)
            parent.append(node)
            path.append((*path[node], t))
        child = {token[c]: c for c in range(len(token)) if parent[c] == node}
        draws.append([child[t] for t in drawn])
        rows.append(np.zeros_like(row) if deep else row)
    return token, parent, draws, np.array(rows, np.float32)


@pytest.mark.parametrize(("verifier", "proposal", "support"), CASES)
def test_logits_of_several_blocks_decide_as_the_oracle_on_their_law(
    rng, verifier, proposal, support
):
    vocab_size = 4200
    accepted = 0
    for trial in range(3):
        base = rng.normal(size=vocab_size) * 3

        def law(path, base=base):
            row = base + 0.5 * np.random.default_rng([8, *path]).normal(size=vocab_size)
            if support == FEW:
                row[np.argsort(row)[:-20]] = -np.inf
            e = np.exp(row - row.max()).astype(np.float32)
            return e / e.sum(dtype=np.float64).astype(np.float32)

        token, parent, draws, rows = two_levels(rng, law, proposal)
        tree = treespec.TokenTree(
            token=token, parent=parent, proposal=proposal, draws=draws, draft_probs=rows
        )
        noise = np.random.default_rng(trial).normal(size=(len(token), vocab_size))
        logits = (base + noise).astype(np.float32)
        laws = [oracle.process_logits(row, temperature=0.8) for row in logits]
        slow = from_arrays(token, parent, proposal=proposal, draws=draws)
        for seed in range(8):
            keys = {"seed": seed, "sequence_id": 3, "position": 40}
            fast = treespec.verify_logits(
                tree,
                logits,
                sampling=treespec.SamplingParams(temperature=0.8),
                verifier=verifier,
                **keys,
            )
            path, last = reference.verifier(verifier)(slow, laws, rows, **keys)
            assert (list(fast.accepted_nodes), fast.next_token) == (path, last)
            accepted += fast.num_accepted
    assert accepted > 0
