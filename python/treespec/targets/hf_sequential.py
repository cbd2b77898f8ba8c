# SPDX-License-Identifier: Apache-2.0
"""Targets whose state cannot fork: one token per forward, a snapshot per node."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Sequence
from dataclasses import dataclass, field
from os import PathLike
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from transformers import PreTrainedModel

from treespec.targets.base import Needs, TargetStates, TreeRows
from treespec.targets.hf_model import check_supported, eos_ids, load_model, max_context, vocab_size
from treespec.targets.hf_runner import StateTap, captured_states, model_view

# The two names under which transformers models take and return their state.
_CACHE_NAMES = ("past_key_values", "cache_params")


@dataclass
class RecurrentSequence:
    """One sequence: its committed state, and the state after each node of the last forward.

    Attributes
    ----------
    capacity
        The number of tokens it may reach, nodes included.
    length
        Committed tokens.
    state
        The model's own cache after them; None before the prefill.
    snapshots
        The cache after each node of the last forward.
    """

    capacity: int
    length: int = 0
    state: Any = None
    snapshots: list[Any] = field(default_factory=list)


class SequentialTarget:
    """A target that computes chains token by token with the model's own cache and attention.

    Slower than plain decoding when nodes are rejected: it exists so that every model decodes, and
    so that chains can be checked. A snapshot of the state is kept per node, because a recurrent
    state cannot be rolled back.

    Parameters
    ----------
    model_or_path, device, dtype
        As in `treespec.targets.hf.HfTarget`.

    Notes
    -----
    The methods are those of `treespec.targets.base.Target`; a forked tree is refused.
    """

    supports_trees = False

    def __init__(
        self,
        model_or_path: PreTrainedModel | str | PathLike[str],
        device: str | torch.device = "auto",
        dtype: str | torch.dtype = "auto",
    ) -> None:
        self.model = load_model(model_or_path, device, dtype)
        check_supported(self.model)
        self.vocab_size = vocab_size(self.model)
        self.max_context = max_context(self.model)
        self.eos_ids = eos_ids(self.model)
        self._view = model_view(self.model)
        self._tap = StateTap(self._view)
        self._parameters = inspect.signature(self._view.forward).parameters
        self._cache_name = next((n for n in _CACHE_NAMES if n in self._parameters), "")

    @property
    def device(self) -> torch.device:
        """The device of the model's input."""
        device: torch.device = self._view.get_input_embeddings().weight.device
        return device

    def open(self, capacity: int) -> RecurrentSequence:
        """A new sequence of up to `capacity` tokens."""
        return RecurrentSequence(capacity)

    def prefill(
        self,
        sequences: Sequence[RecurrentSequence],
        token_ids: Sequence[npt.NDArray[np.integer[Any]]],
        needs: Needs,
    ) -> tuple[list[torch.Tensor], list[TargetStates]]:
        """Append and commit tokens: a new prompt in one forward, later ones token by token."""
        results = [
            self._append(sequence, np.asarray(ids), needs)
            for sequence, ids in zip(sequences, token_ids, strict=True)
        ]
        for sequence, ids, (_, _, snapshots) in zip(sequences, token_ids, results, strict=True):
            sequence.state, sequence.snapshots = snapshots[-1], []
            sequence.length += len(ids)
        return [logits[-1] for logits, _, _ in results], [states for _, states, _ in results]

    def forward(
        self, sequences: Sequence[RecurrentSequence], trees: Sequence[TreeRows], needs: Needs
    ) -> tuple[list[torch.Tensor], list[TargetStates]]:
        """Compute the nodes of one chain per sequence, one after another."""
        if not all(tree.is_chain for tree in trees):
            raise ValueError(
                f"forward: the state of {type(self.model).__name__} cannot fork, "
                "trees must be chains; use a chain builder"
            )
        results = [
            self._steps(sequence, tree.token, needs, keep=True)
            for sequence, tree in zip(sequences, trees, strict=True)
        ]
        for sequence, (_, _, snapshots) in zip(sequences, results, strict=True):
            sequence.snapshots = snapshots
        return [logits for logits, _, _ in results], [states for _, states, _ in results]

    def commit(
        self,
        sequences: Sequence[RecurrentSequence],
        accepted: Sequence[npt.NDArray[np.integer[Any]]],
    ) -> None:
        """Go to the state after the last accepted node."""
        for sequence, nodes in zip(sequences, accepted, strict=True):
            count = len(nodes)
            if count > len(sequence.snapshots) or not np.array_equal(nodes, np.arange(count)):
                raise ValueError(
                    f"commit: nodes must be 0, 1, ... below {len(sequence.snapshots)}, "
                    f"got {np.asarray(nodes).tolist()}"
                )
            if count:
                sequence.state = sequence.snapshots[count - 1]
                sequence.length += count
            sequence.snapshots = []

    def close(self, sequence: RecurrentSequence) -> None:
        """Release the state of a sequence."""
        sequence.state, sequence.snapshots = None, []

    def _append(
        self, sequence: RecurrentSequence, token_ids: npt.NDArray[Any], needs: Needs
    ) -> tuple[torch.Tensor, TargetStates, list[Any]]:
        if len(token_ids) == 0:
            raise ValueError("prefill: token_ids must not be empty")
        if sequence.state is not None:
            return self._steps(sequence, token_ids, needs, keep=False)
        _check_room(sequence, len(token_ids))
        logits, states, state = self._call(token_ids, None, 0, needs)
        return logits, states, [state]

    def _steps(
        self, sequence: RecurrentSequence, token_ids: npt.NDArray[Any], needs: Needs, keep: bool
    ) -> tuple[torch.Tensor, TargetStates, list[Any]]:
        """One forward per token; the state after every token (`keep`) or the last one."""
        _check_room(sequence, len(token_ids))
        state = copy.deepcopy(sequence.state)
        logits, parts, snapshots = [], [], []
        for offset in range(len(token_ids)):
            row, part, state = self._call(
                token_ids[offset : offset + 1], state, sequence.length + offset, needs
            )
            is_last = offset == len(token_ids) - 1
            if keep or is_last:
                snapshots.append(state if is_last else copy.deepcopy(state))
            logits.append(row)
            parts.append(part)
        return torch.cat(logits), TargetStates.join(parts), snapshots

    @torch.inference_mode()
    def _call(
        self, token_ids: npt.NDArray[Any], state: Any, position: int, needs: Needs
    ) -> tuple[torch.Tensor, TargetStates, Any]:
        """Logits ``[1, V]`` of the last token, states of all, and the new state."""
        keywords: dict[str, Any] = {"use_cache": True}
        if self._cache_name:
            keywords[self._cache_name] = state
        if "logits_to_keep" in self._parameters:
            keywords["logits_to_keep"] = 1
        if state is not None and "cache_position" in self._parameters:
            # transformers 5.0: Mamba asks for it, the others would compute the same.
            keywords["cache_position"] = torch.arange(position, position + 1, device=self.device)
        ids = torch.from_numpy(token_ids.astype(np.int64))[None].to(self.device)
        with self._tap.capture(needs) as capture:
            output = self._view(input_ids=ids, **keywords)
        after = output.get(self._cache_name)
        if after is None:
            raise NotImplementedError(
                f"SequentialTarget: {type(self.model).__name__} keeps its state to itself"
            )
        return output.logits[0, -1:], captured_states(capture, 0), after


def _check_room(sequence: RecurrentSequence, count: int) -> None:
    if sequence.length + count > sequence.capacity:
        raise ValueError(
            f"SequentialTarget: capacity must be at least {sequence.length + count}, "
            f"got {sequence.capacity}"
        )
