# SPDX-License-Identifier: Apache-2.0
"""What tests of the training share: a tokenizer of letters, a target in a folder, texts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from node_batches import tokens
from tiny_models import tiny_model
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from treespec.training.data import Sample

SPECIAL = ["<pad>", "<bos>", "<eos>"]
LETTERS = "\n abcdefghijklmnopqrstuvwxyz0123456789.,:;()[]=+-_'"
TEMPLATE = "{% for m in messages %}{{ m['role'][0] }}: {{ m['content'] }}\n{% endfor %}a: "


def letter_tokenizer() -> Any:
    """A token is a character; there is no mask token, and fewer tokens than the tiny models'."""
    vocabulary = {token: index for index, token in enumerate([*SPECIAL, *LETTERS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>"
    )


def target_folder(folder: Path, **overrides: Any) -> Path:
    """A tiny target with its tokenizer, as a user has one."""
    tiny_model("llama", num_hidden_layers=3, **overrides).save_pretrained(folder)
    letter_tokenizer().save_pretrained(folder)
    return folder


def samples(lengths: tuple[int, ...] = (24, 19, 30, 8, 24, 27), prompt: int = 5) -> list[Sample]:
    """Texts of several lengths, whatever is in them."""
    return [Sample(tokens(length, 70 + i), prompt) for i, length in enumerate(lengths)]


def text_of(ids: np.ndarray) -> str:
    """What a prompt says."""
    return str(letter_tokenizer().decode(ids))
