# SPDX-License-Identifier: Apache-2.0
"""The graph of a Hugging Face causal language model: tokens, mask and cache in, logits out.

One graph serves prefill, tree verification and plain decoding: they differ in the mask alone. The
model's own code is traced; only its attention and its cache are replaced.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import AttentionInterface, PreTrainedModel
from transformers.cache_utils import Cache, CacheLayerMixin

from treespec.export.graph_ops import attend, write_rows
from treespec.export.manifest import CacheInput, CacheStyle, MaskInput
from treespec.targets.hf_attention import score_rule
from treespec.targets.hf_model import (
    decoder_blocks,
    decoder_of,
    max_context,
    output_transform,
    rope_depends_on_length,
)
from treespec.targets.hf_runner import model_view

ATTENTION_NAME = "treespec_export"

_EXAMPLE_NODES, _EXAMPLE_CAPACITY, _EXAMPLE_BATCH = 5, 48, 2


@dataclass
class _Forward:
    """What attention and cache of a running forward work on.

    Attributes
    ----------
    masks
        ``[B, 1, N, keys]`` by window; None: the probe, which attends causally.
    kept
        Outputs of the layers that give features.
    windows, cache_shapes
        What the probe finds: windows in use; heads and width of keys and values, layer by layer.
    """

    masks: dict[int | None, torch.Tensor] | None
    kept: dict[int, torch.Tensor] = field(default_factory=dict)
    windows: list[int | None] = field(default_factory=list)
    cache_shapes: list[tuple[int, int]] = field(default_factory=list)


_FORWARD: ContextVar[_Forward | None] = ContextVar("treespec_export_forward", default=None)


@contextmanager
def _running(forward: _Forward) -> Iterator[_Forward]:
    token = _FORWARD.set(forward)
    try:
        yield forward
    finally:
        _FORWARD.reset(token)


def graph_attention(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **keywords: Any,
) -> tuple[torch.Tensor, None]:
    """The function registered with `transformers.AttentionInterface` for exports."""
    forward = _FORWARD.get()
    if forward is None:
        raise RuntimeError("treespec export: call the model through CausalLmGraph")
    rule = score_rule(module, query, attention_mask, scaling, keywords)
    if rule.softcap is not None or rule.sinks is not None:
        raise NotImplementedError(
            "export: soft caps on attention scores and attention sinks have no form that both ONNX "
            "Runtime and TensorRT run; use backend='hf'"
        )
    if forward.masks is None:
        if rule.window not in forward.windows:
            forward.windows.append(rule.window)
        rows = torch.ones(1, 1, query.shape[2], key.shape[2], dtype=torch.bool).tril()
    else:
        rows = forward.masks[rule.window]
    return attend(query, key, value, rows, rule.scale).transpose(1, 2).contiguous(), None


AttentionInterface.register(ATTENTION_NAME, graph_attention)


def _keep(layer: int) -> Callable[[Any, Any, Any], None]:
    def hook(_module: Any, _inputs: Any, output: Any) -> None:
        forward = _FORWARD.get()
        if forward is not None:  # blocks return a tensor or a tuple, by version
            forward.kept[layer] = output if isinstance(output, torch.Tensor) else output[0]

    return hook


class _GraphLayer(CacheLayerMixin):
    """A layer of a cache whose keys and values are inputs of the graph."""

    is_compileable, is_sliding, is_croppable = False, False, False

    def __init__(
        self, keys: torch.Tensor, values: torch.Tensor, write_index: torch.Tensor | None
    ) -> None:
        super().__init__()
        self.keys, self.values, self.write_index = keys, values, write_index
        self.outputs: tuple[torch.Tensor, torch.Tensor] | None = None
        self.is_initialized = True

    def lazy_initialization(self, *args: Any, **kwargs: Any) -> None:
        """Nothing to do: the memory is the caller's."""

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """In place: write at `write_index`. Else append to the past, and put out the new rows."""
        if self.write_index is None:
            self.outputs = key_states, value_states
            return (
                torch.cat([self.keys, key_states], dim=2),
                torch.cat([self.values, value_states], dim=2),
            )
        self.outputs = (
            write_rows(self.keys, key_states, self.write_index),
            write_rows(self.values, value_states, self.write_index),
        )
        return self.outputs

    def get_mask_sizes(self, query: Any) -> tuple[int, int]:
        """Not used: the mask is an input."""
        return self.keys.shape[2], 0

    def get_seq_length(self, *args: Any) -> int:
        """0: positions are an input."""
        return 0

    def get_max_length(self) -> int:
        """No limit of its own."""
        return -1

    get_max_cache_shape = get_max_length  # the name in transformers 5.0


class _ProbeLayer(_GraphLayer):
    """Records the shapes of a layer's keys and values."""

    def __init__(self, forward: _Forward) -> None:
        super().__init__(torch.empty(0), torch.empty(0), None)
        self._forward = forward

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        self._forward.cache_shapes += [(s.shape[1], s.shape[3]) for s in (key_states, value_states)]
        return key_states, value_states


