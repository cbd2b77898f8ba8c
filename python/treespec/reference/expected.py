# SPDX-License-Identifier: Apache-2.0
"""What a verifier accepts on average, without random numbers, and the most that anybody could.

The coins are averaged for a given tree. Averaged over the trees of a builder as well, 1 + the
number of accepted nodes is the block efficiency.
"""

from __future__ import annotations

from collections.abc import Callable
from math import fsum
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from treespec.reference.residual import residual
from treespec.reference.sampling import Row, normalise
from treespec.reference.tree import Tree
from treespec.reference.verifiers import block, khisti, spectr, top_plus_one, traversal, typical
from treespec.reference.walk import drawn_tokens, rows_at

NEED_NO_LAW = ("greedy", "target_only", "typical")
Probabilities = npt.NDArray[np.float64]


class ExpectedAcceptance(NamedTuple):
    """The mean of ``num_accepted``, and how often each node is accepted."""

    num_accepted: float
    node_probability: Probabilities
    """``[N]`` float64; 1 at the root."""


def expected_acceptance(
    tree: Tree, target_probs: Any, draft_probs: Any = None, verifier: str = "traversal"
) -> ExpectedAcceptance:
    """Mean number of accepted nodes of this tree, over the verifier's coins; no random numbers.

    target_probs, draft_probs : ``[N, V]`` as for the verifiers. Pairs that would be biased are not
    refused here: for `verifier` the tree is what it says it is.
    """
    laws: Any = tree.draft_probs if draft_probs is None else draft_probs
    if laws is None and verifier not in NEED_NO_LAW:
        raise ValueError(f"expected_acceptance: {verifier} needs draft_probs, the tree has none")
    if verifier in TOKEN_LAWS:
        found = _top_down(tree, target_probs, laws, TOKEN_LAWS[verifier])
    else:
        found = _by_stops(tree, STOPS[verifier](tree, target_probs, laws))
    return ExpectedAcceptance(fsum(found[1:]), found)


# ------------------------------------------------------------------ top-down verifiers

TokenLaw = Callable[[Tree, int, Row, "Row | None"], Row]
"""``(tree, node, target, draft)`` to the law of the token after the node, ``[V]``, given the draws.

Its entry at a child's token is the branching probability. Source: verification.md, section 6.3,
after "delayed tree expansion" (2026, arXiv 2602.16994).
"""


def _top_down(tree: Tree, target_probs: Any, laws: Any, token_law: TokenLaw) -> Probabilities:
    """The probability of a node is that of its parent times its branching probability."""
    found = np.ones(tree.num_nodes)
    law = {
        node: token_law(tree, node, *_rows(tree, node, target_probs, laws))
        for node in range(tree.num_nodes)
        if tree.draws[node]
    }
    for node in range(1, tree.num_nodes):
        parent = int(tree.parent[node])
        found[node] = found[parent] * law[parent][tree.token[node]]
    return found


def _rows(tree: Tree, node: int, target_probs: Any, laws: Any) -> tuple[Row, Row | None]:
    if laws is None:
        return normalise(target_probs[node]), None
    return rows_at(tree, node, target_probs, laws)


def _greedy(tree: Tree, node: int, target: Row, draft: Row | None) -> Row:
    law = np.zeros(len(target))
    law[int(np.argmax(target))] = 1.0
    return law


def _target_only(tree: Tree, node: int, target: Row, draft: Row | None) -> Row:
    return target


def _one_test(token: int, target: Row, draft: Row) -> Row:
    """Token-level rule on one drawn token: accepted, or a draw from the residual."""
    accepted = min(1.0, target[token] / draft[token])
    left = residual(target, draft)
    law = np.zeros(len(target)) if left is None else (1.0 - accepted) * left
    law[token] += 1.0 if left is None else accepted
    return law


def _naive_tree(tree: Tree, node: int, target: Row, draft: Row | None) -> Row:
    token = int(tree.token[tree.draws[node][0]])
    if draft is None or draft[token] == 0:
        return target
    return _one_test(token, target, draft)


def _recursive_rejection(tree: Tree, node: int, target: Row, draft: Row | None) -> Row:
    law, reached = np.zeros(len(target)), 1.0
    for child in tree.draws[node]:
        token = int(tree.token[child])
        if draft is None or draft[token] == 0:
            continue
        left = residual(target, draft)
        accepted = 1.0 if left is None else min(1.0, target[token] / draft[token])
        law[token] += reached * accepted
        reached *= 1.0 - accepted
        target = target if left is None else left
        if tree.proposal == "without_replacement":
            draft = traversal.without(draft, token)
    return np.asarray(law + reached * target, dtype=np.float64)


def _spectr(tree: Tree, node: int, target: Row, draft: Row | None) -> Row:
    if draft is None:
        return target
    scale, left = spectr.k_seq(target, draft, len(tree.draws[node]))
    law, reached, token = np.zeros(len(target)), 1.0, -1
    for _, token in drawn_tokens(tree, node, draft):
        accepted = min(1.0, target[token] / (scale * draft[token]))
        law[token] += reached * accepted
        reached *= 1.0 - accepted
    if left is None and token >= 0:
        law[token] += reached
        return law
    return np.asarray(law + reached * (target if left is None else left), dtype=np.float64)


