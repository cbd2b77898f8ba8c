# SPDX-License-Identifier: Apache-2.0
"""Growth maps: the best ones, their files, and the builders that fill fixed shapes."""

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from decoder_models import table_pair
from support import log

import treespec
from treespec import Calibration, GrowthMap, _core, testing
from treespec.decoder import SpeculativeDecoder
from treespec.testing import chi_square

MAP_BUILDERS = ("sequoia", "medusa_choices")
MEDUSA = [[0], [0, 0], [1], [0, 1], [2], [0, 0, 0], [1, 0], [0, 2]]


def falling_table(rng, depths, width):
    rows = np.sort(rng.dirichlet(np.ones(width + 1), size=depths)[:, :width], axis=1)[:, ::-1]
    return rows.tolist()


def every_map(num_nodes):
    """All maps of exactly this many nodes."""
    return itertools.product(*[range(i + 1) for i in range(num_nodes)])


def value_of(parent, table, max_depth):
    """Expected tokens, written as it is defined; None for a map that is too deep."""
    value, depth, total = [1.0], [0], 1.0
    for i, p in enumerate(parent):
        row = table[min(depth[p], len(table) - 1)]
        rank = list(parent[:i]).count(p)
        value.append(value[p] * row[rank] if rank < len(row) else 0.0)
        depth.append(depth[p] + 1)
        total += value[-1]
    return total if max(depth) <= max_depth else None


def small_source(seed=0, depth=4, vocab_size=6):
    rng = np.random.default_rng(seed)
    token = np.stack([rng.permutation(vocab_size) for _ in range(depth)]).astype(np.int32)
    laws = rng.dirichlet(np.ones(vocab_size), size=depth)
    return treespec.Marginals(token, log(laws)), token, laws


# ------------------------------------------------------------------ the best map


@pytest.mark.parametrize("method", ["heap", "dp"])
def test_the_best_map_beats_every_other_map(rng, method):
    for num_nodes, max_depth in itertools.product((1, 2, 4, 6), (1, 2, 3)):
        table = falling_table(rng, int(rng.integers(1, 4)), 3)
        best = GrowthMap.optimal(table, num_nodes, max_depth=max_depth, method=method)
        values = [value_of(parent, table, max_depth) for parent in every_map(num_nodes)]
        expected = max(value for value in values if value is not None)
        assert best.expected_tokens(table) == pytest.approx(expected, abs=1e-12)
        assert len(best) <= num_nodes and best.depth.max() <= max_depth


def test_the_program_takes_rising_rows_as_they_are(rng):
    for num_nodes in (1, 3, 5):
        table = rng.dirichlet(np.ones(4), size=2)[:, :3].tolist()
        best = GrowthMap.optimal(table, num_nodes, method="dp").expected_tokens()
        others = [value_of(parent, table, num_nodes) for parent in every_map(num_nodes)]
        assert best == pytest.approx(max(others), abs=1e-12)
        assert best >= GrowthMap.optimal(table, num_nodes).expected_tokens() - 1e-12


def test_the_papers_values():
    assert GrowthMap.optimal([0.6, 0.2], 3).expected_tokens() == pytest.approx(2.176)
    assert GrowthMap.optimal([0.6, 0.2], 3, max_depth=2).expected_tokens() == pytest.approx(2.16)


def test_maps_nest_and_their_gains_fall(rng):
    table = falling_table(rng, 3, 5)
    largest = GrowthMap.optimal(table, 40, max_depth=5)
    for n in range(41):
        part = GrowthMap.optimal(table, n, max_depth=5)
        np.testing.assert_array_equal(part.parent, largest.parent[:n])
    assert np.all(np.diff(largest.node_acceptance()) <= 0)
    deeper = [GrowthMap.optimal(table, 40, max_depth=d).expected_tokens() for d in range(1, 8)]
    assert deeper == sorted(deeper)


