# SPDX-License-Identifier: Apache-2.0
"""The static draft: its plan, and the same trees as the drafter that grows them step by step."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from decoder_models import draft_model
from static_models import static_kv
from tiny_trees import tokens

import treespec
from treespec import _core
from treespec.builder_options import resolve_options
from treespec.device import Trees
from treespec.drafts.base import DraftSettings
from treespec.growth import Recipe, RoundKey, grow_trees
from treespec.static.draft import StaticDrafter
from treespec.static.ops import encode_options
from treespec.static.plan import plan_draft
from treespec.static.split_attention import SplitAttention
from treespec.stats import Clock

CPU = torch.device("cpu")
BUDGET = 12
MAP = [0, 0, 1, 1, 2, 5, 4, 7]
# (builder, options, node budget)
BUILDS = [
    ("chain", {"max_depth": 5}, 5),
    ("kary", {"expansion": [3, 2, 1]}, 15),
    ("sequoia", {}, BUDGET),
    ("sequoia", {"growth_map": MAP}, 8),
    ("medusa_choices", {}, BUDGET),
    ("eagle2", {"width": 3, "max_depth": 4}, BUDGET),
    ("eagle2", {"width": 2, "max_depth": 6}, 30),
    ("opt_tree", {"max_depth": 4}, BUDGET),
    ("opt_tree", {}, 40),  # two words of slots
]


def plan_of(builder: str, options: dict[str, Any], node_budget: int) -> Any:
    resolved = resolve_options(options)
    return plan_draft(_core.TreeBuilder(builder, **resolved), resolved, node_budget)


@pytest.mark.parametrize(
    ("builder", "options", "budget", "widths", "candidates"),
    [
        ("chain", {}, 3, (1, 1, 1), 1),
        ("kary", {"expansion": [3, 2]}, 9, (1, 3), 3),
        ("sequoia", {"growth_map": MAP}, 8, (1, 2, 2, 1), 2),
        ("eagle2", {"width": 3, "max_depth": 4}, 60, (1, 3, 3, 3), 4),
        ("eagle2", {"width": 10}, 4, (1, 3, 2, 1), 4),
        ("eagle2", {"width": 10, "max_depth": 1}, 4, (1,), 4),
        ("opt_tree", {"max_depth": 3}, 9, (1, 8, 7), 9),
        ("opt_tree", {}, 1, (1,), 1),
    ],
)
def test_plans(builder: str, options: Any, budget: int, widths: Any, candidates: int) -> None:
    plan = plan_of(builder, options, budget)
    assert (plan.widths, plan.num_candidates) == (widths, candidates)


def test_a_fixed_shape_says_who_goes_on() -> None:
    assert plan_of("sequoia", {"growth_map": MAP}, 8).sources == ((0, 1), (1, 2), (0,))
    assert plan_of("opt_tree", {}, 8).sources is None


@pytest.mark.parametrize(
    ("builder", "options", "budget", "message"),
    [
        ("dyspec", {}, 4, "builder must be one of chain, eagle2, .* got dyspec with without_repl"),
        ("kary", {"proposal": "iid"}, 11, "got kary with iid ones"),
        ("opt_tree", {"threshold": 0.4}, 4, "option threshold of opt_tree must be 0, got 0.4"),
        ("eagle2", {"width_ratio": 0.1}, 4, "option width_ratio of eagle2 must be 0, got 0.1"),
        ("eagle2", {"growth": "constant"}, 4, "growth of eagle2 must be 'layer', got 'constant'"),
        ("opt_tree", {"calibration": [[0.5, 0.6]]}, 4, "option calibration of opt_tree"),
        ("opt_tree", {"score_temperature": 0.5}, 4, "option score_temperature of opt_tree"),
        ("opt_tree", {}, 0, "node_budget must be at least 1, got 0"),
    ],
)
def test_what_has_no_static_shape_is_refused(
    builder: str, options: Any, budget: int, message: str
) -> None:
    with pytest.raises(NotImplementedError, match=message):
        plan_of(builder, options, budget)


def grown_trees(
    model: Any, builder: Any, budget: int, texts: list[list[int]]
) -> list[_core.TokenTree]:
    """What the step-by-step drafter and the native growth make of texts, the root last."""
    drafter = treespec.load(model, model, device="cpu").drafter
    sessions = [drafter.begin(np.array(text[:1]), None, 128) for text in texts]
    for session, text in zip(sessions, texts, strict=True):
        drafter.observe(session, np.array(text[1:]), None)
    sources = drafter.draft(sessions, DraftSettings())
    keys, many = [RoundKey()] * len(texts), len(texts)
    roots = [text[-1] for text in texts]
    recipes = [Recipe(builder, budget, 99)] * many
    return grow_trees(recipes, sources, keys, roots, Clock())


@pytest.mark.parametrize(("name", "options", "budget"), BUILDS)
@pytest.mark.parametrize("architecture", ["llama", "mistral_window"])
def test_trees_are_those_of_the_step_by_step_drafter(
    name: str, options: dict[str, Any], budget: int, architecture: str
) -> None:
    model, resolved = draft_model(architecture), resolve_options(options)
    builder = _core.TreeBuilder(name, **resolved)
    plan = plan_draft(builder, resolved, budget)
    texts = [tokens(n, n).tolist() for n in (2, 30, 11, 7, 19)]
    most = plan.max_depth + 1
    num_pending = torch.tensor([1, most, 2, 1, most - 1], dtype=torch.int32)
    pending = torch.full((5, plan.max_depth + 1), 63, dtype=torch.int32)  # the padding is a token
    for row, text, count in zip(pending, texts, num_pending.tolist(), strict=True):
        row[:count] = torch.tensor(text[-count:])
    length = torch.tensor([len(text) for text in texts], dtype=torch.int32) - num_pending
    drafter = StaticDrafter(model, plan, 64, 1.0, SplitAttention(64), CPU)
    kv = static_kv(model, [text[: int(n)] for text, n in zip(texts, length, strict=True)], 640)
    roots = torch.tensor([text[-1] for text in texts], dtype=torch.int32)
    status = torch.zeros(5, dtype=torch.int32)
    for _ in range(2):  # a draft changes nothing that can be observed
        with torch.inference_mode():
            lists = drafter.draft(kv, length, pending, num_pending, 640, status)
        built = torch.ops.treespec.build_trees(
            name, encode_options(resolved), budget, *lists, roots, status
        )
        grown = Trees(*built)
        for b, tree in enumerate(grown_trees(model, builder, budget, texts)):
            n = int(grown.num_nodes[b])
            assert n == tree.num_nodes
            assert np.array_equal(grown.token[b, :n].numpy(), tree.token)
            assert np.array_equal(grown.parent[b, :n].numpy(), tree.parent)
            assert np.allclose(grown.path_logprob[b, :n].numpy(), tree.path_logprob, atol=1e-5)


def test_a_smaller_vocabulary_drafts_what_it_knows() -> None:
    model = draft_model("llama", vocab_size=32)
    plan = plan_of("opt_tree", {"max_depth": 2}, 40)
    drafter = StaticDrafter(model, plan, 64, 1.0, SplitAttention(64), CPU)
    kv = static_kv(model, [[3, 4, 5]], 128)
    one = torch.ones(1, dtype=torch.int32)
    pending = torch.tensor([[63, 0, 0]], dtype=torch.int32)
    with torch.inference_mode():  # id 63 is the target's alone
        lists = drafter.draft(kv, 3 * one, pending, one, 128, 0 * one)
    assert lists.token.max() < 32
    assert (lists.logprob[0, 0, 0, 32:] == -torch.inf).all()
