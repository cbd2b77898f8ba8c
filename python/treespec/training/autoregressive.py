# SPDX-License-Identifier: Apache-2.0
"""Training of a small causal language model towards the target, by forward KL.

Source: Zhou et al., "DistillSpec: Improving Speculative Decoding via Knowledge Distillation", 2023,
arXiv 2310.08461.
"""

from __future__ import annotations

from os import PathLike
from typing import Any

import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from treespec.drafts.autoregressive import AutoregressiveDrafter
from treespec.drafts.vocabulary import TokenModules
from treespec.targets.base import Needs
from treespec.targets.hf_model import decoder_of, load_model, max_context, output_transform
from treespec.training.base import (
    Batch,
    frozen,
    logits_of,
    mean_loss,
    soft_cross_entropy,
    target_law,
)


class AutoregressiveTrainee:
    """A Llama of a few narrow layers, or a model that is there already.

    Parameters
    ----------
    target
        A Hugging Face target; its parameters are frozen.
    tokenizer
        Its tokenizer, saved beside the drafter.
    start
        A causal language model with the target's tokens to go on from; None makes a new one.
    num_layers, hidden_size
        Of a new one; four heads, feed-forward 2.75 times as wide, embedding and head shared.

    Raises
    ------
    ValueError
        For sizes of no model.
    """

    def __init__(
        self,
        target: Any,
        *,
        tokenizer: Any = None,
        start: str | None = None,
        num_layers: int = 2,
        hidden_size: int = 128,
    ) -> None:
        if num_layers < 1 or hidden_size < 8 or hidden_size % 8:
            raise ValueError(
                "train-drafter: num_layers must be at least 1 and hidden_size a multiple of 8, "
                f"got {num_layers} and {hidden_size}"
            )
        frozen(target.model)
        self.target, self.tokenizer = target, tokenizer
        self.tokens = TokenModules.of_target(target)
        self.module: nn.Module = (
            _small_llama(target, num_layers, hidden_size).to(target.device)
            if start is None
            else load_model(start, target.device, torch.float32)
        )
        self.module.requires_grad_(True)
        self.needs = Needs()

    def loss(self, batch: Batch, generator: torch.Generator) -> torch.Tensor:
        """KL from the target's law to the drafter's at every token the target has written."""
        output = decoder_of(self.module)(input_ids=batch.tokens, use_cache=False)
        weight = batch.own[:, 1:].float()
        states, said = output.last_hidden_state[:, :-1], batch.last_hidden[:, :-1]
        return mean_loss(self._rows_loss, weight, states, said)

    def _rows_loss(self, states: torch.Tensor, said: torch.Tensor) -> torch.Tensor:
        model = self.module
        own = TokenModules(
            model.get_input_embeddings(), model.get_output_embeddings(), output_transform(model)
        )
        law, logits = target_law(self.tokens, said), logits_of(own, states)
        common = min(law.shape[-1], logits.shape[-1])
        return soft_cross_entropy(law[:, :common], logits[:, :common])

    def drafter(self) -> AutoregressiveDrafter:
        """The drafter as it stands."""
        return AutoregressiveDrafter(self.module, self.target.vocab_size)

    def save(self, folder: str | PathLike[str]) -> None:
        """Write it in Hugging Face's format, float16, with the target's tokenizer."""
        weights = {name: tensor.half() for name, tensor in self.module.state_dict().items()}
        self.module.save_pretrained(folder, state_dict=weights)
        if self.tokenizer is not None:
            self.tokenizer.save_pretrained(folder)


def _small_llama(target: Any, num_layers: int, hidden_size: int) -> LlamaForCausalLM:
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=target.vocab_size,
            hidden_size=hidden_size,
            intermediate_size=hidden_size * 11 // 4,
            num_hidden_layers=num_layers,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=max_context(target.model) or 32768,
            tie_word_embeddings=True,
        )
    )
