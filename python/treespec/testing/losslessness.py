# SPDX-License-Identifier: Apache-2.0
"""The exact law of what a verifier emits, found by probing its coins.

Nothing is known about the verifier but that it compares accept coins with thresholds and maps
sample coins to tokens in ascending order; so any verifier that takes its random numbers from the
caller can be checked, ours or another engine's.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from treespec.reference.tree import Tree
from treespec.testing.laws import Laws, rows_of

Outcome = tuple[tuple[int, ...], int]
"""What a verifier decides: (accepted node ids, next token)."""
Coin = tuple[str, int, int]
"""``("accept", node, draw)``, ``("select", node, draw)`` or ``("sample", node, 0)``."""
Coins = (
    tuple[list[list[float]], list[float]] | tuple[list[list[float]], list[float], list[list[float]]]
)
"""``(accept, sample)`` or ``(accept, sample, select)``, as ``treespec.verify(..., coins=...)`` has
them; the third only for an order that names select coins."""


class Bias(NamedTuple):
    """How far the emitted law is from the target's, and where most."""

    total_variation: float
    """Half the sum over texts of the absolute differences; 0 up to rounding iff lossless."""
    text: tuple[int, ...]
    """The tokens at which the two laws differ most."""
    emitted: float
    """Probability with which the verifier, continued by plain sampling, emits ``text``."""
    expected: float
    """The target's probability of ``text``."""

    def __str__(self) -> str:
        return (
            f"total variation {self.total_variation:.3g}; largest at {self.text}: emitted with "
            f"probability {self.emitted:.6g}, target {self.expected:.6g}"
        )


def top_down_order(tree: Tree) -> list[Coin]:
    """Coins in the order of a top-down walk: a node's accept tests, its sample, its children."""
    return _top_down(tree.draws)


