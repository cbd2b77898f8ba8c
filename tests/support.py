# SPDX-License-Identifier: Apache-2.0
"""What several tests share: pairs of core and oracle objects, options read from the oracles."""

from __future__ import annotations

import inspect
import itertools
from importlib import import_module

import numpy as np
import pytest

import treespec
from treespec import reference, testing
from treespec.reference import sources

COMMON = {"source", "node_budget", "seed", "sequence_id", "position"}
MODES = ("deterministic", "iid", "without_replacement")
SOURCE_KINDS = ("expander", "marginals", "transitions", "trie")


def in_turns(rows, columns, each=1):
    """``(row, column)``: every row with `each` of the columns, in turns."""
    columns = list(columns)
    return [
        (row, columns[(each * i + j) % len(columns)])
        for i, row in enumerate(rows)
        for j in range(each)
    ]


def options_of(builder_name):
    """Names of the options of a builder, as its oracle has them."""
    return sorted({*inspect.signature(reference.builder(builder_name)).parameters} - COMMON)


def modes_of(builder_name):
    """Option dicts that give each proposal mode a builder offers."""
    if "proposal" not in options_of(builder_name):
        return [{}]
    module = import_module(reference.builder(builder_name).__module__)
    return [{"proposal": mode} for mode in getattr(module, "PROPOSALS", MODES)]


def kwargs_for(builder_name, **wanted):
    """The options of `wanted` that the builder has."""
    known = options_of(builder_name)
    return {name: value for name, value in wanted.items() if name in known}


def core_source(source):
    """An oracle's source as the core takes it; expanders serve both."""
    if isinstance(source, sources.Marginals):
        return treespec.Marginals(source.token, source.logprob)
    if isinstance(source, sources.Transitions):
        return treespec.Transitions(source.token, source.logprob, source.next)
    if isinstance(source, sources.Trie):
        return treespec.Trie(source.parent, source.token, source.logprob)
    return source


def core_build(name, source, **options):
    return treespec.build_tree(name, core_source(source), **options)


def oracle_build(name, source, **options):
    return reference.builder(name)(source, **options)


def marginals(laws, token=None):
    """Depth-wise rows of the given laws [D, K]; the tokens of a row count up unless given."""
    logprob = log(laws)
    if token is None:
        token = np.broadcast_to(np.arange(logprob.shape[1], dtype=np.int32), logprob.shape)
    return sources.Marginals(np.ascontiguousarray(token, np.int32), logprob)


def path_of(tree, node):
    """Tokens from the root's child down to a node."""
    tokens = []
    while node > 0:
        tokens.append(int(tree.token[node]))
        node = int(tree.parent[node])
    return tuple(tokens[::-1])


def paths_of(tree):
    """The paths of all drafted nodes, in node order."""
    return [path_of(tree, node) for node in range(1, len(tree.token))]


def expected_acceptance(tree):
    """Sum of the drafted nodes' path probabilities."""
    return float(np.sum(np.exp(np.asarray(tree.path_logprob[1:], dtype=np.float64))))


def same_shape(one, two):
    """Asserts that two trees have the same tokens at the same places, drawn in the same order."""
    np.testing.assert_array_equal(one.token[1:], two.token[1:])
    np.testing.assert_array_equal(one.parent, two.parent)
    assert [list(d) for d in one.draws] == [list(d) for d in two.draws]


def first_nodes(small, large):
    """Asserts that a tree is the first nodes of another one, and all of it if it is no smaller."""
    count = len(small.token)
    np.testing.assert_array_equal(small.token[1:], large.token[1:count])
    np.testing.assert_array_equal(small.parent, large.parent[:count])
    np.testing.assert_array_equal(small.path_logprob, large.path_logprob[:count])


def all_paths(vocab_size, depth):
    """Every path of at most `depth` tokens, shorter ones first."""
    for d in range(1, depth + 1):
        yield from itertools.product(range(vocab_size), repeat=d)


def all_trees(vocab_size, depth, size):
    """Every prefix-closed set of `size` paths."""
    for chosen in itertools.combinations(all_paths(vocab_size, depth), size):
        members = set(chosen)
        if all(len(p) == 1 or p[:-1] in members for p in chosen):
            yield chosen


def path_weights(laws, vocab_size, depth):
    """Probability of every path under laws that are a function of the path."""
    weight = {(): 1.0}
    for p in all_paths(vocab_size, depth):
        weight[p] = weight[p[:-1]] * float(laws(p[:-1])[p[-1]])
    return weight


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
