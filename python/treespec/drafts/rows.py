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
