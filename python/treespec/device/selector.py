# SPDX-License-Identifier: Apache-2.0
"""What a selector reads of the laws before a round, and what it chooses, without the host."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch

from treespec.device import native
from treespec.device.verify import ScoreChanges


class _Laws(NamedTuple):
    """`treespec::device::RootLaws`."""

    target_logits: torch.Tensor
    draft_logits: torch.Tensor
    root_logits: torch.Tensor
    sampling: torch.Tensor
    draft_sampling: torch.Tensor
    changes: ScoreChanges | None
    tokens_before: torch.Tensor


def root_scalars(
    target_logits: torch.Tensor,
    draft_logits: torch.Tensor,
    root_logits: torch.Tensor,
    *,
    sampling: torch.Tensor,
    draft_sampling: torch.Tensor,
    tokens_before: torch.Tensor,
    changes: ScoreChanges | None = None,
    status: torch.Tensor,
) -> torch.Tensor:
    """The numbers that a selector reads beside hidden states, in four launches.

    Bit for bit those of `treespec.selector.features.RootView.scalars`, sequence by sequence.

    Parameters
    ----------
    target_logits
        ``[B, V]`` float32, float16 or bfloat16: the target's after the token before the root.
    draft_logits, root_logits
        ``[B, any width]``: the drafter's there, and after the root. Tokens from V on do not exist,
        tokens that the drafter lacks have probability 0.
    sampling, draft_sampling
        Of `sampling_words`: the target's, and that of both rows of the drafter.
    tokens_before
        ``[B]``: tokens before the root, at least 1.
    changes
        Penalties, allowed tokens and biases of the target, as for trees of one node (M = 1).
        Penalties and biases take another launch.

    Returns
    -------
    torch.Tensor
        ``[B, 9]`` float32, in the order of `treespec.selector.features.SCALARS`; NaN where the
        status says why.
    """
    given = _Laws(
        target_logits,
        draft_logits,
        root_logits,
        sampling,
        draft_sampling,
        changes,
        tokens_before,
    )
    scalars = target_logits.new_empty((len(target_logits), 9), dtype=torch.float32)
    workspace = native.workspace(target_logits, native.ops.root_scalars_workspace_bytes(given))
    native.ops.root_scalars(native.stream(target_logits), given, workspace, scalars, status)
    return scalars


class SelectorNetwork(NamedTuple):
    """`treespec::device::Selector`: the network of a `treespec.selector.selector.Selector`.

    Attributes
    ----------
    state_widths, projection_width, num_scalars, layer_widths
        `Selector.config.sizes`.
    parameters
        ``[P]`` float32: `Selector.parameters`.
    num_nodes, depth
        ``[A]``: of every action.
    """

    state_widths: Sequence[int]
    projection_width: int
    num_scalars: int
    layer_widths: Sequence[int]
    parameters: torch.Tensor
    num_nodes: torch.Tensor
    depth: torch.Tensor


class _Inputs(NamedTuple):
    """`treespec::device::SelectorInputs`."""

    states: Sequence[torch.Tensor]
    scalars: torch.Tensor
    node_budget: torch.Tensor
    max_depth: torch.Tensor


def choose_shapes(
    network: SelectorNetwork,
    states: Sequence[torch.Tensor],
    scalars: torch.Tensor,
    *,
    node_budget: torch.Tensor,
    max_depth: torch.Tensor,
    status: torch.Tensor,
) -> torch.Tensor:
    """Which action `Selector.choose` takes, sequence by sequence, in one launch.

    Parameters
    ----------
    network
        On the device.
    states
        ``[B, width]`` float32 for each of `state_widths`.
    scalars
        ``[B, num_scalars]`` float32, of `root_scalars`.
    node_budget, max_depth
        ``[B]``: larger actions are not taken.

    Returns
    -------
    torch.Tensor
        ``[B]``: places among the actions; -1 where the status says why.
    """
    chosen = native.ints(scalars, len(scalars))
    inputs = _Inputs(states, scalars, node_budget, max_depth)
    native.ops.choose_shapes(native.stream(scalars), network, inputs, chosen, status)
    return chosen
