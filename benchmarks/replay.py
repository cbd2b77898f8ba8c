# SPDX-License-Identifier: Apache-2.0
"""Expected tokens per round of every (K, L1, L2) tree, from a few target forwards.

At a root of a given text one superset is drawn: a main path of 16 draws and, at each of its first 9
nodes, 3 side branches of 8. An action (K, L1, L2) is the main path down to L1 + L2 with the first
K - 1 side branches that leave it at L1, cut to L2: all its draws are independent, so that it is a
fair tree of its own. Trees of different L1 share the main path, and side branches of equal number
their uniforms, so that differences between actions are less noisy than the actions. One target
forward over the superset serves all; `expected_acceptance` averages over the verifier's coins, so
that the drawn trees are the only noise. Source: arXiv 2602.16994, sections 4 and 6.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

import treespec
from treespec import _core
from treespec.drafts.autoregressive import AutoregressiveDrafter
from treespec.drafts.base import DraftSettings
from treespec.targets.base import Needs, TreeRows

Array = npt.NDArray[np.float64]

PATHS, TRUNK, BRANCH = 4, 8, 8
DEPTH = TRUNK + BRANCH
# Top-down verifiers: whether a node is accepted does not depend on what is below it.
TOP_DOWN = ("target_only", "naive_tree", "spectr", "khisti", "recursive_rejection")
TREE_VERIFIERS = (*TOP_DOWN, "traversal")
CHAIN_VERIFIERS = ("token_level", "block")


class Action(NamedTuple):
    """K branches of L2 tokens at the end of a trunk of L1; a chain is (1, 0, length)."""

    paths: int
    trunk: int
    branch: int

    @property
    def nodes(self) -> int:
        """Drafted tokens; as many nodes, unless draws coincide."""
        return self.trunk + self.paths * self.branch

    @property
    def depth(self) -> int:
        """Drafter calls, and the longest path."""
        return self.trunk + self.branch

    def __str__(self) -> str:
        return f"chain {self.branch}" if self.paths == 1 else f"({', '.join(map(str, self))})"


# The paper's grid, K in 1..4 and L1, L2 in 0..8, without repeats: 17 chains and 216 trees.
ACTIONS = (
    *(Action(1, 0, length) for length in range(DEPTH + 1)),
    *(
        Action(paths, trunk, branch)
        for paths in range(2, PATHS + 1)
        for trunk in range(TRUNK + 1)
        for branch in range(1, BRANCH + 1)
    ),
)
PLACE = {action: place for place, action in enumerate(ACTIONS)}


def from_root(action: Action) -> bool:
    """Whether independent paths from the root, at most 8 long, make this tree."""
    return action.trunk == 0 and 1 <= action.branch <= BRANCH


# --- Supersets ------------------------------------------------------------------------------------


@dataclass
class Superset:
    """A trie over the main path and all branches, with the laws after its nodes.

    Attributes
    ----------
    main
        Nodes of the main path, the root first.
    branches
        ``[cut][k]``: the nodes of branch k at this cut point; the first follows the main path.
    target, draft
        ``[N, V]``: normalised laws; the draft's is absent (0) where nothing was drawn.
    """

    token: list[int]
    parent: list[int] = field(default_factory=lambda: [-1])
    depth: list[int] = field(default_factory=lambda: [0])
    main: list[int] = field(default_factory=lambda: [0])
    branches: list[list[list[int]]] = field(default_factory=list)
    target: Array = field(default_factory=lambda: np.empty(0))
    draft: Array = field(default_factory=lambda: np.empty(0))
    children: dict[tuple[int, int], int] = field(default_factory=dict)

    def child(self, node: int, token: int) -> int:
        """The child that carries `token`, made if need be."""
        found = self.children.setdefault((node, token), len(self.token))
        if found == len(self.token):
            self.token.append(token)
            self.parent.append(node)
            self.depth.append(self.depth[node] + 1)
        return found

    def rows(self) -> TreeRows:
        """What the target's forward takes."""
        columns = (np.array(c, dtype=np.int32) for c in (self.token, self.parent, self.depth))
        return TreeRows(*columns)

    def paths(self) -> Iterator[list[int]]:
        """Every drawn path from the root, as nodes; each is a plain rollout of the drafter."""
        for cut, branches in enumerate(self.branches):
            for branch in branches:
                yield [*self.main[: cut + 1], *branch]


class Level:
    """Nodes of one depth, as an expander takes them."""

    def __init__(self, superset: Superset, first: int, last: int) -> None:
        self.index = np.arange(first, last, dtype=np.int32)
        self.token = np.array(superset.token[first:last], dtype=np.int32)
        self.parent = np.array(superset.parent[first:last], dtype=np.int32)
        self.depth = np.array(superset.depth[first:last], dtype=np.int32)

    def __len__(self) -> int:
        return len(self.index)


