# SPDX-License-Identifier: Apache-2.0
"""`treespec.device`: on a GPU or the emulation, what it writes are the bits of the CPU core."""

import ctypes
import itertools
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from device_backends import BACKENDS, emulated_ops, use_backend
from selector_cases import random_inputs, random_selector

import treespec
from treespec import _core, device, testing
from treespec.device import native

DTYPES = ("float32", "float16", "bfloat16")
PREFIX = (0, 5, 11)  # of the sequences of a batch
COLUMNS = 56
VOCAB = 50


@pytest.fixture(params=BACKENDS)
def place(request, monkeypatch):
    """The torch device whose arrays `treespec.device` takes."""
    return use_backend(request.param, monkeypatch)


def ints(values, place):
    return torch.tensor(values, dtype=torch.int32, device=place)


def bits_of(values):
    """The bits of floats, for comparisons that know -0 and NaN."""
    array = np.ascontiguousarray(np.asarray(values, np.float32))
    return array.view(np.uint32)


@pytest.fixture
def forest(rng):
    """Trees of a batch, of different sizes."""
    sizes = (1, 40, 33)
    return [
        testing.core_tree(testing.random_tree(rng, num_nodes=size, vocab_size=64, max_children=3))
        for size in sizes
    ]


# --- build ----------------------------------------------------------------------------------------


def random_tables(rng, batch, depth, width, rows=None):
    """Ranked lists of a batch with ties; with `rows`, linked ones."""
    shape = (batch, depth, width) if rows is None else (batch, depth, rows, width)
    token = np.argsort(rng.random((*shape[:-1], VOCAB)), axis=-1)[..., :width].astype(np.int32)
    score = -rng.integers(1, 9, shape).astype(np.float32) / 4
    order = np.lexsort((token, -score), axis=-1)
    token, score = (np.take_along_axis(a, order, -1) for a in (token, score))
    links = None if rows is None else rng.integers(-1, rows, shape).astype(np.int32)
    return token, score, links


def lists_on(place, *arrays):
    """Tables on a device."""
    return device.CandidateLists(
        *(None if a is None else torch.from_numpy(a).to(place) for a in arrays)
    )


def check_trees(built, expected):
    """Asserts that trees on a device have the bits of the host's, and padding behind them."""
    packed = device.Trees.pack(expected, max_nodes=built.token.shape[1], device="cpu")
    for name, column, other in zip(packed._fields, packed, built, strict=True):
        ours = other.cpu().numpy()
        if name == "draw":  # what follows the last draw is nobody's
            for row, wanted, tree in zip(ours, column.numpy(), expected, strict=True):
                count = sum(map(len, tree.draws))
                np.testing.assert_array_equal(row[:count], wanted[:count])
        elif name == "path_logprob":
            np.testing.assert_array_equal(bits_of(ours), bits_of(column))
        else:
            np.testing.assert_array_equal(ours, column.numpy(), err_msg=name)


BUILDS = [
    ("dtree", {}),
    ("dtree", {"max_depth": 2}),
    ("opt_tree", {}),
    ("opt_tree", {"max_depth": 2, "threshold": 0.3}),
    ("opt_tree", {"floor": 0.1}),
    ("eagle2", {}),
    ("eagle2", {"width": 3, "max_depth": 3}),
    ("eagle2", {"width": 4, "width_ratio": 0.3}),
    ("eagle2", {"width": 2, "growth": "constant"}),
    ("chain", {}),
    ("kary", {}),
    ("kary", {"expansion": [4, 2, 1]}),
    ("sequoia", {}),
    ("sequoia", {"growth_map": [0, 0, 1, 2, 2, 3]}),
    ("medusa_choices", {}),
    ("dtree", {"score_temperature": 0.3}),
    ("dtree", {"calibration": [[0.2, 0.1], [0.6, 0.9]]}),
    ("opt_tree", {"calibration": [1, 1], "score_temperature": 4, "floor": 0.01}),
    ("eagle2", {"width": 3, "score_temperature": 0.3, "calibration": [[0.3, 0], [0.9, 0.9]]}),
]


@pytest.mark.parametrize("rows", [None, 3], ids=["marginals", "transitions"])
@pytest.mark.parametrize(("name", "options"), BUILDS, ids=str)
def test_trees_equal_those_of_the_core(rng, place, name, options, rows):
    arrays = random_tables(rng, batch=3, depth=4, width=6, rows=rows)
    lists = lists_on(place, *arrays)
    for budget in (20, 37):
        status = device.new_status(3, place)
        roots = ints([4, 5, 6], place)
        built = device.build_tree(name, lists, budget, root_token=roots, status=status, **options)
        device.check_status(status)
        make = treespec.Marginals if rows is None else treespec.Transitions
        sources = [make(*(a[b] for a in arrays if a is not None)) for b in range(3)]
        expected = [
            treespec.build_tree(name, source, budget, root_token=4 + b, **options)
            for b, source in enumerate(sources)
        ]
        check_trees(built, expected)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("dtree", {}),
        ("opt_tree", {"calibration": [[0.5, 0.4]]}),
        ("eagle2", {"width": 4}),
        ("chain", {}),
        ("kary", {}),
        ("medusa_choices", {}),
    ],
    ids=str,
)
def test_every_sequence_may_have_its_own_budget(rng, place, name, options):
    token, score, _ = random_tables(rng, batch=4, depth=8, width=6)
    own = [12, 0, 7, 1]
    status = device.new_status(4, place)
    built = device.build_tree(
        name,
        lists_on(place, token, score),
        12,
        budgets=ints(own, place),
        status=status,
        **options,
    )
    device.check_status(status)
    expected = [
        treespec.build_tree(name, treespec.Marginals(token[b], score[b]), budget, **options)
        for b, budget in enumerate(own)
    ]
    check_trees(built, expected)
    device.build_tree(
        name, lists_on(place, token, score), 11, budgets=ints(own, place), status=status, **options
    )
    assert status.tolist() == [8, 0, 0, 0]


