# SPDX-License-Identifier: Apache-2.0
"""Expected tokens per round of every (K, L1, L2) tree, from one target forward.

At a root of a given text supersets are drawn: a main path of 16 draws and, at each of its first 9
nodes, 3 side branches of 8. An action (K, L1, L2) is the main path down to L1 + L2 with the first
K - 1 side branches that leave it at L1, cut to L2: all its draws are independent, so that it is a
fair tree of its own. Trees of different L1 share the main path, and side branches of equal number
their uniforms, so that differences between actions are less noisy than the actions.
`expected_acceptance` averages over the verifier's coins, so that the drawn trees are the only
noise. All supersets of a root share one trie, hence every drafter call and the target's forward.
Source: arXiv 2602.16994, sections 4 and 6.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from treespec import _core
from treespec._core import TokenTree
from treespec.config import SamplingParams
from treespec.drafts.autoregressive import AutoregressiveDrafter
from treespec.drafts.base import DraftSettings
from treespec.drafts.expander import RootRows
from treespec.ops import expected_acceptance
from treespec.selector.actions import ACTIONS, BRANCH, DEPTH, PATHS, PLACE, TRUNK, Action
from treespec.targets.base import Needs, TreeRows, in_numpy

Array = npt.NDArray[np.float64]

# Top-down verifiers: whether a node is accepted does not depend on what is below it.
TOP_DOWN = ("target_only", "naive_tree", "spectr", "khisti", "recursive_rejection")
TREE_VERIFIERS = (*TOP_DOWN, "traversal")
CHAIN_VERIFIERS = ("token_level", "block")

# --- Drawing --------------------------------------------------------------------------------------


class Trie:
    """Drawn nodes of a root, equal prefixes once, with the laws after them.

    Attributes
    ----------
    token, parent, depth
        ``[N]``, the root first, layer by layer.
    target, draft
        ``[N, V]``: normalised laws; the draft's is absent (0) where nothing was drawn.
    """

    def __init__(self, root: int) -> None:
        self.token, self.parent, self.depth = [root], [-1], [0]
        self.target = self.draft = np.empty((0, 0))
        self._children: dict[tuple[int, int], int] = {}

    def child(self, node: int, token: int) -> int:
        """The child that carries `token`, made if need be."""
        found = self._children.setdefault((node, token), len(self.token))
        if found == len(self.token):
            self.token.append(token)
            self.parent.append(node)
            self.depth.append(self.depth[node] + 1)
        return found

    def rows(self) -> TreeRows:
        """What the target's forward takes."""
        columns = (np.array(c, dtype=np.int32) for c in (self.token, self.parent, self.depth))
        return TreeRows(*columns)


class Superset:
    """A main path and its side branches in a trie.

    Attributes
    ----------
    main
        Nodes of the main path, the root first.
    branches
        ``[cut][k]``: the nodes of branch k at this cut point; the first follows the main path.
    """

    def __init__(self, trie: Trie) -> None:
        self.trie = trie
        self.main = [0]
        self.branches: list[list[list[int]]] = [
            [[] for _ in range(PATHS)] for _ in range(TRUNK + 1)
        ]

    def grow(self, depth: int, sums: Array, uniforms: Array) -> None:
        """One more draw on every path; `sums` are cumulated laws by node."""
        trie, main = self.trie, self.main[depth]
        self.main.append(trie.child(main, draw(sums[main], uniforms[0])))
        for cut in range(max(0, depth - BRANCH + 1), min(depth, TRUNK) + 1):
            first, *others = self.branches[cut]
            first.append(self.main[-1])
            for path, u in zip(others, uniforms[1:], strict=True):
                node = path[-1] if path else self.main[cut]
                path.append(trie.child(node, draw(sums[node], u)))

    def paths(self) -> Iterator[list[int]]:
        """Every drawn path from the root, as nodes; each is a plain rollout of the drafter."""
        for cut, branches in enumerate(self.branches):
            for branch in branches:
                yield [*self.main[: cut + 1], *branch]


