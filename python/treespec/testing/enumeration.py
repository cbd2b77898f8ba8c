# SPDX-License-Identifier: Apache-2.0
"""Every tree that a builder can draw, with its probability; and laws no verifier may be given.

The number of trees grows like V^(all draws): keep vocabularies and shapes tiny. Probabilities are
float64, recorded laws float32: use laws that float32 holds exactly (``random_law``, not "smooth").
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import product

import numpy as np

from treespec.reference.growth_map import read_map
from treespec.reference.tree import Tree, from_arrays
from treespec.testing.laws import Law, Laws, rows_of

Draws = tuple[int, ...]
"""Tokens in draw order."""
TreeLaw = Iterator[tuple[Tree, float]]
"""Trees with their probabilities."""

# ------------------------------------------------------------------ the draws of one node


def draw_outcomes(law: Law, count: int, proposal: str) -> Iterator[tuple[Draws, float]]:
    """Every list of ``count`` draws from ``law`` with its probability.

    "iid": with repeats. "without_replacement": ordered and distinct, each from the law without the
    earlier ones. "top_plus_one": the likeliest ``count - 1`` tokens, then one draw from the rest.
    "deterministic": the likeliest tokens. All but "iid" are shorter when the law runs out.
    """
    possible = [int(t) for t in np.flatnonzero(law > 0)]
    ranked = sorted(possible, key=lambda t: (-law[t], t))
    count = count if proposal == "iid" else min(count, len(possible))
    if proposal == "deterministic":
        yield tuple(ranked[:count]), 1.0
    elif proposal == "iid":
        for drawn in product(possible, repeat=count):
            yield drawn, float(np.prod([law[t] for t in drawn]))
    elif proposal == "without_replacement":
        yield from _ordered_draws(law, count, (), 1.0)
    elif proposal == "top_plus_one":
        rest = sorted(ranked[count - 1 :]) if count else []
        mass = float(sum(law[t] for t in rest))
        for t in rest:
            yield (*ranked[: count - 1], t), float(law[t]) / mass
    else:
        raise ValueError(f"draw_outcomes: proposal must be known, got {proposal!r}")


def _ordered_draws(
    law: Law, count: int, drawn: Draws, probability: float
) -> Iterator[tuple[Draws, float]]:
    if len(drawn) == count:
        yield drawn, probability
        return
    left = _without(law, drawn)
    for t in np.flatnonzero(left > 0):
        yield from _ordered_draws(law, count, (*drawn, int(t)), probability * float(left[t]))


def _without(law: Law, drawn: Sequence[int]) -> Law:
    left = law.copy()
    left[list(drawn)] = 0.0
    total = left.sum()
    return left / total if total > 0 else left


# ------------------------------------------------------------------ a tree that is being grown


@dataclass(frozen=True)
class _Sketch:
    """A tree so far; `tokens[i]` is the path of node i, `draws[i]` child ids in draw order."""

    paths: tuple[Draws, ...] = ((),)
    parents: tuple[int, ...] = (-1,)
    draws: tuple[Draws, ...] = ((),)

    def draw(self, node: int, token: int) -> tuple[_Sketch, int]:
        """One more draw at a node; the child is new unless the node drew the token before."""
        path = (*self.paths[node], token)
        for child in self.draws[node]:
            if self.paths[child] == path:
                return self._listed(node, child), child
        child = len(self.paths)
        grown = _Sketch((*self.paths, path), (*self.parents, node), (*self.draws, ()))
        return grown._listed(node, child), child

    def _listed(self, node: int, child: int) -> _Sketch:
        draws = list(self.draws)
        draws[node] = (*draws[node], child)
        return replace(self, draws=tuple(draws))

    def finish(self, laws: Laws, proposal: str) -> Tree:
        rows = np.stack([np.asarray(laws(path), dtype=np.float32) for path in self.paths])
        rows[[node for node, drawn in enumerate(self.draws) if not drawn]] = 0.0
        return from_arrays(
            [0, *(path[-1] for path in self.paths[1:])],
            self.parents,
            proposal=proposal,
            draws=[list(drawn) for drawn in self.draws],
            draft_probs=None if proposal == "deterministic" else rows,
        )


def _draw_level(
    sketch: _Sketch, counts: dict[int, int], laws: Laws, proposal: str
) -> Iterator[tuple[_Sketch, float]]:
    """Every outcome of ``counts[node]`` draws at each of the nodes."""
    options = [
        list(draw_outcomes(laws(sketch.paths[node]), count, proposal))
        for node, count in counts.items()
    ]
    for choice in product(*options):
        grown, probability = sketch, 1.0
        for node, (tokens, chance) in zip(counts, choice, strict=True):
            probability *= chance
            for token in tokens:
                grown, _ = grown.draw(node, token)
        yield grown, probability


# ------------------------------------------------------------------ what builders draw


def sampled_trees(laws: Laws, expansion: Sequence[int], proposal: str) -> TreeLaw:
    """Every tree that ``kary`` can build over ``laws``, with its probability, in layer order.

    Every node at depth d draws ``expansion[d]`` children; ``(1, 1, 1)`` are chains.
    ``proposal="top_plus_one"`` gives the trees of that builder.

    >>> coin = lambda path: np.array([0.75, 0.25])
    >>> [(t.token[1:].tolist(), p) for t, p in sampled_trees(coin, (2,), "without_replacement")]
    [([0, 1], 0.75), ([1, 0], 0.25)]
    """

    def grow(sketch: _Sketch, layer: list[int], depth: int) -> Iterator[tuple[_Sketch, float]]:
        if depth == len(expansion) or not layer:
            yield sketch, 1.0
            return
        counts = dict.fromkeys(layer, expansion[depth])
        for grown, probability in _draw_level(sketch, counts, laws, proposal):
            new_layer = list(range(len(sketch.paths), len(grown.paths)))
            for whole, below in grow(grown, new_layer, depth + 1):
                yield whole, probability * below

    for sketch, probability in grow(_Sketch(), [0], 0):
        yield sketch.finish(laws, proposal), probability


def growth_map_trees(laws: Laws, parent: Sequence[int], proposal: str) -> TreeLaw:
    """Every tree that ``sequoia`` can build over ``laws`` from a growth map, in the map's order.

    ``parent[i]`` is the parent of node i + 1, as in ``treespec.GrowthMap``. The child of rank r is
    the r-th draw of its parent; where a law runs out, a child is missing with all below it.

    >>> coin = lambda path: np.array([0.75, 0.25])
    >>> drawn = growth_map_trees(coin, [0, 0, 2], "without_replacement")
    >>> [(tree.token[1:].tolist(), p) for tree, p in drawn]
    [([0, 1, 0], 0.5625), ([0, 1, 1], 0.1875), ([1, 0, 0], 0.1875), ([1, 0, 1], 0.0625)]
    """
    if proposal not in ("deterministic", "without_replacement"):
        raise ValueError(
            "growth_map_trees: proposal must be deterministic or without_replacement, "
            f"got {proposal!r}"
        )
    shape = read_map("growth_map_trees", parent)

    def grow(sketch: _Sketch, ids: tuple[int | None, ...]) -> Iterator[tuple[_Sketch, float]]:
        if len(ids) > len(shape):
            yield sketch, 1.0
            return
        above = ids[shape[len(ids) - 1]]
        if above is None:
            yield from grow(sketch, (*ids, None))
            return
        drawn = [sketch.paths[child][-1] for child in sketch.draws[above]]
        row = _without(laws(sketch.paths[above]), drawn)
        for tokens, chance in draw_outcomes(row, 1, proposal):
            grown, child = sketch.draw(above, tokens[0]) if tokens else (sketch, None)
            for whole, below in grow(grown, (*ids, child)):
                yield whole, chance * below

    for sketch, probability in grow(_Sketch(), (0,)):
        yield sketch.finish(laws, proposal), probability


def delayed_trees(laws: Laws, num_paths: int, trunk: int, branch: int) -> TreeLaw:
    """Every tree of ``delayed`` (K, L1, L2) over ``laws``; of ``rollouts`` if ``trunk`` is 0.

    A trunk of L1 draws, then K paths of L2 draws; equal prefixes are one node, drawn repeatedly.
    """

    def grow(sketch: _Sketch, cursors: list[int], level: int) -> Iterator[tuple[_Sketch, float]]:
        if level == trunk + branch:
            yield sketch, 1.0
            return
        cursors = cursors * num_paths if level == trunk else cursors
        for grown, probability in _draw_level(sketch, Counter(cursors), laws, "iid"):
            drawn = {node: iter(grown.draws[node]) for node in cursors}
            moved = [next(drawn[node]) for node in cursors]
            for whole, below in grow(grown, moved, level + 1):
                yield whole, probability * below

    for sketch, probability in grow(_Sketch(), [0], 0):
        yield sketch.finish(laws, "iid"), probability


@dataclass(frozen=True, order=True)
class _Slot:
    """A place for one more draw; the smallest one is drawn first."""

    negative_value: float
    depth: int
    node: int
    index: int
    row: Law = field(compare=False)


def best_first_trees(
    laws: Laws, num_draws: int, proposal: str = "without_replacement", max_depth: int = 3
) -> TreeLaw:
    """Every tree of ``num_draws`` draws that DySpec's queue of slots makes over ``laws``.

    The slot of largest value v draws x from its row Q, and leaves a slot of value v (1 - Q(x)) at
    the same node, with Q without x, and one of value v Q(x) at the new one. With
    ``proposal="iid"`` rows stay whole: whether a list goes on then depends on its own draws, which
    verifiers solved for whole lists (spectr, khisti) must not be given.
    Source: Xiong et al., "DySpec" (2024, arXiv 2410.11744).
    """

    def slot(value: float, node: int, index: int, row: Law, depth: int) -> list[_Slot]:
        usable = value > 0 and depth < max_depth and bool(np.any(row > 0))
        return [_Slot(-value, depth + 1, node, index, row)] if usable else []

    def grow(sketch: _Sketch, slots: list[_Slot], left: int) -> Iterator[tuple[_Sketch, float]]:
        if left == 0 or not slots:
            yield sketch, 1.0
            return
        best = min(slots)
        others = [other for other in slots if other is not best]
        for token in np.flatnonzero(best.row > 0):
            chance = float(best.row[token])
            grown, child = sketch.draw(best.node, int(token))
            value, depth = -best.negative_value, best.depth - 1
            row = best.row if proposal == "iid" else _without(best.row, [int(token)])
            new = slot(value * (1.0 - chance), best.node, best.index + 1, row, depth)
            if len(grown.paths) > len(sketch.paths):
                new += slot(value * chance, child, 0, laws(grown.paths[child]), depth + 1)
            for whole, below in grow(grown, others + new, left - 1):
                yield whole, chance * below

    for sketch, probability in grow(_Sketch(), slot(1.0, 0, 0, laws(()), 0), num_draws):
        yield sketch.finish(laws, proposal), probability


# ------------------------------------------------------------------ what nobody may verify


def sorted_siblings(trees: Iterable[tuple[Tree, float]]) -> TreeLaw:
    """ILLEGAL: siblings are listed by their draft probability, not as they were drawn.

    Biases every verifier that takes the list for a sample; total variation up to 0.44.
    """
    for tree, probability in trees:
        assert tree.draft_probs is not None, "only sampled trees record a law"
        draws = []
        for row, drawn in zip(tree.draft_probs, tree.draws, strict=True):
            draws.append(sorted(drawn, key=lambda c, row=row: (-row[tree.token[c]], c)))  # type: ignore[misc]
        yield replace(tree, draws=draws), probability


def pruned_by_value(trees: Iterable[tuple[Tree, float]], num_nodes: int) -> TreeLaw:
    """ILLEGAL: of the sampled nodes only the ``num_nodes`` likeliest paths are kept.

    What was dropped had been rejected by its value: the rest is no sample any more; total variation
    up to 0.22. (Cutting by draw index, whatever was drawn, is harmless.)
    """
    for tree, probability in trees:
        assert tree.draft_probs is not None, "only sampled trees record a law"
        value = [1.0]
        for node in range(1, tree.num_nodes):
            parent = int(tree.parent[node])
            value.append(value[parent] * float(tree.draft_probs[parent][tree.token[node]]))
        ranked = sorted(range(1, tree.num_nodes), key=lambda node: (-value[node], node))
        yield _only(tree, sorted([0, *ranked[:num_nodes]])), probability


def _only(tree: Tree, kept: list[int]) -> Tree:
    """The tree of some nodes, parents included."""
    new_id = {node: i for i, node in enumerate(kept)}
    draws = [[new_id[c] for c in tree.draws[node] if c in new_id] for node in kept]
    rows = None if tree.draft_probs is None else tree.draft_probs[kept]
    return from_arrays(
        tree.token[kept],
        [-1, *(new_id[int(tree.parent[node])] for node in kept[1:])],
        proposal=tree.proposal,
        draws=draws,
        draft_probs=rows,
    )


def top_tokens_as_sampled(laws: Laws, expansion: Sequence[int], proposal: str) -> TreeLaw:
    """ILLEGAL: the likeliest tokens, labelled as draws; total variation up to 0.75.

    Only a verifier that does not use the draft law (``target_only``) is exact on them.
    """
    for tree, probability in sampled_trees(laws, expansion, "deterministic"):
        rows = rows_of(tree, laws).astype(np.float32)
        yield replace(tree, proposal=proposal, draft_probs=rows), probability
