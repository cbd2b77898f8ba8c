# SPDX-License-Identifier: Apache-2.0
"""Tools to test trees, builders and verifiers exactly: ours, and yours.

Random trees and laws; a toy drafter; every tree a sampling builder can draw, with its probability;
the exact output law of a verifier, found by probing its coins; a chi-square bound for the rest.
Needs NumPy only; works with any verifier you can call, not just ours.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import pairwise, product
from typing import Any

import numpy as np
import numpy.typing as npt

from treespec.reference.tree import Tree, from_arrays

Law = npt.NDArray[np.float64]
"""Probabilities over the vocabulary, ``[V]`` float64."""
Laws = Callable[[tuple[int, ...]], Law]
"""The next-token law after each path of tokens below the root."""
Outcome = tuple[tuple[int, ...], int]
"""What a verifier decides: (accepted node ids, next token)."""
Coin = tuple[int, int]
"""(node, draw index) of an accept test; (node, -1) is the node's sample."""
Coins = tuple[list[list[float]], list[float]]
"""``(accept, sample)`` as ``treespec.verify(..., coins=...)`` takes them."""

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


# ------------------------------------------------------------------ every tree a builder can draw


def draw_outcomes(law: Law, count: int, proposal: str) -> Iterator[tuple[tuple[int, ...], float]]:
    """Every list of ``count`` draws from ``law`` with its probability.

    "iid": with repeats. "without_replacement": ordered and distinct, each from the law without the
    earlier ones; shorter when the law runs out of tokens. "deterministic": the most likely tokens.
    """
    possible = [int(t) for t in np.flatnonzero(law > 0)]
    if proposal == "deterministic":
        yield tuple(sorted(possible, key=lambda t: (-law[t], t))[:count]), 1.0
    elif proposal == "iid":
        for drawn in product(possible, repeat=count):
            yield drawn, float(np.prod([law[t] for t in drawn]))
    elif proposal == "without_replacement":
        yield from _ordered_draws(law, min(count, len(possible)), (), 1.0)
    else:
        raise ValueError(f"draw_outcomes: proposal must be known, got {proposal!r}")


def _ordered_draws(
    law: Law, count: int, drawn: tuple[int, ...], probability: float
) -> Iterator[tuple[tuple[int, ...], float]]:
    if len(drawn) == count:
        yield drawn, probability
        return
    left = law.copy()
    left[list(drawn)] = 0.0
    left /= left.sum()
    for t in np.flatnonzero(left > 0):
        yield from _ordered_draws(law, count, (*drawn, int(t)), probability * float(left[t]))


def sampled_trees(
    laws: Laws, expansion: Sequence[int], proposal: str
) -> Iterator[tuple[Tree, float]]:
    """Every tree that ``kary`` can build over ``laws``, with its probability, in layer order.

    Every node at depth d draws ``expansion[d]`` children. The number of trees grows like
    V^(all draws): keep vocabularies and expansions tiny.
    """

    def grow(
        token: list[int], parent: list[int], draws: list[list[int]], layer: list[int], depth: int
    ) -> Iterator[tuple[list[int], list[int], list[list[int]], float]]:
        if depth == len(expansion) or not layer:
            yield token, parent, draws, 1.0
            return
        options = [
            list(draw_outcomes(laws(_path(token, parent, node)), expansion[depth], proposal))
            for node in layer
        ]
        for choice in product(*options):
            tokens, parents = list(token), list(parent)
            lists = [list(d) for d in draws]
            new_layer: list[int] = []
            for node, (drawn, _) in zip(layer, choice, strict=True):
                child_of: dict[int, int] = {}
                for x in drawn:
                    if x not in child_of:
                        child_of[x] = len(tokens)
                        new_layer.append(len(tokens))
                        tokens.append(x)
                        parents.append(node)
                        lists.append([])
                    lists[node].append(child_of[x])
            probability = float(np.prod([p for _, p in choice]))
            for t, p, d, below in grow(tokens, parents, lists, new_layer, depth + 1):
                yield t, p, d, probability * below

    for token, parent, draws, probability in grow([0], [-1], [[]], [0], 0):
        table = np.stack([laws(_path(token, parent, node)) for node in range(len(token))])
        table[[node for node in range(len(token)) if not draws[node]]] = 0.0
        sampled = proposal != "deterministic"
        yield (
            from_arrays(
                token,
                parent,
                proposal=proposal,
                draws=draws,
                draft_probs=table.astype(np.float32) if sampled else None,
            ),
            probability,
        )


def _path(token: Sequence[int], parent: Sequence[int], node: int) -> tuple[int, ...]:
    tokens: list[int] = []
    while node > 0:
        tokens.append(token[node])
        node = parent[node]
    return tuple(tokens[::-1])


def rows_of(tree: Tree, laws: Laws) -> npt.NDArray[np.float64]:
    """[N, V] float64: the law after each node's path, e.g. a verifier's ``target_probs``."""
    return np.stack([laws(tuple(tree.path(node))) for node in range(tree.num_nodes)])


