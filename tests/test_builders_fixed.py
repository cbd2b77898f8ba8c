# SPDX-License-Identifier: Apache-2.0
"""chain, kary, sequoia, medusa_choices, top_plus_one, and growth maps: shapes fixed beforehand."""

import itertools

import numpy as np
import pytest
from support import (
    core_build,
    expected_acceptance,
    first_nodes,
    log,
    make_source,
    marginals,
    oracle_build,
    path_of,
    paths_of,
    same_shape,
    same_tree,
)

import treespec
from treespec import testing
from treespec.reference import growth_map as maps
from treespec.reference.tree import check_tree
from treespec.testing import ToyDrafter, chi_square, draw_outcomes, random_laws

SEQUOIA_MODES = ("deterministic", "without_replacement")
# Falling rows, as acceptances by rank are.
FALLING = [0.55, 0.2, 0.1, 0.05, 0.02]
# What measured ones look like: few trials in the tail.
NOISY = [0.6, 0.1, 0.13, 0.0, 0.04, 0.003, 0.012]


def random_table(rng, depth, width, *, falling=True):
    rows = rng.dirichlet(np.linspace(3, 0.3, width + 1), size=depth)[:, :width]
    return (np.sort(rows, axis=1)[:, ::-1] if falling else rows).tolist()


def all_maps(num_nodes):
    """Every map of ``num_nodes`` nodes in order of creation; some shapes come more than once."""
    return itertools.product(*[range(i + 1) for i in range(num_nodes)])


# ------------------------------------------------------------------ kary and chain


def test_more_children_than_tokens_are_clamped(build):
    laws = random_laws(3, 3)
    for proposal in ("deterministic", "without_replacement"):
        options = {"node_budget": 12, "expansion": [12], "proposal": proposal}
        assert sorted(build("kary", ToyDrafter(laws), **options).token[1:]) == [0, 1, 2]
    options["proposal"] = "iid"
    tree = build("kary", ToyDrafter(laws), **options)
    assert len(tree.draws[0]) == 12
    assert len(tree.token) <= 4


def test_the_default_expansion_is_the_golden_one(build):
    # G5: <1,1,3,1,1,1,1,1> has 20 drafted nodes and 3 leaves; <2,2,1> has 10 and 4.
    source = make_source("expander", 0, vocab_size=8, kinds=("dense",))[0]
    tree = build("kary", source, node_budget=64)
    assert len(tree.token) == 21
    assert sum(not d for d in tree.draws) == 3
    tree = build("kary", source, node_budget=10, expansion=[2, 2, 1])
    assert len(tree.token) == 11
    assert sum(not d for d in tree.draws) == 4


@pytest.mark.parametrize(("budget", "nodes"), [(0, 0), (1, 1), (4, 2), (5, 5), (7, 5), (8, 8)])
def test_the_default_expansion_is_cut_to_whole_levels(build, budget, nodes):
    source = make_source("expander", 0, vocab_size=8, kinds=("dense",))[0]
    assert len(build("kary", source, node_budget=budget).token) == nodes + 1


def test_a_given_expansion_must_fit(build):
    source = make_source("expander", 0)[0]
    with pytest.raises(ValueError, match="node_budget"):
        build("kary", source, node_budget=9, expansion=[2, 2, 1])
    with pytest.raises(ValueError, match="max_depth"):
        build("kary", source, node_budget=10, expansion=[2, 2, 1], max_depth=2)


def test_a_deterministic_chain_is_the_greedy_path(build):
    laws = random_laws(8, 9)
    tree = build("chain", ToyDrafter(laws), node_budget=6)
    path = ()
    for node in range(1, 7):
        token = int(np.argmax(laws(path)))
        assert (tree.token[node], tree.parent[node]) == (token, node - 1)
        path = (*path, token)
    assert len(build("chain", ToyDrafter(laws), node_budget=6, max_depth=2).token) == 3


