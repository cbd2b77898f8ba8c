# SPDX-License-Identifier: Apache-2.0
"""Suffix decoding: what followed the repeated ends of the text, weighted by exact counts."""

from __future__ import annotations

from treespec._core import SuffixIndex
from treespec.drafts.index import IndexDrafter


class SuffixDrafter(IndexDrafter):
    """Drafts from every suffix that occurred before, and keeps the draft that promises most.

    Parameters
    ----------
    **options
        Settings of every session's `SuffixIndex`:
        max_match=64, max_depth=64, alpha=2.0, beta=4.0, min_token_prob=0.02,
        kappa=2.0 (escape mass), max_children=128.

    Examples
    --------
    >>> import numpy as np
    >>> from treespec.drafts.base import DraftSettings
    >>> drafter = SuffixDrafter()
    >>> session = drafter.begin(np.array([5, 6, 7, 8, 5]), None, 64)
    >>> drafter.observe(session, np.array([6]), None)
    >>> (trie,) = drafter.draft([session], DraftSettings(max_depth=2, node_budget=2))
    >>> parent, token, logprob = trie.arrays
    >>> token.tolist()
    [7, 8]
    """

    make_index = SuffixIndex
