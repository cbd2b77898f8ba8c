# SPDX-License-Identifier: Apache-2.0
"""What a kind of drafter brings to the training loop: its module, its loss, its file format."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from os import PathLike
from typing import Any, Protocol

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers import LlamaConfig

from treespec.drafts.base import Drafter
from treespec.drafts.vocabulary import TokenModules
from treespec.targets.base import Needs
from treespec.targets.hf_model import max_context, text_config

# Rows of logits that are computed together: bounds memory where V is large.
ROWS_PER_CHUNK = 2048


@dataclass
class Batch:
    """Texts that the target has written, and what it said about them; no gradients.

    Attributes
    ----------
    tokens
        ``[B, S]`` int64.
    own
        ``[B, S]`` bool: the tokens that the target has written itself, and so the ones that losses
        are over. Prompts and the padding behind shorter texts are not.
    features
        ``[B, S, k * H]`` outputs of the layers of `Needs.layers`, or None.
    last_hidden
        ``[B, S, H]`` states after the final norm, from which the head gives the logits.
    """

    tokens: torch.Tensor
    own: torch.Tensor
    features: torch.Tensor | None
    last_hidden: torch.Tensor


class Trainee(Protocol):
    """A drafter under training. A kind is one file here and one row in `TRAINEES`.

    Attributes
    ----------
    module
        What is trained; parameters that are frozen have ``requires_grad`` False.
    needs
        The target's states that `loss` reads, besides `Batch.last_hidden`, which is always there.
    """

    module: nn.Module
    needs: Needs

    def loss(self, batch: Batch, generator: torch.Generator) -> torch.Tensor:
        """The mean loss of a batch, a scalar; draws (anchors) come from `generator` alone."""
        ...

    def drafter(self) -> Drafter:
        """The drafter as it stands, over the very parameters of `module`."""
        ...

    def save(self, folder: str | PathLike[str]) -> None:
        """Write it as `treespec.load` reads it, in the kind's published format, float16."""
        ...


def logits_of(tokens: TokenModules, states: torch.Tensor) -> torch.Tensor:
    """``[..., V]`` float32 of normed states, which the head takes in its own dtype."""
    return tokens.logits(states.to(tokens.head.weight.dtype)).float()


def target_law(tokens: TokenModules, last_hidden: torch.Tensor) -> torch.Tensor:
    """``[..., V]``: logarithms of what the target says with states ``[..., H]``; no gradients."""
    with torch.no_grad():
        return logits_of(tokens, last_hidden).log_softmax(-1)


def soft_cross_entropy(wanted: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
    """``[...]``: forward KL from laws ``[..., V]`` (logarithms) to logits ``[..., V]``, in nats.

    A token that the drafter cannot say is left out of the sum.
    """
    given = logits.float().log_softmax(-1)
    terms = wanted.exp() * (wanted - given)
    divergence: torch.Tensor = terms.masked_fill(given.isinf() | wanted.isinf(), 0.0).sum(-1)
    return divergence


def mean_loss(
    rows_loss: Callable[..., torch.Tensor], weight: torch.Tensor, *tensors: torch.Tensor
) -> torch.Tensor:
    """Weighted mean of a loss over rows, of which only some are computed at a time.

    Parameters
    ----------
    rows_loss
        Takes the i-th rows of all tensors, gives ``[rows]``.
    weight
        ``[...]``, at least one above 0 or the mean is 0. Rows of weight 0 are not computed.
    tensors
        ``[..., *]`` each, with the leading dimensions of `weight`.
    """
    kept = weight.flatten().nonzero()[:, 0]
    if not len(kept):
        return sum((tensor.sum() * 0.0 for tensor in tensors if tensor.requires_grad), weight.sum())
    flat = [tensor.flatten(0, weight.ndim - 1)[kept] for tensor in tensors]
    weights = weight.flatten()[kept]
    total = weights.new_zeros(())
    chunks = zip(*(part.split(ROWS_PER_CHUNK) for part in (weights, *flat)), strict=True)
    for own, *rows in chunks:
        # Logits are computed again for the gradient when there are too many to keep.
        keep = len(kept) <= ROWS_PER_CHUNK
        losses = rows_loss(*rows) if keep else checkpoint(rows_loss, *rows, use_reentrant=False)
        total = total + (own * losses).sum()
    return total / weights.sum()


def layer_shape(target: Any, num_layers: int) -> LlamaConfig:
    """Layers with the width, heads and rotation of a Hugging Face target, for a drafter's stack."""
    shape = text_config(target.model)
    heads = int(shape.num_attention_heads)
    rope = getattr(shape, "rope_parameters", None) or {}
    theta = rope.get("rope_theta", getattr(shape, "rope_theta", 10000.0))
    return LlamaConfig(
        hidden_size=shape.hidden_size,
        # Targets of experts alone have no dense width; three times is what Qwen3 has.
        intermediate_size=getattr(shape, "intermediate_size", None) or 3 * shape.hidden_size,
        num_hidden_layers=num_layers,
        num_attention_heads=heads,
        num_key_value_heads=getattr(shape, "num_key_value_heads", None) or heads,
        head_dim=getattr(shape, "head_dim", None) or shape.hidden_size // heads,
        rms_norm_eps=1e-6,
        max_position_embeddings=max_context(target.model) or 32768,
        rope_parameters={"rope_type": "default", "rope_theta": float(theta)},
    )


def frozen(module: nn.Module) -> nn.Module:
    """The module without gradients."""
    return module.requires_grad_(False)


def trainable(module: nn.Module) -> list[nn.Parameter]:
    """The parameters to train."""
    return [parameter for parameter in module.parameters() if parameter.requires_grad]


def export_tensors(module: nn.Module, prefix: str = "") -> dict[str, torch.Tensor]:
    """Weights as they are stored: float16, under their names behind `prefix`."""
    return {
        prefix + name: tensor.detach().to(torch.float16)
        for name, tensor in module.state_dict().items()
        if tensor.is_floating_point()
    }