def _khisti(tree: Tree, node: int, target: Row, draft: Row | None) -> Row:
    drawn = [] if draft is None else [token for _, token in drawn_tokens(tree, node, draft)]
    if draft is None or not drawn:
        return target
    merges, law = khisti.tournament(target, draft, len(drawn))
    winner = {drawn[0]: 1.0}
    for merge, fresh in zip(merges, drawn[1:], strict=True):
        after = {fresh: 0.0}
        for token, mass in winner.items():
            keep = 1.0 if token == fresh else merge.keep(token, fresh)
            after[token] = after.get(token, 0.0) + keep * mass
            after[fresh] += (1.0 - keep) * mass
        winner = after
    parts = [mass * _one_test(token, target, law) for token, mass in winner.items() if mass > 0]
    return np.asarray(np.sum(parts, axis=0), dtype=np.float64)


def _top_plus_one(tree: Tree, node: int, target: Row, draft: Row | None) -> Row:
    law = None if draft is None else top_plus_one.law_of_draw(tree, node, draft)
    last = int(tree.token[tree.draws[node][-1]])
    return target if law is None else _one_test(last, target, law)


TOKEN_LAWS: dict[str, TokenLaw] = {
    "greedy": _greedy,
    "target_only": _target_only,
    "token_level": _recursive_rejection,
    "naive_tree": _naive_tree,
    "recursive_rejection": _recursive_rejection,
    "spectr": _spectr,
    "khisti": _khisti,
    "top_plus_one": _top_plus_one,
}

# ------------------------------------------------------------------ verifiers that stop at a node


def _by_stops(tree: Tree, stops: dict[int, float]) -> Probabilities:
    """A node is accepted if the walk stops at it or below it."""
    found = np.zeros(tree.num_nodes)
    for node in range(tree.num_nodes - 1, -1, -1):
        found[node] += stops.get(node, 0.0)
        if node > 0:
            found[tree.parent[node]] += found[node]
    return found


def _first_success(tests: list[tuple[int, float]]) -> dict[int, float]:
    """Where a sequence of (node, chance) tests ends; the root, if none succeeds."""
    stops, reached = {}, 1.0
    for node, chance in tests:
        stops[node] = reached * chance
        reached *= 1.0 - chance
    return {**stops, 0: reached}


def _block(tree: Tree, target_probs: Any, laws: Any) -> dict[int, float]:
    path, chances, _ = block.block_chances(tree, target_probs, laws)
    return _first_success(list(zip(path, chances, strict=True))[:0:-1])


def _traversal(tree: Tree, target_probs: Any, laws: Any) -> dict[int, float]:
    """The tests of a round in which every one fails: none depends on an earlier coin otherwise."""
    tests: list[tuple[int, float]] = []

    def fail(node: int, acceptance: float) -> bool:
        tests.append((node, acceptance))
        return False

    traversal.visit(tree, target_probs, laws, fail)
    return _first_success(tests)


def _typical(tree: Tree, target_probs: Any, laws: Any) -> dict[int, float]:
    accepted, _ = typical.verify(tree, target_probs)  # no coin decides about a node
    return {accepted[-1] if accepted else 0: 1.0}


STOPS: dict[str, Callable[[Tree, Any, Any], dict[int, float]]] = {
    "block": _block,
    "traversal": _traversal,
    "typical": _typical,
}

# ------------------------------------------------------------------ the ceiling of one level


def alpha_star(target_row: Any, draft_row: Any, num_draws: int, proposal: str = "iid") -> float:
    """The largest probability with which any lossless rule can emit one of the drawn tokens.

    "iid": 1 + min over sets H of p(H) - q(H)^k; the best H is a prefix of the tokens in order of
    p / q. "top_plus_one": the k - 1 likeliest tokens of q keep p, the others min(p, q').
    Source: verification.md, sections 4.1 and 4.4; Hu et al. (2025, arXiv 2502.18779).
    """
    target, draft = normalise(target_row), normalise(draft_row)
    if num_draws < 1:
        return 0.0
    if proposal == "iid":
        return _alpha_star_iid(target, draft, num_draws)
    if proposal == "top_plus_one":
        return _alpha_star_top_plus_one(target, draft, num_draws)
    raise ValueError(f"alpha_star: proposal must be iid or top_plus_one, got {proposal!r}")


def _alpha_star_iid(target: Row, draft: Row, num_draws: int) -> float:
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.where(draft > 0, target / draft, np.inf)
    best, p, q = 1.0, 0.0, 0.0
    for t in np.argsort(ratio, kind="stable"):
        p, q = p + target[t], q + draft[t]
        best = min(best, 1.0 + p - q**num_draws)
    return float(max(0.0, best))


def _alpha_star_top_plus_one(target: Row, draft: Row, num_draws: int) -> float:
    order = sorted(range(len(draft)), key=lambda t: (-draft[t], t))
    top = [t for t in order[: num_draws - 1] if draft[t] > 0]
    rest = draft.copy()
    rest[top] = 0.0
    kept = fsum(target[top])
    return kept + (fsum(np.minimum(target, normalise(rest))) if np.any(rest > 0) else 0.0)
