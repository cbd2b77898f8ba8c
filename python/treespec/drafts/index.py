# SPDX-License-Identifier: Apache-2.0
"""What the model-free drafters share: a native index over the text of each session."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Protocol

import numpy as np
import numpy.typing as npt

from treespec._core import Trie
from treespec.drafts.base import DraftSettings
from treespec.targets.base import Needs, TargetStates

# Bounds for a caller that names none.
_DEFAULT_DEPTH = 16
_DEFAULT_NODES = 64


class TextIndex(Protocol):
    """An index of `treespec._core`: the committed text, and what may follow it."""

    def append(self, token_ids: Any) -> None: ...
    def draft(self, max_depth: int, node_budget: int) -> tuple[Any, Any, Any]: ...
    def clear(self) -> None: ...


class IndexDrafter:
    """Drafts from an index of prompt and output. No model, no target states.

    Parameters
    ----------
    **options
        Settings of every session's index.

    Raises
    ------
    ValueError
        If a setting is out of its range.
    TypeError
        If a setting is unknown.
    """

    needs = Needs()
    source_kind = "Trie"
    make_index: ClassVar[Callable[..., TextIndex]]

    def __init__(self, **options: Any) -> None:
        type(self).make_index(**options)  # a bad setting is refused here, not in the first round
        self._options = options

    def begin(
        self, prompt_ids: npt.NDArray[np.integer[Any]], states: TargetStates | None, capacity: int
    ) -> TextIndex:
        """Index the prompt. `states` and `capacity` are not needed."""
        index = type(self).make_index(**self._options)
        index.append(prompt_ids)
        return index

    def draft(self, sessions: Sequence[TextIndex], settings: DraftSettings) -> list[Trie]:
        """One trie per session; empty where nothing recurs."""
        depth = _DEFAULT_DEPTH if settings.max_depth is None else settings.max_depth
        nodes = _DEFAULT_NODES if settings.node_budget is None else settings.node_budget
        return [Trie(*index.draft(depth, nodes)) for index in sessions]

    def observe(
        self,
        session: TextIndex,
        token_ids: npt.NDArray[np.integer[Any]],
        states: TargetStates | None,
    ) -> None:
        """Append newly committed tokens. `states` are not needed."""
        session.append(token_ids)

    def end(self, session: TextIndex) -> None:
        """Release the session's memory."""
        session.clear()
