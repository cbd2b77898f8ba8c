# SPDX-License-Identifier: Apache-2.0
"""Tree building on the CPU, each builder beside its floor (see floors.py)."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
from floors import VOCAB_SIZE, Case, FloatRows, log_softmax, logit_rows, pool, run

import treespec
from treespec import _core, reference
from treespec.growth import grow_tree
from treespec.reference import mask as reference_mask
from treespec.reference import sources as reference_sources

MOST_ROWS = 320  # more than any builder reads for 64 nodes
WIDTH = 64

# Builders on dense rows: name, options, what the options are called.
DENSE: list[tuple[str, dict[str, Any], str]] = [
    ("opt_tree", {"max_depth": 10}, "10 layers"),
    ("eagle2", {}, "width 10, 6 layers"),
    ("dyspec", {}, "batched"),
    (
        "kary",
        {"expansion": [4, 2, 2, 1, 1], "proposal": "without_replacement"},
        "<4,2,2,1,1> without_replacement",
    ),
    ("rollouts", {"num_paths": 4}, "K = 4"),
    ("delayed", {"num_paths": 3, "trunk": 4, "branch": 4}, "(3, 4, 4)"),
    ("sequoia", {}, "deterministic"),
]


class RowExpander:
    """Hands out the rows of a block in order of the calls."""

    def __init__(self, block: FloatRows) -> None:
        self.block, self.used = block, 0

    def expand(self, nodes: Any) -> FloatRows:
        self.used += len(nodes)
        return self.block[self.used - len(nodes) : self.used]


class TokenExpander:
    """A row per token and depth, whatever the order of the calls."""

    def __init__(self, block: FloatRows) -> None:
        self.block = block

    def expand(self, nodes: Any) -> FloatRows:
        return self.block[[(31 * node.token + node.depth) % len(self.block) for node in nodes]]


def same_tree(tree: Any, oracle: Any) -> None:
    """Raises when a tree is not the oracle's."""
    for name in ("token", "parent", "depth", "path_logprob"):
        np.testing.assert_array_equal(getattr(tree, name), getattr(oracle, name), err_msg=name)
    assert [list(draws) for draws in tree.draws] == oracle.draws


# --- Ranked lists ---------------------------------------------------------------------------------


def first_order_lists() -> tuple[Any, Any, Any]:
    """Token, log-probability and next row `[24, 16, 64]`, likeliest first."""
    rng = np.random.default_rng(1)
    shape = (24, 16, WIDTH)
    token = np.argsort(rng.random((*shape[:2], 4 * WIDTH)), axis=-1)[..., :WIDTH]
    scores = -np.sort(-rng.normal(0, 3, (shape[0] * shape[1], WIDTH)), axis=1)
    logprob = log_softmax(scores.astype(np.float32)).reshape(shape)
    return token, logprob, np.broadcast_to(np.arange(WIDTH) % shape[1], shape)


def trie_nodes(count: int) -> tuple[Any, Any, Any]:
    """Parent, token and log-probability of a trie with up to six children per node, by breadth."""
    rng = np.random.default_rng(2)
    parent: list[int] = []
    logprob: list[Any] = []
    for node in range(-1, count):
        width = min(int(rng.integers(2, 7)), count - len(parent))
        if width <= 0:
            break
        parent += [node] * width
        logprob.append(log_softmax(rng.normal(0, 6, (1, width)).astype(np.float32))[0])
    return np.array(parent), np.arange(count), np.concatenate(logprob)


def list_cases(quick: bool) -> Iterator[Case]:
    """Builders of exact best-first trees on tables; the floor is a call that does nothing."""
    token, logprob, following = first_order_lists()
    tables = [
        ("Marginals [24, 64]", "Marginals", (token[:, 0], logprob[:, 0])),
        ("Transitions [24, 16, 64]", "Transitions", (token, logprob, following)),
    ]
    budgets = (64,) if quick else (64, 1024)
    for builder, options in (("dtree", {}), ("opt_tree", {"max_depth": 24})):
        for label, kind, arrays in tables:
            for budget in budgets:
                yield list_case(builder, options, label, kind, arrays, budget)
    for budget in budgets:
        yield list_case("trie", {}, "Trie of 4096", "Trie", trie_nodes(4096), budget)


