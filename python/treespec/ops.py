# SPDX-License-Identifier: Apache-2.0
"""The steps of a round as functions on arrays, for engines that own their loop.

Arrays are NumPy, torch, or of another library (DLPack), in host or CUDA memory. Small results are
on the host in any case: trees, masks, verdicts. Without CUDA arrays nothing here imports torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from treespec import _core, placement
from treespec._core import TokenTree
from treespec.builder_options import list_width, resolve_options
from treespec.config import SamplingParams
from treespec.growth import RoundKey, grow_tree
from treespec.verification import Case, verify_arrays

_ADDITIVE_FORMATS = {"float16": np.float16, "float32": np.float32, "float64": np.float64}
MASK_FORMATS = (
    "bool",
    *_ADDITIVE_FORMATS,
    "bfloat16",
    "bits",
    "intervals",
    "sequence_ids",
)


def build_tree(
    name: str,
    source: Any,
    node_budget: int = 60,
    *,
    seed: int = 0,
    sequence_id: int = 0,
    position: int = 0,
    root_token: int = 0,
    **options: Any,
) -> TokenTree:
    """Grow one draft tree.

    Parameters
    ----------
    name
        A builder of `treespec.builder_names`.
    source
        `Marginals`, `Transitions`, `Trie`, or an expander: any object with ``expand(nodes)`` ->
        float32 ``[len(nodes), V]`` log-probabilities. ``nodes`` is a sequence whose items, and
        itself as arrays, have ``.token .parent .depth .index``; ``.index`` counts nodes in order of
        first hand-over (root 0), ``.parent`` uses that numbering, and the first call is the root.
        Rows in CUDA memory are ranked there, and `node_budget` tokens of each come to the host, if
        the tree takes the likeliest tokens: without draws and without `score_temperature`, with a
        budget of at most 1024 and V of at most 2^18, in a build with CUDA. Else rows are copied.
    node_budget
        The most drafted nodes; the root is not counted.
    seed, sequence_id, position
        Key of the drafting noise; `position` is the root's absolute position.
    options
        The builder's own; an unknown one is refused with the known ones. `growth_map` takes a
        `GrowthMap`, a list of parents or the path of a file, `calibration` likewise.

    Returns
    -------
    TokenTree
        In pop order.

    Examples
    --------
    >>> import numpy as np, treespec
    >>> source = treespec.Marginals([[0, 1], [0, 1]], np.log([[0.6, 0.4], [0.7, 0.3]]))
    >>> treespec.build_tree("opt_tree", source, node_budget=3).parent.tolist()
    [-1, 0, 1, 0]
    """
    resolved = resolve_options(options)
    builder = _core.TreeBuilder(name, **resolved)
    key = _key(seed, sequence_id, position)
    if not 0 <= node_budget < 2**31:
        raise ValueError(f"{name}: node_budget must be in [0, 2**31), got {node_budget}")
    width = list_width(builder, resolved, node_budget)
    return grow_tree(builder, source, node_budget, list_width=width, key=key, root_token=root_token)


def ancestor_mask(tree: TokenTree, format: str = "bool", prefix_length: int = 0) -> Any:
    """Who may attend to whom: a node sees the prefix, its ancestors and itself.

    Parameters
    ----------
    format
        ``"bool"`` ``[N, prefix + N]``; ``"float16"``, ``"bfloat16"`` (a torch tensor),
        ``"float32"``, ``"float64"``: additive, 0 or the lowest finite value, same shape;
        ``"bits"``: uint32 ``[N, ceil(N / 32)]``, bit j of row i; ``"intervals"``: int32 ``[N, 2]``
        (rank, end), j is i or its ancestor iff rank[j] <= rank[i] < end[j]; ``"sequence_ids"``:
        (offset, id), the leaves below each node. The last three leave the prefix out.
    prefix_length
        Committed tokens before the root; for the last three formats it must be 0.
    """
    if format not in MASK_FORMATS:
        raise ValueError(
            f"ancestor_mask: format must be one of {', '.join(MASK_FORMATS)}; got {format!r}"
        )
    if prefix_length < 0:
        raise ValueError(f"ancestor_mask: prefix_length must be >= 0, got {prefix_length}")
    _core.require_sound("ancestor_mask", tree)
    if format in ("bits", "intervals", "sequence_ids"):
        if prefix_length:
            raise ValueError(
                f"ancestor_mask: prefix_length must be 0 for format {format!r}, got {prefix_length}"
            )
        return _compact_mask(tree, format)
    shape = (tree.num_nodes, prefix_length + tree.num_nodes)
    if format == "bfloat16":
        import torch

        out: Any = torch.empty(shape, dtype=torch.bfloat16)
    else:
        out = np.empty(shape, dtype=_ADDITIVE_FORMATS.get(format, np.bool_))
    _core.fill_mask(tree.parent, tree.depth, 0, prefix_length, 0, out)
    return out


def _compact_mask(tree: TokenTree, format: str) -> Any:
    if format == "bits":
        return _core.ancestor_bits(tree.parent)
    if format == "intervals":
        return np.stack(_core.preorder_intervals(tree.parent), axis=1)
    return _core.sequence_ids(tree.parent)


def tree_positions(tree: TokenTree, prefix_length: int = 0) -> npt.NDArray[np.int32]:
    """``[N]`` int32: `prefix_length` (the root's absolute position) + depth."""
    _core.require_sound("tree_positions", tree)
    return _core.tree_positions(tree.depth, prefix_length)


def verify(
    tree: TokenTree | Sequence[TokenTree],
    target_probs: Any,
    draft_probs: Any = None,
    verifier: str = "auto",
    *,
    seed: int | Sequence[int] = 0,
    sequence_id: int | Sequence[int] = 0,
    position: int | Sequence[int] = 0,
    coins: Any = None,
    lossy: bool = False,
) -> Any:
    """Keep the longest path the target itself could have produced, and draw one more token.

    Parameters
    ----------
    tree
        One tree, or a list of trees with lists of rows (and lists, or one value, of the keys).
    target_probs
        ``[N, V]`` float32 or float64; row i is the law of the token after node i. Rows in CUDA
        memory are copied to the host and verified there; `verify_logits` leaves logits where they
        are.
    draft_probs
        ``[N, V]``; row i is the law the first child of node i was drawn from, in the same memory
        as `target_probs`. None: the tree's own.
    verifier
        A name of `treespec.verifier_names`, or ``"auto"``.
    seed, sequence_id, position
        Key of the round; `position` is the root's absolute position.
    coins
        ``(accept, sample)`` in place of the generator: ``accept[i][j]`` tests draw j of node i
        (accepted iff below the probability), ``sample[i]`` draws a token at node i by inverse CDF
        in ascending id; khisti takes a third array, ``select[i][j]`` for merge j of its tournament
        at node i. For exact tests; not for target_only. A list of tuples for a list of trees.
    lossy
        Admit the verifiers that change the distribution of the text (``"typical"``).

    Returns
    -------
    Verdict or list of Verdict

    Raises
    ------
    ValueError
        For wrong shapes, rows off 1 by more than 1e-3, a missing law, rows in different memories,
        or a pair that would be biased (the message names the verifiers that fit).
    """
    if not isinstance(tree, TokenTree):
        return [
            verify(one, rows, law, verifier, **key._asdict(), coins=own, lossy=lossy)
            for one, rows, law, key, own in zip(
                tree,
                _column("target_probs", target_probs, len(tree)),
                _column("draft_probs", draft_probs, len(tree)),
                _keys(seed, sequence_id, position, len(tree)),
                _column("coins", coins, len(tree)),
                strict=True,
            )
        ]
    accept, sample, select = (None, None, None) if coins is None else _coins(coins)
    key = _key(seed, sequence_id, position)
    target_probs, draft_probs = _rows_on_host("verify", target_probs, draft_probs)
    return _core.verify(
        tree, target_probs, draft_probs, verifier, *key, accept, sample, select, lossy
    )


def verify_logits(
    tree: TokenTree | Sequence[TokenTree],
    target_logits: Any,
    draft_probs: Any = None,
    sampling: SamplingParams | None = None,
    verifier: str = "auto",
    *,
    prefix_ids: Any = None,
    prompt_length: Any = 0,
    allowed_tokens: Any = None,
    seed: int | Sequence[int] | None = None,
    sequence_id: int | Sequence[int] = 0,
    position: int | Sequence[int] = 0,
    lossy: bool = False,
) -> Any:
    """`verify` from raw logits: rows are processed when the walk visits them.

    Logits in CUDA memory are verified there, with the same verdicts bit for bit, in a build with
    CUDA. Trees of a list whose rows have one dtype and one V share a launch (without a copy of
    logits that are evenly spaced parts of one tensor); the host waits once, for the verdicts.

    Parameters
    ----------
    target_logits
        ``[N, V]`` float16, bfloat16, float32 or float64; in CUDA memory not float64, and V at most
        2^18.
    draft_probs
        As for `verify`; in CUDA memory float32. Rows of all nodes that drew are checked there, on
        the host those that the walk visits.
    sampling
        The processors; temperature 1 without any when None.
    prefix_ids
        Committed tokens, the root last; must be given when `sampling` has penalties. On the host,
        or in the memory of the logits; read by the host.
    prompt_length
        How many of `prefix_ids` are prompt.
    allowed_tokens
        uint32 ``[N, ceil(V / 32)]``: bit t % 32 of word t // 32 allows token t after node i. On the
        host, or in the memory of the logits.
    seed
        None: `sampling.seed`.

    Returns
    -------
    Verdict or list of Verdict

    Raises
    ------
    ValueError
        As `verify` does, and for NaN or +inf in a row that is visited.
    NotImplementedError
        For logits in CUDA memory that its kernels do not take, or in a build without CUDA.
    """
    params = sampling if sampling is not None else SamplingParams()
    own_seed = params.seed if seed is None else seed
    given = (target_logits, draft_probs, prefix_ids, prompt_length, allowed_tokens)
    rounds: list[tuple[Any, ...]]
    if isinstance(tree, TokenTree):
        rounds = [(tree, (own_seed, sequence_id, position), *given)]
    else:
        keys = _keys(own_seed, sequence_id, position, len(tree))
        names = ("target_logits", "draft_probs", "prefix_ids", "prompt_length", "allowed_tokens")
        columns = [_column(*column, len(tree)) for column in zip(names, given, strict=True)]
        rounds = list(zip(tree, keys, *columns, strict=True))
    row_params = params.row_params()
    verdicts = verify_arrays(
        [
            Case(
                one,
                logits,
                row_params,
                _key(*key),
                verifier,
                lossy,
                _text(prefix, params),
                length,
                allowed,
                law,
                place,
            )
            for place, (one, key, logits, law, prefix, length, allowed) in enumerate(rounds)
        ]
    )
    return verdicts[0] if isinstance(tree, TokenTree) else verdicts


def _text(prefix_ids: Any, params: SamplingParams) -> Any:
    if prefix_ids is not None:
        return prefix_ids
    if params.has_penalties:
        raise ValueError("verify_logits: prefix_ids must be given, the penalties count them")
    return np.empty(0, np.int32)


@dataclass(frozen=True)
class ExpectedAcceptance:
    """What a verifier makes of one tree, averaged over its coins.

    Attributes
    ----------
    node_probability
        ``[N]`` float64: probability that the node is accepted, 1 for the root.
    """

    node_probability: npt.NDArray[np.float64]

    @property
    def num_accepted(self) -> float:
        """Expected number of accepted nodes, the root not counted."""
        return float(self.node_probability[1:].sum())

    @property
    def block_efficiency(self) -> float:
        """Expected number of emitted tokens: the accepted ones and one more."""
        return 1.0 + self.num_accepted


def expected_acceptance(
    tree: TokenTree,
    target_probs: Any,
    draft_probs: Any = None,
    verifier: str = "auto",
    *,
    lossy: bool = False,
) -> ExpectedAcceptance:
    """How much of a given tree a verifier accepts on average, exactly.

    The tree is fixed and only the verifier's coins are averaged; averaged over trees of a builder
    as well, this is its block efficiency. Takes no random numbers. Source: arXiv 2602.16994, 2026,
    section 4 (branching probabilities); for traversal the recursion of its own tests.

    `TokenTree.expected_acceptance` is another thing: the sum of the drafter's own path
    probabilities, which knows neither target nor verifier.

    Parameters
    ----------
    target_probs, draft_probs, verifier, lossy
        As for `verify`, with the same errors.

    Examples
    --------
    >>> import treespec
    >>> tree = treespec.TokenTree([0, 1, 2], parent=[-1, 0, 1])
    >>> rows = [[0.1, 0.6, 0.3], [0.5, 0.25, 0.25], [0.4, 0.3, 0.3]]
    >>> round(treespec.expected_acceptance(tree, np.array(rows)).num_accepted, 3)
    0.75
    """
    rows = _rows_on_host("expected_acceptance", target_probs, draft_probs)
    return ExpectedAcceptance(_core.node_probability(tree, *rows, verifier, lossy))


def alpha_star(
    target_row: npt.ArrayLike, draft_row: npt.ArrayLike, num_draws: int, proposal: str = "iid"
) -> float:
    """Largest acceptance at one node that any lossless verifier can reach.

    Parameters
    ----------
    target_row, draft_row
        ``[V]`` laws of the token after the node; copied from CUDA memory.
    num_draws
        Children of the node, counted with multiplicity.
    proposal
        ``"iid"`` or ``"top_plus_one"``.

    Source: duality of the optimal transport problem between target and draws (arXiv 2310.15141,
    2023); top_plus_one: arXiv 2502.18779, 2025.

    Examples
    --------
    >>> import treespec
    >>> treespec.alpha_star([0.5, 0.5], [1.0, 0.0], 2)
    0.5
    """
    target, draft = (_floats(row).tolist() for row in (target_row, draft_row))
    return _core.alpha_star(target, draft, num_draws, proposal)


_KEY_BITS = {"seed": 64, "sequence_id": 32, "position": 32}


def _key(seed: Any, sequence_id: Any, position: Any) -> RoundKey:
    key = RoundKey(seed, sequence_id, position)
    for name, value in key._asdict().items():
        whole = isinstance(value, int | np.integer)
        if not whole or not 0 <= int(value) < 2 ** _KEY_BITS[name]:
            raise ValueError(
                f"treespec: {name} must be an integer in [0, 2**{_KEY_BITS[name]}), got {value!r}"
            )
    return key


def _coins(coins: Any) -> tuple[Any, Any, Any]:
    """The two or three arrays as lists; NumPy and torch alike."""
    if len(coins) not in (2, 3):
        raise ValueError(
            f"verify: coins must be (accept, sample) or (accept, sample, select), "
            f"got {len(coins)} arrays"
        )
    accept, sample, *select = coins
    return (
        _coin_rows("accept", accept),
        _floats(sample).tolist(),
        _coin_rows("select", select[0]) if select else None,
    )


def _coin_rows(name: str, rows: Any) -> list[list[float]]:
    listed = [_floats(row) for row in rows]
    if any(row.ndim != 1 for row in listed):
        raise ValueError(f"coins: {name} must be a list of coins per node, got {rows!r}")
    return [row.tolist() for row in listed]


def _floats(values: Any) -> npt.NDArray[np.float64]:
    return np.asarray(placement.in_host_memory(values), dtype=np.float64)


def _rows_on_host(who: str, target_probs: Any, draft_probs: Any) -> tuple[Any, Any]:
    """Rows as the core reads them; those in CUDA memory are copied."""
    placement.require_one_memory(who, {"target_probs": target_probs, "draft_probs": draft_probs})
    return placement.in_host_memory(target_probs), placement.in_host_memory(draft_probs)


def _keys(seed: Any, sequence_id: Any, position: Any, count: int) -> list[RoundKey]:
    columns = {"seed": seed, "sequence_id": sequence_id, "position": position}
    listed = [_column(name, value, count) for name, value in columns.items()]
    return [RoundKey(*key) for key in zip(*listed, strict=True)]


def _column(name: str, value: Any, count: int) -> Sequence[Any]:
    """One entry per tree: the given list, or one value (or None) for all."""
    if value is None or np.isscalar(value):
        return [value] * count
    if len(value) != count:
        raise ValueError(f"verify: {name} must have one entry per tree ({count}), got {len(value)}")
    return list(value)


def commit_kv(array: Any, base: int, nodes: npt.ArrayLike) -> None:
    """Keep the KV rows of an accepted path, in place.

    Parameters
    ----------
    array
        ``[..., rows, dim]`` of any dtype, NumPy or torch; tree rows start at row `base`. In CUDA
        memory the rows move there, by one launch on torch's current stream, which nobody waits
        for; that takes a build with CUDA and paths of at most 4096 nodes.
    base
        Row of the root: the length of the committed prefix.
    nodes
        Node ids of the root and the accepted path, ascending; ``nodes[d]`` moves to ``base + d``.
        Read by the host.
    """
    path = np.asarray(placement.in_host_memory(nodes), dtype=np.int32)
    if placement.gpu_of(array) is None:
        _core.KvBuffers([array]).commit(base, path)
    else:
        _commit_on_gpu(array, base, path)


def _commit_on_gpu(array: Any, base: int, path: npt.NDArray[np.int32]) -> None:
    placement.require_cuda_build("commit_kv", "array")
    from treespec.device.commit import commit_path

    tensor = placement.as_tensor(array)
    # The core checks what it would move in a cache without columns.
    _core.KvBuffers([np.empty((*tensor.shape[-2:-1], 0), np.int8)]).commit(base, path)
    commit_path(tensor, base, path)