def _top_down(draws: Sequence[Sequence[Any]]) -> list[Coin]:
    order: list[Coin] = []
    for node, drawn in enumerate(draws):
        order += [("accept", node, j) for j in range(len(drawn))]
        order.append(("sample", node, 0))
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

    Works for any decision procedure in which each test compares its coin with a threshold, each
    sample maps its coin to tokens in ascending order, and thresholds depend only on coins earlier
    in ``order``. Every threshold is bisected to ``2^-resolution_bits``, hence probabilities are
    exact to about 1e-13. Nothing is assumed about the rule itself; ``checks`` random coin vectors,
    coins that ``order`` does not name included, are predicted from the result and compared.

    Parameters
    ----------
    decide : takes coins, gives (accepted node ids, next token).
    draws : the tree's draws; gives the shape of the coins.
    order : e.g. :func:`top_down_order`; a bottom-up verifier has its own.

    Raises
    ------
    RuntimeError
        When a prediction fails: the order is not the one in which the verifier consults its coins,
        or not complete.

    Examples
    --------
    A node with one draw, accepted with probability 3/4; otherwise token 2 or 5.

    >>> def decide(coins):
    ...     accept, sample = coins
    ...     return ((1,), 7) if accept[0][0] < 0.75 else ((), 2 if sample[0] < 0.5 else 5)
    >>> law = outcome_law(decide, [[1], []], [("accept", 0, 0), ("sample", 0, 0)])
    >>> {outcome: round(p, 12) for outcome, p in sorted(law.items())}
    {((), 2): 0.125, ((), 5): 0.125, ((1,), 7): 0.75}
    """
    return _law(_Probe(decide, draws, order, 1 << resolution_bits), checks)


def _law(probe: _Probe, checks: int) -> dict[Outcome, float]:
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
        known: list[int] | None = None,
    ) -> None:
        self._decide = decide
        self._resolution = resolution
        self._order = list(order)
        self._accept = [[0.0] * len(d) for d in draws]
        self._sample = [0.0] * len(draws)
        self._select = [[0.0] * len(d) for d in draws]
        self._coins: Coins = (self._accept, self._sample)
        if any(kind == "select" for kind, _, _ in order):
            self._coins = (self._accept, self._sample, self._select)
        self._box: dict[Coin, tuple[int, int]] = {}
        self._pieces: list[tuple[dict[Coin, tuple[int, int]], Outcome]] = []
        self._probes = self._completions()
        self._known = [] if known is None else known
        self.law: defaultdict[Outcome, float] = defaultdict(float)

    def _set(self, coin: Coin, value: int) -> None:
        kind, node, draw = coin
        if kind == "sample":
            self._sample[node] = value / self._resolution
        else:
            tests = self._accept if kind == "accept" else self._select
            tests[node][draw] = value / self._resolution

    def _run(self) -> Outcome:
        accepted, token = self._decide(self._coins)
        return tuple(int(node) for node in accepted), int(token)

    def _completions(self) -> list[list[int]]:
        """Values for all coins: all accepts low or high, all samples low or high, and mixtures.

        Accepts high come first: a rejected rest shows best whether a coin decides anything.
        """
        top = self._resolution - 1
        extremes = [
            [top * (sample if kind == "sample" else accept) for kind, _, _ in self._order]
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
            self._remember(high[0])
            return
        value = self._pivot(low[0], high[0])
        middle = value, self._with(place, value, later)
        self._split(place, later, low, middle, cuts)
        self._split(place, later, middle, high, cuts)

    def _pivot(self, low: int, high: int) -> int:
        """Where to look for a cut: at a value where there was one before, else in the middle."""
        first, last = bisect_right(self._known, low), bisect_left(self._known, high)
        if first < last:
            return self._known[(first + last) // 2]
        at_high = last < len(self._known) and self._known[last] == high
        return high - 1 if at_high else (low + high) // 2

    def _remember(self, cut: int) -> None:
        place = bisect_left(self._known, cut)
        if self._known[place : place + 1] != [cut]:
            self._known.insert(place, cut)

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
            values = {coin: int(rng.integers(self._resolution)) for coin in self._all_coins()}
            for coin, value in values.items():
                self._set(coin, value)
            outcome = self._run()
            for box, predicted in self._pieces:
                if all(low <= values[coin] < high for coin, (low, high) in box.items()):
                    if predicted != outcome:
                        raise RuntimeError(
                            f"outcome_law: coins {values} must give {predicted}, got {outcome}; "
                            "does `order` name all coins, in the order they are consulted?"
                        )
                    break

    def _all_coins(self) -> list[Coin]:
        """Also those that the order left out: they must not decide anything."""
        unlisted = _top_down(self._accept)
        return [*self._order, *(coin for coin in unlisted if coin not in self._order)]


def emitted_law(
    tree: Tree, outcomes: dict[Outcome, float], target: Laws, length: int
) -> dict[tuple[int, ...], float]:
    """Law of the first ``length`` emitted tokens: outcomes, completed with target sampling.

    ``length`` is at least the deepest depth + 1, so that no outcome is cut.
    """
    law: defaultdict[tuple[int, ...], float] = defaultdict(float)
    for (accepted, token), mass in outcomes.items():
        if any(tree.parent[node] != above for above, node in pairwise((0, *accepted))):
            raise ValueError(f"verifier: accepted nodes must be a path, got {list(accepted)}")
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
    length: int | None = None,
    *,
    order: Callable[[Tree], Sequence[Coin]] = top_down_order,
) -> Bias:
    """How far what a verifier emits over all drawn trees is from plain sampling, exactly.

    Its total variation is 0 up to rounding (1e-11) iff the pair of tree law and verifier is
    lossless on these laws. A tree law is anything that yields trees with probabilities, legal or
    not; a verifier is anything that takes its random numbers from the caller.

    Parameters
    ----------
    decide : ``(tree, target_probs [N, V], coins)`` to (accepted node ids, next token).
    trees : trees with probabilities that sum to 1, e.g. :func:`~treespec.testing.sampled_trees`.
    target : the target's law after each path.
    length : tokens compared; by default one more than the deepest tree has levels.
    order : in which order ``decide`` consults coins, and which; see :func:`outcome_law`.

    Raises
    ------
    ValueError
        When the probabilities do not sum to 1, or the accepted nodes are no path from the root.
    RuntimeError
        As :func:`outcome_law`.

    Examples
    --------
    Token-level speculative sampling, and the classic mistake: after a rejection the token is drawn
    from the target, not from what the draft left of it.

    >>> import numpy as np
    >>> from treespec import testing
    >>> def first_above(row, u):
    ...     return int(np.searchsorted(np.cumsum(row) / np.sum(row), u, side="right"))
    >>> def verifier(residual):
    ...     def decide(tree, target_probs, coins):
    ...         accept, sample = coins
    ...         (child,), p, q = tree.draws[0], target_probs[0], tree.draft_probs[0].astype(float)
    ...         token = tree.token[child]
    ...         if accept[0][0] * q[token] < p[token]:
    ...             return (child,), first_above(target_probs[child], sample[child])
    ...         return (), first_above(residual(p, q), sample[0])
    ...     return decide
    >>> target = lambda path: np.array([0.25, 0.75])
    >>> draft = lambda path: np.array([0.75, 0.25])
    >>> right = verifier(lambda p, q: np.maximum(p - q, 0))
    >>> trees = list(testing.sampled_trees(draft, (1,), "iid"))
    >>> testing.output_bias(right, trees, target).total_variation < 1e-11
    True
    >>> wrong = verifier(lambda p, q: p)
    >>> print(testing.output_bias(wrong, trees, target))
    total variation 0.125; largest at (0, 1): emitted with probability 0.28125, target 0.1875
    """
    drawn = list(trees)
    mass = sum(probability for _, probability in drawn)
    if abs(mass - 1.0) > 1e-9:
        raise ValueError(f"output_bias: probabilities of trees must sum to 1, got {mass}")
    if length is None:
        length = 1 + max(int(tree.depth.max()) for tree, _ in drawn)
    total: defaultdict[tuple[int, ...], float] = defaultdict(float)
    known: list[int] = []  # thresholds recur from tree to tree
    for tree, probability in drawn:
        rows = rows_of(tree, target)

        def one(coins: Coins, tree: Tree = tree, rows: npt.NDArray[np.float64] = rows) -> Outcome:
            return decide(tree, rows, coins)

        outcomes = _law(_Probe(one, tree.draws, order(tree), 1 << 44, known), checks=4)
        for text, part in emitted_law(tree, outcomes, target, length).items():
            total[text] += probability * part
    return _compared(dict(total), target_law(target, length))


def _compared(
    emitted: dict[tuple[int, ...], float], expected: dict[tuple[int, ...], float]
) -> Bias:
    def difference(text: tuple[int, ...]) -> float:
        gap = abs(emitted.get(text, 0.0) - expected.get(text, 0.0))
        return round(gap, 12)  # among equals the first text, not the one of luckier rounding

    texts = sorted({*emitted, *expected})
    worst = max(texts, key=difference)
    return Bias(
        total_variation(emitted, expected), worst, emitted.get(worst, 0.0), expected.get(worst, 0.0)
    )
