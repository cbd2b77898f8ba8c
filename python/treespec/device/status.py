# SPDX-License-Identifier: Apache-2.0
"""The status word: what kernels find wrong with their data."""

from __future__ import annotations

from typing import Any

import torch

EMPTY_ROW = 2

_STATUS_TEXTS = {
    1: "NaN where a score or probability was read",
    EMPTY_ROW: "a row without a token that may be drawn",
    4: "num_nodes, parents, depths, draws or a path break the rules of a tree",
    8: "a row, page or capacity beyond the envelope",
}


def new_status(batch: int, device: Any = "cuda") -> torch.Tensor:
    """``[B]`` status words, all in order."""
    return torch.zeros(batch, dtype=torch.int32, device=device)


def check_status(status: Any) -> None:
    """Wait for the device, and raise for what it found in its data.

    Parameters
    ----------
    status
        ``[B]``, or its copy on the host.

    Raises
    ------
    ValueError
        With the first sequence that is not in order, and why.
    """
    for sequence, word in enumerate(status.tolist()):
        if word:
            reasons = [text for bit, text in _STATUS_TEXTS.items() if word & bit]
            text = "; ".join(reasons) or f"unknown status {word}"
            raise ValueError(f"status: sequence {sequence} of the batch: {text}")
