# SPDX-License-Identifier: Apache-2.0
"""What "the target's distribution" means: logits to weights, and drawing from weights."""

from __future__ import annotations

from collections.abc import Sequence
from math import fsum
from typing import Any

import numpy as np
import numpy.typing as npt

from treespec.reference.rng import Purpose, RoundKey, race_keys

Row = npt.NDArray[np.float64]

BLOCK = 4096  # tokens whose weights are summed together
LANES = 256  # lane of a token: its id mod 256


def fixed_sum(values: Any, bits: int = 60) -> int:
    """Order-free mass: sum of ``floor(value * 2^bits)`` as an integer."""
    return sum(int(v) for v in np.floor(np.asarray(values, dtype=np.float64) * 2.0**bits))


def inverse_cdf(values: Any, u: float) -> int:
    """Smallest index whose cumulative fixed-point weight exceeds ``u * total``; u has 53 bits."""
    weights = [int(v) for v in np.floor(np.asarray(values, dtype=np.float64) * 2.0**60)]
    total = sum(weights)
    if total == 0:
        raise ValueError("inverse_cdf: values must have positive mass")
    threshold = int(u * 2.0**53) * total >> 53
    running = 0
    for index, weight in enumerate(weights):
        running += weight
        if running > threshold:
            return index
    raise AssertionError("u < 1, so the last positive weight exceeds u * total")


def normalise(weights: Any) -> Row:
    """A row divided by its exact mass, float64.

    The core divides by fixed-point masses; the two differ by less than V * 2^-60 of the mass.
    """
    row = np.asarray(weights, dtype=np.float64)
    if not np.all(np.isfinite(row)) or np.any(row < 0):
        raise ValueError("normalise: weights must be finite and >= 0")
    total = fsum(row)
    if total == 0:
        raise ValueError("normalise: some weight must be positive")
    return row / total


def draft_law(logprob: Any) -> npt.NDArray[np.float32]:
    """The law that sampled children are drawn from, ``[K]`` float32; 0 where logprob is -inf.

    ``float32(e / S)``, e = exp(logprob - max) in float64, S = its fixed-point sum at 2^44. All 0
    when nothing is possible.
    """
    row = np.asarray(logprob, dtype=np.float64)
    if len(row) == 0 or np.max(row) == -np.inf:
        return np.zeros(len(row), dtype=np.float32)
    e = np.exp(row - np.max(row))
    return (e / (fixed_sum(e, bits=44) * 2.0**-44)).astype(np.float32)


def sample_at_position(weights: Any, seed: int, sequence_id: int, position: int) -> int:
    """Winner of a race in three heats, keyed by (seed, sequence, position, token); ties: lowest id.

    Blocks of 4096 tokens race with their masses, draw index 2^23 + block; then the 256 lanes of
    that block (token mod 256), draw index 2^22 + lane; then the tokens of that lane, draw index
    token. So a draw takes a few hundred numbers, not one for every token.
    """
    row = np.asarray(weights, dtype=np.float64)
    if not np.any(row > 0):
        raise ValueError("sample_at_position: some weight must be positive")
    key = RoundKey(seed, sequence_id, position)
    starts = np.arange(0, len(row), BLOCK)
    masses = np.array([fsum(row[start : start + BLOCK]) for start in starts])
    first = BLOCK * _winner(key, 2**23 + np.arange(len(masses)), masses)
    block = row[first : first + BLOCK]
    lane = _winner(key, 2**22 + np.arange(LANES), [fsum(block[i::LANES]) for i in range(LANES)])
    tokens = np.arange(first + lane, first + len(block), LANES)
    return int(tokens[_winner(key, tokens, row[tokens])])


def _winner(key: RoundKey, draw_indices: Any, weights: Any) -> int:
    mass = np.asarray(weights, dtype=np.float64)
    return int(np.argmin(race_keys(key, Purpose.POSITION, 0, draw_indices, mass)))


def process_logits(
    logits: Any,
    *,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
    repetition_penalty: float = 1.0,
    presence_penalty: float = 0.0,
    frequency_penalty: float = 0.0,
    logit_bias: dict[int, float] | None = None,
    history: Sequence[int] = (),
    prompt_length: int = 0,
    path: Sequence[int] = (),
    allowed: Sequence[bool] | None = None,
) -> Row:
    """Logits ``[V]`` to weights ``exp(score - max)``, ``[V]`` float64, 0 off the support.

    Order: logit_bias, repetition, presence and frequency penalty, allowed tokens, temperature,
    top-k (all ties of the k-th value stay), top-p (order: score down, token id up), min-p. float32
    logits are processed in float32, like Hugging Face's processors; float64 in float64.
    """
    scores = np.array(logits)
    if scores.dtype != np.float64:
        scores = scores.astype(np.float32)
    real: Any = scores.dtype.type
    if np.any(np.isnan(scores)) or np.any(scores == np.inf):
        raise ValueError("process_logits: logits must not be NaN or +inf")
    for token, bias in (logit_bias or {}).items():
        scores[token] += real(bias)
    everything = [*history, *path]
    for token in set(everything):
        penalty = real(repetition_penalty)
        scores[token] = scores[token] * penalty if scores[token] < 0 else scores[token] / penalty
    output = [*history[prompt_length:], *path]
    for token in set(output):
        scores[token] -= real(frequency_penalty) * real(output.count(token))
        scores[token] -= real(presence_penalty)
    if allowed is not None:
        scores[~np.asarray(allowed, dtype=np.bool_)] = -np.inf
    if not np.any(scores > -np.inf):
        raise ValueError("process_logits: some token must be possible")
    if temperature == 0:
        weights = np.zeros(len(scores))
        weights[int(np.argmax(scores))] = 1.0
        return weights
    scores = scores / real(temperature)
    if top_k > 0:
        kth = np.sort(scores)[::-1][min(top_k, len(scores)) - 1]
        scores[scores < kth] = -np.inf
    if top_p < 1.0:
        law = _softmax(scores)
        order = np.argsort(-scores, kind="stable")
        before = np.cumsum(law[order]) - law[order]
        scores[order[before >= top_p]] = -np.inf
    if min_p > 0.0:
        law = _softmax(scores)
        scores[law < min_p * np.max(law)] = -np.inf
    wide = scores.astype(np.float64)
    return np.asarray(np.exp(wide - np.max(wide)), dtype=np.float64)


def _softmax(scores: Any) -> Row:
    wide = np.asarray(scores, dtype=np.float64)
    e = np.exp(wide - np.max(wide))
    return np.asarray(e / np.sum(e), dtype=np.float64)
