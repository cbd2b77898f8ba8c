# SPDX-License-Identifier: Apache-2.0
"""TokenTree: what it holds, what check_tree sees, what it refuses."""

import numpy as np
import pytest
from support import chain_tree

import treespec
from treespec import reference, testing
from treespec.reference.tree import PROPOSALS, check_tree


@pytest.mark.parametrize("proposal", PROPOSALS)
def test_random_trees_are_sound_for_core_and_oracle(rng, proposal):
    for _ in range(40):
        size = int(rng.integers(1, 30))
        tree = testing.random_tree(
            rng, num_nodes=size, vocab_size=7, proposal=proposal, kinds=("dense", "sparse")
        )
        assert check_tree(tree) == []
        assert treespec.check_tree(testing.core_tree(tree)) == []


@pytest.mark.parametrize("proposal", PROPOSALS)
def test_a_tree_gives_back_what_it_was_given(rng, proposal):
    tree = testing.random_tree(rng, num_nodes=25, vocab_size=7, proposal=proposal)
    core = testing.core_tree(tree)
    np.testing.assert_array_equal(core.token, tree.token)
    np.testing.assert_array_equal(core.parent, tree.parent)
    np.testing.assert_array_equal(core.depth, tree.depth)
    assert [list(d) for d in core.draws] == tree.draws
    assert core.proposal == proposal
    if tree.draft_probs is None:
        assert core.draft_probs is None
    else:
        np.testing.assert_array_equal(core.draft_probs, tree.draft_probs)


@pytest.mark.parametrize("proposal", [p for p in PROPOSALS if p != "deterministic"])
def test_a_law_may_be_given_without_its_zeros(rng, proposal):
    tree = testing.random_tree(
        rng, num_nodes=25, vocab_size=7, proposal=proposal, kinds=("dense", "sparse")
    )
    core = testing.core_tree(tree)
    again = treespec.TokenTree(
        core.token,
        parent=core.parent,
        proposal=proposal,
        draws=core.draws,
        draft_rows=core.draft_rows,
    )
    np.testing.assert_array_equal(again.draft_probs, core.draft_probs)
    assert treespec.check_tree(again) == []
    vocab_size, row_of_node, row_offset, token, prob = again.draft_rows
    assert vocab_size == 7
    for node, law in enumerate(tree.draft_probs):
        drew = len(tree.draws[node]) > 0
        assert (row_of_node[node] >= 0) == drew
        if drew:
            own = slice(*row_offset[row_of_node[node] :][:2])
            np.testing.assert_array_equal(token[own], np.flatnonzero(law))
            np.testing.assert_array_equal(prob[own], law[law > 0].astype(np.float32))


def test_scores_may_be_given():
    source = treespec.Marginals([[1, 2], [3, 4]], [[-0.5, -1.5], [-0.25, -2.0]])
    built = treespec.build_tree("dtree", source, node_budget=4)
    again = treespec.TokenTree(built.token, parent=built.parent, path_logprob=built.path_logprob)
    np.testing.assert_array_equal(again.path_logprob, built.path_logprob)
    assert again.expected_acceptance == built.expected_acceptance > 0
    assert not treespec.TokenTree([5, 1], parent=[-1, 0]).path_logprob.any()


def test_a_tree_without_draws_has_no_law():
    assert treespec.TokenTree([5, 1], parent=[-1, 0]).draft_rows is None


def test_draws_of_a_deterministic_tree_default_to_children_by_id():
    core = treespec.TokenTree(token=[9, 1, 2, 3, 1], parent=[-1, 0, 1, 0, 3])
    assert [list(d) for d in core.draws] == [[1, 3], [2], [], [4], []]
    np.testing.assert_array_equal(core.depth, [0, 1, 2, 1, 2])


def test_a_lone_root_is_a_tree():
    core = treespec.TokenTree(token=[5], parent=[-1])
    assert treespec.check_tree(core) == []
    assert [list(d) for d in core.draws] == [[]]


@pytest.mark.parametrize("proposal", [p for p in PROPOSALS if p != "deterministic"])
def test_sampled_trees_must_say_in_which_order_they_were_drawn(proposal):
    with pytest.raises(ValueError, match="draws"):
        treespec.TokenTree(token=[0, 1, 2], parent=[-1, 0, 0], proposal=proposal)


