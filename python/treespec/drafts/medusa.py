# SPDX-License-Identifier: Apache-2.0
"""Medusa: heads on the target's newest state, one for each of the next tokens.

Source: Cai et al., "Medusa: Simple LLM Inference Acceleration Framework with Multiple Decoding
Heads", 2024, arXiv 2401.10774.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.nn.functional import silu

from treespec._core import Marginals
from treespec.drafts.base import DraftSettings
from treespec.drafts.candidates import marginal_width, rank_rows
from treespec.drafts.vocabulary import TokenModules
from treespec.targets.base import Needs, TargetStates


class ResidualBlock(nn.Module):
    """``x + silu(linear(x))``; zero at the start, so that a fresh block changes nothing."""

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.linear = nn.Linear(hidden_size, hidden_size)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        """``[..., H]`` of ``[..., H]``."""
        return states + silu(self.linear(states))


class MedusaHeads(nn.ModuleList):
    """K heads, each some residual blocks and an output matrix; the names are the published ones.

    Parameters
    ----------
    num_heads, num_layers
        K, and the residual blocks of a head.
    hidden_size
        H of the target.
    vocab_size
        Rows of an output matrix. None: the heads have none and use the target's.
    """

    def __init__(
        self, num_heads: int, num_layers: int, hidden_size: int, vocab_size: int | None
    ) -> None:
        super().__init__()
        for _ in range(num_heads):
            layers: list[nn.Module] = [ResidualBlock(hidden_size) for _ in range(num_layers)]
            if vocab_size is not None:
                layers.append(nn.Linear(hidden_size, vocab_size, bias=False))
            self.append(nn.ModuleList(layers))
        self.hidden_size = hidden_size
        self.num_layers, self.shared = num_layers, vocab_size is None

    def states(self, head: int, hidden: torch.Tensor) -> torch.Tensor:
        """``[..., H]``: what a head makes of the target's normed states ``[..., H]``."""
        for block in self[head][: self.num_layers]:
            hidden = block(hidden)
        return hidden

    def logits(self, head: int, states: torch.Tensor, tokens: TokenModules) -> torch.Tensor:
        """``[..., V]`` of `states` of a head."""
        if self.shared:
            return tokens.logits(states.to(tokens.head.weight.dtype))
        return tokens.transform(self[head][-1](states))


@dataclass
class MedusaSession:
    """What one sequence needs for its next draft.

    Attributes
    ----------
    hidden
        ``[H]``: the target's last state of the newest committed position, which gave the root.
    root
        The last observed token.
    """

    hidden: torch.Tensor
    root: int | None = None


class MedusaDrafter:
    """Drafts all depths in one pass over the newest states of all sequences.

    Parameters
    ----------
    heads
        Head i says the token of depth i + 1.
    tokens
        The target's output head.
    width
        K of the `Marginals`, tokens kept of a depth. None: `marginal_width`.

    Raises
    ------
    ValueError
        If `width` is below 1.
    """

    needs = Needs(last_hidden=True)
    source_kind = "Marginals"

    def __init__(
        self, heads: MedusaHeads, tokens: TokenModules, *, width: int | None = None
    ) -> None:
        if width is not None and width < 1:
            raise ValueError(f"MedusaDrafter: width must be at least 1, got {width}")
        self.heads, self.tokens, self.width = heads, tokens, width

    def begin(
        self, prompt_ids: npt.NDArray[np.integer[Any]], states: TargetStates | None, capacity: int
    ) -> MedusaSession:
        """Keep the state that gives the first sampled token."""
        return MedusaSession(_newest(states))

    def observe(
        self,
        session: MedusaSession,
        token_ids: npt.NDArray[np.integer[Any]],
        states: TargetStates | None,
    ) -> None:
        """Keep the state that gave the new root."""
        if states is not None:
            session.hidden = _newest(states)
        if len(token_ids):
            session.root = int(token_ids[-1])

    @torch.inference_mode()
    def draft(self, sessions: Sequence[MedusaSession], settings: DraftSettings) -> list[Marginals]:
        """One pass of all heads."""
        if any(session.root is None for session in sessions):
            raise ValueError("draft: a session must have observed a token")
        depth = self.depth(settings)
        logits = self.logits(torch.stack([session.hidden for session in sessions]), depth)
        token, logprob = rank_rows(logits.flatten(0, 1), self.list_width(settings), settings)
        by_session = (len(sessions), depth, -1)
        rows = zip(token.reshape(by_session), logprob.reshape(by_session), strict=True)
        return [Marginals(*row) for row in rows]

    def end(self, session: MedusaSession) -> None:
        """Release the state."""
        session.hidden, session.root = session.hidden.new_empty(0), None

    def depth(self, settings: DraftSettings) -> int:
        """D of a draft."""
        heads = len(self.heads)
        return heads if settings.max_depth is None else max(1, min(heads, settings.max_depth))

    def list_width(self, settings: DraftSettings) -> int:
        """K of a draft, if the vocabulary has as many tokens."""
        return self.width or marginal_width(settings)

    def logits(self, hidden: torch.Tensor, depth: int) -> torch.Tensor:
        """``[B, depth, V]`` of the target's last states ``[B, H]``."""
        heads, hidden = self.heads, hidden.to(next(self.heads.parameters()))
        rows = [heads.logits(i, heads.states(i, hidden), self.tokens) for i in range(depth)]
        return torch.stack(rows, dim=1)


def _newest(states: TargetStates | None) -> torch.Tensor:
    if states is None or states.last_hidden is None:
        raise ValueError("MedusaDrafter: states must hold last_hidden, as `needs` says, got none")
    return states.last_hidden[-1].clone()  # not a view, which would keep all rows