class Level:
    """Nodes of one depth, as an expander takes them."""

    def __init__(self, trie: Trie, first: int, last: int) -> None:
        self.index = np.arange(first, last, dtype=np.int32)
        self.token = np.array(trie.token[first:last], dtype=np.int32)
        self.parent = np.array(trie.parent[first:last], dtype=np.int32)
        self.depth = np.array(trie.depth[first:last], dtype=np.int32)

    def __len__(self) -> int:
        return len(self.index)


def draw_supersets(
    expander: Any, root: int, count: int, rng: np.random.Generator
) -> list[Superset]:
    """Draw all paths of all supersets together, a drafter call per depth."""
    trie = Trie(root)
    out = [Superset(trie) for _ in range(count)]
    laws: list[Array] = []
    sums: list[Array] = []
    for depth in range(DEPTH):
        rows = in_numpy(expander.expand(Level(trie, len(laws), len(trie.token)))).copy()
        rows = np.exp(rows.astype(np.float64))
        laws.extend(rows / rows.sum(axis=1, keepdims=True))
        sums.extend(rows.cumsum(axis=1))
        for superset in out:
            superset.grow(depth, sums, rng.random(PATHS))  # type: ignore[arg-type]
    trie.draft = np.zeros((len(trie.token), len(laws[0])))
    trie.draft[: len(laws)] = laws
    return out


def draw(sums: Array, u: float) -> int:
    """A token of a cumulated law; never one of probability 0."""
    return int(np.searchsorted(sums, u * sums[-1], side="right"))


class Root(NamedTuple):
    """A place in a text: what is known there before a round, and what a round could draft.

    Attributes
    ----------
    position
        Of the root token.
    target_logits, target_state
        ``[V]`` from which the root was drawn, and the state ``[H]`` behind them.
    rows
        What the drafter knows there.
    supersets
        All in one trie.
    """

    position: int
    target_logits: npt.NDArray[Any]
    target_state: npt.NDArray[Any]
    rows: RootRows
    supersets: list[Superset]


@dataclass
class Pair:
    """A target and a drafter of the library, one sequence of each at a time."""

    target: Any
    drafter: AutoregressiveDrafter

    def roots(
        self,
        tokens: Sequence[int],
        places: Sequence[int],
        count: int,
        sampling: SamplingParams,
        rng: np.random.Generator,
    ) -> Iterator[Root]:
        """Every place, ascending, of a text, with `count` supersets."""
        settings = draft_settings(sampling)
        params, needs, done = sampling.row_params(), Needs(last_hidden=True), 0
        capacity = len(tokens) + 1 + count * (DEPTH + (TRUNK + 1) * (PATHS - 1) * BRANCH)
        state = self.target.open(capacity)
        session = self.drafter.begin(np.array(tokens[: places[0] + 1]), None, len(tokens) + 512)
        try:
            for before, place in zip((places[0], *places), places, strict=False):
                self.drafter.observe(session, np.array(tokens[before + 1 : place + 1]), None)
                (logits,), (states,) = self.target.prefill(
                    [state], [np.array(tokens[done:place])], needs
                )
                row, done = in_numpy(logits).copy(), place
                state_before = in_numpy(states.last_hidden[-1]).copy()
                (expander,) = self.drafter.draft([session], settings)
                supersets = draw_supersets(expander, tokens[place], count, rng)
                trie = supersets[0].trie
                rows, _ = self.target.forward([state], [trie.rows()], Needs())
                self.target.commit([state], [np.empty(0, dtype=np.int32)])
                trie.target = laws_of(in_numpy(rows[0]), params)
                assert expander.root_rows is not None, "a text has at least two tokens"
                yield Root(place, row, state_before, expander.root_rows, supersets)
        finally:
            self.target.close(state)
            self.drafter.end(session)