def test_expected_tokens_are_those_of_a_simulated_walk(rng):
    table = [[0.5, 0.2, 0.1], [0.6, 0.1]]
    best = GrowthMap.optimal(table, 12)
    ids = {tuple(path) for path in best.paths()}
    walks, total = 20_000, 0
    for _ in range(walks):
        path: tuple[int, ...] = ()
        while True:
            row = table[min(len(path), 1)]
            rank = int(rng.choice(len(row) + 1, p=[*row, 1 - sum(row)]))
            path = (*path, rank)
            total += 1
            if path not in ids:
                break
    assert total / walks == pytest.approx(best.expected_tokens(), abs=0.05)


def test_ties_go_to_the_shallow_then_to_the_earlier():
    # Values: rank 0 and 1 of the root 0.25 each, all else equal by depth.
    assert GrowthMap.optimal([0.25, 0.25], 6).parent.tolist() == [0, 0, 1, 1, 2, 2]
    # A first child of certain acceptance ties with its parent and comes after it.
    assert GrowthMap.optimal([1.0], 3).parent.tolist() == [0, 1, 2]
    assert len(GrowthMap.optimal([0.5, 0.0], 4, max_depth=1)) == 1


def test_bumps_of_a_row_are_smoothed():
    fit = _core.non_increasing_fit([0.5, 0.1, 0.3, 0.05])
    assert fit == pytest.approx([0.5, 0.2, 0.2, 0.05])
    assert GrowthMap.optimal([0.5, 0.1, 0.3, 0.05], 9) == GrowthMap.optimal(fit, 9)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ([[0.6, 0.6]], "sum to at most 1"),
        ([[-0.1]], r"in \[0, 1\]"),
        ([[float("nan")]], r"in \[0, 1\]"),
        ([], "at least one row"),
        ([[]], "no empty row"),
        (["x"], "rows of numbers|could not convert"),
    ],
)
def test_a_bad_table_is_refused_by_maps_and_builders(table, message):
    with pytest.raises(ValueError, match=message):
        GrowthMap.optimal(table, 3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"max_depth": -3}, "max_depth must be an integer >= 0 or None, got -3"),
        ({"max_depth": 1.5}, "max_depth must be an integer >= 0 or None, got 1.5"),
        ({"acceptance": None}, "acceptance must be rows of numbers, got None"),
        ({"acceptance": "abc"}, "acceptance must be rows of numbers, got 'abc'"),
        ({"acceptance": 0.5}, "acceptance must be rows of numbers, got 0.5"),
    ],
)
def test_bad_arguments_of_the_best_map_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        GrowthMap.optimal(**{"acceptance": [0.5], "num_nodes": 4, **arguments})


def test_a_depth_that_no_map_reaches_is_no_limit():
    assert GrowthMap.optimal([0.5], 4, max_depth=2**40) == GrowthMap.optimal([0.5], 4)


def test_a_map_with_an_unsound_table_is_neither_made_nor_loaded(tmp_path):
    with pytest.raises(ValueError, match=r"acceptance must be in \[0, 1\], got 2"):
        GrowthMap([0], acceptance=[[2.0, -1]])
    path = tmp_path / "map.json"
    GrowthMap([0], acceptance=[0.5]).save(path)
    path.write_text(path.read_text().replace("0.5", "2.0, -1"))
    with pytest.raises(ValueError, match=r"map\.json holds no sound map.*in \[0, 1\], got 2"):
        GrowthMap.load(path)


def test_builders_name_their_table():
    source = small_source()[0]
    for name, option in zip(MAP_BUILDERS, ("acceptance", "accuracy"), strict=True):
        with pytest.raises(ValueError, match=f"{name}: {option} must have rows that sum"):
            treespec.build_tree(name, source, 3, **{option: [0.7, 0.7]})
        with pytest.raises(ValueError, match=f"{name}: growth_map and {option} must not both"):
            treespec.build_tree(name, source, 3, growth_map=[0], **{option: [0.7]})
        with pytest.raises(ValueError, match=f"{name}: growth_map must hold"):
            treespec.build_tree(name, source, 3, growth_map=[0, 2])
        with pytest.raises(ValueError, match=f"{name}: growth_map must be a non-empty list"):
            treespec.build_tree(name, source, 3, growth_map=[])


def test_an_unknown_method_lists_the_known_ones():
    with pytest.raises(ValueError, match="one of heap, dp"):
        GrowthMap.optimal([0.5], 3, method="guess")


