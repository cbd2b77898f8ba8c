# SPDX-License-Identifier: Apache-2.0
"""Counter-based random numbers, as in ``rng.h``: nothing is hidden, every draw has a counter.

Source: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3" (2011), Philox4x32-10.
"""

from __future__ import annotations

from enum import IntEnum
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

IntLike = int | npt.NDArray[np.integer]

_MASK = np.uint64(0xFFFFFFFF)
_SHIFT = np.uint64(32)


class Purpose(IntEnum):
    """What a draw decides; the top byte of the first counter word."""

    DRAFT = 0
    ACCEPT = 1
    SAMPLE = 2
    SELECT = 3
    POSITION = 4


class RoundKey(NamedTuple):
    """Names a round: seed, sequence and absolute position of the round's root."""

    seed: int = 0
    sequence_id: int = 0
    position: int = 0


def philox(
    c0: IntLike, c1: IntLike, c2: IntLike, c3: IntLike, seed: int
) -> tuple[npt.NDArray[np.uint64], ...]:
    """Philox4x32-10 of four 32-bit counter words and a 64-bit key.

    Returns four uint64 arrays (broadcast shape of the counters) that hold 32-bit words.
    """
    x0, x1, x2, x3 = (np.asarray(c, dtype=np.uint64) & _MASK for c in (c0, c1, c2, c3))
    k0, k1 = seed & 0xFFFFFFFF, (seed >> 32) & 0xFFFFFFFF
    for _ in range(10):
        product0 = np.uint64(0xD2511F53) * x0
        product1 = np.uint64(0xCD9E8D57) * x2
        x0, x1, x2, x3 = (
            (product1 >> _SHIFT) ^ x1 ^ np.uint64(k0),
            product1 & _MASK,
            (product0 >> _SHIFT) ^ x3 ^ np.uint64(k1),
            product0 & _MASK,
        )
        k0 = (k0 + 0x9E3779B9) & 0xFFFFFFFF
        k1 = (k1 + 0xBB67AE85) & 0xFFFFFFFF
    return x0, x1, x2, x3


def random53(
    key: RoundKey, purpose: Purpose, node_slot: IntLike, draw_index: IntLike
) -> npt.NDArray[np.uint64]:
    """53 random bits of each counter, as integers in [0, 2^53)."""
    first = np.asarray(draw_index, dtype=np.uint64) | np.uint64(int(purpose) << 24)
    word0, word1, _, _ = philox(first, node_slot, key.position, key.sequence_id, key.seed)
    bits: npt.NDArray[np.uint64] = ((word1 << _SHIFT) | word0) >> np.uint64(11)
    return bits


def uniform(key: RoundKey, purpose: Purpose, node_slot: int, draw_index: int) -> float:
    """Uniform in [0, 1) with 53 bits."""
    return float(random53(key, purpose, node_slot, draw_index)) * 2.0**-53


def race_keys(
    key: RoundKey,
    purpose: Purpose,
    node_slot: int,
    token: npt.NDArray[np.integer],
    weight: npt.NDArray[np.float64],
) -> npt.NDArray[np.float64]:
    """Exponential race: ``-ln(U_t) / weight_t``, U_t in (0, 1] keyed by token id; inf at weight 0.

    The smallest key is a draw from the normalised weights, the j-th smallest the j-th draw without
    replacement.
    """
    u = (random53(key, purpose, node_slot, token).astype(np.float64) + 1.0) * 2.0**-53
    keys = np.full(len(token), np.inf)
    np.divide(-np.log(u), weight, out=keys, where=weight > 0)
    return keys


def child_slot(parent_slot: int, token: int) -> int:
    """Path slot of a child; slot(root) = 0. The mixer is MurmurHash3's 32-bit finaliser."""
    h = (parent_slot * 0x9E3779B1 + (token & 0xFFFFFFFF) + 0x7F4A7C15) & 0xFFFFFFFF
    h ^= h >> 16
    h = (h * 0x85EBCA6B) & 0xFFFFFFFF
    h ^= h >> 13
    h = (h * 0xC2B2AE35) & 0xFFFFFFFF
    return h ^ (h >> 16)
