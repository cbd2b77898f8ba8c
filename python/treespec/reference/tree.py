# SPDX-License-Identifier: Apache-2.0
"""The draft tree of one round, as plain arrays, and its invariants."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

PROPOSALS = ("deterministic", "iid", "without_replacement", "top_plus_one")


@dataclass
class Tree:
    """Topological arrays; node 0 is the root, its token is nobody's business.

    token, parent, depth : [N] int32; ``parent[0]`` is -1.
    path_logprob : [N] float32, 0 at the root.
    draws : child ids per node in draw order; a token drawn twice repeats its id.
    draft_probs : [N, V] float32, row i = law of the first child of node i, or None.
    """

    token: npt.NDArray[np.int32]
    parent: npt.NDArray[np.int32]
    depth: npt.NDArray[np.int32]
    path_logprob: npt.NDArray[np.float32]
    proposal: str = "deterministic"
    draws: list[list[int]] = field(default_factory=list)
    draft_probs: npt.NDArray[np.float32] | None = None

    @property
    def num_nodes(self) -> int:
        return len(self.token)

    def child_with(self, node: int, token: int) -> int:
        """The child of ``node`` that carries ``token``, or -1."""
        for child in self.draws[node]:
            if self.token[child] == token:
                return child
        return -1

    def path(self, node: int) -> list[int]:
        """Tokens from the root's child down to ``node``."""
        tokens: list[int] = []
        while node > 0:
            tokens.append(int(self.token[node]))
            node = int(self.parent[node])
        return tokens[::-1]


def from_arrays(
    token: Any,
    parent: Any,
    *,
    proposal: str = "deterministic",
    draws: list[list[int]] | None = None,
    draft_probs: npt.NDArray[np.float32] | None = None,
) -> Tree:
    """Completes a tree from its parents: depths; draws = children by id where none are given."""
    parent = np.asarray(parent, dtype=np.int32)
    depth = np.zeros(len(parent), dtype=np.int32)
    children: list[list[int]] = [[] for _ in parent]
    for node in range(1, len(parent)):
        depth[node] = depth[parent[node]] + 1
        children[parent[node]].append(node)
    return Tree(
        token=np.asarray(token, dtype=np.int32),
        parent=parent,
        depth=depth,
        path_logprob=np.zeros(len(parent), dtype=np.float32),
        proposal=proposal,
        draws=children if draws is None else [list(d) for d in draws],
        draft_probs=draft_probs,
    )


def check_tree(tree: Any) -> list[str]:
    """Every violated invariant in words; empty for a sound tree (any object with the fields)."""
    found: list[str] = []
    token, parent, depth = tree.token, tree.parent, tree.depth
    draws, num_nodes = tree.draws, len(tree.token)
    if num_nodes == 0 or len(parent) != num_nodes or len(depth) != num_nodes:
        return ["token, parent and depth must have one length, at least 1"]
    if len(draws) != num_nodes or len(tree.path_logprob) != num_nodes:
        return ["draws and path_logprob must have one entry per node"]
    if parent[0] != -1 or depth[0] != 0 or tree.path_logprob[0] != 0:
        found.append("node 0 must be the root: parent -1, depth 0, path_logprob 0")
    sound = True
    for i in range(1, num_nodes):
        if not 0 <= parent[i] < i:
            found.append(f"parent[{i}] must be in [0, {i}), got {parent[i]}")
            sound = False
        elif depth[i] != depth[parent[i]] + 1:
            found.append(f"depth[{i}] must be {depth[parent[i]] + 1}, got {depth[i]}")
        if token[i] < 0:
            found.append(f"token[{i}] must be >= 0, got {token[i]}")
    if not sound:
        return found
    for i in range(num_nodes):
        children = [c for c in range(1, num_nodes) if parent[c] == i]
        if sorted(set(draws[i])) != children:
            found.append(f"draws[{i}] must name the children {children}, got {list(draws[i])}")
        if tree.proposal != "iid" and len(set(draws[i])) != len(draws[i]):
            found.append(f"draws[{i}] must not repeat a child unless iid, got {list(draws[i])}")
        tokens = [int(token[c]) for c in children]
        if len(set(tokens)) != len(tokens):
            found.append(f"children of {i} must carry distinct tokens, got {tokens}")
    if not np.all(np.isfinite(np.asarray(tree.path_logprob, dtype=np.float64))):
        found.append("path_logprob must be finite")
    if tree.draft_probs is not None:
        for i in range(1, num_nodes):
            row = tree.draft_probs[parent[i]]
            if not (token[i] < len(row) and row[token[i]] > 0):
                found.append(
                    f"token[{i}] must have positive probability in draft_probs[{parent[i]}]"
                )
    return found
