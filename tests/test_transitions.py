# SPDX-License-Identifier: Apache-2.0
"""`Transitions.linked`: lists that depend on the token before, from a drafter that runs once."""

import itertools

import numpy as np
import pytest
import torch
from support import all_paths, log, path_of, paths_of, same_shape, same_tree

import treespec
from treespec import reference, testing
from treespec.reference import sources

SIZES = list(itertools.product((1, 2, 4), (1, 3, 9), (1, 2, 7)))  # D, R, K
NOBODY = -1


def random_lists(rng, depth, num_rows, width):
    """Ranked lists with ties and padding; owners of some of their tokens, repeats, and nobody."""
    num_lists, vocab_size = 1 + (depth - 1) * num_rows, width + 3
    token = np.argsort(rng.random((num_lists, vocab_size)), axis=1)[:, :width].astype(np.int32)
    logprob = -rng.integers(1, 9, token.shape).astype(np.float32) / 4
    logprob[rng.random(token.shape) < 0.1] = -np.inf
    order = np.lexsort((token, -logprob), axis=1)
    token, logprob = (np.take_along_axis(a, order, 1) for a in (token, logprob))
    owner = rng.integers(-2, vocab_size + 2, (depth - 1, num_rows)).astype(np.int32)
    return token, logprob, owner


def same_arrays(core, oracle):
    """Asserts that a source of the core holds the oracle's arrays, bit for bit."""
    for ours, name in zip(core.arrays, ("token", "logprob", "next"), strict=True):
        known = getattr(oracle, name)
        assert ours.dtype == known.dtype
        assert ours.shape == known.shape
        assert ours.tobytes() == known.tobytes(), name


@pytest.mark.parametrize(("depth", "num_rows", "width"), SIZES)
def test_links_equal_the_oracles(rng, depth, num_rows, width):
    for _ in range(20):
        lists = random_lists(rng, depth, num_rows, width)
        same_arrays(treespec.Transitions.linked(*lists), sources.link_transitions(*lists))


def test_a_link_leads_to_the_first_list_that_the_token_owns():
    token = [[4, 7, 2], [7, 9, 1], [1, 4, 3], [0, 7, 9], [5, 6, 7], [6, 8, 9], [2, 3, 4]]
    logprob = np.log(np.tile([0.5, 0.3, 0.1], (7, 1)))
    owner = [[7, 4, 7], [NOBODY, 9, 1]]
    source = treespec.Transitions.linked(token, logprob, owner)
    assert source.kind == "Transitions"
    assert source.max_depth == 3
    following = source.arrays[2]
    assert following[0].tolist() == [[1, 0, -1], [-1] * 3, [-1] * 3]
    assert following[1].tolist() == [[-1, 1, 2], [2, -1, -1], [-1, -1, 1]]
    assert (following[2] == -1).all()
    np.testing.assert_array_equal(source.arrays[0][1:].reshape(6, 3), token[1:])
    np.testing.assert_array_equal(source.arrays[0][0, 0], token[0])
    assert (source.arrays[1][0, 1:] == -np.inf).all()


def test_nobody_owns_a_list_even_below_a_token_that_does_not_exist():
    # Padding may hold any token: no link leads from it by a negative owner.
    source = treespec.Transitions.linked(
        [[3, NOBODY], [0, 1]], np.array([[-1, -np.inf], [-1, -2]]), [[NOBODY]]
    )
    assert source.arrays[2][0].tolist() == [[-1, -1]]


@pytest.mark.parametrize("owner_shape", [(0, 3), (0, 1), (0, 0)])
def test_one_level_has_no_owners(owner_shape):
    source = treespec.Transitions.linked([[5, 2]], [[-0.5, -1.5]], np.zeros(owner_shape, np.int32))
    assert source.max_depth == 1
    assert source.arrays[2].shape == (1, max(owner_shape[1], 1), 2)
    assert paths_of(treespec.build_tree("dtree", source, node_budget=9)) == [(5,), (2,)]


def test_arrays_may_come_from_torch_and_in_other_types(rng):
    token, logprob, owner = random_lists(rng, 3, 4, 5)
    expected = sources.link_transitions(token, logprob, owner)
    same_arrays(
        treespec.Transitions.linked(*(torch.from_numpy(a) for a in (token, logprob, owner))),
        expected,
    )
    given = token.astype(np.int64), torch.from_numpy(logprob).bfloat16(), owner.tolist()
    same_arrays(treespec.Transitions.linked(*given), expected)  # quarters are exact in bfloat16
    view = np.repeat(token, 2, axis=1)[:, ::2], logprob.T.copy().T, owner
    same_arrays(treespec.Transitions.linked(*view), expected)


def test_the_arrays_of_a_source_are_its_own(rng):
    token, logprob, owner = random_lists(rng, 2, 2, 3)
    source = treespec.Transitions.linked(token, logprob, owner)
    before = [array.copy() for array in source.arrays]
    token[:], logprob[:], owner[:] = 0, 0, 0
    for ours, known in zip(source.arrays, before, strict=True):
        np.testing.assert_array_equal(ours, known)


# --- trees ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("depth", "num_rows", "width"), SIZES)
@pytest.mark.parametrize("name", ["dtree", "opt_tree"])
def test_trees_over_linked_lists_equal_the_oracles(rng, name, depth, num_rows, width):
    for budget in (1, 6, 40):
        lists = random_lists(rng, depth, num_rows, width)
        core = treespec.build_tree(name, treespec.Transitions.linked(*lists), node_budget=budget)
        oracle = reference.builder(name)(sources.link_transitions(*lists), node_budget=budget)
        same_tree(core, oracle)


