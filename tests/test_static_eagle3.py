# SPDX-License-Identifier: Apache-2.0
"""Static drafts with EAGLE-3: the trees of the step-by-step drafter, round after round."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from decoder_models import target_model
from drafter_cases import started, states_of
from node_batches import tokens
from support import in_turns
from test_static_levels import DETERMINISTIC, DRAWN, KEYS, check_same, draft_step, played
from test_static_round import draft_recipe
from tiny_drafters import randomise, tiny_eagle3
from tiny_models import VOCAB_SIZE

from treespec import _core
from treespec.drafts.base import DraftSettings
from treespec.drafts.eagle3 import Eagle3Drafter, Eagle3Model
from treespec.drafts.vocabulary import DraftVocabulary
from treespec.growth import Recipe, grow_trees
from treespec.static.choice import make_attention
from treespec.static.drafters import make_static_drafter
from treespec.static.drafting import Drafted, Observed
from treespec.static.runner import RowStates
from treespec.static.split_attention import SplitAttention
from treespec.stats import Clock
from treespec.targets.hf import HfTarget

TEXTS = [tokens(size, size) for size in (40, 45, 36)]
START = (1, 17, 9)  # positions of the roots when the buffers take over
# Committed positions of every sequence in each round; not all take part in all.
COUNTS = [(1, 3, 2), (3, 1, 3), (3, 2, 1)]
ACTIVE = [(1, 1, 1), (1, 0, 1), (0, 1, 1)]
NODES = [0, 2, 5]  # of the target's rows, the accepted path
CAPACITY = 640  # a tree of 40 levels asks for many rows
BUILD = ("opt_tree", {"max_depth": 3}, 12)


def target() -> HfTarget:
    return HfTarget(target_model("llama"))


def whole() -> Eagle3Drafter:
    """A random one that can say every token."""
    return changed(draft_vocab_size=VOCAB_SIZE)


def changed(**fields: Any) -> Eagle3Drafter:
    """A random one with another config."""
    model = target().model
    config = dataclasses.replace(tiny_eagle3(model).model.config, **fields)
    vocabulary = DraftVocabulary(config.draft_vocab_size, VOCAB_SIZE)
    own = randomise(Eagle3Model(config), model.dtype)
    return Eagle3Drafter(own, model.get_input_embeddings(), vocabulary)


def reduced() -> Eagle3Drafter:
    """A random one that can say every second token, whose ids are in no order."""
    drafter = tiny_eagle3(target().model)
    order = torch.randperm(VOCAB_SIZE // 2, generator=torch.Generator().manual_seed(1))
    ids = torch.arange(1, VOCAB_SIZE, 2)[order]
    drafter.vocabulary = DraftVocabulary(len(ids), VOCAB_SIZE, ids - torch.arange(len(ids)))
    return drafter


class Rounds:
    """Sequences of one drafter twice: step by step, and in static buffers."""

    def __init__(
        self,
        drafter: Eagle3Drafter,
        build: tuple[str, Any, int] = BUILD,
        attention: Any = None,
        **recipe: Any,
    ) -> None:
        self.drafter = drafter
        self.recipe = draft_recipe(build, attention or SplitAttention(64))
        self.recipe = dataclasses.replace(self.recipe, **recipe)
        self.static = make_static_drafter(drafter, self.recipe)
        self.target_states = [states_of(target(), text, drafter.needs) for text in TEXTS]
        self.state = self.static.make_state(self.take_over(START, load=False), CAPACITY)
        self.take_over(START)

    def take_over(self, start: tuple[int, ...], load: bool = True) -> list[Any]:
        """Begin with roots at these positions."""
        self.length = np.array(start)
        texts = [text[: n + 1] for text, n in zip(TEXTS, start, strict=True)]
        self.sessions, taken = (
            [started(self.drafter, target(), text, prompt=1) for text in texts] for _ in range(2)
        )
        self.static.prepare(taken)
        if load:
            self.static.load(self.state, taken)
        return taken

    def texts(self) -> list[Any]:
        """What is committed, the roots last."""
        return [text[: n + 1] for text, n in zip(TEXTS, self.length, strict=True)]

    def observe(self, counts: tuple[int, ...], active: tuple[int, ...]) -> None:
        """Commit positions of the active sequences; the target's other rows are NaN."""
        step = draft_step(self.texts(), CAPACITY)
        width = self.static.max_depth + 1
        ids, nodes = torch.full((3, width), 63), torch.full((3, width), -1)
        features = torch.full((3, 7, self.target_states[0].features.shape[1]), torch.nan).double()
        features[:, 0] = 1.0  # of the root; those who sit out have some, too
        for b, count in enumerate(np.array(counts) * active):
            n = int(self.length[b])
            known = self.target_states[b].rows(np.arange(n, n + count))
            if count:
                new = TEXTS[b][n + 1 : n + count + 1]
                self.drafter.observe(self.sessions[b], new, known)
                ids[b, :count], nodes[b, :count] = torch.tensor(new), torch.tensor(NODES[:count])
                features[b, NODES[:count]] = known.features
            self.length[b] += count
        committed = torch.tensor(np.array(counts) * active)
        observed = Observed(ids.int(), nodes.int(), committed.int(), RowStates(features, None))
        self.static.observe(
            self.state, step._replace(active=torch.tensor(active, dtype=torch.int32)), observed
        )

    def draft(self) -> Drafted:
        step = draft_step(self.texts(), CAPACITY)
        drafted = played(self.static, self.state, step)
        assert not step.status.any()
        return drafted

    def expected(self) -> list[_core.TokenTree]:
        sources = self.drafter.draft(self.sessions, DraftSettings())
        recipes = [Recipe(self.recipe.builder, self.recipe.node_budget, 99)] * 3
        roots = [int(text[-1]) for text in self.texts()]
        return grow_trees(recipes, sources, KEYS[:3], roots, Clock())

    def check(self) -> None:
        """The trees of this round and some later ones, drafted twice."""
        for counts, active in zip([None, *COUNTS], [None, *ACTIVE], strict=True):
            if counts is not None:
                self.observe(counts, active)
            expected = self.expected()
            for _ in range(2):
                check_same(self.draft(), expected)