@pytest.mark.parametrize("proposal", ["iid", "without_replacement"])
@pytest.mark.parametrize("count", [1, 2, 3])
def test_draws_follow_the_enumerated_law(proposal, count):
    law = np.array([0.5, 0.25, 0.125, 0.125, 0.0])
    source = treespec.Marginals([[0, 1, 2, 3, 4]], log([law]))
    expected = dict(draw_outcomes(law, count, proposal))
    seen = dict.fromkeys(expected, 0)
    options = {"node_budget": count, "expansion": [count], "proposal": proposal, "seed": 11}
    for position in range(6000):
        tree = treespec.build_tree("kary", source, position=position, **options)
        seen[tuple(int(tree.token[c]) for c in tree.draws[0])] += 1
    statistic, bound = chi_square(list(seen.values()), list(expected.values()))
    assert statistic < bound


def test_an_exhausted_row_stops_drawing_without_replacement(build):
    law = np.array([0.5, 0.0, 0.5])
    options = {"node_budget": 3, "expansion": [3], "proposal": "without_replacement"}
    tree = build("kary", ToyDrafter(lambda path: law), **options)
    assert len(tree.draws[0]) == 2
    assert sorted(tree.token[1:]) == [0, 2]


@pytest.mark.parametrize("proposal", ["iid", "without_replacement"])
def test_the_noise_of_a_node_depends_on_its_path_alone(build, proposal):
    laws = random_laws(6, 6)
    options = {"seed": 9, "position": 4, "proposal": proposal}
    wide = build("kary", ToyDrafter(laws), node_budget=12, expansion=[3, 2], **options)
    chain = build("chain", ToyDrafter(laws), node_budget=2, **options)
    # The chain's path is the wide tree's first draws.
    first = wide.draws[0][0]
    assert wide.token[first] == chain.token[1]
    assert wide.token[wide.draws[first][0]] == chain.token[2]


# ------------------------------------------------------------------ growth maps: the best shape


def test_the_golden_sequoia_map():
    # G4 of the specification: p = (.6, .2), 4 nodes with the root.
    assert maps.expected_tokens([0, 1, 2], [0.6, 0.2]) == pytest.approx(2.176)
    assert maps.optimal([0.6, 0.2], 3) == [0, 1, 2]
    assert maps.dynamic_programme([0.6, 0.2], 3) == (pytest.approx(2.176), [0, 1, 2])
    shallow = maps.optimal([0.6, 0.2], 3, max_depth=2)
    assert shallow == [0, 1, 0]
    assert maps.expected_tokens(shallow, [0.6, 0.2]) == pytest.approx(2.16)
    assert maps.dynamic_programme([0.6, 0.2], 3, max_depth=2)[0] == pytest.approx(2.16)


@pytest.mark.parametrize("num_nodes", [1, 2, 3, 5])
@pytest.mark.parametrize("falling", [True, False])
def test_the_dynamic_programme_is_the_best_of_all_maps(rng, num_nodes, falling):
    for _ in range(3):
        table = random_table(rng, 3, 3, falling=falling)
        best = max(maps.expected_tokens(parent, table) for parent in all_maps(num_nodes))
        value, parent = maps.dynamic_programme(table, num_nodes)
        assert value == pytest.approx(best, abs=1e-12)
        assert maps.expected_tokens(parent, table) == pytest.approx(value, abs=1e-12)
        heap = maps.expected_tokens(maps.optimal(table, num_nodes), table)
        if falling:
            assert heap == pytest.approx(best, abs=1e-12)
        else:
            assert heap <= best + 1e-12