def test_one_candidate_and_one_list_per_level_are_a_chain():
    token = [[5], [7], [9], [2]]
    logprob = [[-0.5], [-0.1], [-0.7], [-0.2]]
    source = treespec.Transitions.linked(token, logprob, [[5], [7], [9]])
    tree = treespec.build_tree("dtree", source, node_budget=10)
    assert paths_of(tree) == [(5,), (5, 7), (5, 7, 9), (5, 7, 9, 2)]
    broken = treespec.Transitions.linked(token, logprob, [[5], [8], [9]])
    assert paths_of(treespec.build_tree("dtree", broken, node_budget=10)) == [(5,), (5, 7)]


@pytest.mark.parametrize("seed", range(5))
def test_equal_lists_at_a_depth_are_marginals(seed):
    rng = np.random.default_rng(seed)
    depth, width = 4, 5
    token = np.argsort(rng.random((depth, 9)), axis=1)[:, :width].astype(np.int32)
    logprob = log([testing.random_law(rng, width, "smooth") for _ in range(depth)])
    for num_rows in (1, 3, width):
        owner = np.stack([rng.permutation(row)[:num_rows] for row in token[:-1]])
        lists = [np.repeat(a, [1] + [num_rows] * (depth - 1), axis=0) for a in (token, logprob)]
        source = treespec.Transitions.linked(*lists, owner)
        marginals = treespec.Marginals(token, logprob)
        for budget in (4, 25, 200):
            tree = treespec.build_tree("dtree", source, node_budget=budget)
            if num_rows == width:  # every node may be expanded
                same_shape(tree, treespec.build_tree("dtree", marginals, node_budget=budget))
            everything = treespec.build_tree("dtree", marginals, node_budget=1000)
            wanted = [
                node
                for node in range(1, everything.num_nodes)
                if all(t in owner[d] for d, t in enumerate(path_of(everything, node)[:-1]))
            ][:budget]
            assert paths_of(tree) == [path_of(everything, node) for node in wanted]
            np.testing.assert_array_equal(tree.path_logprob[1:], everything.path_logprob[wanted])


def test_a_first_order_law_is_followed_exactly():
    """Lists of every token at every depth give the paths of the chain they are the law of."""
    vocab_size, depth = 3, 3
    rng = np.random.default_rng(8)
    law = rng.dirichlet(np.ones(vocab_size), (depth, vocab_size))
    everything = np.tile(np.arange(vocab_size), (1 + (depth - 1) * vocab_size, 1))
    logprob = log(np.concatenate([law[0, :1], *law[1:]]))
    owner = np.tile(np.arange(vocab_size), (depth - 1, 1))
    source = treespec.Transitions.linked(everything, logprob, owner)
    tree = treespec.build_tree("dtree", source, node_budget=100)
    weight = {
        path: law[0, 0, path[0]]
        * np.prod([law[d, path[d - 1], path[d]] for d in range(1, len(path))])
        for path in all_paths(vocab_size, depth)
    }
    assert set(paths_of(tree)) == set(weight)
    expected = [weight[path] for path in paths_of(tree)]
    np.testing.assert_allclose(np.exp(tree.path_logprob[1:]), expected, rtol=1e-5)


# --- errors ---------------------------------------------------------------------------------------

SCORES = np.full((7, 2), -1.0, np.float32)
TOKENS = np.tile([1, 2], (7, 1))
OWNERS = np.ones((2, 3), np.int32)

WRONG = {
    "a list too few": (
        (TOKENS[1:], SCORES[1:], OWNERS),
        r"token must have 1 \+ \(D - 1\) \* R = 7 lists for an owner of \[2, 3\], got 6",
    ),
    "a list too many": ((TOKENS, SCORES, OWNERS[:, 1:]), r"= 5 lists for an owner of \[2, 2\]"),
    "lists of padded shape": (
        (TOKENS[None], SCORES, OWNERS),
        "token must have 2 dimensions, got 3",
    ),
    "owners of one level": ((TOKENS, SCORES, OWNERS[0]), "owner must have 2 dimensions, got 1"),
    "shapes that differ": ((TOKENS, SCORES[:, :1], OWNERS), "token and logprob must have the same"),
    "levels without lists": (
        (TOKENS[:1], SCORES[:1], OWNERS[:, :0]),
        r"owner must be \[D - 1, R\] with R >= 1, got \[2, 0\]",
    ),
    "empty lists": ((TOKENS[:, :0], SCORES[:, :0], OWNERS), "width must be >= 1, got 0"),
    "owners that are no integers": ((TOKENS, SCORES, OWNERS + 0.5), "owner: must be integers"),
    "a score that is no number": (
        (TOKENS, np.full((7, 2), np.nan), OWNERS),
        "logprob must be <= 0 and not NaN",
    ),
    "a token twice": ((TOKENS * 0, SCORES, OWNERS), "tokens of a list must be distinct, got 0"),
    "a negative token": ((-TOKENS, SCORES, OWNERS), "token must be in"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_does_not_fit_is_refused(case):
    arrays, message = WRONG[case]
    with pytest.raises(ValueError, match=f"Transitions.*{message}"):
        treespec.Transitions.linked(*arrays)
