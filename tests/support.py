# SPDX-License-Identifier: Apache-2.0
"""What several tests share: pairs of core and oracle objects, options read from the oracles."""

from __future__ import annotations

import inspect

import numpy as np
import pytest

import treespec
from treespec import _core, reference, testing
from treespec.reference import sources

COMMON = {"source", "node_budget", "seed", "sequence_id", "position"}
MODES = ("deterministic", "iid", "without_replacement")
SOURCE_KINDS = ("expander", "marginals", "transitions", "trie")


def options_of(builder_name):
    """Names of the options of a builder, as its oracle has them."""
    return sorted({*inspect.signature(reference.builder(builder_name)).parameters} - COMMON)


def modes_of(builder_name):
    """Option dicts that give each proposal mode a builder offers."""
    if "proposal" not in options_of(builder_name):
        return [{}]
    return [{"proposal": mode} for mode in MODES if _offers(builder_name, mode)]


def _offers(builder_name, mode):
    try:
        _core.TreeBuilder(builder_name, proposal=mode)
    except ValueError:
        return False
    return True


def log(law):
    with np.errstate(divide="ignore"):
        return np.log(np.asarray(law, dtype=np.float64)).astype(np.float32)


def make_source(kind, seed, *, vocab_size=6, depth=4, kinds=("dense", "sparse", "peaked")):
    """(core source, oracle source) over the same random rows."""
    rng = np.random.default_rng([seed, vocab_size, depth])

    def row():
        return testing.random_law(rng, vocab_size, str(rng.choice(list(kinds))))

    if kind == "expander":
        laws = testing.random_laws(seed, vocab_size, kinds)
        return testing.ToyDrafter(laws), testing.ToyDrafter(laws)
    if kind == "marginals":
        token = np.stack([rng.permutation(vocab_size) for _ in range(depth)]).astype(np.int32)
        logprob = log([row() for _ in range(depth)])
        return treespec.Marginals(token, logprob), sources.Marginals(token, logprob)
    if kind == "transitions":
        num_rows = 3
        shape = (depth, num_rows, vocab_size)
        token = rng.permuted(np.broadcast_to(np.arange(vocab_size), shape), axis=2).astype(np.int32)
        logprob = log([[row() for _ in range(num_rows)] for _ in range(depth)])
        follow = rng.integers(-1, num_rows, size=shape).astype(np.int32)
        fields = (token, logprob, follow)
        return treespec.Transitions(*fields), sources.Transitions(*fields)
    if kind == "trie":
        parent, token, logprob = random_trie(rng, vocab_size, 40)
        return treespec.Trie(parent, token, logprob), sources.Trie(parent, token, logprob)
    raise ValueError(kind)


def random_trie(rng, vocab_size, size):
    parent, token = [], []
    taken = set()
    while len(parent) < size:
        place = (int(rng.integers(-1, len(parent))), int(rng.integers(vocab_size)))
        if place not in taken:
            taken.add(place)
            parent.append(place[0])
            token.append(place[1])
    # Few distinct values: ties between and within siblings are common.
    logprob = log(rng.choice([1.0, 0.5, 0.5, 0.25, 0.125, 0.0], size=size))
    return np.array(parent, np.int32), np.array(token, np.int32), logprob


def reads(builder_name, kind):
    """Whether a builder reads a kind of source (the core's word; a test compares the oracle's)."""
    try:
        treespec.build_tree(builder_name, make_source(kind, 0)[0], node_budget=1)
    except ValueError as error:
        assert "builders that read it" in str(error), error
        return False
    return True


def only(rule):
    """Runs a test for those parameters alone that ``rule``, a function of some of them, admits."""
    return pytest.mark.only.with_args(rule)


def same_tree(core, oracle, *, exact_scores=True):
    """Asserts that a core tree equals an oracle tree, bit for bit where the contract says so."""
    assert core.proposal == oracle.proposal
    np.testing.assert_array_equal(core.token[1:], oracle.token[1:])
    np.testing.assert_array_equal(core.parent, oracle.parent)
    np.testing.assert_array_equal(core.depth, oracle.depth)
    assert [list(d) for d in core.draws] == oracle.draws
    if exact_scores:
        np.testing.assert_array_equal(core.path_logprob, oracle.path_logprob)
    else:
        np.testing.assert_allclose(core.path_logprob, oracle.path_logprob, rtol=1e-5, atol=1e-6)
    if oracle.draft_probs is None:
        assert core.draft_probs is None
    else:
        width = max(core.draft_probs.shape[1], oracle.draft_probs.shape[1])
        np.testing.assert_array_max_ulp(
            widen(core.draft_probs, width), widen(oracle.draft_probs, width), maxulp=1
        )


def widen(rows, width):
    result = np.zeros((len(rows), width), dtype=np.float32)
    result[:, : rows.shape[1]] = rows
    return result


def chain_tree(tokens, **fields):
    """An oracle tree that is one path."""
    from treespec.reference.tree import from_arrays

    return from_arrays([0, *tokens], range(-1, len(tokens)), **fields)


def as_float32(array):
    """Any float array the library returns, as float32 (bfloat16 comes as torch or as raw bits)."""
    if hasattr(array, "float"):
        return array.float().numpy()
    array = np.asarray(array)
    if array.dtype == np.uint16:
        return (array.astype(np.uint32) << 16).view(np.float32)
    return array.astype(np.float32)
