# SPDX-License-Identifier: Apache-2.0
"""Where a text parts from plain decoding's: at a near-tie, or by mistake."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import takewhile

import numpy as np
import numpy.typing as npt

from treespec import _core
from treespec.config import SamplingParams
from treespec.decoder import SpeculativeDecoder
from treespec.generation import pack_bits
from treespec.ops import verify_logits
from treespec.targets.base import Needs, in_host_memory

# Nats by which the logits of a forward over many rows may differ from those over one, generously:
# a few units of the last place of logits around 20, after tens of layers.
_ROUNDING = {"float64": 1e-9, "float32": 1e-3, "float16": 0.05, "bfloat16": 0.4}


def common_length(one: Sequence[int], other: Sequence[int]) -> int:
    """Tokens before two texts part."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False)))


def is_near_tie(
    decoder: SpeculativeDecoder,
    prompt: npt.NDArray[np.int32],
    common: Sequence[int],
    choices: tuple[int, int],
    params: SamplingParams,
) -> bool:
    """Whether rounding alone may decide between two tokens.

    Parameters
    ----------
    decoder
        Whose target is asked.
    prompt, common
        The text so far: ``[L]`` int32 prompt ids, and new tokens.
    choices
        What two ways of decoding took next.
    params
        Under which they were drawn; the draw itself is plain decoding's.

    Returns
    -------
    bool
        True if plain decoding takes either token when its logit alone is raised by what rounding
        may do.
    """
    text = np.concatenate([prompt, np.asarray(common, dtype=np.int32)])
    row, rounding = _last_row(decoder, text)
    return all(
        _draw(_raised(row, token, rounding), text, len(prompt), params) == token
        for token in choices
    )


def _last_row(
    decoder: SpeculativeDecoder, text: npt.NDArray[np.int32]
) -> tuple[npt.NDArray[np.float64], float]:
    target = decoder.target
    state = target.open(len(text))
    try:
        logits, _ = target.prefill([state], [text], Needs())
        row = in_host_memory(logits[0])
        dtype = str(row.dtype).removeprefix("torch.")
        numbers = row if isinstance(row, np.ndarray) else row.double().numpy()
        return numbers.astype(np.float64), _ROUNDING[dtype]
    finally:
        target.close(state)


def _raised(row: npt.NDArray[np.float64], token: int, by: float) -> npt.NDArray[np.float64]:
    raised = row.copy()
    raised[token] += by
    return raised


def _draw(
    row: npt.NDArray[np.float64],
    text: npt.NDArray[np.int32],
    prompt_length: int,
    params: SamplingParams,
) -> int:
    """The token of plain decoding after a text."""
    rule = params.allowed_tokens
    verdict = verify_logits(
        _core.root_tree(int(text[-1])),
        row[None],
        sampling=params,
        prefix_ids=text,
        prompt_length=prompt_length,
        allowed_tokens=None if rule is None else pack_bits(rule(text))[None],
        position=len(text) - 1,
    )
    return int(verdict.next_token)
