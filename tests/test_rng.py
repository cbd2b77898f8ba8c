# SPDX-License-Identifier: Apache-2.0
"""Counter-based random numbers: known answers, the same for the core and the oracle."""

import numpy as np
import pytest

from treespec import _core
from treespec.reference import rng as oracle
from treespec.testing import chi_square

# Public Random123 vectors of philox4x32-10: counter words, key words, result words.
KNOWN = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]
# Computed once with the oracle, kept so that nobody changes the counter layout unnoticed.
RANDOM53 = [
    ((0, 0, 0, 0, 0, 0), 0xE169C58D6627E8D5 >> 11),
    ((7, 1, 2, 1, 3, 4), 8245698650866469),
    ((2**64 - 1, 2**32 - 1, 2**32 - 1, 4, 2**32 - 1, 2**24 - 1), 8807124198595549),
]
CHILD_SLOT = [
    ((0, 0), 0x4BC0FBEB),
    ((0, 1), 0xFC586D6F),
    ((123456789, 151935), 0x825B8B52),
    ((2**32 - 1, 2**31 - 1), 0xD8836A00),
]


@pytest.mark.parametrize(("counter", "key", "words"), KNOWN)
def test_philox_gives_the_published_answers(counter, key, words):
    seed = key[0] | key[1] << 32
    assert tuple(_core.philox(*counter, seed)) == words
    assert tuple(int(w) for w in oracle.philox(*counter, seed)) == words


@pytest.mark.parametrize(("arguments", "bits"), RANDOM53)
def test_random53_lays_its_counter_out_as_documented(arguments, bits):
    seed, sequence_id, position, purpose, slot, draw = arguments
    key = oracle.RoundKey(seed, sequence_id, position)
    assert int(oracle.random53(key, oracle.Purpose(purpose), slot, draw)) == bits
    assert _core.random53(seed, sequence_id, position, purpose, slot, draw) == bits


def test_random53_equals_the_oracle_on_random_counters(rng):
    for _ in range(200):
        seed = int(rng.integers(2**64, dtype=np.uint64))
        sequence_id, position, slot = (int(v) for v in rng.integers(2**32, size=3))
        purpose, draw = int(rng.integers(5)), int(rng.integers(2**24))
        key = oracle.RoundKey(seed, sequence_id, position)
        expected = int(oracle.random53(key, oracle.Purpose(purpose), slot, draw))
        assert _core.random53(seed, sequence_id, position, purpose, slot, draw) == expected
        assert 0 <= expected < 2**53


def test_child_slot_equals_the_oracle(rng):
    pairs = [(int(rng.integers(2**32)), int(rng.integers(2**31))) for _ in range(200)]
    for slot, token in pairs:
        assert _core.child_slot(slot, token) == oracle.child_slot(slot, token)


@pytest.mark.parametrize(("arguments", "slot"), CHILD_SLOT)
def test_child_slot_has_known_answers(arguments, slot):
    assert oracle.child_slot(*arguments) == slot
    assert _core.child_slot(*arguments) == slot


def test_every_part_of_the_counter_changes_the_number():
    base = (1, 2, 3, 0, 5, 6)
    numbers = {_core.random53(*base)}
    for place in range(6):
        numbers.add(_core.random53(*(v + (i == place) for i, v in enumerate(base))))
    assert len(numbers) == 7


def test_uniforms_are_uniform():
    slots = np.arange(40_000)
    bits = oracle.random53(oracle.RoundKey(3, 1, 4), oracle.Purpose.ACCEPT, slots, 0)
    counts = np.bincount((bits >> np.uint64(53 - 6)).astype(int), minlength=64)
    statistic, bound = chi_square(counts, np.full(64, 1 / 64))
    assert statistic < bound