def draft_settings(sampling: SamplingParams) -> DraftSettings:
    """How the decoder drafts drawn trees: as the target samples, greedy texts at temperature 1."""
    drawn = not sampling.greedy
    return DraftSettings(
        temperature=sampling.temperature if drawn else 1.0,
        top_k=sampling.top_k if drawn else 0,
        top_p=sampling.top_p if drawn else 1.0,
        root_rows=True,
    )


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
        trie = superset.trie
        token = np.array([trie.token[n] for n in nodes], dtype=np.int32)
        return SubTree(
            token,
            np.array(parent, dtype=np.int32),
            draws,
            sizes,
            trie.target[nodes],
            trie.draft[nodes],
        )

    def tree(self, depth: int) -> tuple[TokenTree, Array, Array]:
        """The part down to `depth`, with its laws."""
        count, inner = self.sizes[depth], self.sizes[depth - 1] if depth else 0
        draws = self.draws[:inner] + [[] for _ in range(count - inner)]
        tree = TokenTree(
            self.token[:count], parent=self.parent[:count], proposal="iid", draws=draws
        )
        return tree, self.target[:count], self.draft[:count]

    def by_depth(self, verifier: str) -> Array:
        """``[depth + 1]``: expected accepted nodes of every depth in the whole tree."""
        tree, target, draft = self.tree(len(self.sizes) - 1)
        found = expected_acceptance(tree, target, draft, verifier).node_probability
        return np.add.reduceat(found, [0, *self.sizes[:-1]])

    def tokens(self, verifier: str, depth: int) -> float:
        """Expected tokens per round of the part down to `depth`."""
        tree, target, draft = self.tree(depth)
        return expected_acceptance(tree, target, draft, verifier).block_efficiency


@dataclass
class Evaluation:
    """All actions of one superset.

    Attributes
    ----------
    tokens
        By verifier, ``[len(ACTIONS)]``: expected tokens per round; NaN where it does not apply or
        was not asked for.
    rows
        ``[len(ACTIONS)]``: nodes with the root, equal draws merged.
    reach
        By verifier, ``[9]`` from the root with K = 4, ``[17]`` for chains (key ``"chain"``):
        expected accepted nodes by depth.
    """

    tokens: dict[str, Array]
    rows: Array
    reach: dict[str, Array]


def evaluate(
    superset: Superset,
    verifiers: Sequence[str] = (*TREE_VERIFIERS, *CHAIN_VERIFIERS),
    *,
    root_only: Collection[str] = (),
) -> Evaluation:
    """Expected tokens of every action by verifier.

    Parameters
    ----------
    root_only
        Verifiers whose trees branch at the root alone. Those that decide bottom-up need a pass for
        every depth, so that this saves most of their time.
    """
    out = Evaluation(
        {v: np.full(len(ACTIONS), np.nan) for v in verifiers}, np.ones(len(ACTIONS)), {}
    )
    _chains(superset, out)
    for paths in range(2, PATHS + 1):
        for cut in range(TRUNK + 1):
            tree = SubTree.of(superset, paths, cut)
            at = [PLACE[Action(paths, cut, branch)] for branch in range(1, BRANCH + 1)]
            out.rows[at] = tree.sizes[cut + 1 :]
            for verifier in verifiers:
                if verifier in CHAIN_VERIFIERS or (cut > 0 and verifier in root_only):
                    continue
                if verifier not in TOP_DOWN:
                    out.tokens[verifier][at] = [
                        tree.tokens(verifier, cut + branch) for branch in range(1, BRANCH + 1)
                    ]
                    continue
                by_depth = tree.by_depth(verifier)
                out.tokens[verifier][at] = by_depth.cumsum()[cut + 1 :]
                if paths == PATHS and cut == 0:
                    out.reach[verifier] = by_depth
    return out


def _chains(superset: Superset, out: Evaluation) -> None:
    """With one path all transport verifiers are the token-level rule, and traversal is block."""
    chain, at = SubTree.of(superset, 1, TRUNK), [PLACE[Action(1, 0, n)] for n in range(DEPTH + 1)]
    out.rows[at] = chain.sizes
    out.reach["chain"] = chain.by_depth("token_level")
    for verifier, tokens in out.tokens.items():
        if verifier == "target_only":
            tokens[at] = chain.by_depth(verifier).cumsum()
        elif verifier in ("block", "traversal"):
            tokens[at] = [1.0] + [chain.tokens("block", n) for n in range(1, DEPTH + 1)]
        else:
            tokens[at] = out.reach["chain"].cumsum()
