# SPDX-License-Identifier: Apache-2.0
"""The budget rule against simulated pairs whose acceptance and costs are known."""

import numpy as np
import pytest
from budget_simulator import VOCAB, Costs, Simulation, dirichlet, perfect, useless

from treespec import _core

FLAT = Costs({1: 10.0, 4: 10.6, 8: 11.0, 16: 12.0, 32: 15.0, 64: 22.0}, {1: 1.0, 64: 2.0})
STEEP = Costs({1: 4.0, 4: 5.0, 8: 5.8, 16: 6.9, 32: 9.0, 64: 13.3}, {1: 1.3, 64: 2.1, 1000: 15.0})
STAIRS = Costs(
    {1: 10.0, 8: 10.3, 9: 16.0, 16: 13.0, 17: 20.0, 32: 20.0, 64: 40.0}, {1: 1.0, 64: 1.5}
)
MACHINES = pytest.mark.parametrize("costs", [FLAT, STEEP, STAIRS], ids=["flat", "steep", "stairs"])
ACCEPTANCE = [[0.5, 0.15, 0.07, 0.03]]
BUDGETS = (1, 3, 7, 15, 31, 63)


def rule_for(costs, **options):
    options = {"acceptance": ACCEPTANCE, "max_nodes": 63, "max_depth": 63, **options}
    return _core.BudgetRule(costs.model(), **options)


def best_fixed(costs, truth, claims=None, tokens=600):
    """The best rate of any size and threshold, of several, known afterwards."""
    rates = []
    for budget in BUDGETS:
        for threshold in (0.1, 0.3):
            pair = Simulation(costs, truth, claims)
            rates.append(pair.play_fixed("opt_tree", budget, tokens, threshold=threshold))
    return max([*rates, pair.plain_rate()])


# ------------------------------------------------------------------ the optimum is found


@MACHINES
def test_a_perfect_drafter_gets_long_chains(costs):
    pair = Simulation(costs, perfect)
    rate = pair.play(rule_for(costs), 1500)
    assert set(pair.kinds) == {"tree"}
    assert np.mean(pair.sizes[-5:]) > 25
    assert rate > 0.97 * best_fixed(costs, perfect)


@MACHINES
@pytest.mark.parametrize("claims", [dirichlet(0.05), dirichlet(5.0)], ids=["bold", "modest"])
def test_a_useless_drafter_costs_two_percent_at_most(costs, claims):
    pair = Simulation(costs, useless, claims)
    rate = pair.play(rule_for(costs), 1000)
    assert rate > 0.98 * pair.plain_rate()
    assert pair.kinds.count("plain") > 0.85 * len(pair.kinds)


@MACHINES
@pytest.mark.parametrize("truth", [dirichlet(0.02), dirichlet(0.3)], ids=["easy", "hard"])
def test_no_fixed_size_is_much_better(costs, truth):
    rate = np.mean([Simulation(costs, truth, seed=s).play(rule_for(costs), 800) for s in range(3)])
    # The best of twelve sizes and thresholds is chosen afterwards, by luck as well.
    assert rate > 0.9 * best_fixed(costs, truth)


def test_it_learns_that_a_text_has_become_easy_and_hard_again():
    def switching(rng, n):
        easy = 600 < pair.tokens < 1200
        return (dirichlet(0.01) if easy else dirichlet(3.0))(rng, n)

    pair, rule = Simulation(STEEP, switching), rule_for(STEEP)
    rates, kinds = [], []
    for _ in range(3):
        before = len(pair.kinds)
        rates.append(pair.play(rule, 600) / pair.plain_rate())
        kinds.append(pair.kinds[before:])
    assert rates[0] > 0.97 and kinds[0].count("plain") > 0.9 * len(kinds[0])
    assert rates[1] > 1.2 and kinds[1].count("tree") > 40
    assert rates[2] > 0.9 and kinds[2][-100:].count("plain") > 90


def test_no_row_is_bought_that_does_not_fill_its_step():
    pair = Simulation(STAIRS, dirichlet(0.3))
    pair.play(rule_for(STAIRS), 600)
    rows = np.array(pair.sizes[50:]) + 1
    assert np.mean(rows == 8) > 0.5
    assert not np.any((rows > 8) & (rows < 14)), "9 rows cost as much as 16"


