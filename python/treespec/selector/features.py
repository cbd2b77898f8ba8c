# SPDX-License-Identifier: Apache-2.0
"""What a selector reads at a root, the same in training and in decoding."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from treespec import _core
from treespec.config import SamplingParams
from treespec.drafts.base import DraftSettings
from treespec.drafts.expander import RootRows
from treespec.targets.base import in_numpy

Float32Array = npt.NDArray[np.float32]

LAWS = (
    "target_entropy",
    "draft_entropy",
    "root_entropy",
    "target_to_draft",
    "draft_to_target",
    "distance",
)
SCALARS = (*LAWS, "log_context", "temperature", "top_p")
# Hidden states: the target's at the token before the root, the drafter's there and at the root.
STATES = ("target_before", "draft_before", "draft_root")


class Setting(NamedTuple):
    """How texts are drawn."""

    temperature: float
    top_p: float = 1.0

    @property
    def params(self) -> SamplingParams:
        """As `generate` takes it."""
        return SamplingParams(temperature=self.temperature, top_p=self.top_p)

    def __str__(self) -> str:
        return f"T {self.temperature:g}" + (f", top-p {self.top_p:g}" if self.top_p < 1 else "")


class RootView(NamedTuple):
    """What the laws around a root follow from, as the core takes it.

    Attributes
    ----------
    target_logits
        ``[V]``, from which the root was drawn.
    params
        How the target's law follows from them.
    history_ids, prompt_length
        The text before the root, and how much of it is prompt.
    draft_logits, root_logits
        ``[V_draft]``: the drafter's, after the token before the root, and after the root.
    draft_temperature, draft_top_k, draft_top_p
        How the drafter draws.
    """

    target_logits: npt.NDArray[Any]
    params: _core.RowParams
    history_ids: npt.NDArray[np.integer[Any]]
    prompt_length: int
    draft_logits: npt.NDArray[Any]
    root_logits: npt.NDArray[Any]
    draft_temperature: float
    draft_top_k: int
    draft_top_p: float

    @staticmethod
    def of(
        target_logits: Any,
        params: _core.RowParams,
        history_ids: npt.NDArray[np.integer[Any]],
        prompt_length: int,
        rows: RootRows,
        settings: DraftSettings,
    ) -> RootView:
        """From rows of the models, wherever they are, and the settings of the drafter."""
        return RootView(
            in_numpy(target_logits),
            params,
            history_ids,
            prompt_length,
            in_numpy(rows.before),
            in_numpy(rows.root),
            settings.temperature,
            settings.top_k,
            settings.top_p,
        )

    def scalars(self) -> Float32Array:
        """The numbers of `SCALARS`.

        The paper also gives the network the latencies of one draft and one target forward. On one
        machine with latencies that do not depend on the length they are constants, and left out.
        """
        numbers: Float32Array = _core.root_scalars(*self)
        return numbers


def as_float32(state: Any) -> Float32Array:
    """A row of states in host memory."""
    return np.asarray(in_numpy(state), dtype=np.float32)
