# SPDX-License-Identifier: Apache-2.0
"""The tokens a drafter knows: their embedding, its output head, and the target's ids of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from treespec.targets.hf_model import output_transform


def _unchanged(logits: torch.Tensor) -> torch.Tensor:
    return logits


@dataclass(frozen=True)
class TokenModules:
    """Token embedding and output head of a drafter: the target's, or its own.

    Attributes
    ----------
    embedding
        Token ids to states, with the scale the module itself applies.
    head
        A linear layer from normed states to logits.
    transform
        What follows the head, elementwise: the target's scale and soft cap.
    """

    embedding: torch.nn.Module
    head: torch.nn.Linear
    transform: Callable[[torch.Tensor], torch.Tensor] = _unchanged

    @staticmethod
    def of_target(target: Any) -> TokenModules:
        """The modules of a `Target` over a transformers model, shared and not modified.

        Raises
        ------
        ValueError
            If the target has none to lend.
        """
        model = getattr(target, "model", None)
        if model is None:
            raise ValueError(
                "drafter: one without an embedding of its own borrows the target's, so the target "
                f"must be a transformers model, got {type(target).__name__}"
            )
        embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
        if embedding is None or head is None:
            raise ValueError(f"drafter: {type(model).__name__} has no embedding or head to lend")
        return TokenModules(embedding, head, output_transform(model))

    def embed(self, token_ids: torch.Tensor) -> torch.Tensor:
        """``[..., H]`` of ``[...]``."""
        states: torch.Tensor = self.embedding(token_ids)
        return states

    def logits(self, states: torch.Tensor) -> torch.Tensor:
        """``[..., V]`` of normed states ``[..., H]``."""
        return self.transform(self.head(states))

    def logits_of(self, states: torch.Tensor, token_ids: torch.Tensor) -> torch.Tensor:
        """``[B, R, C]``: logits of chosen tokens alone.

        Parameters
        ----------
        states
            ``[B, R, H]``, normed.
        token_ids
            ``[B, C]``: the tokens that each block of R states is asked for.
        """
        logits = states @ self.head.weight[token_ids].mT
        if self.head.bias is not None:
            logits = logits + self.head.bias[token_ids][:, None]
        return self.transform(logits)


class DraftVocabulary:
    """Draft ids and the target's ids of the same tokens.

    Parameters
    ----------
    draft_size, target_size
        Rows of the two output heads.
    offset
        ``[draft_size]`` int64, `d2t` of published checkpoints: draft id j is target id
        ``j + offset[j]``. None: the ids are the same, and what the target lacks is cut.

    Raises
    ------
    ValueError
        If ids leave the target's vocabulary or fall together.
    """

    def __init__(
        self, draft_size: int, target_size: int, offset: torch.Tensor | None = None
    ) -> None:
        self.target_size = target_size
        self.size = draft_size if offset is not None else min(draft_size, target_size)
        self._target_ids: torch.Tensor | None = None
        self._copies: dict[torch.device, torch.Tensor] = {}  # of the table, on other devices
        if offset is None:
            return
        if offset.shape != (draft_size,):
            raise ValueError(f"d2t must be [{draft_size}], got {list(offset.shape)}")
        ids = torch.arange(draft_size) + offset.cpu().long()
        if ids.min() < 0 or ids.max() >= target_size or len(ids.unique()) < draft_size:
            raise ValueError(
                f"d2t must lead to distinct ids in [0, {target_size}); it holds offsets, not ids"
            )
        self._target_ids = ids

    def cut(self, logits: torch.Tensor) -> torch.Tensor:
        """``[..., size]``: without the columns that the target lacks."""
        return logits[..., : self.size]

    def target_ids(self, ids: torch.Tensor) -> torch.Tensor:
        """The target's ids of draft ids, any shape, in the same dtype."""
        if self._target_ids is None:
            return ids
        return self._table(self._target_ids, ids.device)[ids.long()].to(ids.dtype)

    def target_ids_on_host(self, ids: npt.NDArray[np.int32]) -> npt.NDArray[np.int32]:
        """The same for an array."""
        mapped: npt.NDArray[np.int32] = self.target_ids(torch.from_numpy(ids)).numpy()
        return mapped

    def draft_id(self, target_id: int) -> int | None:
        """The draft id of a token of the target, or None when the drafter cannot say it."""
        if self._target_ids is None:
            return target_id if target_id < self.size else None
        found = (self._target_ids == target_id).nonzero()
        return int(found[0]) if len(found) else None

    def spread(self, rows: torch.Tensor) -> torch.Tensor:
        """``[n, V]`` of the target, -inf elsewhere, from log-probabilities ``[n, size]``."""
        if self._target_ids is None:
            missing = self.target_size - self.size
            pad = torch.nn.functional.pad
            return pad(rows, (0, missing), value=-torch.inf) if missing else rows
        wide = rows.new_full((len(rows), self.target_size), -torch.inf)
        wide[:, self._table(self._target_ids, rows.device)] = rows
        return wide

    def keep_on(self, device: torch.device) -> None:
        """Keep the table on a device, too: there, mapping ids copies nothing from now on."""
        if self._target_ids is not None and device not in self._copies:
            self._copies[device] = self._target_ids.to(device)

    def _table(self, target_ids: torch.Tensor, device: torch.device) -> torch.Tensor:
        copy = self._copies.get(device)
        return target_ids.to(device) if copy is None else copy
