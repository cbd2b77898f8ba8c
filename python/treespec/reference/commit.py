# SPDX-License-Identifier: Apache-2.0
"""Step 6 of a round: keep the KV rows of the accepted path."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def commit_kv(tensor: Any, base: int, nodes: Sequence[int]) -> Any:
    """A copy of ``tensor`` ``[..., rows, dim]`` with row ``base + nodes[d]`` at ``base + d``."""
    result = tensor.copy()
    for d, node in enumerate(nodes):
        result[..., base + d, :] = tensor[..., base + node, :]
    return result
