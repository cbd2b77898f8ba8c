# SPDX-License-Identifier: Apache-2.0
"""Text in and out: tokenizers, pieces of a stream, stop strings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

_REPLACEMENT = "\ufffd"  # what a decoder shows for half a character


def load_tokenizer(path: str) -> Any:
    """The tokenizer of a model, or None when its folder has none."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(path)
    except (OSError, ValueError, KeyError):
        return None


def encode(tokenizer: Any, prompt: Any) -> npt.NDArray[np.int32]:
    """Token ids of a prompt: text, or ids as a list or array.

    Raises
    ------
    ValueError
        For an empty prompt, or text without a tokenizer.
    """
    if isinstance(prompt, str):
        if tokenizer is None:
            raise ValueError(
                "generate: prompt must be token ids, the target has no tokenizer; pass tokenizer="
            )
        prompt = tokenizer(prompt)["input_ids"]
    ids = np.asarray(prompt)
    if ids.ndim != 1 or (ids.size and ids.dtype.kind not in "iu"):
        raise ValueError(f"generate: prompt must be text or a list of token ids, got {prompt!r}")
    if not ids.size:
        raise ValueError("generate: prompt must have at least one token, got none")
    if ids.min() < 0 or ids.max() >= 2**31:
        raise ValueError(
            f"generate: prompt ids must be in [0, 2**31), got {ids.min()} to {ids.max()}"
        )
    return ids.astype(np.int32)


def decode(tokenizer: Any, token_ids: Sequence[int]) -> str:
    """Text of token ids, special tokens left out."""
    return str(tokenizer.decode(token_ids, skip_special_tokens=True))


class TextStream:
    """Turns tokens into text as they come; never shows half a character or half a stop string.

    Decodes a short window again, since tokenizers may join tokens (spaces, multi-byte characters)
    only in context: for every token when there are stop strings, else when text is asked for.
    """

    def __init__(self, tokenizer: Any, stop: Sequence[str]) -> None:
        self._tokenizer = tokenizer
        self._stop = stop
        self._ids: list[int] = []
        self._window = 0  # first token decoded again
        self._read = 0  # tokens whose text is in `text`
        self.text = ""
        self._taken = 0  # characters handed out

    def push(self, token: int) -> bool:
        """Add a token; True when a stop string is complete, which ends and cuts the text."""
        self._ids.append(token)
        return bool(self._stop) and self._read_on()

    def take(self) -> str:
        """New text that no stop string can take back."""
        if not self._stop:
            self._read_on()
        held = max((_overlap(self.text, stop) for stop in self._stop), default=0)
        return self._hand_out(len(self.text) - held)

    def finish(self) -> str:
        """The rest, half characters included."""
        if self._read < len(self._ids):
            old = decode(self._tokenizer, self._ids[self._window : self._read])
            self.text += decode(self._tokenizer, self._ids[self._window :])[len(old) :]
            self._window = self._read = len(self._ids)
        return self._hand_out(len(self.text))

    def _read_on(self) -> bool:
        """Add the text of the tokens not read yet, unless it ends in half a character."""
        old = decode(self._tokenizer, self._ids[self._window : self._read])
        new = decode(self._tokenizer, self._ids[self._window :])
        if len(new) <= len(old) or new.endswith(_REPLACEMENT):
            return False
        searched = len(self.text)
        self.text += new[len(old) :]
        self._window, self._read = self._read, len(self._ids)
        return self._cut(searched)

    def _hand_out(self, end: int) -> str:
        piece = self.text[self._taken : end]
        self._taken = max(self._taken, end)
        return piece

    def _cut(self, searched: int) -> bool:
        """Cut at the first stop string that ends in the text after `searched`."""
        found = [
            at
            for stop in self._stop
            if (at := self.text.find(stop, max(0, searched - len(stop) + 1))) >= 0
        ]
        if found:
            self.text = self.text[: min(found)]
            self._read = len(self._ids)
        return bool(found)


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that is a proper start of `stop`."""
    return next((n for n in range(len(stop) - 1, 0, -1) if text.endswith(stop[:n])), 0)