def test_scores_leave_their_lists_alone(rng, place):
    token, score, follow = random_tables(rng, batch=2, depth=3, width=5, rows=2)
    lists = lists_on(place, token, score, follow)
    scored = device.score_lists(lists, temperature=0.5)
    for ours, before in zip(lists, (token, score, follow), strict=True):
        np.testing.assert_array_equal(ours.cpu(), before)
    mass = scored.logprob.exp().sum(-1)
    torch.testing.assert_close(mass, torch.ones_like(mass))
    assert (scored.logprob.diff(dim=-1) <= 0).all()
    with pytest.raises(ValueError, match=r"rule.calibration must be float64 \[P, 2\], got float32"):
        device.score_lists(lists, calibration=torch.ones(1, 2, device=place))
    with pytest.raises(ValueError, match=r"temperature must be in \[1e-6, 1e6\], got 0"):
        device.score_lists(lists, temperature=0.0)


@pytest.mark.parametrize("dtype", DTYPES)
def test_candidates_equal_those_of_the_core(rng, place, dtype):
    host = torch.tensor(rng.normal(0, 4, (2, 3, 5000))).to(getattr(torch, dtype))
    logits = torch.zeros(2, 3, 5003, dtype=host.dtype, device=place)[..., :5000]
    logits.copy_(host)
    status = device.new_status(2, place)
    lists = device.rank_candidates(
        logits, 17, temperature=0.7, num_rows=ints([3, 2], place), status=status
    )
    device.check_status(status)
    wanted = treespec.Marginals.from_logits(host.reshape(6, -1), 17, temperature=0.7).arrays
    token, logprob = (array.reshape(2, 3, 17).copy() for array in wanted)
    token[1, 2], logprob[1, 2] = 0, -np.inf  # not among the rows
    np.testing.assert_array_equal(lists.token.cpu(), token)
    np.testing.assert_array_equal(bits_of(lists.logprob.cpu()), bits_of(logprob))


def random_lists(rng, batch, depth, rows, width):
    """Ranked lists of a conditional drafter, and their owners; some own nothing."""
    lists = 1 + (depth - 1) * rows
    token, score, _ = random_tables(rng, batch, lists, width)
    owner = rng.integers(-2, VOCAB, (batch, depth - 1, rows)).astype(np.int32)
    known = rng.random(owner.shape) < 0.7
    owner[known] = rng.choice(token.reshape(-1), owner.shape)[known]
    return token, score, owner


@pytest.mark.parametrize(("depth", "rows", "width"), [(4, 5, 6), (1, 3, 6), (3, 1, 1), (3, 40, 48)])
def test_linked_lists_and_their_trees_equal_those_of_the_core(rng, place, depth, rows, width):
    token, score, owner = random_lists(rng, 3, depth, rows, width)
    lists = device.CandidateLists(torch.tensor(token).to(place), torch.tensor(score).to(place))
    linked = device.link_transitions(lists, torch.tensor(owner).to(place))
    assert linked.kind == "Transitions"
    sources = [treespec.Transitions.linked(token[b], score[b], owner[b]) for b in range(3)]
    for ours, known in zip(linked, zip(*(s.arrays for s in sources), strict=True), strict=True):
        assert ours.cpu().numpy().tobytes() == np.stack(known).tobytes()
    for name in ("dtree", "opt_tree"):
        status = device.new_status(3, place)
        built = device.build_tree(name, linked, 20, status=status)
        device.check_status(status)
        check_trees(built, [treespec.build_tree(name, source, 20) for source in sources])


def test_one_level_is_linked_without_owners(place):
    lists = device.CandidateLists(
        ints([[[5, 2]]], place), torch.tensor([[[-0.5, -1.5]]], device=place)
    )
    linked = device.link_transitions(lists, ints([], place).reshape(1, 0, 0))
    assert linked.token.tolist() == [[[[5, 2]]]]
    assert linked.next.tolist() == [[[[-1, -1]]]]


def test_lists_that_do_not_fit_their_owners_are_refused(rng, place):
    token, score, owner = (
        torch.tensor(a).to(place) for a in random_lists(rng, 3, depth=4, rows=5, width=6)
    )
    lists = device.CandidateLists(token, score)
    message = r"link_transitions: lists.token must be .* \[3, 16, 6\], got .* \[3, 15, 6\]"
    with pytest.raises(ValueError, match=message):
        device.link_transitions(device.CandidateLists(token[:, 1:].contiguous(), score), owner)
    with pytest.raises(ValueError, match=r"lists.token must be .* \[3, 13, 6\], got"):
        device.link_transitions(lists, owner[..., 1:].contiguous())
    with pytest.raises(ValueError, match=r"owner must be 32-bit integers \[3, 3, 5\], got 64-bit"):
        device.link_transitions(lists, owner.long())
    wide = device.CandidateLists(token.new_zeros(1, 1026, 1), score.new_zeros(1, 1026, 1))
    with pytest.raises(ValueError, match=r"num_rows must be in \[1, 1024\], got 1025"):
        device.link_transitions(wide, owner.new_zeros(1, 1, 1025))


# --- mask -----------------------------------------------------------------------------------------


def test_packed_trees_have_the_arrays_of_the_core(forest):
    trees = device.Trees.pack(forest, device="cpu")
    for b, tree in enumerate(forest):
        n = tree.num_nodes
        assert trees.num_nodes[b] == n
        np.testing.assert_array_equal(trees.parent[b, :n], tree.parent)
        assert (trees.parent[b, n:] == -1).all()
        offset = trees.draw_offset[b].tolist()
        draws = [trees.draw[b, offset[i] : offset[i + 1]].tolist() for i in range(n)]
        assert draws == tree.draws