@pytest.mark.parametrize("max_depth", [1, 3, None])
def test_dynamic_programme_and_heap_agree_on_rows_that_never_rise(rng, max_depth):
    tables = [[FALLING], random_table(rng, 4, 4), random_table(rng, 2, 3)]
    for table, num_nodes in itertools.product(tables, (1, 2, 7, 20, 64)):
        value, parent = maps.dynamic_programme(table, num_nodes, max_depth)
        heap = maps.optimal(table, num_nodes, max_depth)
        assert maps.expected_tokens(heap, table) == pytest.approx(value, abs=1e-9)
        assert len(parent) <= num_nodes
        assert max(maps.depths(heap)) <= (max_depth or num_nodes)


def test_the_dynamic_programme_is_at_least_the_heap_on_noisy_rows():
    gained = 0
    for num_nodes in (3, 8, 20, 48):
        value, parent = maps.dynamic_programme(NOISY, num_nodes)
        heap = maps.expected_tokens(maps.optimal(NOISY, num_nodes), NOISY)
        assert value >= heap - 1e-12
        assert maps.expected_tokens(parent, NOISY) == pytest.approx(value, abs=1e-12)
        gained += value > heap + 1e-9
    assert gained > 0


def test_more_nodes_and_more_levels_gain_ever_less():
    # G(n, d) rises in n and d, and is concave in n for a row that never rises.
    for max_depth in (1, 2, 4, 9):
        values = [
            maps.expected_tokens(maps.optimal(FALLING, n, max_depth), FALLING) for n in range(40)
        ]
        assert np.all(np.diff(values) >= 0)
        assert np.all(np.diff(values, 2) <= 1e-12)
        deeper = [
            maps.expected_tokens(maps.optimal(FALLING, n, max_depth + 1), FALLING)
            for n in range(40)
        ]
        assert np.all(np.asarray(deeper) >= np.asarray(values) - 1e-12)


def test_the_maps_of_all_sizes_are_nested(rng):
    for table in ([FALLING], [NOISY], random_table(rng, 4, 5)):
        large = maps.optimal(table, 60)
        for num_nodes in range(60):
            assert maps.optimal(table, num_nodes) == large[:num_nodes]
            assert maps.cut(large, num_nodes, 99) == large[:num_nodes]
        for depth in (1, 2, 3):
            assert maps.optimal(table, 12, depth) == maps.cut(maps.optimal(table, 900), 12, depth)


def test_what_is_never_accepted_is_never_drafted():
    assert maps.optimal([0.5, 0.0], 5) == [0, 1, 2, 3, 4]
    assert maps.optimal([[0.5, 0.25], [0.0]], 5) == [0, 0]
    assert maps.optimal([0.0], 5) == []
    assert maps.optimal([1.0], 4) == [0, 1, 2, 3]


def test_smoothing_pools_adjacent_violators():
    assert maps.smooth([0.5, 0.25, 0.125]) == [0.5, 0.25, 0.125]
    assert maps.smooth([0.25, 0.5]) == [0.375, 0.375]
    assert maps.smooth([0.5, 0.0, 0.25, 0.125, 0.0]) == [0.5, 0.125, 0.125, 0.125, 0.0]
    assert maps.smooth([0.0, 0.0, 0.75]) == [0.25, 0.25, 0.25]


def test_smoothing_is_the_nearest_row_that_never_rises(rng):
    for _ in range(10):
        row = rng.random(6)
        smooth = np.array(maps.smooth(row))
        assert np.all(np.diff(smooth) <= 0)
        assert smooth.sum() == pytest.approx(row.sum())
        for _ in range(200):
            other = np.sort(rng.normal(smooth, 0.05))[::-1]
            assert np.sum((row - smooth) ** 2) <= np.sum((row - other) ** 2)


