# SPDX-License-Identifier: Apache-2.0
"""What the tests of verifiers share: where each is lossless, rows, tree laws, ways to call one."""

from __future__ import annotations

from importlib import import_module

import numpy as np

import treespec
from treespec import reference, testing
from treespec.reference.tree import PROPOSALS, from_arrays
from treespec.testing import best_first_trees, core_tree, delayed_trees, sampled_trees

EXACT = 1e-11
LOW, HIGH = 0.0, 1 - 2.0**-53
SAMPLED = ("iid", "without_replacement")
DRAWN = (*SAMPLED, "top_plus_one")
# What the design says is lossless; a verifier that is not listed fails the matrix test by name.
LOSSLESS = {
    "greedy": PROPOSALS,
    "target_only": PROPOSALS,
    "token_level": SAMPLED,
    "block": SAMPLED,
    "naive_tree": SAMPLED,
    "recursive_rejection": SAMPLED,
    "spectr": ("iid",),
    "khisti": ("iid",),
    "traversal": SAMPLED,
    "top_plus_one": ("top_plus_one",),
    "typical": (),
}
CHAIN_ONLY = ("token_level", "block")
# Solved for a list of known length: how many draws a node makes must not depend on these draws.
FIXED_LISTS = ("spectr", "khisti")
# Their law is not a matter of coins, or not the target's.
NOT_BY_COINS = ("greedy", "target_only", "typical")

# (target, draft) at the root; deeper rows are rotations of the same pair. Multiples of 1/64.
PAIRS = {
    "draft equals target": ([32, 20, 12], [32, 20, 12]),
    "draft is near": ([32, 20, 12], [30, 22, 12]),
    "draft is far": ([2, 12, 50], [50, 12, 2]),
    "draft misses target mass": ([20, 24, 20], [40, 24, 0]),
    "draft offers tokens of zero target mass": ([40, 24, 0], [20, 24, 20]),
    "supports are disjoint": ([64, 0, 0], [0, 30, 34]),
    "target is one-hot": ([0, 64, 0], [20, 24, 20]),
    "draft is one-hot and exhausted": ([20, 24, 20], [0, 64, 0]),
    "both are one-hot and equal": ([0, 0, 64], [0, 0, 64]),
    "both are one-hot and differ": ([64, 0, 0], [0, 0, 64]),
    "four tokens": ([10, 30, 4, 20], [25, 5, 30, 4]),
    "four tokens with gaps": ([0, 30, 14, 20], [34, 0, 30, 0]),
    "one-token vocabulary": ([64], [64]),
}


def rotated(counts):
    base = np.array(counts, dtype=np.float64) / 64

    def law(path):
        return np.roll(base, sum(path) + len(path))

    return law


def pair_of(name):
    """(target, draft) laws of a named pair."""
    return tuple(rotated(side) for side in PAIRS[name])


# ------------------------------------------------------------------ which verifier, which trees


def by_coins(verifier_name):
    return verifier_name not in NOT_BY_COINS


def takes(verifier_name, proposal):
    return proposal in LOSSLESS[verifier_name]


def takes_trees(verifier_name):
    return verifier_name not in CHAIN_ONLY


def modes(name):
    """Proposal modes of drawn trees on which a verifier is lossless."""
    return [mode for mode in DRAWN if mode in LOSSLESS[name]]


def width_for(name, width):
    """The most children a random tree may have for a verifier."""
    return 1 if name in CHAIN_ONLY else width


def small_laws(name):
    """{label: law of trees over a draft} for many rows: at most two levels, few draws."""
    found = {}
    for mode in modes(name):
        found[mode, "a chain"] = lambda draft, mode=mode: sampled_trees(draft, (1, 1), mode)
        if takes_trees(name):
            found[mode, "three draws"] = lambda draft, mode=mode: sampled_trees(draft, (3,), mode)
    if takes_trees(name) and "iid" in modes(name):
        found["iid", "delayed (2, 1, 1)"] = lambda draft: delayed_trees(draft, 2, 1, 1)
    if takes_trees(name) and "without_replacement" in modes(name):
        found["without_replacement", "best first"] = lambda draft: best_first_trees(draft, 3)
    return found