def test_bits_positions_and_links_equal_those_of_the_core(forest, place):
    trees = device.Trees.pack(forest, device=place)
    status = device.new_status(3, place)
    layout = device.tree_layout(trees, ints(PREFIX, place), links=True, status=status)
    device.check_status(status)
    for b, tree in enumerate(forest):
        n = tree.num_nodes
        words = (n + 31) // 32
        bits = layout.ancestor_bits[b].cpu().numpy().view(np.uint32)
        np.testing.assert_array_equal(bits[:n, :words], treespec.ancestor_mask(tree, "bits"))
        assert (bits[:n, words:] == 0).all()
        positions = treespec.tree_positions(tree, prefix_length=PREFIX[b])
        np.testing.assert_array_equal(layout.position[b, :n].cpu(), positions)
        children = [np.flatnonzero(tree.parent == node).tolist() for node in range(n)]
        first = [of_node[0] if of_node else -1 for of_node in children]
        assert layout.first_child[b, :n].tolist() == first
        after = {a: z for of_node in children for a, z in itertools.pairwise(of_node)}
        assert layout.next_sibling[b, :n].tolist() == [after.get(node, -1) for node in range(n)]
    expected = layout.position.cpu()
    torch.testing.assert_close(
        device.tree_positions(trees, ints(PREFIX, place)).cpu(), expected, rtol=0, atol=0
    )


@pytest.mark.parametrize("format", ["bool", "float64", *DTYPES])
def test_masks_equal_those_of_the_core(forest, place, format):
    trees = device.Trees.pack(forest, device=place)
    status = device.new_status(3, place)
    prefix = ints(PREFIX, place)
    mask = device.ancestor_mask(trees, format, prefix, columns=COLUMNS, status=status)
    device.check_status(status)
    hidden = False if format == "bool" else torch.finfo(mask.dtype).min
    for b, tree in enumerate(forest):
        expected = treespec.ancestor_mask(tree, format, prefix_length=PREFIX[b])
        known = torch.as_tensor(expected)
        ours = mask[b].cpu()
        assert torch.equal(ours[: known.shape[0], : known.shape[1]], known)
        assert (ours[: known.shape[0], known.shape[1] :] == hidden).all()


def test_a_mask_may_start_late_and_have_a_window(forest, place):
    trees = device.Trees.pack(forest[1:2], device=place)
    status, prefix = device.new_status(1, place), ints([11], place)
    nodes = forest[1].num_nodes
    out = torch.empty(1, nodes - 3, 11 + nodes, dtype=torch.bool, device=place)
    layout = device.tree_layout(trees, prefix, status=status)
    device.fill_mask(out, trees, layout, prefix, first=3, window=4, status=status)
    expected = np.empty(out.shape[1:], np.bool_)
    _core.fill_mask(forest[1].parent, forest[1].depth, 3, 11, 4, expected)
    np.testing.assert_array_equal(out[0].cpu(), expected)


def test_compact_masks_equal_those_of_the_core(forest, place):
    trees = device.Trees.pack(forest, device=place)
    status = device.new_status(3, place)
    bits = device.ancestor_mask(trees, "bits", status=status)
    intervals = device.ancestor_mask(trees, "intervals", status=status)
    offset, ids = (a.cpu() for a in device.ancestor_mask(trees, "sequence_ids", status=status))
    device.check_status(status)
    for b, tree in enumerate(forest):
        n = tree.num_nodes
        known = treespec.ancestor_mask(tree, "bits")
        ours = bits[b, :n, : known.shape[1]].cpu().numpy().view(np.uint32)
        np.testing.assert_array_equal(ours, known)
        np.testing.assert_array_equal(
            intervals[b, :n].cpu(), treespec.ancestor_mask(tree, "intervals")
        )
        known_offset, known_ids = treespec.ancestor_mask(tree, "sequence_ids")
        np.testing.assert_array_equal(offset[b, : n + 1], known_offset)
        np.testing.assert_array_equal(ids[b, : known_offset[-1]], known_ids)


def test_the_widest_tree_has_room_for_its_sequence_ids(place):
    """A chain that ends in a fan has the most leaves below its nodes."""
    nodes, inner = 21, 10
    parent = [-1, *range(inner - 1), *[inner - 1] * (nodes - inner)]
    tree = treespec.TokenTree(np.arange(nodes), parent=parent)
    status = device.new_status(1, place)
    trees = device.Trees.pack([tree], device=place)
    offset, ids = device.ancestor_mask(trees, "sequence_ids", status=status)
    device.check_status(status)
    assert int(offset[0, -1]) == ids.shape[1] == treespec.ancestor_mask(tree, "sequence_ids")[0][-1]


@pytest.mark.parametrize("name", ["dtree", "opt_tree", "eagle2", "chain", "sequoia"])
@pytest.mark.parametrize("budget", [0, 1])
def test_the_smallest_trees_equal_those_of_the_core(rng, place, name, budget):
    token, score, _ = random_tables(rng, batch=1, depth=2, width=3)
    lists = device.CandidateLists(torch.tensor(token).to(place), torch.tensor(score).to(place))
    status = device.new_status(1, place)
    built = device.build_tree(name, lists, budget, status=status)
    device.check_status(status)
    source = treespec.Marginals(token[0], score[0])
    check_trees(built, [treespec.build_tree(name, source, budget)])


# --- drawn trees and verification -----------------------------------------------------------------


KEYS = [(11, 0, 7), (2**64 - 1, 2**32 - 1, 9), (13, 2, 8)]  # seed, sequence_id, position


