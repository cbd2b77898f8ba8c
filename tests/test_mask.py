# SPDX-License-Identifier: Apache-2.0
"""Masks and positions: every format equals the oracle and says the same thing."""

import numpy as np
import pytest
from support import as_float32, chain_tree

import treespec
from treespec import testing
from treespec.reference import mask as oracle

SIZES = (1, 2, 31, 32, 33, 64, 65, 130)
PREFIXES = (0, 1, 7)
DTYPES = ("float32", "float16", "bfloat16")

# G1 of the specification: marginals (.5, .3, .2), (.7, .2, .1), budget 5.
GOLDEN_PARENT = [-1, 0, 1, 0, 3, 0]
GOLDEN_ROWS = [{0}, {0, 1}, {0, 1, 2}, {0, 3}, {0, 3, 4}, {0, 5}]
GOLDEN_END = [6, 3, 3, 5, 5, 6]


def some_tree(rng, size):
    tree = testing.random_tree(rng, num_nodes=size, vocab_size=64, max_children=3)
    return tree, testing.core_tree(tree)


@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize("size", SIZES)
def test_the_bool_mask_equals_the_oracle(rng, size, prefix):
    tree, core = some_tree(rng, size)
    mask = np.asarray(treespec.ancestor_mask(core, format="bool", prefix_length=prefix))
    assert mask.dtype == np.bool_
    np.testing.assert_array_equal(mask, oracle.bool_mask(tree.parent, prefix))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("prefix", PREFIXES)
def test_the_additive_mask_equals_the_oracle(rng, dtype, prefix):
    tree, core = some_tree(rng, 40)
    mask = as_float32(treespec.ancestor_mask(core, format=dtype, prefix_length=prefix))
    expected = as_float32(oracle.additive_mask(tree.parent, prefix, dtype))
    np.testing.assert_array_equal(mask, expected)
    assert np.all(np.isfinite(mask))


@pytest.mark.parametrize("size", SIZES)
def test_the_bit_mask_equals_the_oracle(rng, size):
    tree, core = some_tree(rng, size)
    bits = np.asarray(treespec.ancestor_mask(core, format="bits"))
    assert bits.dtype == np.uint32
    np.testing.assert_array_equal(bits, oracle.bits(tree.parent))


@pytest.mark.parametrize("size", SIZES)
def test_intervals_and_sequence_ids_equal_the_oracle(rng, size):
    tree, core = some_tree(rng, size)
    np.testing.assert_array_equal(
        treespec.ancestor_mask(core, format="intervals"), oracle.intervals(tree.parent)
    )
    offset, ids = treespec.ancestor_mask(core, format="sequence_ids")
    expected = oracle.sequence_ids(tree.parent)
    np.testing.assert_array_equal(offset, expected[0])
    np.testing.assert_array_equal(ids, expected[1])


@pytest.mark.parametrize("prefix", PREFIXES)
def test_positions_are_prefix_length_plus_depth(rng, prefix):
    tree, core = some_tree(rng, 50)
    positions = treespec.tree_positions(core, prefix_length=prefix)
    np.testing.assert_array_equal(positions, oracle.positions(tree.parent, prefix))
    np.testing.assert_array_equal(positions, prefix + tree.depth)


def test_a_row_is_its_parents_row_and_itself(rng):
    tree, core = some_tree(rng, 80)
    mask = np.asarray(treespec.ancestor_mask(core))
    for node in range(1, tree.num_nodes):
        expected = mask[tree.parent[node]].copy()
        expected[node] = True
        np.testing.assert_array_equal(mask[node], expected)
    np.testing.assert_array_equal(mask.sum(axis=1), tree.depth + 1)


def test_every_format_says_the_same(rng):
    tree, core = some_tree(rng, 70)
    mask = np.asarray(treespec.ancestor_mask(core))
    bits = np.asarray(treespec.ancestor_mask(core, format="bits"))
    rank, end = np.asarray(treespec.ancestor_mask(core, format="intervals")).T
    offset, ids = treespec.ancestor_mask(core, format="sequence_ids")
    sequences = [set(ids[offset[i] : offset[i + 1]]) for i in range(tree.num_nodes)]
    for i in range(tree.num_nodes):
        for j in range(tree.num_nodes):
            assert bool(bits[i, j // 32] >> (j % 32) & 1) == mask[i, j]
            assert (rank[j] <= rank[i] < end[j]) == mask[i, j]
            # A chain of single children shares one set, so sequences give j >= i there as well.
            if mask[i, j]:
                assert sequences[i] <= sequences[j]
            elif not mask[j, i]:
                assert not sequences[i] & sequences[j]


def test_the_golden_tree_has_the_golden_masks():
    core = treespec.TokenTree(token=[0, 0, 0, 1, 0, 2], parent=GOLDEN_PARENT)
    mask = np.asarray(treespec.ancestor_mask(core))
    assert [set(np.flatnonzero(row)) for row in mask] == GOLDEN_ROWS
    intervals = np.asarray(treespec.ancestor_mask(core, format="intervals"))
    np.testing.assert_array_equal(intervals[:, 0], range(6))
    np.testing.assert_array_equal(intervals[:, 1], GOLDEN_END)


def test_a_chain_has_the_causal_mask():
    core = testing.core_tree(chain_tree([5, 6, 7, 8]))
    np.testing.assert_array_equal(treespec.ancestor_mask(core), np.tri(5, dtype=bool))
    full = np.asarray(treespec.ancestor_mask(core, prefix_length=3))
    np.testing.assert_array_equal(full, np.tri(5, 8, 3, dtype=bool))


def test_the_oracle_window_hides_far_keys_by_position():
    # Positions: prefix 0, 1, 2; root 3; node 1 at 4; node 2 at 5.
    mask = oracle.bool_mask([-1, 0, 1], prefix_length=3, window=2)
    expected = [[0, 0, 1, 1, 0, 0], [0, 0, 0, 1, 1, 0], [0, 0, 0, 0, 1, 1]]
    np.testing.assert_array_equal(mask, np.array(expected, dtype=bool))