def test_the_default_tables_are_sound_and_fall():
    for table in (_core.demo_acceptance(), _core.demo_accuracy()):
        for row in table:
            assert 0.5 < sum(row) <= 1
            assert row == sorted(row, reverse=True)
    assert len(_core.demo_accuracy()) > 1, "heads lose accuracy with depth"


# ------------------------------------------------------------------ paths and files


def test_paths_are_ranks_and_come_back_in_their_order():
    shape = GrowthMap.from_paths(MEDUSA)
    assert shape.paths() == MEDUSA
    assert shape.parent.tolist() == [0, 1, 0, 1, 0, 2, 3, 1]
    best = GrowthMap.optimal([0.5, 0.3, 0.1], 30)
    assert GrowthMap.from_paths(best.paths()) == best


def test_paths_come_in_any_order(rng):
    for _ in range(20):
        shuffled = [MEDUSA[i] for i in rng.permutation(len(MEDUSA))]
        shape = GrowthMap.from_paths(shuffled)
        assert sorted(shape.paths()) == sorted(MEDUSA)
    assert len(GrowthMap.from_paths([[0] * d for d in range(3000, 0, -1)])) == 3000


@pytest.mark.parametrize(
    ("paths", "message"),
    [
        ([[0], [0, 1]], r"skipped, \[0, 1\] lacks \[0, 0\]"),
        ([[1]], r"skipped, \[1\] lacks \[0\]"),
        ([[0], [1, 0]], r"\[1, 0\] lacks \[1\]"),
        ([[0], [0]], r"\[0\] twice"),
        ([[0], []], r"got \[\]"),
        ([[0], [-1]], "at least 0"),
    ],
)
def test_paths_with_holes_are_refused(paths, message):
    with pytest.raises(ValueError, match=message):
        GrowthMap.from_paths(paths)


@pytest.mark.parametrize("parent", [[1], [0, -1], [0, 2], [[0]], [0.5], [2**31], ["0"]])
def test_a_bad_list_of_parents_is_refused(parent):
    with pytest.raises(ValueError, match="GrowthMap"):
        GrowthMap(parent)


def test_a_map_and_its_parents_cannot_change():
    parent = np.array([0, 0, 1])
    shape = GrowthMap(parent)
    parent[0] = 7
    assert shape.parent.tolist() == [0, 0, 1]
    with pytest.raises(ValueError, match="read-only"):
        shape.parent[0] = 1
    assert shape.depth.tolist() == [0, 1, 1, 2]
    assert {shape: "usable as a key"}[GrowthMap([0, 0, 1])]
    assert repr(shape) == "GrowthMap(3 nodes, depth 2)"


def test_a_file_holds_all_of_a_map(tmp_path):
    path = tmp_path / "map.json"
    shape = GrowthMap.optimal([[0.5, 0.2], [0.6]], 7, metadata={"target": "demo", "date": "today"})
    shape.save(path)
    again = GrowthMap.load(str(path))
    assert again == shape
    assert again.acceptance == [[0.5, 0.2], [0.6]] and again.metadata == shape.metadata
    assert list(tmp_path.iterdir()) == [path], "nothing else is left behind"
    facts = json.loads(path.read_text())
    assert facts["format"] == "treespec.growth_map" and facts["version"] == 1
    GrowthMap([0]).save(path)
    assert GrowthMap.load(path).acceptance is None
    with pytest.raises(ValueError, match="acceptance must be given"):
        GrowthMap.load(path).expected_tokens()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"not json", "must be a JSON file"),
        (b"\xff\xfe\x00", "must be a JSON file"),
        (b"[1, 2]", "must say 'format'"),
        (b'{"format": "treespec.calibration", "version": 1}', "got 'treespec.calibration'"),
        (b'{"format": "treespec.growth_map", "version": 2, "parent": [0]}', "version 1"),
        (b'{"format": "treespec.growth_map", "version": 1}', "must have 'parent'"),
        (b'{"format": "treespec.growth_map", "version": 1, "parent": [3]}', "no sound map"),
        (b'{"format": "treespec.growth_map", "version": 1, "parent": null}', "no sound map"),
    ],
)
def test_a_foreign_file_is_refused_by_name(tmp_path, content, message):
    path = tmp_path / "other.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message) as refused:
        treespec.build_tree("sequoia", small_source()[0], growth_map=path)
    assert str(path) in str(refused.value)


