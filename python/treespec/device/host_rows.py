# SPDX-License-Identifier: Apache-2.0
"""Ranked rows for builders on the host: few numbers leave the device, not a vocabulary."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from treespec import placement
from treespec.device.candidates import (
    MOST_CANDIDATES,
    MOST_TOKENS,
    ROW_DTYPES,
    CandidateLists,
    rank_candidates,
)
from treespec.device.status import EMPTY_ROW, check_status, new_status

Lists = tuple[npt.NDArray[np.int32], npt.NDArray[np.float32]]


def takes(logits: torch.Tensor, width: int) -> bool:
    """Whether `rank` does."""
    known = logits.dtype in ROW_DTYPES and logits.shape[1] <= MOST_TOKENS
    return known and width <= MOST_CANDIDATES


def rank(logits: torch.Tensor, width: int, temperature: float) -> Lists:
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
        lists, status = _rank(logits, width, temperature)
        token, logprob, status = _on_host(lists.token, lists.logprob, status)
    check_status(status)
    return token, logprob


def rank_logits(logits: Any, width: int, temperature: float) -> Lists:
    """`rank` for an array of any library; lists of V at most.

    Raises
    ------
    NotImplementedError
        For what a GPU does not rank.
    """
    who = "Marginals.from_logits"
    placement.require_cuda_build(who, "logits")
    rows = placement.as_tensor(logits)
    if rows.dim() != 2:
        raise ValueError(f"{who}: logits must be [D, V], got {list(rows.shape)}")
    if width < 1:
        raise ValueError(f"{who}: width must be >= 1, got {width}")
    width = min(width, rows.shape[1])
    if not takes(rows, width):
        raise NotImplementedError(
            f"{who}: in CUDA memory logits must be float32, bfloat16 or float16 with at most "
            f"{MOST_TOKENS} tokens and width at most {MOST_CANDIDATES}, got {rows.dtype}, "
            f"{rows.shape[1]} and {width}"
        )
    return rank(rows, width, temperature)


def rank_scores(rows: torch.Tensor, width: int) -> Lists:
    """The likeliest tokens of rows that are log-probabilities already; waits once.

    Parameters
    ----------
    rows
        ``[n, V]`` float32; a row may have no possible token.
    width
        K, at most V.

    Returns
    -------
    token, logprob
        ``[n, K]`` in host memory: logprob are entries of the rows and fall, equal ones by ascending
        token; -inf pads.

    Raises
    ------
    ValueError
        For NaN.
    """
    with torch.cuda.device_of(rows):
        lists, status = _rank(rows, width, 1.0)
        own = rows.gather(1, lists.token[0].long())
        score = own.where(lists.logprob[0] > -torch.inf, -torch.inf)
        token, logprob, status = _on_host(lists.token, score, status)
    check_status(status & ~EMPTY_ROW)
    order = np.lexsort((token, -logprob))  # the softmax that ranked them may have rounded to ties
    return np.take_along_axis(token, order, 1), np.take_along_axis(logprob, order, 1)


def _rank(
    logits: torch.Tensor, width: int, temperature: float
) -> tuple[CandidateLists, torch.Tensor]:
    """``[1, n, K]``, and the status."""
    status = new_status(1, logits.device)
    return rank_candidates(logits.contiguous()[None], width, temperature, status=status), status


def _on_host(
    token: torch.Tensor, logprob: torch.Tensor, status: torch.Tensor
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.float32], npt.NDArray[np.int32]]:
    """Lists ``[n, K]`` and the status, by one copy."""
    words = [token.flatten(), logprob.view(torch.int32).flatten(), status]
    numbers = torch.cat(words).cpu().numpy()
    own_token, own_logprob = numbers[:-1].reshape(2, -1, token.shape[-1])
    return own_token, own_logprob.view(np.float32), numbers[-1:]
