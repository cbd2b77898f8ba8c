# SPDX-License-Identifier: Apache-2.0
"""What a runtime must offer to run exported graphs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from treespec.export.manifest import BlockShape, Manifest
from treespec.targets.base import Array
from treespec.targets.memory import Memory

Inputs = Mapping[str, npt.NDArray[Any] | Any]
Axis = Literal["nodes", "features"]


class GraphSession(Protocol):
    """A loaded graph. One thread at a time drives it.

    Attributes
    ----------
    manifest
        What it is.
    memory
        Where its buffers must be.
    capacity
        Rows that every cache buffer must have; None: any.
    max_batch
        Most sequences of a run; None: any.
    max_rows
        Most rows of a sequence in a run; None: any.
    """

    @property
    def manifest(self) -> Manifest: ...
    @property
    def memory(self) -> Memory: ...
    @property
    def capacity(self) -> int | None: ...
    @property
    def max_batch(self) -> int | None: ...
    @property
    def max_rows(self) -> int | None: ...

    def padded(self, axis: Axis, count: int, room: int) -> int:
        """Rows to run for `count` real ones, at most `room`."""
        ...

    def run(self, inputs: Inputs, cache: Sequence[Array], outputs: Sequence[str]) -> dict[str, Any]:
        """Run once.

        Parameters
        ----------
        inputs
            Arrays by name without the caches, in host memory or where `memory` is.
        cache
            ``[B, heads, S, width]`` in the order of the manifest, contiguous; written to if the
            cache style is in_place.
        outputs
            Names that are wanted besides those of the caches.

        Returns
        -------
        dict
            The outputs, and with new_rows those of the caches; where `memory` is. They hold until
            the next run.
        """
        ...


class OutputShape(NamedTuple):
    """Shape and dtype of an output."""

    shape: tuple[int, ...]
    dtype: str


def output_shapes(manifest: Manifest, inputs: Inputs) -> dict[str, OutputShape]:
    """Every output of a run but the caches of style in_place."""
    shapes = _causal_lm_shapes if manifest.kind == "causal_lm" else _dflash_shapes
    return shapes(manifest, {name: np.shape(array) for name, array in inputs.items()})


def _causal_lm_shapes(
    manifest: Manifest, inputs: Mapping[str, tuple[int, ...]]
) -> dict[str, OutputShape]:
    batch, nodes = inputs["input_ids"]
    (rows,) = inputs["logit_rows"]
    logits = OutputShape((batch, rows, manifest.vocab_size), manifest.dtype)
    features = OutputShape((batch, nodes, manifest.layers_width), manifest.dtype)
    return {"logits": logits, "features": features, **_new_rows(manifest, batch, nodes)}


def _dflash_shapes(
    manifest: Manifest, inputs: Mapping[str, tuple[int, ...]]
) -> dict[str, OutputShape]:
    block = block_of(manifest)
    batch, positions = inputs["feature_positions"]
    lists = (batch, num_lists(block), block.width)
    owner = (batch, block.depth - 1, block.num_previous)
    return {
        "token": OutputShape(lists, "int64"),
        "logprob": OutputShape(lists, "float32"),
        "owner": OutputShape(owner, "int64"),
        **_new_rows(manifest, batch, positions + block.slots),
    }


def _new_rows(manifest: Manifest, batch: int, rows: int) -> dict[str, OutputShape]:
    if manifest.cache_style == "in_place":
        return {}
    return {
        one.output: OutputShape((batch, one.heads, rows, one.width), manifest.dtype)
        for one in manifest.cache
    }


def block_of(manifest: Manifest) -> BlockShape:
    """The block of a block drafter."""
    if manifest.block is None:
        raise ValueError(f"treespec-export: a {manifest.kind} drafter must have a block, got none")
    return manifest.block


def num_lists(block: BlockShape) -> int:
    """Ranked lists of a block."""
    if not block.num_previous:
        return block.depth
    return 1 + (block.depth - 1) * block.num_previous
