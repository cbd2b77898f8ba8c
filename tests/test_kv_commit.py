# SPDX-License-Identifier: Apache-2.0
"""commit_kv: rows move bit for bit, the rest stays, and nothing moves when an argument is wrong."""

import numpy as np
import pytest

import treespec
from treespec.reference.commit import commit_kv as oracle

SHAPES = [(20, 4), (3, 20, 8), (2, 3, 20, 5)]
PATHS = [[0], [0, 1, 2], [0, 2, 3, 9], [0, 9], []]


def filled(rng, shape, dtype):
    return rng.integers(-1000, 1000, size=shape).astype(dtype)


@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.float64])
@pytest.mark.parametrize("nodes", PATHS, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_accepted_rows_move_to_the_front_and_the_rest_stays(rng, shape, nodes, dtype):
    tensor = filled(rng, shape, dtype)
    base = 6
    expected = oracle(tensor, base, nodes)
    treespec.commit_kv(tensor, base, nodes)
    np.testing.assert_array_equal(tensor[..., : base + len(nodes), :], kept(expected, base, nodes))
    # Rows beyond the kept ones are garbage by contract; the prefix is not.
    np.testing.assert_array_equal(tensor[..., :base, :], expected[..., :base, :])


def kept(tensor, base, nodes):
    return tensor[..., : base + len(nodes), :]


def test_rows_of_a_strided_view_move_and_its_neighbours_stay(rng):
    storage = filled(rng, (2, 30, 4, 6), np.float32)
    view = storage[:, 5:25, 1, :]
    expected_view = oracle(view, 3, [0, 2, 5])
    untouched = storage.copy()
    treespec.commit_kv(view, 3, [0, 2, 5])
    np.testing.assert_array_equal(kept(view, 3, [0] * 3), kept(expected_view, 3, [0] * 3))
    storage[:, 5:25, 1, :] = untouched[:, 5:25, 1, :]
    np.testing.assert_array_equal(storage, untouched)


def test_a_source_row_is_read_before_it_is_overwritten():
    tensor = np.arange(12, dtype=np.float32).reshape(12, 1)
    treespec.commit_kv(tensor, 0, [1, 2, 3, 4, 5])
    np.testing.assert_array_equal(tensor[:5, 0], [1, 2, 3, 4, 5])


@pytest.mark.parametrize(
    ("base", "nodes"),
    [(0, [0, 2, 1]), (0, [0, 0]), (0, [-1]), (-1, [0]), (0, [0, 20]), (18, [0, 2])],
    ids=str,
)
def test_a_wrong_argument_moves_nothing(rng, base, nodes):
    tensor = filled(rng, (20, 4), np.float32)
    before = tensor.copy()
    with pytest.raises(ValueError, match=r"commit_kv: .*must"):
        treespec.commit_kv(tensor, base, nodes)
    np.testing.assert_array_equal(tensor, before)
