# SPDX-License-Identifier: Apache-2.0
"""Ranked rows for builders on the host: few numbers leave the device, not a vocabulary."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

from treespec.device.candidates import MOST_CANDIDATES, MOST_TOKENS, ROW_DTYPES, rank_candidates
from treespec.device.status import check_status, new_status


def takes(logits: torch.Tensor, width: int) -> bool:
    """Whether `rank` does."""
    known = logits.dtype in ROW_DTYPES and logits.shape[1] <= MOST_TOKENS
    return known and width <= MOST_CANDIDATES


def rank(
    logits: torch.Tensor, width: int, temperature: float
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.float32]]:
    """The lists of `treespec.Marginals.from_logits`, bit for bit; waits once.

    Parameters
    ----------
    logits
        ``[n, V]``.
    width
        K, at most V.
    temperature
        Of the softmax.

    Returns
    -------
    token, logprob
        ``[n, K]`` in host memory.

    Raises
    ------
    ValueError
        For NaN.
    """
    with torch.cuda.device_of(logits):  # kernels are launched on the current device
        status = new_status(1, logits.device)
        lists = rank_candidates(logits.contiguous()[None], width, temperature, status=status)
        words = [lists.token.flatten(), lists.logprob.view(torch.int32).flatten(), status]
        numbers = torch.cat(words).cpu().numpy()
    check_status(numbers[-1:])
    token, logprob = numbers[:-1].reshape(2, len(logits), width)
    return token, logprob.view(np.float32)
