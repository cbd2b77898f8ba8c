# SPDX-License-Identifier: Apache-2.0
"""Slots of a pool: whatever is moved, grown and freed, every sequence keeps its own rows."""

import numpy as np
import pytest

from treespec.export.manifest import CacheInput
from treespec.targets import kv_slots
from treespec.targets.kv_slots import KvPool
from treespec.targets.memory import DeviceMemory, HostMemory

CACHE = [
    CacheInput("cache_keys_0", "present_keys_0", heads=2, width=3),
    CacheInput("cache_values_0", "present_values_0", heads=1, width=5),
]


@pytest.fixture(params=["numpy", "torch"])
def memory(request):
    return HostMemory() if request.param == "numpy" else DeviceMemory("cpu")


class Reference:
    """A pool, and beside it what every sequence must hold."""

    def __init__(self, memory, rng, rows=None):
        self.memory, self.rng = memory, rng
        self.pool = KvPool(CACHE, "float32", memory, rows)
        self.rows = {}

    def open(self):
        sequence = self.pool.open(10_000 if self.pool._fixed is None else self.pool._fixed)
        self.rows[sequence] = [np.empty((one.heads, 0, one.width)) for one in CACHE]
        return sequence

    def write(self, sequences, count):
        """New pending rows in each of the sequences, as a forward writes them."""
        first = self.pool.place(sequences, max(one.used for one in sequences) + count)
        places = sorted(one.place for one in sequences)
        assert places == list(range(first, first + len(sequences)))
        slices = self.pool.slices(first, len(sequences))
        for sequence in sequences:
            new = [self.rng.standard_normal((one.heads, count, one.width)) for one in CACHE]
            start = sequence.used
            for buffer, states in zip(slices, new, strict=True):
                rows = self.memory.take(states, "float32")
                buffer[sequence.place - first, :, start : start + count] = rows
            sequence.pending += count
            old = self.rows[sequence]
            self.rows[sequence] = [np.concatenate(p, axis=1) for p in zip(old, new, strict=True)]

    def commit(self, sequence):
        nodes = np.flatnonzero(self.rng.random(sequence.pending) < 0.5)
        kept = np.concatenate([np.arange(sequence.length), sequence.length + nodes])
        self.rows[sequence] = [rows[:, kept] for rows in self.rows[sequence]]
        sequence.commit(nodes)

    def truncate(self, sequence):
        length = int(self.rng.integers(sequence.length + 1))
        self.rows[sequence] = [rows[:, :length] for rows in self.rows[sequence]]
        sequence.truncate(length)

    def release(self, sequence):
        sequence.release()
        del self.rows[sequence]

    def check(self):
        places = [one.place for one in self.rows if one.place is not None]
        assert len(set(places)) == len(places)
        for sequence, expected in self.rows.items():
            if sequence.place is None:
                continue
            for buffer, rows in zip(self.pool.buffers, expected, strict=True):
                own = self.memory.to_host(buffer[sequence.place, :, : sequence.used])
                np.testing.assert_array_equal(own, rows.astype(np.float32))


@pytest.mark.parametrize("rows", [None, 200])
def test_every_sequence_keeps_its_rows_through_random_histories(memory, rng, monkeypatch, rows):
    monkeypatch.setattr(kv_slots, "BLOCK_ROWS", 8)
    pools = Reference(memory, rng, rows)
    for _ in range(400):
        open_ones = list(pools.rows)
        action = rng.integers(6)
        if not open_ones or (action == 0 and len(open_ones) < 6):
            pools.open()
        elif action <= 2:
            chosen = [one for one in open_ones if rng.random() < 0.6 and one.used < 150]
            if chosen:
                pools.write(chosen, int(rng.integers(1, 9)))
        else:
            one = open_ones[rng.integers(len(open_ones))]
            [pools.commit, pools.truncate, pools.release][action - 3](one)
        pools.check()
    for one in list(pools.rows):
        pools.release(one)
    assert not pools.pool.buffers


def test_new_sequences_are_placed_in_the_order_given(memory):
    pool = KvPool(CACHE, "float32", memory)
    sequences = [pool.open(64) for _ in range(4)]
    order = [sequences[at] for at in (2, 0, 3, 1)]
    assert pool.place(order, 10) == 0
    assert [one.place for one in order] == [0, 1, 2, 3]
    assert pool.place(order[1:3], 10) == 1  # neighbours stay where they are


def test_buffers_are_bound_once_as_long_as_they_stay(memory):
    pool = KvPool(CACHE, "float32", memory)
    sequence = pool.open(10_000)
    pool.place([sequence], 100)
    same = pool.slices(0, 1)
    pool.place([sequence], kv_slots.BLOCK_ROWS)
    assert pool.slices(0, 1) is same
    pool.place([sequence], kv_slots.BLOCK_ROWS + 1)
    assert pool.slices(0, 1) is not same
    assert pool.rows == 2 * kv_slots.BLOCK_ROWS


@pytest.mark.parametrize(
    ("nodes", "message"),
    [([0, 3], r"ascend within \[0, 3\), got \[0, 3\]"), ([1, 0], "got"), ([-1], "got")],
)
def test_a_commit_of_other_rows_changes_nothing(memory, nodes, message):
    pool = KvPool(CACHE, "float32", memory)
    sequence = pool.open(10)
    pool.place([sequence], 3)
    sequence.pending = 3
    with pytest.raises(ValueError, match=message):
        sequence.commit(np.array(nodes))
    assert (sequence.length, sequence.pending) == (0, 3)


def test_capacities_are_checked(memory):
    with pytest.raises(ValueError, match="capacity must be at least 1, got 0"):
        KvPool(CACHE, "float32", memory).open(0)
    with pytest.raises(ValueError, match=r"capacity must be at most 8, .* got 9"):
        KvPool(CACHE, "float32", memory, rows=8).open(9)


def test_a_pool_forgets_what_its_sequences_had(memory):
    pool = KvPool(CACHE, "float32", memory)
    one, other = pool.open(8), pool.open(8)
    pool.place([one, other], 8)
    one.release()
    assert pool.buffers
    other.release()
    assert not pool.buffers
    assert pool.rows == 0
