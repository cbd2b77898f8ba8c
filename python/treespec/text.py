# SPDX-License-Identifier: Apache-2.0
"""Text in and out: tokenizers, pieces of a stream, stop strings."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from treespec.export.manifest import is_exported

_REPLACEMENT = "\ufffd"  # what a decoder shows for half a character


def load_tokenizer(path: str) -> Any:
    """The tokenizer of a model, or None when its folder has none."""
    if is_exported(path):
        exported = ExportedTokenizer.open(path)
        if exported is not None:
            return exported
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(path)
    except (OSError, ValueError, KeyError):
        return None


class ExportedTokenizer:
    """What treespec asks of a tokenizer, by the `tokenizers` library alone: importing transformers
    takes seconds, and PyTorch.

    A `tokenizer.json` that transformers has saved says everything, special tokens before a text
    included.

    Parameters
    ----------
    folder
        Holds `tokenizer.json` and `tokenizer_config.json`.
    """

    def __init__(self, folder: Path) -> None:
        from tokenizers import Tokenizer

        self._folder = folder
        self._tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self._tokenizer.no_truncation()  # as transformers does unless asked for
        self._tokenizer.no_padding()
        self._config = _read_config(folder)

    @staticmethod
    def open(folder: str) -> ExportedTokenizer | None:
        """None for a folder that only transformers can read: of a slow tokenizer, or one whose
        texts it cleans up.
        """
        path = Path(folder)
        if not (path / "tokenizer.json").is_file():
            return None
        own = ExportedTokenizer(path)
        is_bpe = type(own._tokenizer.model).__name__ == "BPE"  # its texts are never cleaned up
        return own if is_bpe or not own._config.get("clean_up_tokenization_spaces") else None

    def __call__(self, text: str) -> dict[str, list[int]]:
        """Token ids of a text, after what the tokenizer puts before it."""
        return {"input_ids": self._tokenizer.encode(text).ids}

    def __len__(self) -> int:
        return int(self._tokenizer.get_vocab_size())

    def decode(self, token_ids: Sequence[int], skip_special_tokens: bool = False) -> str:
        """Text of token ids."""
        text: str = self._tokenizer.decode(list(token_ids), skip_special_tokens=skip_special_tokens)
        return text

    def get_vocab(self) -> dict[str, int]:
        """Token to id."""
        vocab: dict[str, int] = self._tokenizer.get_vocab()
        return vocab

    def convert_ids_to_tokens(self, token: int) -> str | None:
        """The token of an id, or None."""
        name: str | None = self._tokenizer.id_to_token(token)
        return name

    @property
    def chat_template(self) -> bool:
        """Whether there is one."""
        return (self._folder / "chat_template.jinja").is_file() or bool(
            self._config.get("chat_template")
        )

    def apply_chat_template(self, messages: Sequence[dict[str, str]], **options: Any) -> Any:
        """As transformers does it, which is imported for this."""
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(self._folder).apply_chat_template(messages, **options)


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / "tokenizer_config.json"
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else {}


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