BROKEN = {
    "a child's token repeats among siblings": {"token": [0, 4, 4], "parent": [-1, 0, 0]},
    "a negative token": {"token": [0, -3], "parent": [-1, 0]},
    "a draw that is not a child": {
        "token": [0, 1, 2],
        "parent": [-1, 0, 1],
        "proposal": "iid",
        "draws": [[1, 2], [2], []],
    },
    "a child that nobody drew": {
        "token": [0, 1, 2],
        "parent": [-1, 0, 0],
        "proposal": "iid",
        "draws": [[1], [], []],
    },
    "a repeated draw without replacement": {
        "token": [0, 1],
        "parent": [-1, 0],
        "proposal": "without_replacement",
        "draws": [[1, 1], []],
    },
    "a repeated draw of a deterministic tree": {
        "token": [0, 1],
        "parent": [-1, 0],
        "draws": [[1, 1], []],
    },
    "a law that does not sum to 1": {
        "token": [0, 1],
        "parent": [-1, 0],
        "proposal": "iid",
        "draws": [[1], []],
        "draft_probs": np.array([[0.2, 0.3], [0, 0]], np.float32),
    },
    "a drawn token of probability 0": {
        "token": [0, 1],
        "parent": [-1, 0],
        "proposal": "iid",
        "draws": [[1], []],
        "draft_probs": np.array([[1, 0], [0, 0]], np.float32),
    },
    "a drawn token outside the law's vocabulary": {
        "token": [0, 5],
        "parent": [-1, 0],
        "proposal": "iid",
        "draws": [[1], []],
        "draft_probs": np.array([[0.5, 0.5], [0, 0]], np.float32),
    },
}


@pytest.mark.parametrize("case", BROKEN)
def test_check_tree_or_the_constructor_reports(case):
    # Whatever the constructor lets through, check_tree must see.
    try:
        core = treespec.TokenTree(**BROKEN[case])
    except ValueError as error:
        assert ":" in str(error)
        return
    found = treespec.check_tree(core)
    assert found, case
    assert all(isinstance(line, str) and len(line) > 10 for line in found)


def test_check_tree_reports_more_than_the_first_violation():
    core = treespec.TokenTree(token=[0, -1, -2], parent=[-1, 0, 1])
    found = treespec.check_tree(core)
    assert len(found) == 2
    assert "token[1]" in found[0]
    assert "token[2]" in found[1]


def test_an_iid_tree_may_repeat_a_draw():
    core = treespec.TokenTree(
        token=[0, 3], parent=[-1, 0], proposal="iid", draws=[[1, 1, 1], []], draft_probs=None
    )
    assert treespec.check_tree(core) == []
    assert [list(d) for d in core.draws] == [[1, 1, 1], []]


def test_expected_acceptance_is_the_sum_of_path_probabilities(rng):
    laws = testing.random_laws(int(rng.integers(2**31)), 5)
    options = {"node_budget": 12, "max_depth": 3}
    core = treespec.build_tree("opt_tree", testing.ToyDrafter(laws), **options)
    by_hand = 0.0
    for node in range(1, len(core.token)):
        weight, at = 1.0, node
        while at > 0:
            path, up = [], int(core.parent[at])
            while up > 0:
                path.append(int(core.token[up]))
                up = int(core.parent[up])
            weight *= laws(tuple(path[::-1]))[core.token[at]]
            at = int(core.parent[at])
        by_hand += weight
    assert core.expected_acceptance == pytest.approx(by_hand, rel=1e-5)


def test_the_oracle_finds_children_by_token():
    tree = chain_tree([4, 2])
    assert tree.child_with(0, 4) == 1
    assert tree.child_with(0, 2) == -1
    assert tree.path(2) == [4, 2]


def test_an_unknown_oracle_names_the_missing_file():
    with pytest.raises(LookupError, match=r"reference/builders/no_such\.py"):
        reference.builder("no_such")
    with pytest.raises(LookupError, match=r"reference/verifiers/no_such\.py"):
        reference.verifier("no_such")


def test_every_builder_has_an_oracle(builder_name):
    assert callable(reference.builder(builder_name))


def test_every_verifier_has_an_oracle(verifier_name):
    assert callable(reference.verifier(verifier_name))