class CausalLmGraph(torch.nn.Module):
    """What is exported.

    Parameters
    ----------
    model
        Shared and not modified.
    layers
        Decoder layers whose outputs become `features`.
    cache_style
        ``"in_place"`` or ``"new_rows"``.

    Raises
    ------
    NotImplementedError
        For architectures whose graph would be wrong.
    ValueError
        For a layer that does not exist.
    """

    def __init__(
        self, model: PreTrainedModel, layers: Sequence[int], cache_style: CacheStyle
    ) -> None:
        super().__init__()
        if rope_depends_on_length(model):
            raise NotImplementedError(
                f"export: the rotation of {type(model).__name__} depends on the length of the "
                "text, which a graph with a fixed number of operators cannot follow"
            )
        self.view = model_view(model, ATTENTION_NAME)
        if hasattr(self.view, "set_experts_implementation"):
            self.view.set_experts_implementation("batched_mm")  # the other forms do not trace
        blocks = decoder_blocks(self.view)
        for layer in layers:
            if not 0 <= layer < len(blocks):
                raise ValueError(f"export: features must be in [0, {len(blocks)}), got {layer}")
        self.layers, self.cache_style = tuple(layers), cache_style
        self.num_layers = len(blocks)
        self.max_context = max_context(model)
        self.dtype: torch.dtype = next(model.parameters()).dtype
        self._transform = output_transform(model)
        for layer in self.layers:
            blocks[layer].register_forward_hook(_keep(layer))
        probe = self._probe()
        self.windows = sorted(probe.windows, key=lambda window: window or 0)
        self.cache_shapes = probe.cache_shapes

    @torch.inference_mode()
    def _probe(self) -> _Forward:
        """A short forward that shows which windows and cache shapes there are."""
        ids = torch.arange(3)[None]
        with _running(_Forward(masks=None)) as forward:
            layers = [_ProbeLayer(forward) for _ in range(self.num_layers)]
            self._states(ids, ids, layers)
        return forward

    def _states(
        self, ids: torch.Tensor, positions: torch.Tensor, layers: Sequence[_GraphLayer]
    ) -> torch.Tensor:
        output = decoder_of(self.view)(
            input_ids=ids,
            position_ids=positions,
            past_key_values=Cache(layers=list(layers)),
            use_cache=True,
        )
        states: torch.Tensor = output.last_hidden_state
        return states

    def forward(
        self,
        input_ids: torch.Tensor,
        position_ids: torch.Tensor,
        logit_rows: torch.Tensor,
        masks: Sequence[torch.Tensor],
        write_index: torch.Tensor | None,
        cache: Sequence[torch.Tensor],
    ) -> tuple[torch.Tensor, ...]:
        """The inputs and outputs in the order of `input_names` and `output_names`."""
        layers = [
            _GraphLayer(cache[2 * i], cache[2 * i + 1], write_index) for i in range(self.num_layers)
        ]
        by_window = dict(zip(self.windows, masks, strict=True))
        with _running(_Forward(by_window)) as running:
            states = self._states(input_ids, position_ids, layers)
        head = self.view.get_output_embeddings()
        logits = self._transform(head(states.index_select(1, logit_rows)))
        outputs = [logits]
        if self.layers:
            outputs.append(torch.cat([running.kept[layer] for layer in self.layers], dim=-1))
        for layer in layers:
            assert layer.outputs is not None
            outputs += layer.outputs
        return tuple(outputs)

    # --- names and shapes ----------------------------------------------------------------------

    @property
    def masks(self) -> tuple[MaskInput, ...]:
        """Mask inputs, one per window."""
        return tuple(
            MaskInput("attention_mask" if w is None else f"attention_mask_window_{w}", w)
            for w in self.windows
        )

    @property
    def cache(self) -> tuple[CacheInput, ...]:
        """Cache inputs, keys and values in turn."""
        prefix = "present" if self.cache_style == "in_place" else "new"
        return tuple(
            CacheInput(f"cache_{place}", f"{prefix}_{place}", heads, width)
            for i, (heads, width) in enumerate(self.cache_shapes)
            for place in [f"{'keys' if i % 2 == 0 else 'values'}_{i // 2}"]
        )

    @property
    def input_names(self) -> list[str]:
        """In the order of `forward`."""
        write_index = ["write_index"] if self.cache_style == "in_place" else []
        return [
            *("input_ids", "position_ids", "logit_rows"),
            *(mask.name for mask in self.masks),
            *write_index,
            *(one.name for one in self.cache),
        ]

    @property
    def output_names(self) -> list[str]:
        """In the order of `forward`."""
        features = ["features"] if self.layers else []
        return ["logits", *features, *(one.output for one in self.cache)]

    def example(self) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
        """Arguments to trace with, and the names of their dynamic axes."""
        batch, nodes, rows = _EXAMPLE_BATCH, _EXAMPLE_NODES, _EXAMPLE_CAPACITY
        in_place = self.cache_style == "in_place"
        dim = torch.export.Dim
        b, n, m, s = dim("batch"), dim("nodes"), dim("logit_rows"), dim("capacity", min=2)
        k = s if in_place else dim("keys", min=3)  # capacity + nodes, which Dim cannot say
        keys = rows if in_place else rows + nodes
        ids = torch.arange(nodes).repeat(batch, 1)
        masks = [torch.ones(batch, 1, nodes, keys, dtype=torch.bool) for _ in self.windows]
        cache = [
            torch.zeros(batch, heads, rows, width, dtype=self.dtype)
            for heads, width in self.cache_shapes
        ]
        arguments = (
            ids,
            ids.clone(),
            torch.arange(3),
            masks,
            torch.zeros(batch, dtype=torch.long) if in_place else None,
            cache,
        )
        axes = (
            {0: b, 1: n},
            {0: b, 1: n},
            {0: m},
            [{0: b, 2: n, 3: k} for _ in masks],
            {0: b} if in_place else None,
            [{0: b, 2: s} for _ in cache],
        )
        return arguments, axes