def test_a_failed_save_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "map.json"
    GrowthMap([0, 1]).save(path)
    with pytest.raises(TypeError):
        GrowthMap([0], metadata={"bad": object()}).save(path)

    def fail(self, target):
        raise OSError("no space left")

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(OSError, match="no space"):
        GrowthMap([0]).save(path)
    assert GrowthMap.load(path) == GrowthMap([0, 1])
    assert list(tmp_path.iterdir()) == [path]
    with pytest.raises(FileNotFoundError):
        GrowthMap.load(tmp_path / "missing.json")


def test_a_calibration_file_comes_back(tmp_path):
    path = tmp_path / "table.json"
    table = Calibration([[0.25, 0.5], [0.75, 0.9]], [10, 20], {"target": "demo"})
    table.save(path)
    assert Calibration.load(path) == table
    for bad in ('"table": [[1]]', '"table": 3', '"rows": []'):
        path.write_text('{"format": "treespec.calibration", "version": 1, ' + bad + "}")
        with pytest.raises(ValueError, match="must have 'table'"):
            Calibration.load(path)


# ------------------------------------------------------------------ filling a map


@pytest.mark.parametrize("name", MAP_BUILDERS)
def test_a_map_a_list_and_a_file_give_the_same_tree(name, tmp_path):
    shape = GrowthMap.from_paths(MEDUSA)
    shape.save(tmp_path / "map.json")
    given = [shape, shape.parent, shape.parent.tolist(), tmp_path / "map.json"]
    trees = [treespec.build_tree(name, small_source()[0], growth_map=one) for one in given]
    for tree in trees:
        assert treespec.check_tree(tree) == []
        np.testing.assert_array_equal(tree.token, trees[0].token)
        np.testing.assert_array_equal(tree.parent[1:], shape.parent)


@pytest.mark.parametrize("name", MAP_BUILDERS)
def test_the_node_of_rank_r_carries_the_rth_likeliest_token(name):
    source, token, laws = small_source(3)
    shape = GrowthMap.from_paths(MEDUSA)
    tree = treespec.build_tree(name, source, growth_map=shape)
    for node, path in enumerate(shape.paths(), start=1):
        order = np.argsort(-laws[len(path) - 1], kind="stable")
        assert tree.token[node] == token[len(path) - 1][order[path[-1]]]


CONTAINERS = {
    "list": lambda values, dtype: [np.dtype(dtype).type(v) for v in values],
    "tuple": lambda values, dtype: tuple(np.dtype(dtype).type(v) for v in values),
    "array": lambda values, dtype: np.array(values, dtype),
    "tensor": lambda values, dtype: torch.tensor(values, dtype=getattr(torch, dtype)),
}
FLOATS = ("float16", "float32", "float64")
INTEGERS = ("int32", "int64", "uint8")


def fields_of(name, **options):
    tree = treespec.build_tree(name, small_source()[0], **options)
    return tree.token.tolist(), tree.parent.tolist(), tree.path_logprob.tolist()


@pytest.mark.parametrize("container", CONTAINERS)
@pytest.mark.parametrize("dtype", FLOATS)
def test_fractional_options_are_what_they_are_in_every_container(container, dtype):
    make = CONTAINERS[container]
    for name, option in zip(MAP_BUILDERS, ("acceptance", "accuracy"), strict=True):
        # Halves and eighths are exact in every type.
        expected = fields_of(name, node_budget=6, **{option: [0.5, 0.125]})
        for given in (make([0.5, 0.125], dtype), [make([0.5, 0.125], dtype)]):
            assert fields_of(name, node_budget=6, **{option: given}) == expected
    assert len(expected[0]) == 7, "the table is not cut to zeros"
    with pytest.raises(ValueError, match=r"kary: expansion must be a .*list of integers"):
        fields_of("kary", expansion=make([2.5, 1.5], dtype))
    with pytest.raises(ValueError, match=r"sequoia: growth_map must be a .*list of integers"):
        fields_of("sequoia", growth_map=make([0.5, 1.5], dtype))