def test_scores_that_promise_too_much_are_not_believed():
    def bold(rng, n):
        return np.tile(np.array([0.9, *[0.1 / (VOCAB - 1)] * (VOCAB - 1)]), (n, 1))

    def truth(rng, n):
        return np.tile(np.array([0.45, *[0.55 / (VOCAB - 1)] * (VOCAB - 1)]), (n, 1))

    pair, rule = Simulation(FLAT, truth, bold), rule_for(FLAT)
    pair.play(rule, 1500)
    assert rule.reliability < 0.65
    assert np.mean(pair.sizes[-50:]) < 6


# ------------------------------------------------------------------ drawn trees: sizes beforehand


def test_drawn_trees_are_sized_by_the_measured_acceptance_alone():
    rule = rule_for(FLAT, ranked_trees=False, chains=False)
    plan = rule.plan(100, 1, 50)
    best = max(
        range(1, 64),
        key=lambda n: _promised(n, rule.price) if n else 0,
    )
    assert plan.kind == "tree" and plan.node_budget == best
    assert plan.threshold == plan.floor == 0


def _promised(nodes, price):
    parent = _core.optimal_growth_map(ACCEPTANCE, nodes)
    tokens = sum(_core.node_acceptance(parent.tolist(), ACCEPTANCE))
    depth = [0]
    for above in parent:
        depth.append(depth[above] + 1)
    model = FLAT.model()
    seconds = model.target_seconds(100, 1, nodes + 1)[-1]
    seconds += model.draft_seconds(max(depth), nodes / max(depth), tokens)
    return tokens - price * seconds


def test_a_drawn_tree_is_never_cut():
    tree = _core.TokenTree(
        [0, 1, 2], parent=[-1, 0, 0], proposal="iid", draws=[[1, 2], [], []],
        draft_probs=np.full((3, 4), 0.25, dtype=np.float32),
    )  # fmt: skip
    rule = rule_for(FLAT)
    rule.plan(100, 1, 50)
    assert _core.share_budget([rule], [tree]) == [2]
    with pytest.raises(ValueError, match="deterministic"):
        _core.beginning_of(tree, 1)


def test_chains_are_played_where_only_first_ranks_are_accepted():
    # Trees of the given table are bad bargains on this machine: rows are dear, calls are cheap.
    dear = Costs({1: 10.0, 2: 12.0, 64: 136.0}, {1: 0.01, 64: 0.02})
    table = [[0.9, 0.05]]
    rule = rule_for(dear, acceptance=table, ranked_trees=False)
    plan = rule.plan(100, 1, 50)
    assert plan.kind == "chain" or plan.max_depth == plan.node_budget


# ------------------------------------------------------------------ batches


def tree_of(logprobs):
    """A root with children of these log-probabilities."""
    law = np.full((1, VOCAB), -np.inf, dtype=np.float32)
    law[0, : len(logprobs)] = logprobs
    growth = _core.TreeBuilder("opt_tree", max_depth=1).begin(len(logprobs))
    growth.frontier(0)
    growth.supply(law)
    return growth.finish(0)


def test_a_batch_gives_its_rows_to_those_that_will_use_them():
    sure, unsure = tree_of(np.log([0.5, 0.3, 0.1])), tree_of(np.log([0.06, 0.02, 0.01]))
    rules = [rule_for(FLAT), rule_for(FLAT)]
    for rule in rules:
        rule.plan(100, 2, 50)
    kept = _core.share_budget(rules, [sure, unsure])
    assert kept[0] >= 2 and kept[1] < kept[0]


@pytest.mark.parametrize("case", range(20))
def test_shared_rows_are_the_best_total(rng, case):
    """Against trying every pair of sizes."""
    trees = [tree_of(np.log(np.sort(rng.dirichlet(np.full(7, 0.4)))[::-1])) for _ in "ab"]
    rules = [rule_for(STAIRS), rule_for(STAIRS)]
    for rule in rules:
        rule.plan(100, 2, 50)
    seconds = STAIRS.model().target_seconds(100, 2, 200)
    price = np.mean([rule.price for rule in rules])

    def worth(sizes):
        values = [
            np.exp(tree.path_logprob[1 : n + 1]).sum() for tree, n in zip(trees, sizes, strict=True)
        ]
        return float(sum(values)) - price * seconds[2 + sum(sizes) - 1]

    best = max(worth((a, b)) for a in range(len(trees[0])) for b in range(len(trees[1])))
    assert worth(_core.share_budget(rules, trees)) == pytest.approx(best, abs=1e-6)