def test_expected_tokens_are_what_the_positional_model_accepts(rng):
    """Monte Carlo: at an accepted node at most one child is accepted, rank r with chance p_r."""
    for table in ([FALLING], random_table(rng, 3, 4)):
        parent = maps.optimal(table, 24)
        children, depth = maps.children(parent), maps.depths(parent)
        lengths = []
        for _ in range(20_000):
            node, length = 0, 1
            while node >= 0:
                row = np.cumsum(maps.row_at(table, depth[node]))
                rank = int(np.searchsorted(row, rng.random(), side="right"))
                node = children[node][rank] if rank < len(children[node]) else -1
                length += node >= 0
            lengths.append(length)
        error = np.std(lengths) / len(lengths) ** 0.5
        assert abs(np.mean(lengths) - maps.expected_tokens(parent, table)) < 5 * error


def test_paths_ranks_and_cuts_of_a_map():
    parent = [0, 0, 1, 1, 2, 3]
    assert maps.paths(parent) == [[0], [1], [0, 0], [0, 1], [1, 0], [0, 0, 0]]
    assert maps.ranks(parent) == [-1, 0, 1, 0, 1, 0, 0]
    assert maps.depths(parent) == [0, 1, 1, 2, 2, 2, 3]
    assert maps.cut(parent, 9, 2) == [0, 0, 1, 1, 2]
    assert maps.cut(parent, 3, 9) == [0, 0, 1]
    # Deeper nodes do not count against the budget.
    assert maps.cut([0, 1, 2, 0, 0], 3, 2) == [0, 1, 0]


# ------------------------------------------------------------------ growth maps: core and oracle


@pytest.mark.parametrize("max_depth", [None, 1, 4])
def test_the_cores_best_map_is_the_oracles(rng, max_depth):
    tables = [FALLING, NOISY, [NOISY, FALLING], random_table(rng, 3, 4, falling=False), [1.0]]
    for table, num_nodes in itertools.product(tables, (0, 1, 2, 9, 63, 200)):
        core = treespec.GrowthMap.optimal(table, num_nodes, max_depth=max_depth)
        assert list(core.parent) == maps.optimal(table, num_nodes, max_depth)


@pytest.mark.parametrize("max_depth", [None, 1, 3])
def test_the_cores_dynamic_programme_is_as_good_as_the_oracles(rng, max_depth):
    tables = [FALLING, NOISY, [NOISY, FALLING], random_table(rng, 3, 4, falling=False)]
    for table, num_nodes in itertools.product(tables, (1, 2, 9, 30)):
        core = treespec.GrowthMap.optimal(table, num_nodes, max_depth=max_depth, method="dp")
        value, _ = maps.dynamic_programme(table, num_nodes, max_depth)
        assert len(core.parent) <= num_nodes
        assert max(maps.depths(core.parent)) <= (max_depth or num_nodes)
        assert maps.expected_tokens(core.parent, table) == pytest.approx(value, abs=1e-9)
        assert core.expected_tokens(table) == pytest.approx(value, abs=1e-9)


def test_the_cores_maps_read_as_the_oracles(rng):
    for _ in range(10):
        parent = [int(rng.integers(i + 1)) for i in range(20)]
        core = treespec.GrowthMap.from_paths(maps.paths(parent))
        assert list(core.parent) == parent
        assert [list(path) for path in core.paths()] == maps.paths(parent)
        table = random_table(rng, 3, 5)
        expected = maps.expected_tokens(parent, table)
        assert core.expected_tokens(table) == pytest.approx(expected, rel=1e-12)


# ------------------------------------------------------------------ sequoia and medusa_choices


@pytest.mark.parametrize("kind", ["expander", "marginals", "transitions", "trie"])
@pytest.mark.parametrize("proposal", SEQUOIA_MODES)
def test_sequoia_equals_the_oracle_for_every_table_and_map(kind, proposal):
    shapes = [
        {"acceptance": FALLING},
        {"acceptance": [FALLING, NOISY]},
        {"acceptance": NOISY},
        {"growth_map": [0, 0, 0, 1, 1, 4, 2, 0]},
    ]
    for shape, seed, budget, depth in itertools.product(shapes, range(3), (1, 6, 20), (1, 2, 9)):
        core_source, oracle_source = make_source(kind, seed)
        options = {"node_budget": budget, "max_depth": depth, "seed": seed, "proposal": proposal}
        core = core_build("sequoia", core_source, **options, **shape)
        same_tree(core, oracle_build("sequoia", oracle_source, **options, **shape))


