# SPDX-License-Identifier: Apache-2.0
"""Training of EAGLE-3 by the steps it will draft: each goes on from what the last one said.

Source: arXiv 2503.01840, section 3.2 (training-time test); step weights 0.8^j and soft labels are
those of the authors' code.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from os import PathLike
from typing import Any

import numpy as np
import torch
from torch import nn

from treespec.drafts import eagle3_format
from treespec.drafts.eagle3 import (
    Eagle3Config,
    Eagle3Drafter,
    Eagle3Model,
    KeysValues,
    feature_layers,
)
from treespec.drafts.layers import KvAttention
from treespec.drafts.vocabulary import DraftVocabulary, TokenModules
from treespec.targets.base import Needs
from treespec.targets.hf_model import decoder_blocks, text_config
from treespec.training.base import (
    Batch,
    export_tensors,
    frozen,
    layer_shape,
    mean_loss,
    soft_cross_entropy,
)
from treespec.training.data import Sample

_DECAY = 0.8


def default_layers(num_layers: int) -> tuple[int, ...]:
    """The published choice of target layers, or for a small target first, middle and last.

    Examples
    --------
    >>> default_layers(32), default_layers(4), default_layers(2)
    ((1, 15, 28), (0, 2, 3), (0, 1))
    """
    published = feature_layers(num_layers)
    if list(published) == sorted(set(published)):
        return published
    return tuple(sorted({0, num_layers // 2, num_layers - 1}))


def default_config(target: Any, draft_vocab_size: int) -> Eagle3Config:
    """A drafter with the target's own width, heads and rotation."""
    return Eagle3Config(
        shape=layer_shape(target, 1),
        layer_ids=default_layers(len(decoder_blocks(target.model))),
        target_width=int(text_config(target.model).hidden_size),
        draft_vocab_size=draft_vocab_size,
    )


def frequent_tokens(samples: Sequence[Sample], count: int) -> torch.Tensor:
    """The tokens that the target writes most often, for a reduced draft vocabulary.

    Parameters
    ----------
    samples
        At least one.
    count
        How many; fewer when the samples hold fewer.

    Returns
    -------
    torch.Tensor
        ``[count]`` int64, ascending; of equally frequent tokens the lower ids.
    """
    written = np.concatenate([sample.tokens[sample.prompt_length :] for sample in samples])
    token, times = np.unique(written, return_counts=True)
    kept = np.argsort(-times, kind="stable")[:count]
    return torch.from_numpy(np.sort(token[kept])).long()


class ChainMemory:
    """Keys of all steps: a row sees the text up to where its chain begins, and the chain."""

    def __init__(self) -> None:
        self._steps: list[KeysValues] = []

    def attend(
        self, attention: KvAttention, queries: torch.Tensor, own: KeysValues
    ) -> torch.Tensor:
        """As `treespec.drafts.eagle3.Memory`; every call is the next step."""
        self._steps.append(own)
        keys, values = (torch.cat(parts, dim=2) for parts in zip(*self._steps, strict=True))
        mask = chain_mask(queries.shape[2], len(self._steps), queries.device)
        return attention.attend(queries, keys, values, mask[None, None])


def chain_mask(length: int, num_steps: int, device: torch.device) -> torch.Tensor:
    """``[S, num_steps * S]``: what the rows of the last step see of the rows of all steps.

    Row t of step j ends a chain that begins at row t - j of step 0 and has one row in every step.

    Examples
    --------
    >>> chain_mask(3, 2, torch.device("cpu")).int()
    tensor([[0, 0, 0, 1, 0, 0],
            [1, 0, 0, 0, 1, 0],
            [1, 1, 0, 0, 0, 1]], dtype=torch.int32)
    """
    row = torch.arange(length, device=device)
    begin = row[:, None] - (num_steps - 1)
    return torch.cat([row <= begin, *(row == begin + step for step in range(1, num_steps))], dim=1)


