# SPDX-License-Identifier: Apache-2.0
"""A Hugging Face causal language model as the target, run in eager PyTorch."""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from transformers import PreTrainedModel

from treespec.targets.base import Needs, Target, TargetStates, TreeRows
from treespec.targets.hf_cache import KvSequence, Segment
from treespec.targets.hf_model import (
    can_fork,
    check_supported,
    eos_ids,
    load_model,
    max_context,
    vocab_size,
)
from treespec.targets.hf_runner import PREFILL_ROWS, PackedRunner
from treespec.targets.hf_sequential import SequentialTarget


def load_target(
    model_or_path: PreTrainedModel | str | PathLike[str],
    device: str | torch.device = "auto",
    dtype: str | torch.dtype = "auto",
) -> Target:
    """The target that fits the model: `HfTarget`, or `SequentialTarget` when its state cannot
    fork.
    """
    model = load_model(model_or_path, device, dtype)
    return HfTarget(model) if can_fork(model) else SequentialTarget(model)


class HfTarget:
    """A target whose state is keys and values: whole trees in one packed forward.

    Parameters
    ----------
    model_or_path
        A local path, a hub id, or a transformers model, which is shared and not modified.
    device, dtype
        As in `treespec.targets.hf_model.load_model`.
    prefill_rows
        The most rows per prefill forward.

    Raises
    ------
    NotImplementedError
        If the architecture is not supported, with the reason.

    Notes
    -----
    The methods are those of `treespec.targets.base.Target`.
    """

    supports_trees = True

    def __init__(
        self,
        model_or_path: PreTrainedModel | str | PathLike[str],
        device: str | torch.device = "auto",
        dtype: str | torch.dtype = "auto",
        *,
        prefill_rows: int = PREFILL_ROWS,
    ) -> None:
        self.model = load_model(model_or_path, device, dtype)
        check_supported(self.model)
        if not can_fork(self.model):
            raise NotImplementedError(
                f"HfTarget: the state of {type(self.model).__name__} cannot fork; use load_target"
            )
        self.vocab_size = vocab_size(self.model)
        self.max_context = max_context(self.model)
        self.eos_ids = eos_ids(self.model)
        self.runner = PackedRunner(self.model)
        self._prefill_rows = prefill_rows

    @property
    def device(self) -> torch.device:
        """The device of the model's input."""
        return self.runner.device

    def open(self, capacity: int) -> KvSequence:
        """A new sequence of `capacity` rows."""
        return KvSequence(capacity)

    def prefill(
        self,
        sequences: Sequence[KvSequence],
        token_ids: Sequence[npt.NDArray[np.integer[Any]]],
        needs: Needs,
    ) -> tuple[list[torch.Tensor], list[TargetStates]]:
        """Append and commit tokens in forwards of at most `prefill_rows` rows."""
        return self.runner.prefill(sequences, token_ids, needs, self._prefill_rows)

    def forward(
        self, sequences: Sequence[KvSequence], trees: Sequence[TreeRows], needs: Needs
    ) -> tuple[list[torch.Tensor], list[TargetStates]]:
        """Compute all trees in one packed forward."""
        segments = [
            Segment(sequence, tree.token, tree.parent, tree.depth)
            for sequence, tree in zip(sequences, trees, strict=True)
        ]
        logits, states = self.runner.forward(segments, needs)
        return list(logits.split([len(tree) for tree in trees])), states

    def commit(
        self, sequences: Sequence[KvSequence], accepted: Sequence[npt.NDArray[np.integer[Any]]]
    ) -> None:
        """Keep the accepted rows of each sequence."""
        for sequence, nodes in zip(sequences, accepted, strict=True):
            sequence.commit(np.asarray(nodes, dtype=np.int64))

    def close(self, sequence: KvSequence) -> None:
        """Release the rows of a sequence."""
        sequence.release()