@pytest.mark.parametrize("kind", ["expander", "marginals", "transitions", "trie"])
def test_medusa_choices_equal_the_oracle_for_every_table_and_map(kind):
    shapes = [{"accuracy": NOISY}, {"accuracy": [FALLING, NOISY]}, {"growth_map": [0, 1, 1, 0, 4]}]
    for shape, seed, budget, depth in itertools.product(shapes, range(3), (1, 6, 20), (1, 2, 9)):
        core_source, oracle_source = make_source(kind, seed)
        options = {"node_budget": budget, "max_depth": depth, **shape}
        core = core_build("medusa_choices", core_source, **options)
        same_tree(core, oracle_build("medusa_choices", oracle_source, **options))


@pytest.mark.parametrize("kind", ["expander", "marginals"])
def test_medusa_choices_are_what_sequoia_drafts_with_top_k(build, kind):
    for seed in range(3):
        source = make_source(kind, seed)[1]
        options = {"node_budget": 15, "max_depth": 4}
        one = build("medusa_choices", source, accuracy=[FALLING, NOISY], **options)
        same_shape(one, build("sequoia", source, acceptance=[FALLING, NOISY], **options))


def test_a_node_of_a_map_carries_the_token_of_its_rank(build):
    laws = random_laws(2, 7, ("smooth",))
    parent = maps.optimal(FALLING, 25)
    tree = build("sequoia", ToyDrafter(laws), node_budget=25, growth_map=parent)
    np.testing.assert_array_equal(tree.parent[1:], parent)
    for node, rank in enumerate(maps.ranks(parent)[1:], start=1):
        path = path_of(tree, node)
        assert np.argsort(-laws(path[:-1]))[rank] == path[-1]


@pytest.mark.parametrize("proposal", SEQUOIA_MODES)
def test_sequoia_of_a_kary_map_is_kary(build, proposal):
    # <2, 3>: nodes 1 and 2, then three children of each, in layer order.
    for seed in range(5):
        options = {"node_budget": 8, "seed": seed, "proposal": proposal}
        source = make_source("expander", seed, vocab_size=7, kinds=("dense",))[1]
        one = build("sequoia", source, growth_map=[0, 0, 1, 1, 1, 2, 2, 2], **options)
        two = build("kary", source, expansion=[2, 3], **options)
        same_shape(one, two)
        chain = build("sequoia", source, growth_map=[0, 1, 2, 3, 4], **options)
        same_shape(chain, build("chain", source, **{**options, "node_budget": 5}))


@pytest.mark.parametrize("proposal", SEQUOIA_MODES)
def test_a_smaller_budget_takes_the_first_nodes_of_the_map(build, proposal):
    # The map is fixed before anything is drawn, so nodes do not depend on what follows them.
    source = make_source("expander", 3, vocab_size=8, kinds=("dense",))[1]
    options = {"acceptance": [FALLING, NOISY], "proposal": proposal, "seed": 4}
    large = build("sequoia", source, node_budget=40, **options)
    for budget in range(40):
        small = build("sequoia", source, node_budget=budget, **options)
        assert len(small.token) == budget + 1
        first_nodes(small, large)


@pytest.mark.parametrize("proposal", SEQUOIA_MODES)
def test_nodes_without_a_candidate_fall_away_with_their_subtrees(build, proposal):
    # Two tokens per row: ranks 2 and 3 do not exist, nor what hangs below them.
    law = np.array([0.0, 0.75, 0.25])
    growth_map = [0, 0, 0, 3, 4, 1, 1, 1, 8, 2]
    options = {"node_budget": 10, "growth_map": growth_map, "proposal": proposal}
    tree = build("sequoia", ToyDrafter(lambda path: law), **options)
    np.testing.assert_array_equal(tree.parent, [-1, 0, 0, 1, 1, 2])
    assert check_tree(tree) == []