class Eagle3Trainee:
    """The layer, its input and its output head, by forward KL towards the target's law.

    Parameters
    ----------
    target
        A Hugging Face target; its parameters are frozen.
    num_steps
        Steps that are unrolled, and so the depth that is trained for.
    draft_vocab
        ``[V_draft]`` ids of the target, ascending: the tokens the drafter can say, best the most
        frequent ones of the data. None: all.

    Raises
    ------
    ValueError
        If `num_steps` is below 1, or ids do not ascend within the target's vocabulary.
    """

    def __init__(
        self, target: Any, *, num_steps: int = 7, draft_vocab: torch.Tensor | None = None
    ) -> None:
        if num_steps < 1:
            raise ValueError(f"Eagle3Trainee: num_steps must be at least 1, got {num_steps}")
        frozen(target.model)
        self.tokens, self.num_steps = TokenModules.of_target(target), num_steps
        self._ids = _draft_ids(draft_vocab, target.vocab_size).to(target.device)
        offset = None if draft_vocab is None else self._ids.cpu() - torch.arange(len(self._ids))
        self.vocabulary = DraftVocabulary(len(self._ids), target.vocab_size, offset)
        model = Eagle3Model(default_config(target, len(self._ids)))
        model.lm_head.weight.data.copy_(self.tokens.head.weight[self._ids])
        self.module: nn.Module = model.to(target.device)
        self.needs = Needs(layers=model.config.layer_ids)

    def loss(self, batch: Batch, generator: torch.Generator) -> torch.Tensor:
        """Mean over steps, by weights that fall from step to step, and over the target's text."""
        # Row t says the token at t + 2, whose law the target has after t + 1.
        counted, wanted = batch.own[:, 2:], batch.last_hidden[:, 1:-1]
        row = torch.arange(counted.shape[1], device=counted.device)
        losses, weights = [], []
        for step, states in enumerate(self.unroll(batch)):
            begun = counted & (row >= step)  # a chain begins inside the text
            losses.append(mean_loss(self._rows_loss, begun.float(), states, wanted))
            weights.append(_DECAY**step)
        return sum(w * loss for w, loss in zip(weights, losses, strict=True)) / sum(weights)

    def unroll(self, batch: Batch) -> Iterator[torch.Tensor]:
        """Per step what the model gives: ``[B, S - 2, H]``, before the final norm.

        Row t of step j is the end of a chain of j drafted tokens, which are those of the text,
        after the committed positions up to t - j. Rows below j mean nothing.
        """
        assert batch.features is not None
        model, memory = self.module, ChainMemory()
        following = batch.tokens[:, 1:-1]
        embedded = self.tokens.embed(following).to(model.fc.weight.dtype)
        positions = torch.arange(following.shape[1], device=following.device)[None]
        states = model.fc(batch.features[:, :-2])
        for _ in range(self.num_steps):
            states = model(states, embedded, positions, memory)
            yield states
            states = states.roll(1, dims=1)  # a row goes on from the one before

    def _rows_loss(self, states: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            logits = self.tokens.logits(hidden.to(self.tokens.head.weight))
            law = logits[:, self._ids].float().log_softmax(-1)
        return soft_cross_entropy(law, self.module.logits(states))

    def drafter(self) -> Eagle3Drafter:
        """The drafter as it stands."""
        return Eagle3Drafter(self.module, self.tokens.embedding, self.vocabulary)

    def save(self, folder: str | PathLike[str]) -> None:
        """Write it in the published format, float16."""
        tensors = export_tensors(self.module)
        eagle3_format.save(folder, self.module.config, tensors, self.vocabulary)


def _draft_ids(draft_vocab: torch.Tensor | None, vocab_size: int) -> torch.Tensor:
    if draft_vocab is None:
        return torch.arange(vocab_size)
    ids = draft_vocab.cpu().long()
    inside = len(ids) and ids[0] >= 0 and ids[-1] < vocab_size
    if not inside or not bool((ids[1:] > ids[:-1]).all()):
        raise ValueError(
            f"Eagle3Trainee: draft_vocab must hold ids ascending within [0, {vocab_size}), "
            f"got {ids.tolist()[:8]}"
        )
    return ids
