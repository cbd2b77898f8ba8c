# SPDX-License-Identifier: Apache-2.0
"""The n-gram and suffix drafters: counts against brute force on random small-alphabet strings."""

import doctest
import importlib
import subprocess
import sys

import numpy as np
import pytest

import treespec
from treespec._core import NgramIndex, SuffixIndex
from treespec.drafts.base import DraftSettings
from treespec.drafts.ngram import NgramDrafter
from treespec.drafts.suffix import SuffixDrafter

DRAFTERS = [NgramDrafter, SuffixDrafter]


def random_text(rng, alphabet, length):
    """Random tokens in which pieces of the past recur, so that long matches exist."""
    text = []
    while len(text) < length:
        if len(text) > 8 and rng.random() < 0.3:
            begin = int(rng.integers(len(text) - 4))
            text += text[begin : begin + int(rng.integers(3, 12))]
        else:
            text.append(int(rng.integers(alphabet)))
    return text[:length]


def occurrences(text, string):
    size = len(string)
    return sum(text[at : at + size] == string for at in range(len(text) - size + 1))


def paths_of(parent, token):
    paths = []
    for p, t in zip(parent.tolist(), token.tolist(), strict=True):
        paths.append((paths[p] if p >= 0 else []) + [t])
    return paths


def check_trie(parent, token, logprob, max_depth, node_budget):
    assert parent.dtype == token.dtype == np.int32 and logprob.dtype == np.float32
    assert len(parent) == len(token) == len(logprob) <= node_budget
    assert all(p < i for i, p in enumerate(parent.tolist()))
    paths = paths_of(parent, token)
    assert len({tuple(path) for path in paths}) == len(paths)
    assert max(map(len, paths), default=0) <= max_depth
    assert np.isfinite(logprob).all() and (logprob <= 0).all()


def test_suffix_counts_are_those_of_a_scan(rng):
    for _ in range(40):
        text = random_text(rng, int(rng.integers(1, 12)), int(rng.integers(1, 90)))
        index = SuffixIndex(max_match=5, max_depth=4)
        for end in range(len(text)):
            index.append(text[end : end + 1])
            seen = text[: end + 1]
            match = next(
                (n for n in range(min(5, end), 0, -1) if occurrences(seen[:-1], seen[-n:])), 0
            )
            assert index.match_length == match
        assert index.size == len(text)
        for _ in range(30):
            begin = int(rng.integers(len(text)))
            string = text[begin : begin + int(rng.integers(1, 10))]
            if rng.random() < 0.2:
                string[-1] = 99
            assert index.count(string) == occurrences(text, string)


def test_suffix_probabilities_follow_from_counts(rng):
    kappa = 1.5
    drafted = 0
    for _ in range(60):
        text = random_text(rng, int(rng.integers(2, 8)), int(rng.integers(5, 120)))
        index = SuffixIndex(max_match=6, max_depth=6, kappa=kappa)
        index.append(text)
        parent, token, logprob = index.draft(6, 24)
        check_trie(parent, token, logprob, 6, 24)
        drafted += len(token)

        # The draft stands below one suffix; with it every probability is a ratio of counts.
        def probabilities(match, paths, text=text):
            for path in paths:
                context = text[-match:] + path[:-1]
                followed = occurrences(text, context) - (text[-len(context) :] == context)
                yield occurrences(text, [*context, path[-1]]) / (followed + kappa / len(context))

        paths = paths_of(parent, token)
        assert not paths or any(
            np.allclose(list(probabilities(match, paths)), np.exp(logprob), atol=1e-5)
            for match in range(1, index.match_length + 1)
            if occurrences(text[:-1], text[-match:])
        )
    assert drafted > 300


def test_ngram_probabilities_follow_from_the_hits_of_the_longest_ngram(rng):
    kappa, drafted = 0.5, 0
    for _ in range(60):
        text = random_text(rng, int(rng.integers(2, 8)), int(rng.integers(2, 120)))
        index = NgramIndex(3, kappa=kappa, max_hits=1000)
        index.append(text)
        parent, token, logprob = index.draft(5, 24)
        check_trie(parent, token, logprob, 5, 24)
        drafted += len(token)
        hits = []
        for n in (3, 2, 1):
            ends = range(n - 1, len(text) - 1)
            hits = hits or [end for end in ends if text[end + 1 - n : end + 1] == text[-n:]]
        continuations = []
        for end in hits:  # copied onto the end of the text, also beyond it
            copy = list(text)
            for i in range(5):
                copy.append(copy[end + 1 + i])
            continuations.append(copy[len(text) :])

        def count(path, continuations=continuations):
            return sum(c[: len(path)] == path for c in continuations)

        for path, score in zip(paths_of(parent, token), logprob, strict=True):
            assert np.exp(score) == pytest.approx(
                count(path) / (count(path[:-1]) + kappa), abs=1e-5
            )
    assert drafted > 300


@pytest.mark.parametrize("make_index", [NgramIndex, SuffixIndex])
def test_appending_in_pieces_changes_nothing(rng, make_index):
    text = random_text(rng, 5, 200)
    whole, pieces = make_index(), make_index()
    whole.append(np.asarray(text, np.int64))
    for at in range(0, 200, 7):
        pieces.append(text[at : at + 7])
    for a, b in zip(whole.draft(8, 16), pieces.draft(8, 16), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("make_index", [NgramIndex, SuffixIndex])
def test_wrong_tokens_are_refused_and_nothing_is_added(make_index):
    index = make_index()
    for bad in ([1, -1], [2**31], [2**40], [1.5], [[1, 2]]):
        with pytest.raises(ValueError, match="token"):
            index.append(bad)
    index.append([])
    assert index.size == 0
    assert all(len(array) == 0 for array in index.draft(4, 4))
    with pytest.raises(ValueError, match="max_depth must be at least 0, got -1"):
        index.draft(-1, 4)


def test_wrong_settings_are_refused():
    with pytest.raises(ValueError, match="max_ngram must be in"):
        NgramDrafter(max_ngram=0)
    with pytest.raises(ValueError, match="min_token_prob must be in"):
        SuffixDrafter(min_token_prob=2.0)
    with pytest.raises(TypeError):
        SuffixDrafter(no_such_setting=1)


@pytest.mark.parametrize("drafter_type", DRAFTERS)
def test_a_drafter_serves_several_sessions_and_drafting_changes_nothing(drafter_type):
    drafter = drafter_type()
    first = drafter.begin(np.array([1, 2, 3, 1]), None, 64)
    second = drafter.begin(np.array([7, 8, 9]), None, 64)
    drafter.observe(first, np.array([2]), None)
    drafter.observe(second, np.array([4]), None)
    settings = DraftSettings(max_depth=3, node_budget=6)
    for _ in range(2):
        mine, other = drafter.draft([first, second], settings)
        assert mine.arrays[1].tolist()[0] == 3
        assert other.arrays[1].size == 0
    tree = treespec.build_tree("opt_tree", mine, node_budget=6)
    assert treespec.check_tree(tree) == []
    drafter.end(first)
    assert first.size == 0


@pytest.mark.parametrize("name", ["ngram", "suffix"])
def test_the_docstring_example_runs(name):
    failed, attempted = doctest.testmod(importlib.import_module(f"treespec.drafts.{name}"))
    assert attempted > 0 and failed == 0


def test_the_drafters_import_no_torch():
    code = (
        "import sys, treespec.drafts.ngram, treespec.drafts.suffix; "
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