@pytest.mark.parametrize("proposal", SEQUOIA_MODES)
def test_a_map_takes_one_call_per_level_over_its_inner_nodes(build, proposal):
    laws = random_laws(5, 6, ("dense",))
    for table, budget in itertools.product([FALLING, [FALLING, NOISY]], (1, 7, 30)):
        parent = maps.optimal(table, budget)
        drafter = ToyDrafter(laws)
        options = {"node_budget": budget, "acceptance": table, "proposal": proposal}
        tree = build("sequoia", drafter, **options)
        np.testing.assert_array_equal(tree.parent[1:], parent)
        assert drafter.calls == max(maps.depths(parent))
        assert drafter.num_rows == len(set(parent))


def test_medusa_choices_are_the_likeliest_prefixes_of_the_accuracies(build, rng):
    # The map is dtree's tree over marginals of log accuracies, whose tokens are the ranks.
    for _ in range(5):
        table = random_table(rng, 4, 5)
        rows = np.array(table)
        prefixes = build("dtree", marginals(rows), node_budget=40)
        assert maps.optimal(table, 40, 4) == list(prefixes.parent[1:])
        laws = random_laws(1, 5, ("smooth",))
        options = {"node_budget": 40, "accuracy": table, "max_depth": 4}
        tree = build("medusa_choices", ToyDrafter(laws), **options)
        np.testing.assert_array_equal(tree.parent, prefixes.parent)
        expected = maps.expected_tokens(tree.parent[1:], table)
        assert expected == pytest.approx(1 + expected_acceptance(prefixes), rel=1e-5)


def test_the_default_tables_are_laws_of_falling_acceptance(build):
    laws = random_laws(5, 12, ("dense",))
    for name in ("sequoia", "medusa_choices"):
        tree = build(name, ToyDrafter(laws), node_budget=64)
        assert len(tree.token) == 65
        depth = np.asarray(tree.depth)
        assert 3 <= depth.max() < 64, "neither a bush nor a chain"
        degrees = [len(d) for d in tree.draws]
        assert degrees[0] == max(degrees) > 1


# ------------------------------------------------------------------ top_plus_one


def test_all_but_the_last_draw_are_the_likeliest_tokens(build):
    lasts = set()
    for seed in range(30):
        laws = random_laws(1, 7, ("smooth",))
        options = {"node_budget": 40, "expansion": [4, 2, 1], "seed": seed}
        tree = build("top_plus_one", ToyDrafter(laws), **options)
        assert tree.proposal == "top_plus_one"
        assert check_tree(tree) == []
        for node, draws in enumerate(tree.draws):
            path = path_of(tree, node)
            if len(path) == 3:
                assert list(draws) == []
                continue
            count = (4, 2, 1)[len(path)]
            ranked = np.argsort(-laws(path)).tolist()
            tokens = [int(tree.token[child]) for child in draws]
            assert tokens[:-1] == ranked[: count - 1]
            assert tokens[-1] in ranked[count - 1 :]
            np.testing.assert_allclose(tree.draft_probs[node], laws(path), rtol=1e-5)
            if not path:
                lasts.add(tokens[-1])
    assert len(lasts) > 1, "the last one is drawn"


def test_a_width_of_one_is_one_draw_without_replacement(build):
    for seed in range(10):
        source = make_source("expander", seed)[1]
        one = build("top_plus_one", source, node_budget=3, expansion=[1, 1, 1], seed=seed)
        two = build("chain", source, node_budget=3, seed=seed, proposal="without_replacement")
        same_shape(one, two)