def key_columns(place):
    """KEYS as the functions of a batch take them: bits, whatever their sign."""
    columns = [np.array(column, np.uint64) for column in zip(*KEYS, strict=True)]
    names = ("seed", "sequence_id", "position")
    signed = [columns[0].view(np.int64)]
    signed += [column.astype(np.uint32).view(np.int32) for column in columns[1:]]
    return {n: torch.from_numpy(c).to(place) for n, c in zip(names, signed, strict=True)}


DRAWN = [
    ("chain", {"proposal": "iid"}, "token_level"),
    ("kary", {"expansion": [3, 2], "proposal": "iid"}, "traversal"),
    ("kary", {"proposal": "without_replacement"}, "recursive_rejection"),
    ("sequoia", {"growth_map": [0, 0, 1, 1, 2], "proposal": "without_replacement"}, "traversal"),
    ("sequoia", {"proposal": "without_replacement"}, "traversal"),
    ("top_plus_one", {}, "top_plus_one"),
    ("top_plus_one", {"expansion": [3, 2], "max_depth": 2}, "top_plus_one"),
    ("rollouts", {}, "spectr"),
    ("rollouts", {"num_paths": 2, "max_depth": 3}, "khisti"),
    ("delayed", {}, "traversal"),
    ("delayed", {"num_paths": 3, "trunk": 1, "branch": 2}, "traversal"),
    ("dyspec", {}, "traversal"),
    ("dyspec", {"evaluation": "lazy", "max_depth": 2}, "traversal"),
    ("dyspec", {"calibration": [[0.2, 0.5], [0.7, 0.8]]}, "traversal"),
    ("dyspec_threshold", {}, "traversal"),
    ("dyspec_threshold", {"threshold": 0.05, "calibration": [[0.5, 0.6]]}, "traversal"),
]


@pytest.mark.parametrize("rows", [None, 3], ids=["marginals", "transitions"])
@pytest.mark.parametrize(("name", "options", "verifier"), DRAWN, ids=str)
def test_drawn_trees_and_their_verdicts_equal_those_of_the_core(
    rng, place, name, options, verifier, rows
):
    arrays = random_tables(rng, batch=3, depth=4, width=6, rows=rows)
    keys = key_columns(place)
    status = device.new_status(3, place)
    drawn = device.draw_tree(
        name,
        lists_on(place, *arrays),
        9,
        vocab_size=VOCAB,
        root_token=ints([4, 5, 6], place),
        status=status,
        **keys,
        **options,
    )
    device.check_status(status)
    make = treespec.Marginals if rows is None else treespec.Transitions
    names = ("seed", "sequence_id", "position")
    expected = [
        treespec.build_tree(
            name,
            make(*(a[b] for a in arrays if a is not None)),
            9,
            root_token=4 + b,
            **dict(zip(names, key, strict=True)),
            **options,
        )
        for b, key in enumerate(KEYS)
    ]
    check_trees(drawn.trees, expected)
    logits = torch.tensor(rng.normal(0, 1, (3, 10, VOCAB)), dtype=torch.float32)
    for b, tree in enumerate(expected):  # the target likes what was drafted
        logits[b, tree.parent[1:], tree.token[1:]] += 6
    check_verdicts(drawn.trees, logits, verifier, expected, place, law=drawn.law)
    with pytest.raises(ValueError, match=f"law must be given for {verifier}"):
        check_verdicts(drawn.trees, logits, verifier, expected, place)


def test_drawn_trees_may_have_their_own_budgets(rng, place):
    token, score, _ = random_tables(rng, batch=3, depth=8, width=6)
    own = [12, 2, 5]
    for name in ("kary", "rollouts", "delayed", "dyspec"):
        options = {"proposal": "iid"} if name == "kary" else {}
        status = device.new_status(3, place)
        drawn = device.draw_tree(
            name,
            lists_on(place, token, score),
            12,
            vocab_size=VOCAB,
            budgets=ints(own, place),
            status=status,
            **key_columns(place),
            **options,
        )
        device.check_status(status)
        expected = [
            treespec.build_tree(
                name,
                treespec.Marginals(token[b], score[b]),
                budget,
                seed=seed,
                sequence_id=row,
                position=at,
                **options,
            )
            for b, (budget, (seed, row, at)) in enumerate(zip(own, KEYS, strict=True))
        ]
        check_trees(drawn.trees, expected)


def test_delayed_trees_may_have_their_own_lengths(rng, place):
    token, score, _ = random_tables(rng, batch=3, depth=8, width=6)
    own = [(2, 2, 3), (4, 0, 1), (1, 3, 0)]
    lists, status = lists_on(place, token, score), device.new_status(3, place)
    given = {"vocab_size": VOCAB, "lengths": ints(own, place), "status": status}
    given |= key_columns(place)
    drawn = device.draw_tree("delayed", lists, 12, num_paths=4, **given)
    device.check_status(status)
    expected = [
        treespec.build_tree(
            "delayed",
            treespec.Marginals(token[b], score[b]),
            12,
            seed=seed,
            sequence_id=row,
            position=at,
            **dict(zip(("num_paths", "trunk", "branch"), lengths, strict=True)),
        )
        for b, (lengths, (seed, row, at)) in enumerate(zip(own, KEYS, strict=True))
    ]
    check_trees(drawn.trees, expected)
    with pytest.raises(ValueError, match="lengths must be None unless builder is 'delayed'"):
        device.draw_tree("kary", lists, 12, proposal="iid", **given)
    with pytest.raises(ValueError, match=r"options.lengths must be .* \[3, 3\]"):
        device.draw_tree("delayed", lists, 12, **{**given, "lengths": ints(own[:2], place)})


