# SPDX-License-Identifier: Apache-2.0
"""Tools to test trees, builders and verifiers exactly: ours, and yours.

Is a verifier lossless? :func:`output_bias` goes through every tree that can be drawn and every
outcome of the verifier's coins, and compares what is emitted with plain sampling. It takes any
function ``(tree, target_probs, coins) -> (accepted nodes, next token)`` and any law of trees:

- legal laws: :func:`sampled_trees`, :func:`growth_map_trees`, :func:`delayed_trees`,
  :func:`best_first_trees`;
- laws that bias a verifier which trusts them: :func:`sorted_siblings`, :func:`pruned_by_value`,
  :func:`top_tokens_as_sampled`. A checker that lets these pass is too weak.

Besides: random laws and trees, a toy drafter, and a chi-square bound for what can only be counted.
Needs NumPy only.
"""

from treespec.testing.enumeration import (
    best_first_trees,
    delayed_trees,
    draw_outcomes,
    growth_map_trees,
    pruned_by_value,
    sampled_trees,
    sorted_siblings,
    top_tokens_as_sampled,
)
from treespec.testing.laws import (
    LAW_KINDS,
    Law,
    Laws,
    ToyDrafter,
    core_tree,
    random_draws,
    random_law,
    random_laws,
    random_tree,
    rows_of,
)
from treespec.testing.losslessness import (
    Bias,
    Coin,
    Coins,
    Outcome,
    emitted_law,
    outcome_law,
    output_bias,
    target_law,
    top_down_order,
    total_variation,
)
from treespec.testing.statistics import chi_square

__all__ = [
    "LAW_KINDS",
    "Bias",
    "Coin",
    "Coins",
    "Law",
    "Laws",
    "Outcome",
    "ToyDrafter",
    "best_first_trees",
    "chi_square",
    "core_tree",
    "delayed_trees",
    "draw_outcomes",
    "emitted_law",
    "growth_map_trees",
    "outcome_law",
    "output_bias",
    "pruned_by_value",
    "random_draws",
    "random_law",
    "random_laws",
    "random_tree",
    "rows_of",
    "sampled_trees",
    "sorted_siblings",
    "target_law",
    "top_down_order",
    "top_tokens_as_sampled",
    "total_variation",
]