def draw_superset(expander: Any, root: int, rng: np.random.Generator) -> Superset:
    """Draw all paths together, a drafter call per depth."""
    out = Superset([root], branches=[[[] for _ in range(PATHS)] for _ in range(TRUNK + 1)])
    laws: list[Array] = []
    for depth in range(DEPTH):
        level = Level(out, len(laws), len(out.token))
        rows = expander.expand(level).double().exp().numpy()
        laws.extend(rows / rows.sum(axis=1, keepdims=True))
        uniforms = rng.random(PATHS)
        main = out.main[depth]
        out.main.append(out.child(main, draw(laws[main], uniforms[0])))
        for cut in range(max(0, depth - BRANCH + 1), min(depth, TRUNK) + 1):
            first, *others = out.branches[cut]
            first.append(out.main[-1])
            for path, u in zip(others, uniforms[1:], strict=True):
                node = path[-1] if path else out.main[cut]
                path.append(out.child(node, draw(laws[node], u)))
    out.draft = np.zeros((len(out.token), len(laws[0])))
    out.draft[: len(laws)] = laws
    return out


def draw(law: Array, u: float) -> int:
    """A token of the law; never one of probability 0."""
    sums = np.cumsum(law)
    return int(np.searchsorted(sums, u * sums[-1], side="right"))


@dataclass
class Pair:
    """A target and a drafter of the library, one sequence of each at a time."""

    target: Any
    drafter: AutoregressiveDrafter

    def supersets(
        self,
        tokens: Sequence[int],
        roots: Sequence[int],
        count: int,
        sampling: treespec.SamplingParams,
        rng: np.random.Generator,
    ) -> Iterator[tuple[int, Superset]]:
        """`count` supersets at every root, ascending positions in a text."""
        settings = DraftSettings(temperature=sampling.temperature, top_p=sampling.top_p)
        params, needs, done = sampling.row_params(), Needs(), 0
        state = self.target.open(len(tokens) + 512)
        session = self.drafter.begin(np.array(tokens[: roots[0] + 1]), None, len(tokens) + 512)
        try:
            for before, root in zip((roots[0], *roots), roots, strict=False):
                self.drafter.observe(session, np.array(tokens[before + 1 : root + 1]), None)
                self.target.prefill([state], [np.array(tokens[done:root])], needs)
                done = root
                for _ in range(count):
                    (expander,) = self.drafter.draft([session], settings)
                    superset = draw_superset(expander, tokens[root], rng)
                    logits, _ = self.target.forward([state], [superset.rows()], needs)
                    self.target.commit([state], [np.empty(0, dtype=np.int32)])
                    superset.target = laws_of(logits[0].numpy(), params)
                    yield root, superset
        finally:
            self.target.close(state)
            self.drafter.end(session)


def laws_of(logits: npt.NDArray[Any], params: Any) -> Array:
    """Every row as the decoder's sampler processes it."""
    nothing = np.empty(0, dtype=np.int32)
    rows = np.array([_core.process_logits(row, params, nothing, 0, nothing) for row in logits])
    return np.asarray(rows / rows.sum(axis=1, keepdims=True))


# --- Actions of a superset ------------------------------------------------------------------------


@dataclass
class SubTree:
    """One action at full depth, its nodes by depth, so that shorter branches are its beginnings.

    Attributes
    ----------
    sizes
        ``[d]``: nodes of depth at most d.
    draws
        Children of every node in draw order, with repeats.
    """

    token: npt.NDArray[np.int32]
    parent: npt.NDArray[np.int32]
    draws: list[list[int]]
    sizes: list[int]
    target: Array
    draft: Array

    @staticmethod
    def of(superset: Superset, paths: int, cut: int) -> SubTree:
        """The trunk up to `cut` and the first `paths` branches there."""
        nodes, parent = list(superset.main[: cut + 1]), list(range(-1, cut))
        draws = [[place + 1] for place in range(cut)] + [[]]
        sizes = list(range(1, cut + 2))
        place = {superset.main[cut]: cut}
        cursors = [superset.main[cut]] * paths
        for step in range(len(superset.branches[cut][0])):
            for k in range(paths):
                node, above = superset.branches[cut][k][step], place[cursors[k]]
                if node not in place:
                    place[node] = len(nodes)
                    nodes.append(node)
                    parent.append(above)
                    draws.append([])
                draws[above].append(place[node])
                cursors[k] = node
            sizes.append(len(nodes))
        token = np.array([superset.token[n] for n in nodes], dtype=np.int32)
        return SubTree(
            token,
            np.array(parent, dtype=np.int32),
            draws,
            sizes,
            superset.target[nodes],
            superset.draft[nodes],
        )

    def tree(self, depth: int) -> tuple[treespec.TokenTree, Array, Array]:
        """The part down to `depth`, with its laws."""
        count, inner = self.sizes[depth], self.sizes[depth - 1] if depth else 0
        draws = self.draws[:inner] + [[] for _ in range(count - inner)]
        tree = treespec.TokenTree(
            self.token[:count], parent=self.parent[:count], proposal="iid", draws=draws
        )
        return tree, self.target[:count], self.draft[:count]

    def by_depth(self, verifier: str) -> Array:
        """``[depth + 1]``: expected accepted nodes of every depth in the whole tree."""
        tree, target, draft = self.tree(len(self.sizes) - 1)
        found = treespec.expected_acceptance(tree, target, draft, verifier).node_probability
        return np.add.reduceat(found, [0, *self.sizes[:-1]])

    def tokens(self, verifier: str, depth: int) -> float:
        """Expected tokens per round of the part down to `depth`."""
        tree, target, draft = self.tree(depth)
        return treespec.expected_acceptance(tree, target, draft, verifier).block_efficiency