def list_case(
    name: str, options: dict[str, Any], label: str, kind: str, arrays: tuple[Any, ...], budget: int
) -> Case:
    """Tree and ancestor bits."""
    source = getattr(treespec, kind)(*arrays)
    builder = _core.TreeBuilder(name, **options)

    def work() -> tuple[Any, Any]:
        tree = builder.build(source, budget)
        return tree, _core.ancestor_bits(tree.parent)

    def check() -> None:
        tree, bits = work()
        oracle_source = getattr(reference_sources, kind)(*arrays)
        same_tree(tree, reference.builder(name)(oracle_source, node_budget=budget, **options))
        np.testing.assert_array_equal(bits, reference_mask.bits(tree.parent))

    title = f"{name} + mask, {budget} nodes, {label}"
    return Case(title, "binding call alone", work, lambda: _core.root_tree(0), check, calls=20)


# --- Raw logits -----------------------------------------------------------------------------------


def logit_cases(vocab_size: int) -> Iterator[Case]:
    """DDTree from raw logits; the 16-bit types need torch."""
    rows = logit_rows(15, vocab_size)
    yield logit_case("float32", rows, rows, "NumPy sum over the same bytes, cold")
    try:
        import torch
    except ImportError:
        return
    for dtype in (torch.bfloat16, torch.float16):
        halves = torch.from_numpy(rows).to(dtype)
        name = str(dtype).removeprefix("torch.")
        yield logit_case(
            name, halves, halves.float().numpy(), "torch sum over the same bytes, cold"
        )


def logit_case(dtype: str, logits: Any, wide: FloatRows, floor_name: str) -> Case:
    """`wide`: the logits as float32."""
    blocks = pool(logits)
    builder = _core.TreeBuilder("dtree")

    def work(rows: Any) -> tuple[Any, Any]:
        source = treespec.Marginals.from_logits(rows, WIDTH)
        tree = builder.build(source, 64)
        return tree, _core.ancestor_bits(tree.parent)

    def check() -> None:
        # A log-probability is exact to 2e-6 only, so that nodes of almost equal scores may swap.
        laws = log_softmax(wide)
        token = np.argsort(-laws, axis=1, kind="stable")[:, :WIDTH]
        source = reference_sources.Marginals(token, np.take_along_axis(laws, token, axis=1))
        oracle = reference.builder("dtree")(source, node_budget=64)
        tree, bits = work(logits)
        exact = np.zeros(tree.num_nodes)
        for node in range(1, tree.num_nodes):
            parent = tree.parent[node]
            exact[node] = exact[parent] + laws[tree.depth[parent], tree.token[node]]
        for scores in (exact, oracle.path_logprob):
            np.testing.assert_allclose(tree.path_logprob, scores, rtol=1e-6, atol=1e-4)
        np.testing.assert_array_equal(bits, reference_mask.bits(tree.parent))

    return Case(
        f"dtree + mask, 64 nodes, {dtype} logits {list(wide.shape)}, cold",
        floor_name,
        lambda: work(next(blocks)),
        lambda: next(blocks).sum(),
        check,
        num_rows=len(wide),
    )


# --- Dense rows -----------------------------------------------------------------------------------


def dense_cases(vocab_size: int) -> Iterator[Case]:
    """Every other builder, 64 nodes, from log-probability rows over the vocabulary."""
    rows = log_softmax(logit_rows(MOST_ROWS, vocab_size))
    # For the check: small, since the oracle sorts all rows, and without near ties of scores.
    noise = np.random.default_rng(3).normal(0, 3, (97, 512)).astype(np.float32)
    small = TokenExpander(log_softmax(noise))
    for name, options, label in DENSE:
        yield dense_case(name, options, label, rows, small)


def dense_case(
    name: str, options: dict[str, Any], label: str, rows: FloatRows, small: TokenExpander
) -> Case:
    """The floor reads the rows that the builder asks for."""
    builder = _core.TreeBuilder(name, **options)
    grow: Callable[[Any], Any] = partial(grow_tree, builder, node_budget=64)
    probe = RowExpander(rows)
    grow(probe)
    used = probe.used
    blocks = pool(rows[:used])

    def check() -> None:
        same_tree(grow(small), reference.builder(name)(small, node_budget=64, **options))

    return Case(
        f"{name} {label}, {used} dense rows of {rows.shape[1]}, cold",
        "NumPy sum over those rows, cold",
        lambda: grow(RowExpander(next(blocks))),
        lambda: next(blocks).sum(),
        check,
        num_rows=used,
    )


# --- Running --------------------------------------------------------------------------------------


def cases(quick: bool) -> Iterator[Case]:
    """All of them; `quick` with a small vocabulary and small trees."""
    vocab_size = 8192 if quick else VOCAB_SIZE
    yield from list_cases(quick)
    yield from logit_cases(vocab_size)
    yield from dense_cases(vocab_size)


if __name__ == "__main__":
    run("build", __doc__ or "", cases, sys.argv[1:])