@pytest.mark.parametrize("verifier", ["greedy", "target_only"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_verdicts_equal_those_of_the_core(rng, forest, place, verifier, dtype):
    logits = torch.tensor(rng.normal(0, 1, (3, 40, 64)))
    for b, tree in enumerate(forest):
        logits[b, tree.parent[1:], tree.token[1:]] += 6
    logits = logits.to(getattr(torch, dtype))
    trees = device.Trees.pack(forest, device=place)
    check_verdicts(trees, logits, verifier, forest, place)


def test_a_lossy_verifier_must_be_admitted(rng, forest, place):
    logits = torch.zeros(3, 40, 64)
    for b, tree in enumerate(forest):
        logits[b, tree.parent[1:], tree.token[1:]] += 9
    trees = device.Trees.pack(forest, device=place)
    with pytest.raises(ValueError, match="lossy"):
        check_verdicts(trees, logits, "typical", forest, place)
    check_verdicts(trees, logits, "typical", forest, place, lossy=True)


def test_changed_scores_change_verdicts_as_on_the_core(rng, forest, place):
    logits = torch.tensor(rng.normal(0, 1, (3, 40, 64)), dtype=torch.float32)
    for b, tree in enumerate(forest):
        logits[b, tree.parent[1:], tree.token[1:]] += 6
    allowed = rng.integers(0, 2**32, (3, 40, 2), dtype=np.uint32)
    allowed[:, :20] = 2**32 - 1
    history = rng.integers(0, 64, (3, 12)).astype(np.int32)
    changes = device.ScoreChanges(
        torch.tensor([[1.2, 0.3, 0.1]] * 3, dtype=torch.float64, device=place),
        ints(history.tolist(), place),
        ints([7, 9, 12], place),
        ints([3, 0, 12], place),
        torch.from_numpy(allowed.view(np.int32)).to(place),
        ints([[4, -1, 9]] * 3, place),
        torch.tensor([[2.0, 99.0, -1.0]] * 3, dtype=torch.float64, device=place),
    )
    penalties = {"repetition_penalty": 1.2, "presence_penalty": 0.3, "frequency_penalty": 0.1}
    given = [
        {
            "sampling": {**penalties, "logit_bias": {4: 2.0, 9: -1.0}},
            "prefix_ids": history[b, :length],
            "prompt_length": prompt,
            "allowed_tokens": allowed[b, : tree.num_nodes],
        }
        for b, (tree, length, prompt) in enumerate(zip(forest, (7, 9, 12), (3, 0, 12), strict=True))
    ]
    trees = device.Trees.pack(forest, device=place)
    check_verdicts(trees, logits, "target_only", forest, place, changes=changes, given=given)


@pytest.mark.parametrize("changed", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_root_scalars_equal_those_of_the_core(rng, place, dtype, changed):
    target, draft, root = (
        torch.tensor(rng.normal(0, 3, (3, width)), dtype=getattr(torch, dtype), device=place)
        for width in (5000, 5020, 5020)
    )
    history = rng.integers(0, 5000, (3, 12)).astype(np.int32)
    length, prompt = (7, 9, 12), (3, 0, 12)
    sampling = columns_of(place, [0.7, 0.0, 1.1], [0, 0, 40], [0.9, 1.0, 1.0], [0, 0, 0.01])
    draft_sampling = columns_of(place, [1.3] * 3, [0, 5, 0], [1.0, 1.0, 0.8], [0] * 3)
    penalties = torch.tensor([[1.2, 0.3, 0.1]] * 3, dtype=torch.float64, device=place)
    lengths = [ints(column, place) for column in (length, prompt)]
    status = device.new_status(3, place)
    found = device.root_scalars(
        target,
        draft,
        root,
        sampling=sampling,
        draft_sampling=draft_sampling,
        tokens_before=lengths[0],
        changes=device.ScoreChanges(penalties, ints(history.tolist(), place), *lengths)
        if changed
        else None,
        status=status,
    )
    device.check_status(status)
    kept = {"repetition_penalty": 1.2, "presence_penalty": 0.3, "frequency_penalty": 0.1}
    for b, (temperature, top_k, top_p, min_p) in enumerate(
        [(0.7, 0, 0.9, 0.0), (0.0, 0, 1.0, 0.0), (1.1, 40, 1.0, 0.01)]
    ):
        expected = _core.root_scalars(
            target[b].cpu(),
            _core.RowParams(
                temperature=temperature,
                top_k=top_k,
                top_p=top_p,
                min_p=min_p,
                **(kept if changed else {}),
            ),
            history[b, : length[b]],
            prompt[b],
            draft[b].cpu(),
            root[b].cpu(),
            1.3,
            (0, 5, 0)[b],
            (1.0, 1.0, 0.8)[b],
        )
        assert found[b].tolist() == expected.tolist()


def test_root_scalars_of_no_law_are_not_numbers(place):
    row = torch.zeros(3, 40, device=place)
    row[1, 7] = torch.nan
    words = columns_of(place, [1.0] * 3, [0] * 3, [1.0] * 3, [0] * 3)
    status = device.new_status(3, place)
    found = device.root_scalars(
        row,
        torch.zeros(3, 40, device=place),
        row,
        sampling=words,
        draft_sampling=words,
        tokens_before=ints([1, 1, 0], place),
        status=status,
    )
    assert status.tolist() == [0, 1, 8]
    assert found.isnan().all(1).tolist() == [False, True, True]
    assert found[0, 6] == 0
    with pytest.raises(ValueError, match=r"root_scalars.*: draft_logits must be \[3, W\]"):
        device.root_scalars(
            row,
            row[:2],
            row,
            sampling=words,
            draft_sampling=words,
            tokens_before=ints([1, 1, 0], place),
            status=status,
        )


@pytest.mark.parametrize("states", [{}, {"target_before": 20, "draft_before": 12}])
def test_choices_equal_those_of_the_core(rng, place, states):
    selector = random_selector(states)
    rows, scalars = random_inputs(rng, selector, 4)
    scalars[2, 0] = torch.nan
    budgets, depths = (40, 5, 40, -1), (16, 3, 16, 16)
    nodes, depth = (
        ints([getattr(action, name) for action in selector.config.actions], place)
        for name in ("nodes", "depth")
    )
    parameters = torch.from_numpy(selector.parameters).to(place)
    network = device.SelectorNetwork(*selector.config.sizes, parameters, nodes, depth)
    given = {"node_budget": ints(budgets, place), "max_depth": ints(depths, place)}
    status = device.new_status(4, place)
    on_device = [row.to(place) for row in rows]
    chosen = device.choose_shapes(network, on_device, scalars.to(place), **given, status=status)
    assert status.tolist() == [0, 0, 1, 8]
    assert chosen[2:].tolist() == [-1, -1]
    for b in range(2):
        own = [row[b].numpy() for row in rows]
        expected = selector.choose(own, scalars[b].numpy(), budgets[b], depths[b])
        assert selector.config.actions[int(chosen[b])] == expected
    with pytest.raises(ValueError, match=rf"inputs.states must be {len(states)} arrays, got 3"):
        device.choose_shapes(network, [scalars] * 3, scalars.to(place), **given, status=status)
    short = network._replace(parameters=parameters[1:])
    with pytest.raises(ValueError, match=r"selector\.parameters must be"):
        device.choose_shapes(short, on_device, scalars.to(place), **given, status=status)


def columns_of(place, temperature, top_k, top_p, min_p):
    """`sampling_words` of numbers."""
    columns = (
        torch.tensor(column, dtype=torch.float64, device=place)
        for column in (temperature, top_k, top_p, min_p)
    )
    return device.sampling_words(*columns)


def check_verdicts(
    trees,
    logits,
    verifier,
    host_trees,
    place,
    law=None,
    changes=None,
    given=({}, {}, {}),
    lossy=False,
):
    """Asserts that verdicts are those of `verify_logits`, which takes `given` besides."""
    greedy = verifier == "greedy"
    numbers = {"temperature": 0.0 if greedy else 0.8, "top_k": 30, "top_p": 0.95, "min_p": 0.01}
    columns = [
        torch.full((3,), value, dtype=torch.float64, device=place) for value in numbers.values()
    ]
    status = device.new_status(3, place)
    verdicts = device.verify(
        trees,
        logits.to(place),
        verifier,
        max_depth=39,
        sampling=device.sampling_words(*columns),
        **key_columns(place),
        proposal=host_trees[0].proposal,
        law=law,
        changes=changes,
        lossy=lossy,
        status=status,
    )
    device.check_status(status)
    accepted = 0
    names = ("seed", "sequence_id", "position")
    for b, (tree, key, own) in enumerate(zip(host_trees, KEYS, given, strict=True)):
        more = dict(own)
        sampling = treespec.SamplingParams(**numbers, **more.pop("sampling", {}))
        expected = treespec.verify_logits(
            tree,
            logits[b, : tree.num_nodes],
            sampling=sampling,
            verifier=verifier,
            lossy=lossy,
            **more,
            **dict(zip(names, key, strict=True)),
        )
        count = expected.num_accepted
        accepted += count
        assert verdicts.num_accepted[b] == count
        assert verdicts.nodes[b, : count + 1].tolist() == [0, *expected.accepted_nodes.tolist()]
        assert verdicts.next_token[b] == expected.next_token
    assert accepted > 0


# --- commit ---------------------------------------------------------------------------------------

PATHS = [[0, 2, 5, -9], [0, -9, -9, -9], [0, 1, 4, 6]]
NUM_ACCEPTED = [2, -1, 3]


def committed_on_the_host(tensor, prefix):
    """What the core makes of a cache `[B, heads, rows, dim]`."""
    for b, count in enumerate(NUM_ACCEPTED):
        if count >= 0:
            treespec.commit_kv(tensor[b], prefix[b], PATHS[b][: count + 1])
    return tensor


@pytest.mark.parametrize("advance", [False, True])
def test_committed_rows_equal_those_of_the_core(rng, place, advance):
    dtypes = (torch.float32, torch.bfloat16, torch.int8)
    host = [torch.tensor(rng.integers(-99, 99, (3, 2, 24, 5))).to(dtype) for dtype in dtypes]
    # The second keeps rows outside heads.
    there = [host[0].to(place), host[1].transpose(1, 2).contiguous().to(place), host[2].to(place)]
    views = [there[0], there[1].transpose(1, 2), there[2]]
    prefix, status = ints(PREFIX, place), device.new_status(3, place)
    cache = device.KvCache(views)
    paths, accepted = ints(PATHS, place), ints(NUM_ACCEPTED, place)
    device.commit_kv(cache, paths, accepted, prefix, advance=advance, status=status)
    device.check_status(status)
    for ours, before in zip(views, host, strict=True):
        assert torch.equal(ours.cpu(), committed_on_the_host(before, PREFIX))
    gained = [count + 1 for count in NUM_ACCEPTED] if advance else [0, 0, 0]
    assert prefix.tolist() == [a + b for a, b in zip(PREFIX, gained, strict=True)]


@pytest.mark.parametrize("advance", [False, True])
def test_rows_of_a_paged_cache_move_between_pages(rng, place, advance):
    page, pages_of_sequence = 4, 6
    host = torch.tensor(rng.normal(size=(3, 2, page * pages_of_sequence, 8)), dtype=torch.float16)
    table = rng.permutation(20)[: 3 * pages_of_sequence].reshape(3, -1)
    pool = torch.zeros(20, 2, page, 8, dtype=host.dtype)
    for b in range(3):
        pool[table[b]] = host[b].unflatten(1, (-1, page)).transpose(0, 1)
    there = pool.to(place)
    status = device.new_status(3, place)
    cache = device.KvCache([there], block_table=ints(table.tolist(), place))
    paths, accepted = ints(PATHS, place), ints(NUM_ACCEPTED, place)
    prefix = ints(PREFIX, place)
    device.commit_kv(cache, paths, accepted, prefix, advance=advance, status=status)
    device.check_status(status)
    expected = committed_on_the_host(host, PREFIX)
    for b in range(3):
        rows = there.cpu()[table[b]].transpose(0, 1).flatten(1, 2)
        assert torch.equal(rows, expected[b])


# --- status and errors ----------------------------------------------------------------------------


def test_the_status_names_the_sequence_and_the_reason(forest, place):
    trees = device.Trees.pack(forest, device=place)
    trees.parent[1, 3] = 30
    status = device.new_status(3, place)
    device.tree_layout(trees, ints((0, 0, -1), place), status=status)
    assert status.tolist() == [0, 4, 8]
    with pytest.raises(ValueError, match="sequence 1 of the batch: num_nodes, parents"):
        device.check_status(status)
    with pytest.raises(ValueError, match=r"a row without a token .*; a row, page"):
        device.check_status(np.array([10]))
    with pytest.raises(ValueError, match="unknown status 64"):
        device.check_status(np.array([64]))


def test_a_sequence_with_a_status_keeps_its_rows(rng, place):
    there = torch.tensor(rng.normal(size=(3, 2, 24, 5)), device=place)
    before = there.clone()
    status = ints([1, 0, 0], place)
    prefix = ints(PREFIX, place)
    cache = device.KvCache([there])
    paths = ints([PATHS[0], [0, 3, 3, 4], PATHS[2]], place)
    accepted = ints([2, 2, 2], place)
    device.commit_kv(cache, paths, accepted, prefix, advance=True, status=status)
    assert torch.equal(there[0], before[0])
    assert status.tolist() == [1, 4, 0]
    assert prefix.tolist() == [PREFIX[0], PREFIX[1], PREFIX[2] + 3]


WRONG_TREES = [
    ("parent", lambda a: a[:, :-1].contiguous(), r"depth must be 32-bit integers \[3, 39\]"),
    ("parent", lambda a: a.long(), r"parent must be 32-bit integers \[3, M\], got 64-bit integers"),
    ("parent", lambda a: a.float(), r"parent must be .*, got float32 \[3, 40\]"),
    ("depth", lambda a: a[0], r"depth must be .* \[3, 40\], got 32-bit integers \[40\]"),
    ("depth", lambda a: a.T.contiguous().T, "depth must be contiguous"),
    ("depth", lambda a: None, "depth must be an array, got None"),
    ("num_nodes", lambda a: a[:2], r"parent must be 32-bit integers \[2, M\], got .* \[3, 40\]"),
]


@pytest.mark.parametrize(("column", "change", "message"), WRONG_TREES)
def test_arrays_that_do_not_fit_are_refused(forest, place, column, change, message):
    trees = device.Trees.pack(forest, device=place)
    wrong = trees._replace(**{column: change(getattr(trees, column))})
    status = device.new_status(3, place)
    layout = device.TreeLayout(trees.parent.new_empty(3, 40, 2), trees.depth.clone())
    with pytest.raises(ValueError, match=f"tree_layout: trees.{message}"):
        native.ops.tree_layout(0, wrong, ints(PREFIX, place), layout, status)


def test_outputs_and_workspaces_that_do_not_fit_are_refused(forest, place):
    trees = device.Trees.pack(forest, device=place)
    status, prefix = device.new_status(3, place), ints(PREFIX, place)
    layout = device.tree_layout(trees, prefix, status=status)
    with pytest.raises(ValueError, match=r"fill_mask: out must be \[3, 40, C\], got \[3, 39, 56\]"):
        out = torch.empty(3, 39, 56, device=place)
        device.fill_mask(out, trees, layout, prefix, status=status)
    with pytest.raises(ValueError, match="fill_mask: out: dtype must be a floating type"):
        out = torch.empty(3, 40, 56, dtype=torch.int32, device=place)
        device.fill_mask(out, trees, layout, prefix, status=status)
    with pytest.raises(ValueError, match=r"status must be 32-bit integers \[3\], got .* \[2\]"):
        device.tree_layout(trees, prefix, status=status[:2])
    logits = torch.zeros(1, 2, 9000, device=place)
    lists = device.CandidateLists(ints([[[0]] * 2], place), torch.zeros(1, 2, 1, device=place))
    workspace = torch.empty(8, dtype=torch.uint8, device=place)
    with pytest.raises(ValueError, match=r"workspace must hold \d+ bytes, got 8"):
        native.ops.rank_candidates(0, logits, 1.0, workspace, lists, status[:1])


def test_caches_that_do_not_fit_are_refused(place):
    def zeros(*shape):
        return torch.zeros(*shape, device=place)

    with pytest.raises(ValueError, match=r"arrays\[1\] must be \[3, \*, 24, \*\], got \[3, 1, 23"):
        device.KvCache([zeros(3, 1, 24, 4), zeros(3, 1, 23, 4)])
    with pytest.raises(ValueError, match="arrays must have contiguous rows, got a stride of 24"):
        device.KvCache([zeros(3, 1, 4, 24).transpose(2, 3)])
    cache = device.KvCache([zeros(5, 1, 24, 4)])
    args = ints(PATHS, place), ints(NUM_ACCEPTED, place), ints(PREFIX, place)
    with pytest.raises(ValueError, match="paths must be of 5 sequences, as the cache, got 3"):
        device.commit_kv(cache, *args, status=device.new_status(3, place))


def test_unknown_names_list_the_known_ones(forest, place):
    trees = device.Trees.pack(forest, device=place)
    status = device.new_status(3, place)
    with pytest.raises(ValueError, match=r"format must be one of bool, .*; got 'int8'"):
        device.ancestor_mask(trees, "int8", status=status)
    with pytest.raises(ValueError, match="columns must be given for format 'bool'"):
        device.ancestor_mask(trees, status=status)
    lists = device.CandidateLists(None, None)
    for name, options in [("delayed", {}), ("kary", {"proposal": "iid"})]:
        with pytest.raises(NotImplementedError, match=r"builder must be one of dtree, .*, got"):
            device.build_tree(name, lists, 4, status=status, **options)
    keys = key_columns(place)
    for name in ("dtree", "chain"):
        with pytest.raises(NotImplementedError, match=r"must be one of chain, .* with drawn trees"):
            device.draw_tree(name, lists, 4, vocab_size=VOCAB, status=status, **keys)
    with pytest.raises(ValueError, match=r"opt_tree: option must be one of .*; got breadth"):
        device.build_tree("opt_tree", lists, 4, status=status, breadth=2)
    with pytest.raises(ValueError, match="max_nodes must be at least 40, got 39"):
        device.Trees.pack(forest, 39, device="cpu")


def test_host_arrays_are_refused_where_the_device_is_a_gpu(forest):
    trees = device.Trees.pack(forest, device="cpu")
    error, message = ValueError, "trees.num_nodes must be in CUDA memory, got an array elsewhere"
    if not _core.cuda_built():
        error, message = NotImplementedError, "treespec was built without CUDA"
    with pytest.raises(error, match=f"tree_layout: {message}"):
        device.tree_layout(trees, torch.zeros(3), status=device.new_status(3, "cpu"))
    with pytest.raises(NotImplementedError if not _core.cuda_built() else ValueError):
        device.KvCache([torch.zeros(1, 1, 4, 4)])


class OnGpu:
    """A host tensor that says by DLPack that it is in CUDA memory; `streams` it was asked for."""

    def __init__(self, tensor, in_capsule):
        self.tensor, self.in_capsule, self.streams = tensor, in_capsule, []

    def __dlpack_device__(self):
        return 2, 0

    def __dlpack__(self, stream=None):
        self.streams.append(stream)
        capsule = self.tensor.__dlpack__()
        if self.in_capsule:
            get = ctypes.pythonapi.PyCapsule_GetPointer
            get.restype, get.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
            device_type = get(capsule, b"dltensor") + ctypes.sizeof(ctypes.c_void_p)
            ctypes.c_int32.from_address(device_type).value = 2
        return capsule


def test_arrays_in_the_wrong_memory_are_refused(place):
    there = OnGpu(torch.zeros(8, 4), in_capsule=True)
    with pytest.raises(NotImplementedError, match=r"must be in host memory.*treespec\.device"):
        _core.KvBuffers([there])
    if place == "cpu":  # the emulation's memory is the host's
        status = OnGpu(device.new_status(1, place), in_capsule=True)
        trees = device.Trees.pack([treespec.TokenTree([0], parent=[-1])], device=place)
        message = "status must be in host memory, got an array elsewhere"
        with pytest.raises(ValueError, match=f"tree_layout: {message}"):
            device.tree_layout(trees, ints([0], place), status=status)


def test_an_owner_of_device_memory_is_not_asked_to_order_streams(place):
    if place != "cpu":
        pytest.skip("the stand-in is in host memory")
    status = OnGpu(device.new_status(1, place), in_capsule=False)
    trees = device.Trees.pack([treespec.TokenTree([0], parent=[-1])], device=place)
    device.tree_layout(trees, ints([-1], place), status=status)
    assert status.streams == [-1]
    assert status.tensor.tolist() == [8]


def test_the_emulation_offers_the_very_functions_of_the_core():
    names = {name for name in dir(emulated_ops()) if not name.startswith("_")}
    assert names == {name for name in dir(_core.device) if not name.startswith("_")} | {"set_order"}


def test_the_documented_round_equals_the_core(rng, place):
    """The code of docs/cuda.md."""
    page = (Path(__file__).parents[1] / "docs/cuda.md").read_text(encoding="utf-8")
    documented = {}
    exec(re.search(r"^```python\n(.*?)^```", page, re.MULTILINE | re.DOTALL).group(1), documented)
    logits = torch.tensor(rng.normal(0, 2, (3, 4, 100)), dtype=torch.float32)
    prefix = ints(PREFIX, place)
    trees, position, mask, status = documented["draft"](logits.to(place), prefix, COLUMNS)
    device.check_status(status)
    sources = [treespec.Marginals.from_logits(rows, 8) for rows in logits]
    expected = [treespec.build_tree("dtree", source, node_budget=16) for source in sources]
    check_trees(trees, expected)
    for b, tree in enumerate(expected):
        positions = treespec.tree_positions(tree, prefix_length=PREFIX[b])
        np.testing.assert_array_equal(position[b].cpu(), positions)
        known = treespec.ancestor_mask(tree, prefix_length=PREFIX[b])
        np.testing.assert_array_equal(mask[b, :, : known.shape[1]].cpu(), known)
    host = torch.tensor(rng.normal(size=(3, 2, 32, 4)))
    there = host.to(place, copy=True)
    paths, accepted = ints(PATHS, place), ints(NUM_ACCEPTED, place)
    documented["commit"](device.KvCache([there]), paths, accepted, prefix, status)
    assert torch.equal(there.cpu(), committed_on_the_host(host, PREFIX))
    assert prefix.tolist() == [3, 5, 15]
