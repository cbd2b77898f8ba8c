# SPDX-License-Identifier: Apache-2.0
"""One round as a picture needs it: labels, probabilities, children, what was accepted."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from treespec.generation import RoundRecord

ROOT = 0


@dataclass(frozen=True)
class RoundView:
    """The tree of one round, node 0 the root, and what the verifier made of it."""

    labels: list[str]  # per node, the token as quoted text
    parents: list[int]  # per node; -1 for the root
    depths: list[int]  # per node; 0 for the root
    own_probs: list[float]  # per node, given its parent, in the drafter's eyes; 1 for the root
    path_probs: list[float]  # per node, product of own_probs from the root
    children: list[list[int]]  # per node, likeliest first
    accepted: list[int]  # nodes below the root, in order
    next_label: str | None  # the token after the accepted path; None if the round gave none

    @property
    def last(self) -> int:
        """The node where the accepted path ends (the root when nothing was accepted)."""
        return self.accepted[-1] if self.accepted else ROOT

    @property
    def next_kind(self) -> str:
        """`bonus` after a path accepted to its end, `correction` where guesses were refused."""
        return "correction" if self.children[self.last] else "bonus"

    @property
    def drafted(self) -> int:
        """Number of nodes below the root."""
        return len(self.parents) - 1

    @property
    def depth(self) -> int:
        """Depth of the deepest node."""
        return max(self.depths)

    @property
    def expected(self) -> float:
        """Accepted tokens that the drafter's own probabilities promise."""
        return sum(self.path_probs[1:])

    @property
    def emitted(self) -> list[str]:
        """Labels of the tokens this round added to the text."""
        path = [self.labels[node] for node in self.accepted]
        return path if self.next_label is None else [*path, self.next_label]

    def totals(self) -> str:
        """Return the one line that sums up the round."""
        return (
            f"{self.drafted} nodes, depth {self.depth}, {len(self.accepted)} accepted "
            f"({self.expected:.2f} expected), {len(self.emitted)} tokens emitted"
        )


def view_round(record: RoundRecord, label: Callable[[int], str]) -> RoundView:
    """Read a RoundRecord; `label` turns a token id into what the picture shows."""
    tree, verdict = record.tree, record.verdict
    parents = [int(parent) for parent in tree.parent]
    path_logprobs = [float(logprob) for logprob in tree.path_logprob]
    own = [1.0, *(_exp(path_logprobs[n] - path_logprobs[parents[n]]) for n in _below(parents))]
    children: list[list[int]] = [[] for _ in parents]
    for node in _below(parents):
        children[parents[node]].append(node)
    next_token = -1 if verdict.next_token is None else int(verdict.next_token)
    return RoundView(
        labels=[label(int(token)) for token in tree.token],
        parents=parents,
        depths=[int(depth) for depth in tree.depth],
        own_probs=own,
        path_probs=[_exp(logprob) for logprob in path_logprobs],
        children=[sorted(nodes, key=lambda node: (-own[node], node)) for nodes in children],
        accepted=[int(node) for node in verdict.accepted_nodes],
        next_label=None if next_token < 0 else label(next_token),
    )


def token_label(tokenizer: Any) -> Callable[[int], str]:
    """Return the function that quotes a token; half a character shows as it is stored."""

    def label(token: int) -> str:
        text = tokenizer.decode([token])
        if text and "\N{REPLACEMENT CHARACTER}" not in text:
            return repr(text)
        return f"<{tokenizer.convert_ids_to_tokens(token)}>"

    return label


def _below(parents: list[int]) -> range:
    return range(1, len(parents))


def _exp(logprob: float) -> float:
    return math.exp(logprob) if logprob < 0 else 1.0
