# SPDX-License-Identifier: Apache-2.0
"""Where a verifier's uniforms come from: the counter generator, or arrays given by a test."""

from __future__ import annotations

from typing import Any

from treespec.reference.rng import Purpose, RoundKey, uniform


class Coins:
    """``accept(i, j)`` tests draw j of node i, ``sample(i)`` draws a token at node i; in [0, 1).

    ``select(i, j)`` decides when draw j meets the winner of the earlier ones at node i. ``given`` =
    (accept, sample) or (accept, sample, select) replaces the generator: ``accept[i][j]``,
    ``sample[i]`` and ``select[i][j]``, where ``select[i][0]`` is not used.
    """

    def __init__(
        self,
        key: RoundKey,
        given: Any = None,
    ) -> None:
        self._key = key
        self._given = given

    def accept(self, node: int, draw: int) -> float:
        if self._given is not None:
            return float(self._given[0][node][draw])
        return uniform(self._key, Purpose.ACCEPT, node, draw)

    def sample(self, node: int) -> float:
        if self._given is not None:
            return float(self._given[1][node])
        return uniform(self._key, Purpose.SAMPLE, node, 0)

    def select(self, node: int, draw: int) -> float:
        if self._given is not None:
            return float(self._given[2][node][draw])
        return uniform(self._key, Purpose.SELECT, node, draw)
