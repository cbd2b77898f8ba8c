# SPDX-License-Identifier: Apache-2.0
"""Slots: places where a token may be drawn, valued before anything is drawn there.

Slot (u, j) is the (j + 1)-th draw at node u. Its value estimates the chance that a verifier looks
at it: all ancestors accepted and the first j draws at u rejected, with acceptance of a token
estimated by its draft probability.

Source: Xiong et al., "DySpec" (2024, arXiv 2410.11744); trees.md, section 2.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from treespec.reference.growth import Node, draw_children
from treespec.reference.rng import RoundKey
from treespec.reference.scores import Calibration
from treespec.reference.sources import CandidateRow


@dataclass
class Slots:
    """All draws that could be made at a node of value ``value``, in order."""

    value: float
    children: list[Node] = field(default_factory=list)
    fixed: list[int] = field(default_factory=list)
    """Fixed-point probability of each child, in units of 2^-60."""

    calibration: Calibration | None = None

    def slot_value(self, draw: int) -> float:
        """The node's value times the law's share that the first ``draw`` draws left.

        Calibrated: times the chance that each of them is rejected.
        """
        if self.calibration is None:
            return self.value * (float(self._rest(draw)) / float(self._rest(0)))
        value = self.value
        for earlier in range(draw):
            value *= 1.0 - self._acceptance(earlier)
        return value

    def child_value(self, draw: int) -> float:
        """Value of the slots' first one at the child that ``draw`` gives."""
        if self.calibration is None:
            return self.value * (float(self.fixed[draw]) / float(self._rest(0)))
        return self.slot_value(draw) * self._acceptance(draw)

    def _rest(self, draw: int) -> int:
        return sum(self.fixed) - sum(self.fixed[:draw])

    def _acceptance(self, draw: int) -> float:
        """Of a draw, by its probability among the tokens that were left."""
        assert self.calibration is not None
        share = float(self.fixed[draw]) / float(self._rest(draw))
        q0 = a0 = 0.0
        for q, a in self.calibration:
            if share <= q:
                return a0 + (a - a0) * ((share - q0) / (q - q0))
            q0, a0 = q, a
        return a0

    def exists(self, draw: int) -> bool:
        """Whether a token of positive probability is left, and somebody may look at it."""
        return draw < len(self.children) and self._rest(draw) > 0 and self.slot_value(draw) > 0


def open_slots(
    node: Node,
    row: CandidateRow,
    value: float,
    key: RoundKey,
    calibration: Calibration | None = None,
) -> Slots:
    """Draws the whole row without replacement: which tokens would come, were they drawn.

    Sets ``node.law``; ``node.draws`` is left empty for the draws that are made. Randomness: token t
    takes purpose draft, the node's path slot, counter t.
    """
    children = draw_children(node, row, len(row.token), "without_replacement", key)
    node.draws = []
    law = node.law or {}
    fixed = [int(np.floor(np.float64(law[child.token]) * 2.0**60)) for child in children]
    return Slots(value, children, fixed, calibration)