@pytest.mark.parametrize("container", CONTAINERS)
@pytest.mark.parametrize("dtype", INTEGERS)
def test_whole_options_are_what_they_are_in_every_container(container, dtype):
    make = CONTAINERS[container]
    for name, option, values in (
        ("kary", "expansion", [3, 2]),
        ("sequoia", "growth_map", [0, 0, 1]),
        ("medusa_choices", "growth_map", [0, 0, 1]),
        ("sequoia", "acceptance", [1, 0]),
    ):
        given = {option: make(values, dtype)}
        assert fields_of(name, node_budget=9, **given) == fields_of(
            name, node_budget=9, **{option: values}
        )
        drafter_and_target = table_pair()
        decoder = SpeculativeDecoder(*drafter_and_target, builder=name, builder_options=given)
        plain = SpeculativeDecoder(
            *drafter_and_target, builder=name, builder_options={option: values}
        )
        assert decoder.node_budget == plain.node_budget


@pytest.mark.parametrize("dtype", FLOATS)
def test_a_number_without_dimensions_is_that_number(dtype):
    scalars = (
        np.dtype(dtype).type(0.25),
        np.array(0.25, dtype),
        torch.tensor(0.25, dtype=getattr(torch, dtype)),
    )
    expected = fields_of("opt_tree", node_budget=6, score_temperature=0.25)
    assert expected != fields_of("opt_tree", node_budget=6)
    for given in scalars:
        assert fields_of("opt_tree", node_budget=6, score_temperature=given) == expected


@pytest.mark.parametrize("proposal", ["deterministic", "without_replacement"])
def test_an_expansion_is_a_map_in_order_of_depth(proposal):
    parent = [0, 0, 0, 1, 1, 2, 2, 3, 3, *range(4, 10)]
    for seed in range(20):
        source, _, _ = small_source(seed)
        options = {"seed": seed, "position": seed, "proposal": proposal}
        wide = treespec.build_tree("kary", source, 15, expansion=(3, 2, 1), **options)
        mapped = treespec.build_tree("sequoia", source, 15, growth_map=parent, **options)
        np.testing.assert_array_equal(wide.token, mapped.token)
        np.testing.assert_array_equal(wide.parent, mapped.parent)
        np.testing.assert_array_equal(wide.path_logprob, mapped.path_logprob)
        assert [list(d) for d in wide.draws] == [list(d) for d in mapped.draws]


@pytest.mark.parametrize("proposal", ["deterministic", "without_replacement"])
def test_a_smaller_budget_takes_the_first_nodes_of_the_map(proposal):
    source, _, _ = small_source(1)
    shape = GrowthMap.optimal([0.5, 0.2, 0.1], 20, max_depth=4)
    whole = treespec.build_tree("sequoia", source, growth_map=shape, proposal=proposal)
    for budget in range(20):
        part = treespec.build_tree("sequoia", source, budget, growth_map=shape, proposal=proposal)
        np.testing.assert_array_equal(part.token, whole.token[: budget + 1])
        np.testing.assert_array_equal(part.parent, whole.parent[: budget + 1])


def test_too_deep_nodes_are_dropped_before_the_budget_counts():
    source, _, _ = small_source(1)
    shape = [0, 1, 2, 0, 1, 0]  # depths 1 2 3 1 2 1
    tree = treespec.build_tree("sequoia", source, 4, growth_map=shape, max_depth=2)
    assert tree.parent.tolist() == [-1, 0, 1, 0, 1]
    tree = treespec.build_tree("sequoia", source, 2, growth_map=shape, max_depth=1)
    assert tree.parent.tolist() == [-1, 0, 0]


def test_what_a_row_cannot_fill_falls_away_with_its_subtree():
    token = np.array([[4, 2, 7], [1, 3, 5]], np.int32)
    rows = log([[0.7, 0.3, 0.0], [1.0, 0.0, 0.0]])
    source = treespec.Marginals(token, rows)
    shape = GrowthMap.from_paths([[0], [1], [2], [2, 0], [0, 0], [0, 1], [1, 0]])
    for proposal in ("deterministic", "without_replacement"):
        tree = treespec.build_tree("sequoia", source, growth_map=shape, proposal=proposal)
        assert treespec.check_tree(tree) == []
        assert tree.parent.tolist() == [-1, 0, 0, 1, 2]
        assert sorted(tree.token[1:3]) == [2, 4] and tree.token[3:].tolist() == [1, 1]


