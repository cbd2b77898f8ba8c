# SPDX-License-Identifier: Apache-2.0
"""The law of a drafter without torch: what `candidates` says of tensors, of NumPy rows."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from treespec.drafts.base import DraftSettings

Float32Array = npt.NDArray[np.float32]


def draft_log_probs(
    logits: npt.NDArray[np.floating[Any]], vocab_size: int, settings: DraftSettings
) -> Float32Array:
    """Log-probabilities in the target's vocabulary after temperature, top-k and top-p.

    Parameters
    ----------
    logits
        ``[n, V_draft]``, not changed.
    vocab_size
        V. Surplus columns are cut before the softmax; missing ones become -inf.

    Returns
    -------
    numpy.ndarray
        ``[n, V]`` float32.
    """
    known = min(vocab_size, logits.shape[1])
    rows = np.full((len(logits), vocab_size), -np.inf, np.float32)
    scores = rows[:, :known]
    np.divide(logits[:, :known], np.float32(settings.temperature), out=scores)
    if 0 < settings.top_k < known:
        smallest = np.partition(scores, known - settings.top_k, axis=1)[:, known - settings.top_k]
        scores[scores < smallest[:, None]] = -np.inf
    _normalise(scores)
    if settings.top_p < 1:
        scores[_beyond_top_p(scores, settings.top_p)] = -np.inf
        _normalise(scores)
    return rows


def _normalise(scores: Float32Array) -> None:
    """Subtract from each row the logarithm of its mass."""
    scores -= scores.max(axis=1, keepdims=True)
    scores -= np.log(np.exp(scores).sum(axis=1, keepdims=True))


def _beyond_top_p(logprob: Float32Array, top_p: float) -> npt.NDArray[np.bool_]:
    """Hugging Face's rule: drop, from the bottom, tokens whose cumulated mass is at most 1 -
    top_p.
    """
    order = logprob.argsort(axis=1, kind="stable")
    ascending = np.exp(np.take_along_axis(logprob, order, axis=1))
    dropped = ascending.cumsum(axis=1) <= 1 - top_p
    dropped[:, -1] = False
    out = np.empty_like(dropped)
    np.put_along_axis(out, order, dropped, axis=1)
    return out


def truncated(logprob: Float32Array, settings: DraftSettings) -> Float32Array:
    """Ranked lists after top-k and top-p; what is dropped becomes -inf.

    A list that keeps its last token says nothing of the mass beyond it, and stays as it is.

    Parameters
    ----------
    logprob
        ``[n, K]`` falling, of the whole vocabulary's law.
    """
    if 0 < settings.top_k < logprob.shape[1]:
        last = logprob[:, settings.top_k - 1 : settings.top_k]
        logprob = _without(logprob, logprob < last)
    if settings.top_p < 1:
        mass = np.exp(logprob.astype(np.float64))
        logprob = _without(logprob, mass.cumsum(axis=1) - mass >= settings.top_p)
    return logprob


def _without(logprob: Float32Array, dropped: npt.NDArray[np.bool_]) -> Float32Array:
    """The lists less `dropped`; those that lose their end are the whole law, so they sum to 1."""
    kept = np.where(dropped, -np.inf, logprob)
    total = np.log(np.exp(kept.astype(np.float64)).sum(axis=1, keepdims=True))
    out: Float32Array = np.minimum(kept - np.where(dropped[:, -1:], total, 0), 0).astype(np.float32)
    return out


def in_total_order(
    token: npt.NDArray[np.int32], logprob: Float32Array
) -> tuple[npt.NDArray[np.int32], Float32Array]:
    """Ranked lists ``[n, K]`` with equal scores by ascending token."""
    tied = logprob[:, 1:] == logprob[:, :-1]
    if not (tied & (token[:, 1:] < token[:, :-1])).any():
        return token, logprob
    order = np.lexsort((token, -logprob))
    return np.take_along_axis(token, order, axis=1), logprob