# ------------------------------------------------------------------ exact law of a verifier


def top_down_order(tree: Tree) -> list[Coin]:
    """Coins in the order of a top-down walk: a node's accept tests, its sample, its children."""
    order: list[Coin] = []
    for node in range(tree.num_nodes):
        order += [(node, j) for j in range(len(tree.draws[node]))]
        order.append((node, -1))
    return order


def outcome_law(
    decide: Callable[[Coins], Outcome],
    draws: Sequence[Sequence[int]],
    order: Sequence[Coin],
    *,
    resolution_bits: int = 44,
    checks: int = 4,
) -> dict[Outcome, float]:
    """The exact law of ``decide(coins)`` over uniform coins, by threshold probing.

    Works for any decision procedure in which each accept test compares its coin with a threshold,
    each sample maps its coin to tokens in ascending order, and thresholds depend only on coins
    earlier in ``order``. Every threshold is bisected to ``2^-resolution_bits``, hence probabilities
    are exact to about 1e-13. Nothing is assumed about the rule itself; ``checks`` random coin
    vectors are predicted from the result and compared (RuntimeError if one differs).

    Parameters
    ----------
    decide : takes ``(accept, sample)``, gives (accepted node ids, next token).
    draws : the tree's draws; gives the shape of ``accept``.
    order : e.g. :func:`top_down_order`; a bottom-up verifier takes its own.
    """
    probe = _Probe(decide, draws, order, 1 << resolution_bits)
    probe.explore(0, 1.0)
    probe.check(checks)
    return dict(probe.law)


class _Probe:
    def __init__(
        self,
        decide: Callable[[Coins], Outcome],
        draws: Sequence[Sequence[int]],
        order: Sequence[Coin],
        resolution: int,
    ) -> None:
        self._decide = decide
        self._resolution = resolution
        self._order = list(order)
        self._accept = [[0.0] * len(d) for d in draws]
        self._sample = [0.0] * len(draws)
        self._box: dict[Coin, tuple[int, int]] = {}
        self._pieces: list[tuple[dict[Coin, tuple[int, int]], Outcome]] = []
        self._probes = self._completions()
        self.law: defaultdict[Outcome, float] = defaultdict(float)

    def _set(self, coin: Coin, value: int) -> None:
        node, draw = coin
        if draw < 0:
            self._sample[node] = value / self._resolution
        else:
            self._accept[node][draw] = value / self._resolution

    def _run(self) -> Outcome:
        accepted, token = self._decide((self._accept, self._sample))
        return tuple(int(node) for node in accepted), int(token)

    def _completions(self) -> list[list[int]]:
        """Values for all coins: all accepts low or high, all samples low or high, and mixtures.

        Accepts high come first: a rejected rest shows best whether a coin decides anything.
        """
        top = self._resolution - 1
        extremes = [
            [top * (sample if draw < 0 else accept) for _, draw in self._order]
            for accept, sample in ((1, 0), (1, 1), (0, 0), (0, 1))
        ]
        mixtures = np.random.default_rng(1).integers(self._resolution, size=(6, len(self._order)))
        return extremes + [[int(v) for v in row] for row in mixtures]

    def _with(self, place: int, value: int, later: Sequence[int]) -> Outcome:
        """The outcome with one coin at `value` and all later ones as in `later`."""
        self._set(self._order[place], value)
        for other in range(place + 1, len(self._order)):
            self._set(self._order[other], later[other])
        return self._run()

    def _pieces_of(self, place: int) -> list[tuple[int, int]]:
        """Intervals of a coin on which it decides alike."""
        top = self._resolution - 1
        for later in self._probes:
            first, last = self._with(place, 0, later), self._with(place, top, later)
            if first != last:
                cuts: list[int] = []
                self._split(place, later, (0, first), (top, last), cuts)
                return list(pairwise([0, *cuts, self._resolution]))
        return [(0, self._resolution)]

    def _split(
        self,
        place: int,
        later: Sequence[int],
        low: tuple[int, Outcome],
        high: tuple[int, Outcome],
        cuts: list[int],
    ) -> None:
        """Appends every value between `low` and `high` at which the outcome changes."""
        if low[1] == high[1]:
            return
        if high[0] - low[0] == 1:
            cuts.append(high[0])
            return
        value = (low[0] + high[0]) // 2
        middle = value, self._with(place, value, later)
        self._split(place, later, low, middle, cuts)
        self._split(place, later, middle, high, cuts)

    def _settled(self, place: int) -> Outcome | None:
        """The outcome if no completion of the coins from `place` on changes it."""
        if place == len(self._order):
            return self._run()
        outcome = self._with(place, self._probes[0][place], self._probes[0])
        for later in self._probes[1:]:
            if self._with(place, later[place], later) != outcome:
                return None
        return outcome

    def explore(self, place: int, mass: float) -> None:
        outcome = self._settled(place)
        if outcome is not None:
            self.law[outcome] += mass
            self._pieces.append((dict(self._box), outcome))
            return
        coin = self._order[place]
        for low, high in self._pieces_of(place):
            self._set(coin, low)
            self._box[coin] = (low, high)
            self.explore(place + 1, mass * ((high - low) / self._resolution))
        del self._box[coin]

    def check(self, count: int) -> None:
        rng = np.random.default_rng(0)
        for _ in range(count):
            values = {coin: int(rng.integers(self._resolution)) for coin in self._order}
            for coin, value in values.items():
                self._set(coin, value)
            outcome = self._run()
            for box, predicted in self._pieces:
                if all(low <= values[coin] < high for coin, (low, high) in box.items()):
                    if predicted != outcome:
                        raise RuntimeError(
                            f"outcome_law: coins {values} must give {predicted}, got {outcome}; "
                            "is `order` the order in which the verifier consults them?"
                        )
                    break


