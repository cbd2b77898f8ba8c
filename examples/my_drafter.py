# SPDX-License-Identifier: Apache-2.0
"""A drafter of your own: it guesses that a token is followed by what followed it before.

    python examples/my_drafter.py

A drafter is any object with the six members of `treespec.drafts.base.Drafter`. This one has no
model: it counts pairs of tokens in prompt and output.
"""

from __future__ import annotations

from collections import Counter, defaultdict

import numpy as np

import treespec
from treespec.targets.base import Needs


class PairCounts:
    """The state of one sequence, and the source of its trees: `expand` scores children."""

    def __init__(self, vocab_size):
        self.vocab_size = vocab_size
        self.last = None
        self.followers = defaultdict(Counter)

    def append(self, token_ids):
        for token in token_ids.tolist():
            self.followers[self.last][token] += 1
            self.last = token

    def expand(self, nodes):
        """`[len(nodes), V]` log-probabilities of the children of each node; -inf is impossible."""
        rows = np.full((len(nodes), self.vocab_size), -np.inf, dtype=np.float32)
        for row, token in zip(rows, nodes.token.tolist(), strict=True):
            total = self.followers[token].total() if token in self.followers else 0
            for follower, count in self.followers.get(token, {}).items():
                row[follower] = np.log(count / total)
        return rows


class PairDrafter:
    """The six members. Only `begin` and `observe` may change a session."""

    needs = Needs()  # of the target's hidden states: none
    source_kind = "Expander"  # what `draft` returns

    def __init__(self, vocab_size):
        self.vocab_size = vocab_size

    def begin(self, prompt_ids, states, capacity):
        session = PairCounts(self.vocab_size)
        session.append(prompt_ids)
        return session

    def draft(self, sessions, settings):
        return sessions  # one source per sequence; a session here is its own expander

    def observe(self, session, token_ids, states):
        session.append(token_ids)  # emitted tokens, in order; the last one is the new root

    def end(self, session):
        session.followers.clear()


if __name__ == "__main__":
    prompt, settings = "class Stack:", {"max_new_tokens": 96, "temperature": 0.7, "seed": 1}
    plain = treespec.load("demo", drafter=None)
    ours = treespec.SpeculativeDecoder(
        plain.target, PairDrafter(plain.target.vocab_size), tokenizer=plain.tokenizer
    )
    result = ours.generate(prompt, **settings)
    print(prompt + result.text)
    print(f"\n{result.stats.block_efficiency:.2f} tokens per target forward")
    same = result.token_ids == plain.generate(prompt, **settings).token_ids
    print("the text of plain decoding" if same else "another text than plain decoding")
