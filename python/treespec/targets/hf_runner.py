# SPDX-License-Identifier: Apache-2.0
"""Packed forwards of a Hugging Face decoder, and private views of the model to run them on."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from transformers import PreTrainedModel

from treespec.targets.base import Needs, TargetStates
from treespec.targets.hf_attention import ATTENTION_NAME, packed_context
from treespec.targets.hf_cache import (
    KeysTransformed,
    KvSequence,
    PackedCache,
    PackedRows,
    Segment,
)
from treespec.targets.hf_model import (
    decoder_blocks,
    decoder_of,
    has_position_table,
    max_context,
    rope_depends_on_length,
)
from treespec.targets.segment import check_prompts, check_segments

LogitRows = Literal["all", "last", "none"] | npt.NDArray[np.integer[Any]]

# Rows per prefill forward, all sequences together: bounds activations and the mask of a long
# prompt.
PREFILL_ROWS = 2048


def model_view(model: PreTrainedModel, attention: str | None = None) -> PreTrainedModel:
    """A second module tree over the same parameters and buffers, with a config of its own.

    The attention implementation is a field of the config, and hooks belong to modules. On a view
    both can be set without anybody noticing who shares the model, and without the lock that
    switching the original back and forth would need. Weights trained or loaded in place show in the
    view; a later ``model.to(device)`` or a replaced module does not.

    Parameters
    ----------
    model
        Left as it is.
    attention
        The attention implementation of the view; None keeps the model's.
    """
    shared = {id(tensor): tensor for tensor in chain(model.parameters(), model.buffers())}
    view = copy.deepcopy(model, shared).eval()
    if attention is not None:
        for module in view.modules():
            # Every module that has a config reads the implementation from there, some from copies.
            if hasattr(module, "config") and hasattr(module.config, "_attn_implementation"):
                module.config._attn_implementation = attention
    return view


@dataclass
class _Capture:
    """The ``[B, T, H]`` states that one forward keeps."""

    needs: Needs
    layers: dict[int, torch.Tensor] = field(default_factory=dict)
    last_hidden: torch.Tensor | None = None


# Per thread: hooks belong to the modules, which several threads may run at once.
_CAPTURE: ContextVar[_Capture | None] = ContextVar("treespec_capture", default=None)


class StateTap:
    """Reads hidden states out of a model view through forward hooks on the layers asked for.

    Parameters
    ----------
    view
        A model from `model_view`; hooks stay on it.
    """

    def __init__(self, view: PreTrainedModel) -> None:
        self._blocks = decoder_blocks(view)
        self._hooked: set[int] = set()
        decoder_of(view).register_forward_hook(_keep_last_hidden)

    @property
    def num_layers(self) -> int:
        """The number of decoder blocks."""
        return len(self._blocks)

    @contextmanager
    def capture(self, needs: Needs) -> Iterator[_Capture]:
        """Keep the states of `needs` of a forward inside the block.

        Raises
        ------
        ValueError
            If a layer does not exist.
        """
        for layer in set(needs.layers) - self._hooked:
            if not 0 <= layer < self.num_layers:
                raise ValueError(f"Needs: layers must be in [0, {self.num_layers}), got {layer}")
            self._blocks[layer].register_forward_hook(_keep_layer(layer))
            self._hooked.add(layer)
        capture = _Capture(needs)
        token = _CAPTURE.set(capture)
        try:
            yield capture
        finally:
            _CAPTURE.reset(token)


def _states_of(output: Any) -> torch.Tensor:
    """The states ``[B, T, H]``: blocks return a tensor or a tuple, by version."""
    states: torch.Tensor = output if isinstance(output, torch.Tensor) else output[0]
    return states


def _keep_layer(layer: int) -> Callable[[Any, Any, Any], None]:
    def hook(_module: Any, _inputs: Any, output: Any) -> None:
        capture = _CAPTURE.get()
        if capture is not None and layer in capture.needs.layers:
            capture.layers[layer] = _states_of(output)

    return hook


def _keep_last_hidden(_module: Any, _inputs: Any, output: Any) -> None:
    capture = _CAPTURE.get()
    if capture is not None and capture.needs.last_hidden:
        capture.last_hidden = _states_of(output)


def captured_states(capture: _Capture, rows: Any = ...) -> TargetStates:
    """The captured states at an index of ``[B, T]``: a batch of one has its rows at
    ``(0, rows)``.
    """
    layers = [capture.layers[layer][rows] for layer in capture.needs.layers]
    return TargetStates(
        torch.cat(layers, dim=-1) if layers else None,
        None if capture.last_hidden is None else capture.last_hidden[rows],
    )


class PackedRunner:
    """Runs segments of many sequences through a model as the one row of a batch of one.

    The linear layers see all rows at once; each segment attends to its own keys and values only.
    Hence no padding, and no influence of a batch mate on what a sequence attends to.

    Parameters
    ----------
    model
        A causal language model; left as it is (see `model_view`).
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self.view = model_view(model, ATTENTION_NAME)
        self.tap = StateTap(self.view)
        self._embedding = self.view.get_input_embeddings()
        self._num_positions = max_context(model) if has_position_table(model) else None
        self._rows_depend_on_mates = rope_depends_on_length(model)
        self._joined = False  # learned at the first forward, see KeysTransformed
        self._selects_logits = "logits_to_keep" in inspect.signature(self.view.forward).parameters

    @property
    def device(self) -> torch.device:
        """Where token ids go in; logits come out there unless a device map says otherwise."""
        return self._embedding.weight.device

    @torch.inference_mode()
    def forward(
        self, segments: Sequence[Segment], needs: Needs | None = None, logits: LogitRows = "all"
    ) -> tuple[torch.Tensor, list[TargetStates]]:
        """Compute all segments in one forward; their rows become pending in their sequences.

        Parameters
        ----------
        segments
            At least one; no sequence twice.
        needs
            Hidden states to return.
        logits
            The rows to compute logits for: all, the last of every segment, none, or ascending row
            numbers of the packed row.

        Returns
        -------
        logits, states
            ``[rows, V]`` in the model's dtype; per segment its states.

        Raises
        ------
        ValueError
            If a segment does not fit; nothing has changed then.
        NotImplementedError
            If the architecture turns out not to fit; committed rows are as before.
        """
        check_segments(segments)
        if self._rows_depend_on_mates and len(segments) > 1:
            return self._forward_singly(segments, needs, logits)
        try:
            return self._forward_packed(PackedRows(segments, self._joined), needs, logits)
        except KeysTransformed:
            self._joined = True
            return self._forward_packed(PackedRows(segments, self._joined), needs, logits)

    def prefill(
        self,
        sequences: Sequence[KvSequence],
        token_ids: Sequence[npt.NDArray[np.integer[Any]]],
        needs: Needs,
        max_rows: int = PREFILL_ROWS,
    ) -> tuple[list[torch.Tensor], list[TargetStates]]:
        """Append tokens to sequences and commit them, in forwards of at most `max_rows` rows.

        Parameters
        ----------
        sequences, token_ids
            B different sequences; B non-empty integer arrays of any lengths.
        needs
            Hidden states to return.

        Returns
        -------
        logits, states
            B rows ``[V]`` after the last token of each sequence; B states over its new tokens.

        Raises
        ------
        ValueError
            If tokens are missing or do not fit. After any failure the sequences are as before.
        """
        logits, states = self.prefill_tails(sequences, token_ids, needs, 1, max_rows)
        return [rows[-1] for rows in logits], states

    def prefill_tails(
        self,
        sequences: Sequence[KvSequence],
        token_ids: Sequence[npt.NDArray[np.integer[Any]]],
        needs: Needs,
        tail: int,
        max_rows: int = PREFILL_ROWS,
    ) -> tuple[list[torch.Tensor], list[TargetStates]]:
        """The same with logits ``[min(tail, new tokens), V]`` after the last tokens of each."""
        check_prompts(sequences, token_ids)
        lengths = [sequence.length for sequence in sequences]
        logits: dict[int, torch.Tensor] = {}
        parts: list[list[TargetStates]] = [[] for _ in sequences]
        try:
            for wave in waves([len(ids) for ids in token_ids], max_rows):
                segments = [
                    Segment(sequences[i], np.asarray(token_ids[i][begin:end], dtype=np.int32))
                    for i, begin, end in wave
                ]
                kept, counts = _tails([end - begin for _, begin, end in wave], tail)
                rows, states = self.forward(segments, needs, "last" if tail == 1 else kept)
                for (i, begin, end), own, part in zip(
                    wave, rows.split(counts), states, strict=True
                ):
                    sequences[i].commit(np.arange(end - begin))
                    logits[i] = torch.cat([logits[i], own])[-tail:] if i in logits else own
                    parts[i].append(part)
        except BaseException:
            for sequence, length in zip(sequences, lengths, strict=True):
                sequence.truncate(length)
            raise
        return [logits[i] for i in range(len(sequences))], [TargetStates.join(p) for p in parts]

    def _forward_packed(
        self, rows: PackedRows, needs: Needs | None, logits: LogitRows
    ) -> tuple[torch.Tensor, list[TargetStates]]:
        with packed_context(rows), self.tap.capture(needs or Needs()) as capture:
            output = self._run(rows, logits)
        rows.finish()
        return output, [captured_states(capture, (0, span)) for span in rows.spans]

    def _forward_singly(
        self, segments: Sequence[Segment], needs: Needs | None, logits: LogitRows
    ) -> tuple[torch.Tensor, list[TargetStates]]:
        wanted = logits if isinstance(logits, str) else "all"
        results = [self.forward([segment], needs, wanted) for segment in segments]
        rows = torch.cat([rows for rows, _ in results])
        if not isinstance(logits, str):
            rows = rows[logits.tolist()]
        return rows, [states[0] for _, states in results]

    def _run(self, rows: PackedRows, logits: LogitRows) -> torch.Tensor:
        tokens = np.concatenate([segment.token_ids for segment in rows.segments])
        positions = np.concatenate([s.sequence.length + s.query_depth for s in rows.segments])
        if self._num_positions is not None and positions.max() >= self._num_positions:
            raise ValueError(
                f"PackedRunner: positions must be below {self._num_positions}, the size of the "
                f"model's position table, got {positions.max()}"
            )
        kept = self._kept_rows(rows, logits)
        keywords = {"logits_to_keep": kept} if self._selects_logits and kept is not None else {}
        output = self.view(
            input_ids=self._to_device(tokens),
            position_ids=self._to_device(positions),
            past_key_values=PackedCache(rows, self.tap.num_layers),
            use_cache=True,
            **keywords,
        )
        result: torch.Tensor = output.logits[0]
        return result if kept is None or keywords else result[kept]

    def _to_device(self, values: npt.NDArray[np.integer[Any]]) -> torch.Tensor:
        return torch.from_numpy(values.astype(np.int64)).unsqueeze(0).to(self.device)

    def _kept_rows(self, rows: PackedRows, logits: LogitRows) -> torch.Tensor | None:
        """Row numbers as `logits_to_keep` wants them; None is all rows."""
        if isinstance(logits, str):
            if logits == "all":
                return None
            numbers = [span.stop - 1 for span in rows.spans] if logits == "last" else []
        else:
            numbers = logits.tolist()
        return torch.tensor(numbers, dtype=torch.long, device=self.device)


def _tails(lengths: Sequence[int], tail: int) -> tuple[npt.NDArray[np.int64], list[int]]:
    """Packed row numbers of the last `tail` rows of every segment, and how many those are."""
    counts = [min(tail, length) for length in lengths]
    ends = np.cumsum(lengths)
    rows = [np.arange(end - count, end) for end, count in zip(ends, counts, strict=True)]
    return np.concatenate(rows), counts


def waves(counts: Sequence[int], max_rows: int) -> list[list[tuple[int, int, int]]]:
    """Cut prompts into forwards of at most `max_rows` rows: lists of (sequence, begin, end)."""
    cut: list[list[tuple[int, int, int]]] = []
    room = 0
    for index, count in enumerate(counts):
        begin = 0
        while begin < count:
            if room == 0:
                cut.append([])
                room = max_rows
            end = min(count, begin + room)
            cut[-1].append((index, begin, end))
            room -= end - begin
            begin = end
    return cut
