# SPDX-License-Identifier: Apache-2.0
"""TreeFlash: a small module that conditions a DFlash guess on the token before it.

Source: Rheinboldt, Berdoz, Wattenhofer, "TreeFlash", 2026, arXiv 2606.03819.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn.functional import silu

from treespec.drafts.layers import RMSNorm

if TYPE_CHECKING:
    from treespec.drafts.dflash import DFlashModel
    from treespec.drafts.vocabulary import TokenModules


class TreeFlashModule(nn.Module):
    """SwiGLU over the previous token's embedding and the slot's state, the same for all depths.

    At the start `d` is zero, so that a fresh module leaves the marginals as they are.

    Parameters
    ----------
    shape
        `hidden_size`, `rms_norm_eps`.
    inner_size
        F; None: the shape's `intermediate_size`.
    """

    def __init__(self, shape: Any, inner_size: int | None = None) -> None:
        super().__init__()
        hidden, inner = shape.hidden_size, inner_size or shape.intermediate_size
        self.norm = RMSNorm(hidden, shape.rms_norm_eps)
        self.ug = nn.Linear(2 * hidden, 2 * inner)  # rows: u, then g; columns: embedding, state
        self.d = nn.Linear(inner, hidden, bias=False)
        nn.init.zeros_(self.d.weight)

    def states(
        self,
        states: torch.Tensor,
        previous: torch.Tensor,
        backbone: DFlashModel,
        tokens: TokenModules,
    ) -> torch.Tensor:
        """Corrected and normed states ``[..., R, H]`` of ``[..., H]`` after tokens ``[..., R]``."""
        embedded, normed = self.ug.weight.chunk(2, dim=1)
        before = self.norm(tokens.embed(previous).to(states.dtype)) @ embedded.mT
        here = nn.functional.linear(backbone.norm(states), normed, self.ug.bias)
        up, gate = (before + here[..., None, :]).chunk(2, dim=-1)
        corrected: torch.Tensor = backbone.norm(states[..., None, :] + self.d(silu(gate) * up))
        return corrected

    def rows(
        self,
        states: torch.Tensor,
        previous: torch.Tensor,
        backbone: DFlashModel,
        tokens: TokenModules,
        candidates: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Logits as `treespec.drafts.dflash.Conditional` gives them."""
        corrected = self.states(states, previous, backbone, tokens).to(tokens.head.weight.dtype)
        if candidates is None:
            return tokens.logits(corrected)
        logits = tokens.logits_of(corrected.flatten(0, 1), candidates.flatten(0, 1))
        return logits.unflatten(0, states.shape[:2])
