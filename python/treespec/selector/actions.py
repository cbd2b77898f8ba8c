# SPDX-License-Identifier: Apache-2.0
"""The trees a selector chooses among: (K, L1, L2), every distinct one once."""

from __future__ import annotations

from typing import Any, NamedTuple

PATHS, TRUNK, BRANCH = 4, 8, 8  # the paper's grid: K in 1..4, L1 and L2 in 0..8
DEPTH = TRUNK + BRANCH


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

    @property
    def from_root(self) -> bool:
        """Whether independent paths from the root, at most 8 long, make this tree."""
        return self.trunk == 0 and 1 <= self.branch <= BRANCH

    @property
    def options(self) -> dict[str, Any]:
        """Options of the builder ``"delayed"``."""
        return {"num_paths": self.paths, "trunk": self.trunk, "branch": self.branch}

    def __str__(self) -> str:
        return f"chain {self.branch}" if self.paths == 1 else f"({', '.join(map(str, self))})"


# 17 chains (the first drafts nothing) and 216 trees.
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
