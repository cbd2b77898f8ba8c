# SPDX-License-Identifier: Apache-2.0
"""Random laws, random trees, and a drafter that needs no model."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from treespec.reference.tree import Tree, from_arrays

Law = npt.NDArray[np.float64]
"""Probabilities over the vocabulary, ``[V]`` float64."""
Laws = Callable[[tuple[int, ...]], Law]
"""The next-token law after each path of tokens below the root."""

LAW_KINDS = ("dense", "sparse", "one_hot", "uniform", "peaked", "smooth")
_DENOMINATOR = 64


def random_law(rng: np.random.Generator, vocab_size: int, kind: str = "dense") -> Law:
    """A random law. All kinds but "smooth" have multiples of 1/64, hence exact in float32 and tied.

    ``kind``: "dense" (every token possible), "sparse" (some of them), "one_hot", "uniform" (as
    equal as 64ths allow), "peaked" (one token has nearly all), "smooth" (Dirichlet, no ties).
    ``vocab_size`` is at most 64 unless "smooth".
    """
    if kind == "smooth":
        return rng.dirichlet(np.ones(vocab_size))
    support = np.arange(vocab_size)
    if kind == "sparse":
        size = int(rng.integers(1, max(2, vocab_size)))
        support = rng.choice(vocab_size, size=size, replace=False)
    elif kind == "one_hot":
        support = rng.choice(vocab_size, size=1)
    elif kind not in LAW_KINDS:
        raise ValueError(f"random_law: kind must be one of {', '.join(LAW_KINDS)}, got {kind!r}")
    counts = np.ones(len(support), dtype=np.int64)
    left = _DENOMINATOR - len(support)
    if kind == "uniform":
        counts += left // len(support)
        counts[: left % len(support)] += 1
    elif kind == "peaked":
        counts[rng.integers(len(support))] += left
    else:
        counts += rng.multinomial(left, rng.dirichlet(np.ones(len(support))))
    law = np.zeros(vocab_size)
    law[support] = counts / _DENOMINATOR
    return law


def random_laws(seed: int, vocab_size: int, kinds: Sequence[str] = ("dense",)) -> Laws:
    """A random law per path, the same for the same path; its kind is drawn from ``kinds``."""

    def law(path: tuple[int, ...]) -> Law:
        rng = np.random.default_rng([seed, vocab_size, len(path), *path])
        return random_law(rng, vocab_size, str(rng.choice(list(kinds))))

    return law


class ToyDrafter:
    """An Expander whose rows are a function of the path: ``log`` of the law of that path.

    ``calls`` and ``num_rows`` count what a builder asked for. One object may serve many rounds: the
    root (index 0) starts a new one.

    >>> drafter = ToyDrafter(random_laws(0, 5))
    """

    def __init__(self, laws: Laws) -> None:
        self._laws = laws
        self._path: dict[int, tuple[int, ...]] = {}
        self.calls = 0
        self.num_rows = 0

    def expand(self, nodes: Iterable[Any]) -> npt.NDArray[np.float32]:
        """[len(nodes), V] float32 log-probabilities."""
        rows = []
        for node in nodes:
            if node.index == 0:
                self._path = {0: ()}
            else:
                self._path[node.index] = (*self._path[node.parent], int(node.token))
            with np.errstate(divide="ignore"):
                rows.append(np.log(self._laws(self._path[node.index])).astype(np.float32))
        self.calls += 1
        self.num_rows += len(rows)
        return np.stack(rows)


def random_tree(
    rng: np.random.Generator,
    *,
    num_nodes: int,
    vocab_size: int,
    proposal: str = "deterministic",
    max_children: int = 4,
    kinds: Sequence[str] = ("dense",),
) -> Tree:
    """A sound random tree of at most ``num_nodes`` nodes, the root counted.

    Sampled trees carry a random law per drawing node (``kinds`` as in :func:`random_law`) and their
    tokens are drawn from it; deterministic ones take distinct random tokens. A ``top_plus_one``
    tree lists the top k - 1 tokens and one draw from the rest.
    """
    token, parent = [0], [-1]
    draws: list[list[int]] = [[]]
    laws: dict[int, Law] = {}
    open_nodes = [0]
    while open_nodes and len(token) < num_nodes:
        node = open_nodes.pop(int(rng.integers(len(open_nodes))))
        room = num_nodes - len(token)
        count = int(rng.integers(1, max_children + 1))
        law = random_law(rng, vocab_size, str(rng.choice(list(kinds))))
        drawn = random_draws(rng, law, min(count, room), proposal)
        laws[node] = law
        child_of: dict[int, int] = {}
        for x in drawn:
            if x not in child_of:
                child_of[x] = len(token)
                open_nodes.append(len(token))
                token.append(x)
                parent.append(node)
                draws.append([])
            draws[node].append(child_of[x])
    table = np.zeros((len(token), vocab_size), dtype=np.float32)
    for node, law in laws.items():
        if draws[node]:
            table[node] = law
    sampled = proposal != "deterministic"
    return from_arrays(
        token, parent, proposal=proposal, draws=draws, draft_probs=table if sampled else None
    )


def random_draws(rng: np.random.Generator, law: Law, count: int, proposal: str) -> list[int]:
    """``count`` random tokens drawn from ``law`` the way a proposal mode draws, in draw order.

    "deterministic" ignores the law and takes distinct tokens; modes without replacement give fewer
    when the law has fewer possible tokens.
    """
    vocab_size, support = len(law), int(np.count_nonzero(law))
    if proposal == "deterministic":
        return [int(t) for t in rng.permutation(vocab_size)[:count]]
    if proposal == "iid":
        return [int(t) for t in rng.choice(vocab_size, size=count, p=law)]
    count = min(count, support)
    if proposal == "without_replacement":
        return [int(t) for t in rng.choice(vocab_size, size=count, replace=False, p=law)]
    if proposal == "top_plus_one":
        ranked = sorted(range(vocab_size), key=lambda t: (-law[t], t))
        top = ranked[: count - 1]
        rest = law.copy()
        rest[top] = 0.0
        return [*top, int(rng.choice(vocab_size, p=rest / rest.sum()))]
    raise ValueError(f"random_tree: proposal must be known, got {proposal!r}")


def core_tree(tree: Tree) -> Any:
    """The same tree as a ``treespec.TokenTree``."""
    import treespec

    return treespec.TokenTree(
        token=tree.token,
        parent=tree.parent,
        proposal=tree.proposal,
        draws=tree.draws,
        draft_probs=tree.draft_probs,
    )


def rows_of(tree: Tree, laws: Laws) -> npt.NDArray[np.float64]:
    """[N, V] float64: the law after each node's path, e.g. a verifier's ``target_probs``."""
    return np.stack([laws(tuple(tree.path(node))) for node in range(tree.num_nodes)])