VOCABULARIES = {"reduced": reduced, "whole": whole}


@pytest.mark.parametrize(
    ("build", "vocabulary"), in_turns(DETERMINISTIC + DRAWN, VOCABULARIES), ids=str
)
def test_trees_are_those_of_the_step_by_step_drafter(build: Any, vocabulary: str) -> None:
    Rounds(VOCABULARIES[vocabulary](), build).check()


@pytest.mark.parametrize(
    "fields", [{"norm_before_residual": True}, {"normed_heads": True}, {"layer_ids": (1,)}], ids=str
)
def test_variants_of_the_layer_keep_their_meaning(fields: dict[str, Any]) -> None:
    Rounds(changed(draft_vocab_size=VOCAB_SIZE, **fields)).check()


@pytest.mark.filterwarnings("ignore:flex_attention called without:UserWarning")
def test_flex_attends_too() -> None:
    Rounds(reduced(), attention=make_attention("flex", torch.device("cpu"))).check()


@pytest.mark.slow
def test_the_layer_may_be_compiled() -> None:
    """In float64, where what compiling rounds in another order does not show."""
    before = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    drafter = reduced()
    Rounds(drafter, ("chain", {"max_depth": 2}, 2), compiled=True).check()
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > before
    assert "forward" not in vars(drafter.model)  # which is not modified


def test_drafters_may_be_narrower_than_their_target() -> None:
    drafter = reduced()
    drafter.model.float()
    rounds = Rounds(drafter)
    assert {states.dtype for states in rounds.state.states} == {torch.float32}
    rounds.check()


def test_buffers_take_over_other_sequences_later() -> None:
    rounds = Rounds(reduced())
    rounds.check()
    rounds.take_over((5, 2, 11))
    rounds.check()


def test_observing_changes_what_is_pending_of_active_sequences_alone() -> None:
    rounds = Rounds(reduced())
    rounds.observe((2, 3, 1), (1, 1, 1))
    rounds.draft()
    before = rounds.state.states.pending.clone()
    rounds.observe((1, 2, 3), (0, 1, 0))
    differs = (rounds.state.states.pending != before).flatten(1).any(1)
    assert differs.tolist() == [False, True, False]
    check_same(rounds.draft(), rounds.expected())


def test_states_must_be_those_that_are_needed() -> None:
    rounds, zeros = Rounds(reduced()), torch.zeros(3, 4, dtype=torch.int32)
    observed = Observed(zeros, zeros, zeros[:, 0], RowStates(None, None))
    with pytest.raises(ValueError, match="states must hold the features of `needs`, got none"):
        rounds.static.observe(rounds.state, draft_step(rounds.texts(), CAPACITY), observed)