def test_the_drawn_token_is_the_first_of_a_race_among_the_rest(build):
    # The same noise as without replacement: the first draw there that is not among the top.
    laws = random_laws(4, 9, ("smooth",))
    for seed in range(20):
        options = {"node_budget": 9, "expansion": [9], "seed": seed}
        race = build("kary", ToyDrafter(laws), proposal="without_replacement", **options)
        order = [int(race.token[child]) for child in race.draws[0]]
        top = np.argsort(-laws(()))[:3].tolist()
        options["expansion"] = [4]
        tree = build("top_plus_one", ToyDrafter(laws), **options)
        drawn = [int(tree.token[child]) for child in tree.draws[0]]
        assert drawn == [*top, next(t for t in order if t not in top)]


@pytest.mark.parametrize("possible", [1, 2, 3, 4, 5])
def test_when_nothing_is_left_nothing_is_drawn(build, possible):
    law = np.zeros(6)
    law[1 : possible + 1] = 1 / possible
    tree = build("top_plus_one", ToyDrafter(lambda path: law), node_budget=4, expansion=[4])
    tokens = [int(tree.token[child]) for child in tree.draws[0]]
    assert len(tokens) == min(4, possible)
    assert tokens[:3] == list(range(1, min(3, possible) + 1)), "ties by token"
    assert check_tree(tree) == []


def test_a_token_whose_probability_rounds_to_zero_is_no_top_token(build):
    # exp(-200) is no float32: it cannot be in the recorded law, so it cannot be drafted from it.
    rows = np.array([[-0.6931472, -0.6931472, -200.0, -np.inf]], np.float32)
    source = treespec.reference.sources.Marginals([[3, 1, 0, 2]], rows)
    tree = build("top_plus_one", source, node_budget=4, expansion=[4])
    assert tree.token[1:].tolist() == [1, 3]
    assert check_tree(tree) == []


@pytest.mark.parametrize(
    ("budget", "nodes"), [(0, 0), (2, 0), (3, 3), (8, 3), (9, 9), (15, 15), (20, 15), (21, 21)]
)
def test_the_default_expansion_of_top_plus_one_is_cut_to_whole_levels(build, budget, nodes):
    source = make_source("expander", 0, vocab_size=8, kinds=("dense",))[1]
    assert len(build("top_plus_one", source, node_budget=budget).token) == nodes + 1


def test_top_plus_one_equals_the_oracle_for_every_expansion():
    for kind, seed in itertools.product(("expander", "marginals", "transitions", "trie"), range(6)):
        core_source, oracle_source = make_source(kind, seed)
        for expansion in ([1], [2, 2], [5, 1, 2], [9]):
            options = {"node_budget": 30, "expansion": expansion, "seed": seed}
            core = core_build("top_plus_one", core_source, **options)
            same_tree(core, oracle_build("top_plus_one", oracle_source, **options))


@pytest.mark.parametrize("expansion", [[1], [2], [3]])
def test_the_rest_is_drawn_by_its_renormalised_law(expansion):
    law = np.array([0.4, 0.25, 0.2, 0.1, 0.05])
    source = treespec.Marginals([[0, 1, 2, 3, 4]], log([law]))
    top = expansion[0] - 1
    expected = np.where(np.arange(5) < top, 0.0, law) / law[top:].sum()
    seen = np.zeros(5, int)
    for position in range(4000):
        options = {"node_budget": 3, "expansion": expansion, "position": position}
        tree = treespec.build_tree("top_plus_one", source, **options)
        seen[tree.token[tree.draws[0][-1]]] += 1
    statistic, bound = chi_square(seen, expected)
    assert statistic < bound


def test_random_top_plus_one_trees_look_like_built_ones():
    rng = np.random.default_rng(0)
    law = testing.random_law(rng, 6)
    built = oracle_build("top_plus_one", marginals([law]), node_budget=3, expansion=[3])
    drawn = testing.random_draws(rng, law, 3, "top_plus_one")
    assert paths_of(built)[:2] == [(t,) for t in drawn[:2]]
