# SPDX-License-Identifier: Apache-2.0
"""Nodes as a builder hands them to an expander, for tests of drafters that have one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from tiny_models import VOCAB_SIZE

from treespec.drafts.expander import TreeExpander

# Two levels below the root, then nodes of mixed depth, as a best-first builder hands them over.
CALLS = [[0], [1, 2, 3], [4, 5], [6], [7, 8]]
PARENT = np.array([-1, 0, 0, 0, 1, 3, 4, 6, 2], dtype=np.int32)


@dataclass
class Nodes:
    """A `NodeBatch`."""

    token: npt.NDArray[np.int32]
    parent: npt.NDArray[np.int32]
    depth: npt.NDArray[np.int32]
    index: npt.NDArray[np.int32]

    def __len__(self) -> int:
        return len(self.token)


def tokens(count: int, seed: int = 0, high: int = VOCAB_SIZE) -> npt.NDArray[np.int32]:
    return np.random.default_rng(seed).integers(3, high, count, dtype=np.int32)


def path_to(node: int) -> list[int]:
    return [] if node < 0 else [*path_to(int(PARENT[node])), node]


def batch(index: Sequence[int], ids: npt.NDArray[np.int32]) -> Nodes:
    chosen = np.array(index, dtype=np.int32)
    depth = np.array([len(path_to(i)) - 1 for i in index], dtype=np.int32)
    return Nodes(ids[chosen], PARENT[chosen], depth, chosen)


def expand_all(expander: TreeExpander, ids: npt.NDArray[np.int32]) -> torch.Tensor:
    return torch.cat([expander.expand(batch(call, ids)) for call in CALLS])
