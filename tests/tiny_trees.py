# SPDX-License-Identifier: Apache-2.0
"""Tokens and trees for the models of `tiny_models`."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from tiny_models import VOCAB_SIZE

from treespec.targets.base import TreeRows

PARENT = np.array([-1, 0, 0, 1, 1, 2, 4, 4, 6, 8, 9], dtype=np.int32)


def tokens(count: int, seed: int = 0) -> npt.NDArray[np.int32]:
    return np.random.default_rng(seed).integers(3, VOCAB_SIZE, count, dtype=np.int32)


def tree_rows(seed: int = 1, parent: npt.NDArray[np.int32] = PARENT) -> TreeRows:
    depth = np.zeros(len(parent), dtype=np.int32)
    for node in range(1, len(parent)):
        depth[node] = depth[parent[node]] + 1
    return TreeRows(tokens(len(parent), seed), parent, depth)
