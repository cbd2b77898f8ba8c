# SPDX-License-Identifier: Apache-2.0
"""Static drafts by levels: their plans, and the trees of the drafter that grows step by step."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from decoder_models import draft_model
from static_models import static_kv
from test_static_round import draft_recipe
from tiny_models import VOCAB_SIZE
from tiny_trees import tokens

from treespec import _core
from treespec.builder_options import resolve_options
from treespec.device import check_status
from treespec.drafts.autoregressive import AutoregressiveDrafter
from treespec.drafts.base import DraftSettings
from treespec.growth import Recipe, RoundKey, grow_trees
from treespec.static.causal_lm import StaticCausalLm
from treespec.static.drafting import Drafted, DraftRecipe, DraftStep
from treespec.static.levels import LevelDrafter, schedule
from treespec.static.plan import plan_draft
from treespec.static.split_attention import SplitAttention
from treespec.stats import Clock

BUDGET = 12
MAP = [0, 0, 1, 1, 2, 5, 4, 7]
# (builder, options, node budget)
DETERMINISTIC = [
    ("chain", {"max_depth": 5}, 5),
    ("kary", {"expansion": [3, 2, 1]}, 15),
    ("sequoia", {}, BUDGET),
    ("sequoia", {"growth_map": MAP}, 8),
    ("medusa_choices", {}, BUDGET),
    ("eagle2", {"width": 3, "max_depth": 4}, BUDGET),
    ("eagle2", {"width": 2, "max_depth": 6}, 30),
    ("eagle2", {"width_ratio": 0.5, "width": 4}, 20),
    ("eagle2", {"growth": "constant", "width": 2, "max_depth": 5}, 9),
    ("opt_tree", {"max_depth": 4}, BUDGET),
    ("opt_tree", {}, 40),  # two words of slots
    ("opt_tree", {"threshold": 0.3}, 20),
    ("opt_tree", {"floor": 0.02}, 20),
    ("opt_tree", {"score_temperature": 0.7, "max_depth": 3}, BUDGET),
    ("opt_tree", {"calibration": [[0.1, 0.2], [0.6, 0.9]], "max_depth": 3}, BUDGET),
]
DRAWN = [
    ("chain", {"max_depth": 4, "proposal": "iid"}, 4),
    ("kary", {"expansion": [3, 2], "proposal": "iid"}, 9),
    ("kary", {"expansion": [2, 2], "proposal": "without_replacement"}, 6),
    ("sequoia", {"proposal": "without_replacement"}, BUDGET),
    ("top_plus_one", {"expansion": [3, 2]}, 9),
    ("rollouts", {"num_paths": 3}, BUDGET),
    ("delayed", {"num_paths": 3, "trunk": 2, "branch": 2}, 8),
    ("dyspec", {}, BUDGET),
    ("dyspec_threshold", {"threshold": 0.05}, BUDGET),
]


def plan_of(builder: str, options: dict[str, Any], node_budget: int) -> Any:
    resolved = resolve_options(options)
    return plan_draft(_core.TreeBuilder(builder, **resolved), resolved, node_budget)


@pytest.mark.parametrize(
    ("builder", "options", "budget", "widths", "candidates"),
    [
        ("chain", {}, 3, (1, 1, 1), 1),
        ("kary", {"expansion": [3, 2]}, 9, (1, 3), 3),
        ("kary", {"expansion": [3, 2], "proposal": "iid"}, 9, (1, 3), 128),
        ("sequoia", {"growth_map": MAP}, 8, (1, 2, 2, 1), 2),
        ("top_plus_one", {"expansion": [2, 2]}, 200, (1, 2), 200),
        ("rollouts", {"num_paths": 40}, 200, (1, 40, 40, 40, 40), 200),
        ("delayed", {"num_paths": 5, "trunk": 2, "branch": 3}, 17, (1, 1, 1, 5, 5), 128),
        ("eagle2", {"width": 3, "max_depth": 4}, 60, (1, 3, 3, 3), 4),
        ("eagle2", {"width": 10}, 4, (1, 3, 2, 1), 4),
        ("eagle2", {"width": 10, "max_depth": 1}, 4, (1,), 4),
        ("opt_tree", {"max_depth": 3}, 9, (1, 8, 7), 9),
        ("opt_tree", {}, 1, (1,), 1),
        ("opt_tree", {"max_depth": 0}, 3, (1,), 3),
    ],
)
def test_plans(builder: str, options: Any, budget: int, widths: Any, candidates: int) -> None:
    plan = plan_of(builder, options, budget)
    assert (plan.widths, plan.num_candidates) == (widths, candidates)
    assert (plan.max_depth, plan.max_rows) == (len(widths), sum(widths))


@pytest.mark.parametrize(
    ("builder", "options", "budget", "depth", "rows", "candidates"),
    [
        ("opt_tree", {"max_depth": 3, "threshold": 0.4}, 9, 3, 16, 9),
        ("opt_tree", {"max_depth": 3, "floor": 0.1}, 9, 3, 16, 9),
        ("eagle2", {"width": 3, "max_depth": 4, "width_ratio": 0.5}, 60, 4, 60, 4),
        ("eagle2", {"width": 3, "max_depth": 4, "growth": "constant"}, 60, 4, 10, 4),
        ("eagle2", {"width": 2, "max_depth": 9, "growth": "constant"}, 3, 3, 7, 3),
        ("eagle2", {"width": 9, "max_depth": 2, "growth": "constant"}, 5, 2, 6, 5),
        ("dyspec", {}, 12, 12, 97, 128),
        ("dyspec_threshold", {"max_depth": 3, "threshold": 0.1}, 12, 3, 97, 128),
    ],
)
def test_what_depends_on_the_data_has_bounds(
    builder: str, options: Any, budget: int, depth: int, rows: int, candidates: int
) -> None:
    plan = plan_of(builder, options, budget)
    assert plan.widths is None
    assert (plan.max_depth, plan.max_rows, plan.num_candidates) == (depth, rows, candidates)


def random_lists(
    generator: np.random.Generator, rows: int, width: int
) -> tuple[np.ndarray, np.ndarray]:
    """Flat and peaked ones, with ties."""
    heat = generator.choice([0.0, 0.5, 3.0], (rows, 1))
    logits = heat * generator.normal(size=(rows, width)).round(1)
    token, logprob = _core.Marginals.from_logits(logits, width).arrays
    return token, logprob


@pytest.mark.parametrize(
    ("builder", "options", "budget"),
    [
        *DETERMINISTIC,
        *DRAWN,
        ("eagle2", {"growth": "constant", "max_depth": 2}, 6),
        ("eagle2", {"growth": "constant", "width": 1, "max_depth": 40}, 6),
        ("eagle2", {"width_ratio": 0.01, "max_depth": 9}, 30),
    ],
    ids=str,
)
def test_no_growth_is_larger_than_its_plan(builder: str, options: Any, budget: int) -> None:
    plan, generator = plan_of(builder, options, budget), np.random.default_rng(0)
    for seed in range(40):
        growth = _core.TreeBuilder(builder, **resolve_options(options)).begin(budget, seed=seed)
        rows = []
        while width := len(growth.frontier()):
            rows.append(width)
            growth.supply_lists(*random_lists(generator, width, plan.num_candidates))
        assert sum(rows) <= plan.max_rows
        assert growth.finish().max_depth <= plan.max_depth
        if plan.widths is not None:
            assert len(rows) <= len(plan.widths)
            assert all(own <= most for own, most in zip(rows, plan.widths, strict=False))


@pytest.mark.parametrize(
    ("builder", "options", "budget", "message"),
    [
        ("trie", {}, 4, "builder must be one of chain, delayed, .* got trie"),
        ("dtree", {}, 4, "got dtree"),
        ("opt_tree", {}, 0, r"node_budget must be in \[1, 1024\], got 0"),
        ("dyspec", {}, 1025, "got 1025"),
    ],
)
def test_what_has_no_envelope_is_refused(
    builder: str, options: Any, budget: int, message: str
) -> None:
    with pytest.raises(NotImplementedError, match=message):
        plan_of(builder, options, budget)


KEYS = [RoundKey(2**64 - 1 - b, b, 1 + 7 * b) for b in range(5)]


def grown_trees(
    model: Any, builder: Any, budget: int, texts: list[list[int]], settings: DraftSettings
) -> list[_core.TokenTree]:
    """What the step-by-step drafter and the native growth make of texts, the root last."""
    drafter = AutoregressiveDrafter(model, VOCAB_SIZE)
    sessions = [drafter.begin(np.array(text[:1]), None, 128) for text in texts]
    for session, text in zip(sessions, texts, strict=True):
        drafter.observe(session, np.array(text[1:]), None)
    sources = drafter.draft(sessions, settings)
    roots = [text[-1] for text in texts]
    recipes = [Recipe(builder, budget, 99)] * len(texts)
    return grow_trees(recipes, sources, KEYS[: len(texts)], roots, Clock())


def draft_step(texts: Any, envelope: int) -> DraftStep:
    """What a greedy draft behind texts reads, the roots last."""
    keys = [[k.seed - 2**64, k.sequence_id + (k.position << 32)] for k in KEYS[: len(texts)]]
    ones = torch.ones(len(texts), dtype=torch.int32)
    return DraftStep(
        torch.tensor([int(text[-1]) for text in texts], dtype=torch.int32),
        torch.tensor([len(text) - 1 for text in texts], dtype=torch.int32),
        ones,
        torch.tensor(keys),
        torch.tensor([[0.0, 0, 1, 0, 1, 0, 0]] * len(texts)).double(),
        envelope,
        0 * ones,
    )


class Draft:
    """A static draft behind texts that the drafter knows in part."""

    def __init__(self, model: Any, recipe: DraftRecipe, texts: list[list[int]]) -> None:
        own = StaticCausalLm(AutoregressiveDrafter(model, VOCAB_SIZE), recipe.attention)
        self.drafter = LevelDrafter(own, recipe)
        batch, most = len(texts), self.drafter.max_depth + 1
        num_pending = [1, most, 2, 1, most - 1][:batch]
        known = [text[: len(text) - n] for text, n in zip(texts, num_pending, strict=True)]
        self.state = self.drafter.state_of(static_kv(model, known, CAPACITY))
        self.state.pending.fill_(63)  # the padding is a token
        for b, (text, count) in enumerate(zip(texts, num_pending, strict=True)):
            self.state.pending[b, :count] = torch.tensor(text[-count:])
            self.state.length[b], self.state.num_pending[b] = len(text) - count, count
        self.step = draft_step(texts, CAPACITY)

    def play(self) -> Drafted:
        return played(self.drafter, self.state, self.step)


@torch.inference_mode()
def played(drafter: Any, state: Any, step: DraftStep) -> Drafted:
    """A whole draft, in as many calls as it takes."""
    drafter.begin(state, step)
    for width, num_slots in schedule(drafter.widths or (1,)):
        drafter.grow(state, step, width, num_slots)
    while widest := int(state.waiting.max()):
        assert drafter.widths is None
        drafter.grow(state, step, widest, drafter.max_rows - 1)
    return drafter.finish(state, step)


TEXTS = [tokens(n, n).tolist() for n in (2, 30, 11, 7, 19)]
CAPACITY = 640


def check_same(drafted: Drafted, expected: list[_core.TokenTree]) -> None:
    trees, law = drafted
    for b, tree in enumerate(expected):
        n = int(trees.num_nodes[b])
        assert n == tree.num_nodes
        assert np.array_equal(trees.token[b, :n].numpy(), tree.token)
        assert np.array_equal(trees.parent[b, :n].numpy(), tree.parent)
        assert np.allclose(trees.path_logprob[b, :n].numpy(), tree.path_logprob, atol=1e-5)
        ends = trees.draw_offset[b].tolist()
        draws = [trees.draw[b, ends[i] : ends[i + 1]].tolist() for i in range(n)]
        assert draws == tree.draws
        if tree.draft_probs is not None:
            rows = np.zeros((n, VOCAB_SIZE))
            for node, row in enumerate(law.row_of_node[b, :n].tolist()):
                begin, end = law.row_offset[row : row + 2].tolist() if row >= 0 else (0, 0)
                rows[node, law.token[begin:end]] = law.prob[begin:end]
            assert np.allclose(rows, tree.draft_probs, atol=1e-6)


@pytest.mark.parametrize(("name", "options", "budget"), DETERMINISTIC + DRAWN)
@pytest.mark.parametrize("architecture", ["llama", "mistral_window"])
def test_trees_are_those_of_the_step_by_step_drafter(
    name: str, options: dict[str, Any], budget: int, architecture: str
) -> None:
    model = draft_model(architecture)
    recipe = draft_recipe((name, options, budget), SplitAttention(64))
    draft = Draft(model, recipe, TEXTS)
    expected = grown_trees(model, recipe.builder, budget, TEXTS, DraftSettings())
    for _ in range(2):  # a draft changes nothing that can be observed
        drafted = draft.play()
        assert not draft.step.status.any()  # no node without a slot
        check_same(drafted, expected)


@pytest.mark.parametrize(
    "law",
    [(0.7, 0, 1.0), (1.0, 5, 1.0), (1.0, 0, 0.8), (1.6, 7, 0.9), (0.0, 3, 0.5)],
    ids=str,
)
def test_tokens_are_drawn_by_the_law_of_the_text(law: tuple[float, int, float]) -> None:
    """At temperature 0 nothing is random but the draft."""
    temperature, top_k, top_p = law
    model, budget = draft_model("llama"), 8
    recipe = draft_recipe(("rollouts", {"num_paths": 3}, budget), SplitAttention(64))
    draft = Draft(model, recipe, TEXTS)
    draft.step.params[:, :3] = torch.tensor(law)
    settings = DraftSettings(temperature, top_k, top_p) if temperature else DraftSettings()
    drafted = draft.play()
    check_same(drafted, grown_trees(model, recipe.builder, budget, TEXTS, settings))


def test_a_given_temperature_is_that_of_the_draft() -> None:
    model, budget = draft_model("llama"), 8
    build = ("rollouts", {"num_paths": 3}, budget)
    recipe = draft_recipe(build, SplitAttention(64), temperature=0.5)
    draft = Draft(model, recipe, TEXTS)
    draft.step.params[:, :2] = torch.tensor([1.3, 4.0])
    drafted = draft.play()
    check_same(drafted, grown_trees(model, recipe.builder, budget, TEXTS, DraftSettings(0.5, 4)))


def test_nodes_without_a_slot_are_reported() -> None:
    recipe = draft_recipe(("opt_tree", {"max_depth": 3}, 8), SplitAttention(64))
    draft = Draft(draft_model("llama"), recipe, TEXTS[:2])
    with torch.inference_mode():
        draft.drafter.begin(draft.state, draft.step)
        draft.drafter.grow(draft.state, draft.step, 7, 2)
    with pytest.raises(ValueError, match="beyond the envelope"):
        check_status(draft.step.status)


def test_a_smaller_vocabulary_drafts_what_it_knows() -> None:
    model = draft_model("llama", vocab_size=32)
    recipe = draft_recipe(("opt_tree", {"max_depth": 2}, 40), SplitAttention(64))
    draft = Draft(model, recipe, [[3, 4, 5, 63]])  # id 63 is the target's alone
    drafted = draft.play()
    assert drafted.trees.token[0, 1:].max() < 32
    assert int(drafted.trees.num_nodes[0]) == 41
