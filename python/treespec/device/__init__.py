# SPDX-License-Identifier: Apache-2.0
"""The steps of a round on batches in CUDA memory: `treespec.ops` without the host in the way.

Arrays are torch tensors on the current GPU. Every function queues its work on torch's current
stream and returns at once; nothing is read back, so all of it may be captured in a CUDA graph.
Lengths are tensors, sizes of arrays are envelopes. What a kernel finds wrong with the data goes to
`status`, an int32 ``[B]`` tensor per round that `new_status` makes and `check_status` reads.

Letters in shapes: B sequences; M nodes, the root included; D levels of R lists of K candidates;
C = largest depth + 1; V vocabulary. All integers are int32. In a build without CUDA everything
here raises ``NotImplementedError``.
"""

from treespec.device.build import BUILDERS, build_tree
from treespec.device.candidates import CandidateLists, link_transitions, rank_candidates
from treespec.device.commit import KvCache, commit_kv
from treespec.device.draw import DRAWN_BUILDERS, DrawnTrees, draw_tree
from treespec.device.growth import round_keys
from treespec.device.mask import (
    MASK_FORMATS,
    TreeLayout,
    ancestor_mask,
    fill_mask,
    tree_layout,
    tree_positions,
)
from treespec.device.scores import score_lists
from treespec.device.selector import SelectorNetwork, choose_shapes, root_scalars
from treespec.device.status import check_status, new_status
from treespec.device.trees import Trees
from treespec.device.verify import Law, ScoreChanges, Verdicts, sampling_words, verify

__all__ = [
    "BUILDERS",
    "DRAWN_BUILDERS",
    "MASK_FORMATS",
    "CandidateLists",
    "DrawnTrees",
    "KvCache",
    "Law",
    "ScoreChanges",
    "SelectorNetwork",
    "TreeLayout",
    "Trees",
    "Verdicts",
    "ancestor_mask",
    "build_tree",
    "check_status",
    "choose_shapes",
    "commit_kv",
    "draw_tree",
    "fill_mask",
    "link_transitions",
    "new_status",
    "rank_candidates",
    "root_scalars",
    "round_keys",
    "sampling_words",
    "score_lists",
    "tree_layout",
    "tree_positions",
    "verify",
]