# ------------------------------------------------------------------ costs


def test_costs_are_the_padded_envelope_and_lines_between():
    seconds = STAIRS.model().target_seconds(0, 1, 40)
    assert seconds[8] == 13.0 and seconds[15] == 13.0, "9 rows are padded to 16"
    assert seconds[3] == pytest.approx(10.0 + 0.3 * 3 / 7)
    assert seconds[39] == pytest.approx(20.0 + 20.0 * 8 / 32)
    assert np.all(np.diff(seconds) >= 0)


def test_costs_between_contexts_and_batches_are_interpolated():
    curves = [(c, b, {1: 1.0 * c * b, 8: 2.0 * c * b}) for c in (100, 300) for b in (1, 4)]
    model = _core.CostModel(
        target=curves, draft_call={}, drafts_by_level=True,
        drafted_round_seconds=0, plain_round_seconds=0,
    )  # fmt: skip
    assert model.target_seconds(200, 1, 1)[0] == pytest.approx(200)
    assert model.target_seconds(100, 2, 1)[0] == pytest.approx(200)
    assert model.target_seconds(50, 8, 8)[-1] == pytest.approx(800), "the nearest one outside"
    assert model.draft_seconds(5, 1, 1) == 0


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"target": []}, "at least one curve"),
        ({"target": [(0, 1, {0: 1.0})]}, "rise from 1"),
        ({"target": [(0, 1, {1: 0.0})]}, "above 0, got 0"),
        ({"target": [(0, 1, {1: float("nan")})]}, "got nan"),
        ({"target": [(0, 0, {1: 1.0})]}, "batch at least 1, got 0 and 0"),
        ({"target": [(0, 1, {1: 1.0}), (0, 1, {1: 1.0})]}, "got two"),
        ({"target": [(0, 1, {1: 1.0}), (9, 2, {1: 1.0})]}, "context"),
        ({"draft_call": {1: -1.0}}, "got -1"),
        ({"plain_round_seconds": float("inf")}, "plain_round_seconds must be finite"),
    ],
)
def test_costs_that_no_measurement_gives_are_refused(change, words):
    fields = {
        "target": [(0, 1, {1: 1.0})],
        "draft_call": {1: 1.0},
        "drafts_by_level": True,
        "drafted_round_seconds": 0.0,
        "plain_round_seconds": 0.0,
    }
    with pytest.raises(ValueError, match=words):
        _core.CostModel(**{**fields, **change})


@pytest.mark.parametrize("options", [{"max_nodes": 0}, {"max_depth": 0}, {"acceptance": []}])
def test_options_out_of_range_are_refused(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        rule_for(FLAT, **options)


def test_nothing_is_decided_before_the_first_plan():
    rule, root = rule_for(FLAT), _core.root_tree(0)
    for ask in (
        lambda: rule.price,
        lambda: rule.learn(root, _core.verify(root, np.eye(2)[:1], None, "greedy", 0, 0, 0)),
        lambda: _core.share_budget([rule], [root]),
    ):
        with pytest.raises(ValueError, match="plan must be called"):
            ask()
    rule.plan(10, 1, 5)
    assert rule.price > 0


# ------------------------------------------------------------------ beginnings of trees


def test_a_beginning_is_the_tree_of_that_budget(rng):
    law = np.log(rng.dirichlet(np.full(VOCAB, 0.2), 1)).astype(np.float32)
    growth = _core.TreeBuilder("opt_tree", max_depth=1).begin(9)
    growth.frontier(0)
    growth.supply(law)
    tree = growth.finish(7)
    for size in range(len(tree)):
        part = _core.beginning_of(tree, size)
        assert _core.check_tree(part) == []
        assert part.token.tolist() == tree.token[: size + 1].tolist() and part.token[0] == 7
    with pytest.raises(ValueError, match=r"in \[0, 9\], got 10"):
        _core.beginning_of(tree, 10)