def deep_laws(name):
    """The same for few rows: up to three levels, every kind of tree the verifier may be given."""
    found = {}
    for mode in modes(name):
        shapes = [(1, 1, 1), (1, 2), (2, 1)] if takes_trees(name) else [(1, 1, 1)]
        for shape in shapes:
            found[mode, f"fixed {shape}"] = lambda draft, mode=mode, shape=shape: sampled_trees(
                draft, shape, mode
            )
    if not takes_trees(name):
        return found
    if "iid" in modes(name):
        found["iid", "rollouts"] = lambda draft: delayed_trees(draft, 2, 0, 2)
        found["iid", "delayed (2, 2, 1)"] = lambda draft: delayed_trees(draft, 2, 2, 1)
        if name not in FIXED_LISTS:
            found["iid", "best first"] = lambda draft: best_first_trees(draft, 3, "iid")
    if "without_replacement" in modes(name):
        found["without_replacement", "best first"] = lambda draft: best_first_trees(draft, 4)
    if "top_plus_one" in modes(name):
        found["top_plus_one", "wide"] = lambda draft: sampled_trees(draft, (2, 2), "top_plus_one")
    return found


# ------------------------------------------------------------------ ways to call a verifier


def coins_for(name, accept, sample, select=None):
    """``coins`` as a verifier takes them; all select coins are 0 unless given."""
    if name != "khisti":
        return accept, sample
    return accept, sample, [[LOW] * len(row) for row in accept] if select is None else select


def decide_by_core(name):
    """A verifier of the core in the form ``testing.output_bias`` takes."""
    cache = {}

    def decide(tree, rows, coins):
        if cache.get("tree") is not tree:
            cache.update(tree=tree, core=core_tree(tree))
        verdict = treespec.verify(cache["core"], rows, verifier=name, coins=coins)
        return tuple(verdict.accepted_nodes.tolist()), verdict.next_token

    return decide


def decide_by(verify):
    """An oracle, or anything with its signature."""
    return lambda tree, rows, coins: verify(tree, rows, None, coins=coins)


def oracle(name):
    return decide_by(reference.verifier(name))


def coin_order(name):
    """An oracle may say in which order its verifier consults coins; the default is top down."""
    module = import_module(reference.verifier(name).__module__)
    return getattr(module, "coin_order", testing.top_down_order)


def bias_of(name, decide, trees, target, length=None):
    """Total variation of what is emitted to the target's law."""
    found = testing.output_bias(decide, trees, target, length, order=coin_order(name))
    return found.total_variation


# ------------------------------------------------------------------ trees by hand


def wide_tree(proposal, tokens, law):
    """A root that drew `tokens` from `law`."""
    ids = {}
    for t in tokens:
        ids.setdefault(t, len(ids) + 1)
    token, parent = [0, *ids], [-1] + [0] * len(ids)
    table = np.zeros((len(token), len(law)), np.float32)
    table[0] = law
    draws = [[ids[t] for t in tokens]] + [[] for _ in ids]
    return from_arrays(token, parent, proposal=proposal, draws=draws, draft_probs=table)


def verdict_of(tree, root_law, accept, sample, name="recursive_rejection", select=None):
    """Core and oracle agree; `accept` tests the root's draws, one `sample` coin for all nodes."""
    rows = np.tile(np.array(root_law, dtype=np.float64), (tree.num_nodes, 1))
    below = [[] for _ in tree.token[1:]]
    coins = coins_for(
        name,
        [accept, *below],
        [sample] * tree.num_nodes,
        None if select is None else [select, *below],
    )
    found = reference.verifier(name)(tree, rows, None, coins=coins)
    verdict = treespec.verify(core_tree(tree), rows, verifier=name, coins=coins)
    assert (list(verdict.accepted_nodes), verdict.next_token) == found
    return found
