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


def scalars(
    target_logits: Any,
    row_params: _core.RowParams,
    top_p: float,
    history: npt.NDArray[np.integer[Any]],
    prompt_length: int,
    rows: RootRows,
    settings: DraftSettings,
) -> Float32Array:
    """The numbers of `SCALARS`.

    The paper also gives the network the latencies of one draft and one target forward. On one
    machine with latencies that do not depend on the length they are constants, and left out.

    Parameters
    ----------
    target_logits
        ``[V]``, from which the root was drawn.
    row_params, top_p
        How the target's law follows from them.
    history
        The text before the root.
    prompt_length
        Tokens of `history` that are prompt.
    rows, settings
        What the drafter knows, and how it draws.
    """
    laws = _core.law_features(
        in_numpy(target_logits),
        row_params,
        history,
        prompt_length,
        in_numpy(rows.before),
        in_numpy(rows.root),
        draft_temperature=settings.temperature,
        draft_top_k=settings.top_k,
        draft_top_p=settings.top_p,
    )
    sampling = (np.log(len(history)), row_params.temperature, top_p)
    return np.array((*laws, *sampling), dtype=np.float32)


def as_float32(state: Any) -> Float32Array:
    """A row of states in host memory."""
    return np.asarray(in_numpy(state), dtype=np.float32)
