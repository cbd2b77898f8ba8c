# SPDX-License-Identifier: Apache-2.0
"""The bundled drafters of the demo target: same text, one pass, and what they are there for."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import pytest
from tiny_drafters import randomise

import treespec
from treespec import demo
from treespec.drafts import DrafterContext
from treespec.drafts.self_test import check_acceptance
from treespec.training.data import python_sources, windows
from treespec.training.replay import Tree, replay, write_trajectories

BUNDLED = [name for name in treespec.drafter_names() if name.startswith("demo")]
ONE_PASS = [name for name in BUNDLED if name not in ("demo", "demo:eagle3")]


@functools.cache
def plain() -> Any:
    return treespec.load("demo", None)


@functools.cache
def decoder(name: str) -> Any:
    """With trees of 16 nodes, over the target that all share."""
    drafter = treespec.load(plain().target.model, name).drafter
    builder = "opt_tree" if drafter.source_kind == "Expander" else "dtree"
    return treespec.load(
        plain().target.model,
        drafter,
        tokenizer=plain().tokenizer,
        builder=builder,
        node_budget=16,
    )


@pytest.mark.parametrize("name", BUNDLED)
def test_greedy_text_is_that_of_plain_decoding(name: str) -> None:
    wanted = [plain().generate(p, max_new_tokens=40).token_ids for p in demo.prompts()[:2]]
    results = decoder(name).generate(demo.prompts()[:2], max_new_tokens=40)
    assert [result.token_ids for result in results] == wanted
    assert all(result.stats.block_efficiency > 1.2 for result in results)


@pytest.mark.parametrize("name", BUNDLED)
def test_sampled_text_is_that_of_plain_decoding(name: str) -> None:
    options = {"max_new_tokens": 40, "temperature": 0.7, "seed": 5}
    prompt = demo.prompts()[3]
    assert (
        decoder(name).generate(prompt, **options).text == plain().generate(prompt, **options).text
    )


@pytest.mark.parametrize("name", ONE_PASS)
def test_a_round_has_one_pass(name: str) -> None:
    result = decoder(name).generate(demo.prompts()[0], max_new_tokens=40, ignore_eos=True)
    assert 0 <= result.stats.rounds - result.stats.draft_calls <= 1


@pytest.mark.parametrize("name", BUNDLED[1:])
def test_bundled_drafters_pass_the_test_that_users_drafters_must(name: str) -> None:
    one = decoder(name)
    context = DrafterContext(one.target.vocab_size, one.tokenizer, "cpu", "auto", one.target)
    check_acceptance(one.drafter, context, name)


def test_a_drafter_of_another_target_is_refused() -> None:
    one = treespec.load("demo", "demo:dflash")
    randomise(one.drafter.model, one.target.model.dtype)
    context = DrafterContext(one.target.vocab_size, one.tokenizer, "cpu", "auto", one.target)
    with pytest.raises(ValueError, match="features or embedding convention mismatch"):
        check_acceptance(one.drafter, context, "demo:dflash")


@pytest.mark.slow
def test_treeflash_accepts_more_than_marginals_and_trees_more_than_chains() -> None:
    """Paired on the same texts of the target; the figures themselves are in benchmarks."""
    random = np.random.default_rng(1)
    prompts = windows(list(python_sources(held_out=True)), plain().tokenizer, 16, 48, random)
    needs = decoder("demo:treeflash").drafter.needs
    texts = write_trajectories(plain().target, prompts, needs, new_tokens=80, temperature=0.7)
    reached = {
        (name, tree.name): np.array(replay(decoder(name).drafter, texts, tree).block_efficiency)
        for name in ("demo:dflash", "demo:treeflash", "demo:pairwise")
        for tree in (Tree("chain", "chain", 7), Tree("16", "dtree", 16), Tree("64", "dtree", 64))
    }

    def gain(one: tuple[str, str], other: tuple[str, str]) -> float:
        return float(reached[one].mean() / reached[other].mean())

    for nodes in ("16", "64"):
        assert gain(("demo:dflash", nodes), ("demo:dflash", "chain")) > 1.1
        assert gain(("demo:treeflash", nodes), ("demo:dflash", nodes)) > 1.05
        assert gain(("demo:pairwise", nodes), ("demo:dflash", nodes)) > 1.0