def test_one_drafter_call_per_level_that_has_children():
    class Counting(testing.ToyDrafter):
        sizes: list[int]

        def expand(self, nodes):
            self.sizes.append(len(list(nodes)))
            return super().expand(nodes)

    drafter = Counting(testing.random_laws(0, 6))
    drafter.sizes = []
    shape = GrowthMap.from_paths(MEDUSA)
    treespec.build_tree("sequoia", drafter, growth_map=shape)
    assert drafter.sizes == [1, 2, 1], "nodes with children, by depth"


def test_the_best_map_of_a_table_is_what_sequoia_fills():
    source, _, _ = small_source(2)
    table = [[0.5, 0.2, 0.1], [0.4, 0.3]]
    for budget, depth in itertools.product((1, 5, 13), (1, 2, 4)):
        shape = GrowthMap.optimal(table, budget, max_depth=depth)
        for name, option in zip(MAP_BUILDERS, ("acceptance", "accuracy"), strict=True):
            given = {option: table, "max_depth": depth}
            tree = treespec.build_tree(name, source, budget, **given)
            np.testing.assert_array_equal(tree.parent[1:], shape.parent)


# ------------------------------------------------------------------ top_plus_one


def test_the_last_child_is_drawn_from_what_the_likeliest_leave():
    law = np.array([0.35, 0.05, 0.3, 0.2, 0.1])
    source = treespec.Marginals(np.arange(5, dtype=np.int32)[None], log(law[None]))
    counts = np.zeros(5)
    for position in range(4000):
        tree = treespec.build_tree(
            "top_plus_one", source, 3, expansion=(3,), seed=1, position=position
        )
        assert tree.token[1:3].tolist() == [0, 2]
        assert [list(d) for d in tree.draws] == [[1, 2, 3], [], [], []]
        np.testing.assert_allclose(tree.draft_probs[0], law, atol=1e-6)
        counts[tree.token[3]] += 1
    rest = [1, 3, 4]
    assert counts.sum() == counts[rest].sum()
    assert chi_square(counts[rest], law[rest] / law[rest].sum())[1] > 1e-4


def test_top_plus_one_draws_nothing_where_nothing_is_left():
    token = np.array([[0, 1, 2], [0, 1, 2]], np.int32)
    source = treespec.Marginals(token, log([[0.6, 0.4, 0.0], [1.0, 0.0, 0.0]]))
    tree = treespec.build_tree("top_plus_one", source, 12, expansion=(3, 2))
    assert treespec.check_tree(tree) == []
    assert tree.token[1:].tolist() == [0, 1, 0, 0]
    assert tree.proposal == "top_plus_one"


# ------------------------------------------------------------------ in the decoder


def test_the_budget_follows_a_given_map(tmp_path):
    target, drafter = table_pair()
    shape = GrowthMap.optimal([0.4, 0.2, 0.1], 23)
    shape.save(tmp_path / "map.json")
    for given in (shape, shape.parent.tolist(), str(tmp_path / "map.json")):
        decoder = SpeculativeDecoder(
            target, drafter, builder="sequoia", builder_options={"growth_map": given}
        )
        assert decoder.node_budget == 23
        records = []
        decoder.generate([1, 2, 3], max_new_tokens=20, on_round=records.append)
        assert max(len(record.tree) for record in records) == 24


@pytest.mark.parametrize("name", [*MAP_BUILDERS, "top_plus_one"])
def test_greedy_text_does_not_depend_on_the_shape(name):
    target, drafter = table_pair(3)
    plain = SpeculativeDecoder(target, None).generate([1, 2, 3], max_new_tokens=40)
    decoder = SpeculativeDecoder(target, drafter, builder=name, node_budget=12)
    result = decoder.generate([1, 2, 3], max_new_tokens=40)
    assert result.token_ids == plain.token_ids
    assert result.stats.block_efficiency > 1.2
