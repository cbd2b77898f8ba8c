# SPDX-License-Identifier: Apache-2.0
"""An exported causal language model as the target, on any runtime."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from treespec.targets.base import Array, Needs, TargetStates, TreeRows
from treespec.targets.graph_runner import GraphRunner
from treespec.targets.graph_session import GraphSession
from treespec.targets.kv_slots import KvSlot
from treespec.targets.segment import Segment


class GraphTarget:
    """A target whose forwards are runs of an exported graph.

    Parameters
    ----------
    session
        The loaded graph.

    Raises
    ------
    ValueError
        If it is no target.

    Notes
    -----
    The methods are those of `treespec.targets.base.Target`.
    """

    supports_trees = True

    def __init__(self, session: GraphSession) -> None:
        manifest = session.manifest
        if manifest.role != "target":
            raise ValueError(f"load: target must be an exported target, got a {manifest.role}")
        self.manifest, self.runner = manifest, GraphRunner(session)
        self.lock = self.runner.lock
        self.vocab_size, self.max_context = manifest.vocab_size, manifest.max_context
        self.eos_ids = manifest.eos_token_ids

    @property
    def device(self) -> Any:
        """Where logits and states are."""
        return self.runner.device

    def check_needs(self, needs: Needs) -> None:
        """Refuse a drafter that reads states the graph does not give.

        Raises
        ------
        ValueError
            Naming the layers.
        """
        if needs.last_hidden:
            raise ValueError(
                "load: drafter must not read the target's last state (Medusa), which exported "
                "targets do not give"
            )
        if set(needs.layers) - set(self.manifest.layers):
            asked = ",".join(map(str, needs.layers))
            raise ValueError(
                f"load: the drafter reads layers {asked} of the target, which was exported with "
                f"{','.join(map(str, self.manifest.layers)) or 'none'}; export it again with "
                f"--features {asked}"
            )

    @property
    def max_nodes(self) -> int:
        """Most rows of one sequence in a forward, the root included."""
        return self.runner.manifest.max_nodes

    def check_nodes(self, nodes: int) -> None:
        """Refuse trees of so many nodes, the root included, if the target was exported for fewer.

        Raises
        ------
        ValueError
            Naming the limit.
        """
        self.runner.check_nodes(nodes)

    def open(self, capacity: int) -> KvSlot:
        """A new sequence of `capacity` rows."""
        return self.runner.pool.open(capacity)

    def prefill(
        self,
        sequences: Sequence[KvSlot],
        token_ids: Sequence[npt.NDArray[np.integer[Any]]],
        needs: Needs,
    ) -> tuple[list[Array], list[TargetStates]]:
        """Append and commit tokens in forwards of bounded size."""
        self.check_needs(needs)
        logits, states = self.runner.prefill(sequences, token_ids, features=bool(needs.layers))
        return logits, [TargetStates(self._columns(own.features, needs)) for own in states]

    def forward(
        self, sequences: Sequence[KvSlot], trees: Sequence[TreeRows], needs: Needs
    ) -> tuple[list[Array], list[TargetStates]]:
        """Compute all trees in one forward."""
        self.check_needs(needs)
        segments = [
            Segment(sequence, tree.token, tree.parent, tree.depth)
            for sequence, tree in zip(sequences, trees, strict=True)
        ]
        logits, states = self.runner.forward(segments, features=bool(needs.layers))
        return logits, [TargetStates(self._columns(own, needs)) for own in states]

    def commit(
        self, sequences: Sequence[KvSlot], accepted: Sequence[npt.NDArray[np.integer[Any]]]
    ) -> None:
        """Keep the accepted rows of each sequence."""
        for sequence, nodes in zip(sequences, accepted, strict=True):
            sequence.commit(np.asarray(nodes, dtype=np.int64))

    def close(self, sequence: KvSlot) -> None:
        """Release the rows of a sequence."""
        sequence.release()

    def _columns(self, features: Array | None, needs: Needs) -> Array | None:
        """The layers asked for, in their order, of all that the graph gives."""
        layers = self.manifest.layers
        if features is None or needs.layers == layers:
            return features
        width = self.manifest.layers_width // len(layers)
        begins = [layers.index(layer) * width for layer in needs.layers]
        columns = np.concatenate([np.arange(begin, begin + width) for begin in begins])
        return features[:, columns.tolist()]
