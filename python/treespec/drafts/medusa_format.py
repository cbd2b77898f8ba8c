# SPDX-License-Identifier: Apache-2.0
"""Published checkpoints of Medusa heads, and our own, which look the same.

A folder has `config.json` with `medusa_num_heads` and `medusa_num_layers`, and weights
``{head}.{block}.linear.{weight, bias}`` and ``{head}.{num_layers}.weight``. Sizes are those of the
weights.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from os import PathLike

import torch

from treespec.drafts import DrafterContext
from treespec.drafts.checkpoint import Checkpoint, load_weights, save_checkpoint
from treespec.drafts.medusa import MedusaDrafter, MedusaHeads
from treespec.drafts.vocabulary import TokenModules

_PREFIX = "medusa_head."


def recognises(checkpoint: Checkpoint) -> bool:
    """Whether a folder holds Medusa heads, by its config."""
    return "medusa_num_heads" in checkpoint.config


def load(
    checkpoint: Checkpoint, context: DrafterContext, *, width: int | None = None
) -> MedusaDrafter:
    """The heads of a checkpoint, for the target they were trained on.

    Heads without output matrices use the target's. A checkpoint of the whole model is read for its
    heads alone.

    Parameters
    ----------
    width
        As `MedusaDrafter`.

    Raises
    ------
    ValueError
        If config, weights and target do not fit together.
    """
    name = f"Medusa checkpoint {checkpoint.folder.name}"
    tensors = _head_tensors(checkpoint.tensors)
    tokens = TokenModules.of_target(context.target)
    heads = _sized_heads(checkpoint, tensors, tokens, name)
    load_weights(heads, tensors, what=name)
    place = {"device": tokens.head.weight.device, "dtype": tokens.head.weight.dtype}
    return MedusaDrafter(heads.to(**place).eval(), tokens, width=width)


def save(
    folder: str | PathLike[str], heads: MedusaHeads, tensors: Mapping[str, torch.Tensor]
) -> None:
    """Write heads whose weights are `tensors`.

    `medusa_shared_head` tells other readers that the target's output matrix belongs to each head.
    """
    config = {
        "medusa_num_heads": len(heads),
        "medusa_num_layers": heads.num_layers,
        "medusa_shared_head": heads.shared,
    }
    save_checkpoint(folder, config, tensors)


def _head_tensors(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    own = {k.removeprefix(_PREFIX): t for k, t in tensors.items() if k.startswith(_PREFIX)}
    return own or dict(tensors)


def _sized_heads(
    checkpoint: Checkpoint, tensors: Mapping[str, torch.Tensor], tokens: TokenModules, name: str
) -> MedusaHeads:
    """Heads of the sizes that the weights have, when those are the target's."""
    declared = int(checkpoint.config["medusa_num_heads"])
    num_layers = int(checkpoint.get("medusa_num_layers", default=1))
    numbers = [int(match[1]) for match in map(re.compile(r"(\d+)\.").match, tensors) if match]
    # Early configs name fewer heads than the file holds.
    num_heads = 1 + max(numbers, default=-1)
    if declared < 1 or num_heads < declared:
        raise ValueError(
            f"{name}: weights must have medusa_num_heads = {declared} heads, at least 1, "
            f"got {num_heads}"
        )
    vocab_size, hidden_size = tokens.head.weight.shape
    for what, key, wanted in (
        ("hidden size", "0.0.linear.weight", hidden_size),
        ("vocabulary", f"0.{num_layers}.weight", vocab_size),
    ):
        if key in tensors and tensors[key].shape[0] != wanted:
            raise ValueError(
                f"{name}: {key} must have the target's {what}, {wanted} rows, "
                f"got {tensors[key].shape[0]}"
            )
    shared = not any(re.fullmatch(rf"\d+\.{num_layers}\.weight", key) for key in tensors)
    return MedusaHeads(num_heads, num_layers, hidden_size, None if shared else vocab_size)