def emitted_law(
    tree: Tree, outcomes: dict[Outcome, float], target: Laws, length: int
) -> dict[tuple[int, ...], float]:
    """Law of the first ``length`` emitted tokens: outcomes, completed with target sampling.

    ``length`` is at least the deepest depth + 1, so that no outcome is cut.
    """
    law: defaultdict[tuple[int, ...], float] = defaultdict(float)
    for (accepted, token), mass in outcomes.items():
        path = (*(int(tree.token[node]) for node in accepted), token)
        for text, probability in _completions(path, target, length):
            law[text] += mass * probability
    return dict(law)


def target_law(target: Laws, length: int) -> dict[tuple[int, ...], float]:
    """Law of ``length`` tokens of plain sampling."""
    return dict(_completions((), target, length))


def _completions(
    path: tuple[int, ...], target: Laws, length: int
) -> Iterator[tuple[tuple[int, ...], float]]:
    if len(path) == length:
        yield path, 1.0
        return
    law = target(path)
    for t in np.flatnonzero(law > 0):
        for text, probability in _completions((*path, int(t)), target, length):
            yield text, float(law[t]) * probability


def total_variation(a: dict[Any, float], b: dict[Any, float]) -> float:
    """Half the sum of absolute differences of two laws."""
    return 0.5 * sum(abs(a.get(key, 0.0) - b.get(key, 0.0)) for key in {*a, *b})


def output_bias(
    decide: Callable[[Tree, npt.NDArray[np.float64], Coins], Outcome],
    trees: Iterable[tuple[Tree, float]],
    target: Laws,
    length: int,
    *,
    order: Callable[[Tree], Sequence[Coin]] = top_down_order,
) -> float:
    """Total variation between what a verifier emits over all drawn trees and plain sampling.

    0 up to rounding (1e-14) iff the pair of builder and verifier is lossless on these laws.

    Parameters
    ----------
    decide : ``(tree, target_probs [N, V], coins)`` to (accepted node ids, next token).
    trees : trees with probabilities, e.g. :func:`sampled_trees`.
    target : the target's law after each path.
    length : tokens compared; deepest depth + 1 or more.
    """
    total: defaultdict[tuple[int, ...], float] = defaultdict(float)
    for tree, probability in trees:
        rows = rows_of(tree, target)

        def one(coins: Coins, tree: Tree = tree, rows: npt.NDArray[np.float64] = rows) -> Outcome:
            return decide(tree, rows, coins)

        outcomes = outcome_law(one, tree.draws, order(tree))
        for text, mass in emitted_law(tree, outcomes, target, length).items():
            total[text] += probability * mass
    return total_variation(dict(total), target_law(target, length))


# ------------------------------------------------------------------ statistics


def chi_square(counts: Any, probabilities: Any, *, minimum: float = 10.0) -> tuple[float, float]:
    """Pearson's statistic of counts against a law, and a bound that holds but once in a million.

    Cells with expectation below ``minimum`` are merged into one; a count in an impossible cell
    gives infinity. The bound is the
    Wilson-Hilferty quantile at z = 4.75.
    """
    observed = np.asarray(counts, dtype=np.float64)
    expected = np.asarray(probabilities, dtype=np.float64) * observed.sum()
    if np.any(observed[expected == 0] > 0):
        return float("inf"), 0.0
    small = expected < minimum
    if np.any(small) and expected[small].sum() > 0:
        observed = np.append(observed[~small], observed[small].sum())
        expected = np.append(expected[~small], expected[small].sum())
    keep = expected > 0
    observed, expected = observed[keep], expected[keep]
    statistic = float(np.sum((observed - expected) ** 2 / expected))
    freedom = max(1, len(expected) - 1)
    spread = 2.0 / (9.0 * freedom)
    return statistic, freedom * (1.0 - spread + 4.75 * spread**0.5) ** 3
