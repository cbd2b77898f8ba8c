# SPDX-License-Identifier: Apache-2.0
"""Where a verifier's uniforms come from: the counter generator, or arrays given by a test."""

from __future__ import annotations

from collections.abc import Sequence

from treespec.reference.rng import Purpose, RoundKey, uniform


class Coins:
    """``accept(i, j)`` tests draw j of node i, ``sample(i)`` draws a token at node i; in [0, 1).

    ``given`` = (accept, sample) replaces the generator: ``accept[i][j]`` and ``sample[i]``.
    """

    def __init__(
        self,
        key: RoundKey,
        given: tuple[Sequence[Sequence[float]], Sequence[float]] | None = None,
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