@dataclass
class Evaluation:
    """All actions of one superset.

    Attributes
    ----------
    tokens
        By verifier, ``[len(ACTIONS)]``: expected tokens per round; NaN where it does not apply.
    rows
        ``[len(ACTIONS)]``: nodes with the root, equal draws merged.
    reach
        By verifier, ``[9]`` from the root with K = 4, ``[17]`` for chains (key ``"chain"``):
        expected accepted nodes by depth.
    """

    tokens: dict[str, Array]
    rows: Array
    reach: dict[str, Array]


def evaluate(superset: Superset) -> Evaluation:
    """Expected tokens of every action and verifier."""
    names = (*TREE_VERIFIERS, *CHAIN_VERIFIERS)
    out = Evaluation({v: np.full(len(ACTIONS), np.nan) for v in names}, np.ones(len(ACTIONS)), {})
    _chains(superset, out)
    for paths in range(2, PATHS + 1):
        for cut in range(TRUNK + 1):
            tree = SubTree.of(superset, paths, cut)
            at = [PLACE[Action(paths, cut, branch)] for branch in range(1, BRANCH + 1)]
            out.rows[at] = tree.sizes[cut + 1 :]
            for verifier in TOP_DOWN:
                by_depth = tree.by_depth(verifier)
                out.tokens[verifier][at] = by_depth.cumsum()[cut + 1 :]
                if paths == PATHS and cut == 0:
                    out.reach[verifier] = by_depth
            out.tokens["traversal"][at] = [
                tree.tokens("traversal", cut + branch) for branch in range(1, BRANCH + 1)
            ]
    return out


def _chains(superset: Superset, out: Evaluation) -> None:
    """With one path all transport verifiers are the token-level rule, and traversal is block."""
    chain, at = SubTree.of(superset, 1, TRUNK), [PLACE[Action(1, 0, n)] for n in range(DEPTH + 1)]
    out.rows[at] = chain.sizes
    out.reach["chain"] = chain.by_depth("token_level")
    by_token = out.reach["chain"].cumsum()
    by_block = np.array([1.0] + [chain.tokens("block", n) for n in range(1, DEPTH + 1)])
    for verifier, tokens in out.tokens.items():
        if verifier == "target_only":
            tokens[at] = chain.by_depth(verifier).cumsum()
        else:
            tokens[at] = by_block if verifier in ("block", "traversal") else by_token


# --- Single rows ----------------------------------------------------------------------------------


def distances(superset: Superset) -> tuple[Array, Array]:
    """``||p - q||_1`` by depth, means over drawn paths, and along the main path alone."""
    gap = np.abs(superset.target - superset.draft).sum(axis=1)
    sums, counts = np.zeros(DEPTH), np.zeros(DEPTH)
    for path in superset.paths():
        inner = path[:-1]  # nothing was drawn after a leaf
        sums[: len(inner)] += gap[inner]
        counts[: len(inner)] += 1
    first = superset.main[:-1]
    return sums / counts, gap[first]


def one_level(superset: Superset) -> dict[str, Array]:
    """``[16]``: chance that a child is accepted below the nodes of the main path."""
    first = superset.main[:-1]
    target, draft = superset.target[first], superset.draft[first]
    most = [
        _core.alpha_star(p.tolist(), q.tolist(), PATHS, "iid")
        for p, q in zip(target, draft, strict=True)
    ]
    accepted = [rejection(target, draft, draws) for draws in (1, PATHS)]
    return {"1 draw": accepted[0], "4 draws": accepted[1], "4 draws, optimum": np.array(most)}


def rejection(target: Array, draft: Array, draws: int) -> Array:
    """Acceptance of recursive rejection with independent draws, row by row."""
    left, rejected = target, np.ones(len(target))
    for _ in range(draws):
        rejected = rejected * (1 - np.minimum(left, draft).sum(axis=1)).clip(0)
        left = (left - draft).clip(0)
        left = left / np.maximum(left.sum(axis=1, keepdims=True), 1e-300)
    return 1 - rejected
