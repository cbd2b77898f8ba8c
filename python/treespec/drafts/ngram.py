# SPDX-License-Identifier: Apache-2.0
"""Prompt lookup: what followed the last few tokens before is likely to follow again."""

from __future__ import annotations

from treespec._core import NgramIndex
from treespec.drafts.index import IndexDrafter


class NgramDrafter(IndexDrafter):
    """Drafts what followed earlier occurrences of the longest recurring n-gram.

    Parameters
    ----------
    **options
        Settings of every session's `NgramIndex`:
        max_ngram=4, min_ngram=1, kappa=1.0 (escape mass), max_hits=64, recency=1.0.

    Examples
    --------
    >>> import numpy as np
    >>> from treespec.drafts.base import DraftSettings
    >>> drafter = NgramDrafter()
    >>> session = drafter.begin(np.array([5, 6, 7, 8, 5]), None, 64)
    >>> drafter.observe(session, np.array([6]), None)
    >>> (trie,) = drafter.draft([session], DraftSettings(max_depth=2, node_budget=2))
    >>> parent, token, logprob = trie.arrays
    >>> token.tolist()
    [7, 8]
    """

    make_index = NgramIndex
