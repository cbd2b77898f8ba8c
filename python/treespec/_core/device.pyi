"""
The ops of treespec/device/*.h, on arrays in CUDA memory.

`stream` is the integer of a cudaStream_t. Arrays come by DLPack and are not copied; structs are
objects with the fields as attributes; outputs, workspaces and status are the caller's. Everything
is asynchronous on the stream. Raises NotImplementedError without CUDA.
"""
from __future__ import annotations
import collections.abc
import numpy
import numpy.typing
import typing
__all__: list[str] = ['KvCache', 'begin_layers', 'begin_paths', 'begin_shape', 'begin_slots', 'build_best_first', 'choose_shapes', 'commit_kv_workspace_bytes', 'fill_mask', 'finish_layers', 'finish_paths', 'finish_shape', 'finish_slots', 'grow_layer', 'grow_paths', 'grow_shape', 'grow_slots', 'layers_workspace_bytes', 'link_transitions', 'paths_workspace_bytes', 'preorder_intervals', 'rank_candidates', 'rank_candidates_workspace_bytes', 'root_scalars', 'root_scalars_workspace_bytes', 'score_lists', 'sequence_ids', 'shape_workspace_bytes', 'slots_workspace_bytes', 'tree_layout', 'verify', 'verify_workspace_bytes']
class KvCache:
    """
    KV tensors [pages, heads, rows, dim] of a batch, borrowed; rows contiguous.
    
    A contiguous cache has a page per sequence. Other orders of axes come as views.
    """
    def __init__(self, arrays: collections.abc.Sequence[typing.Any]) -> None:
        ...
    def commit(self, stream: typing.SupportsInt | typing.SupportsIndex, table: typing.Any, paths: typing.Any, prefix_length: typing.Any, status: typing.Any, *, block_table: typing.Any = None) -> None:
        """
        Moves row prefix_length + nodes[d] of each sequence to row prefix_length + d.
        
        paths: nodes [B, C], num_accepted [B] (-1: nothing to commit). block_table [B, pages of a sequence]
        for a paged cache.
        """
    def commit_and_advance(self, stream: typing.SupportsInt | typing.SupportsIndex, table: typing.Any, paths: typing.Any, prefix_length: typing.Any, workspace: typing.Any, status: typing.Any, *, block_table: typing.Any = None) -> None:
        """
        The same, and adds num_accepted + 1 to prefix_length of every sequence that moved. workspace: zero before the first call; every call leaves it so.
        """
    @property
    def num_pages(self) -> int:
        ...
    @property
    def page_size(self) -> int:
        ...
    @property
    def table(self) -> numpy.typing.NDArray[numpy.int64]:
        """
        [tensors, 6] int64 in host memory; `commit` wants it on the device.
        """
def begin_layers(stream: typing.SupportsInt | typing.SupportsIndex, options: typing.Any, request: typing.Any, trees: typing.Any, workspace: typing.Any, frontier: typing.Any, status: typing.Any) -> None:
    """
    Builders "opt_tree" and "eagle2": starts with the frontier [root].
    
    options: max_depth, max_calls, width, threshold, floor, width_ratio, constant_growth. frontier:
    num_nodes [B]; index, parent, token, depth and state [B, F].
    """
def begin_paths(stream: typing.SupportsInt | typing.SupportsIndex, options: typing.Any, list_width: typing.SupportsInt | typing.SupportsIndex, request: typing.Any, trees: typing.Any, workspace: typing.Any, frontier: typing.Any, status: typing.Any) -> None:
    """
    Builders "rollouts" and "delayed": starts with the frontier [root].
    
    options: num_paths, trunk, branch, rollouts, max_depth; lengths [B, 3], the first three of every
    sequence, or None.
    """
def begin_shape(stream: typing.SupportsInt | typing.SupportsIndex, shape: typing.Any, list_width: typing.SupportsInt | typing.SupportsIndex, proposal: str, request: typing.Any, trees: typing.Any, workspace: typing.Any, frontier: typing.Any, status: typing.Any) -> None:
    """
    Fixed shapes: starts with the frontier [root].
    
    shape: parent [places], as GrowthMap; max_depth; whole_levels.
    """
def begin_slots(stream: typing.SupportsInt | typing.SupportsIndex, options: typing.Any, list_width: typing.SupportsInt | typing.SupportsIndex, request: typing.Any, trees: typing.Any, workspace: typing.Any, frontier: typing.Any, status: typing.Any) -> None:
    """
    Builders "dyspec" and "dyspec_threshold": starts with the frontier [root].
    
    options: max_depth, threshold, calibration (float64 [points, 2]). The frontier needs room for M - 1
    nodes.
    """
def build_best_first(stream: typing.SupportsInt | typing.SupportsIndex, lists: typing.Any, max_depth: typing.SupportsInt | typing.SupportsIndex, request: typing.Any, trees: typing.Any, status: typing.Any) -> None:
    """
    Builder "dtree": writes every array of `trees`.
    
    lists: kind, token, logprob and next, as Marginals [B, D, K] or Transitions [B, D, R, K].
    request: node_budget [B], root_token [B] or None.
    """
def choose_shapes(stream: typing.SupportsInt | typing.SupportsIndex, selector: typing.Any, inputs: typing.Any, chosen: typing.Any, status: typing.Any) -> None:
    """
    Writes chosen [B], the places of the shapes that DelayedSelector.choose gives.
    
    selector: state_widths, projection_width, num_scalars and layer_widths, numbers as DelayedSelector
    takes them; parameters [P] float32, num_nodes and depth [A]. inputs: states, a list of [B, width]
    float32; scalars [B, num_scalars] float32; node_budget and max_depth [B].
    """
def commit_kv_workspace_bytes(batch: typing.SupportsInt | typing.SupportsIndex) -> int:
    ...
def fill_mask(stream: typing.SupportsInt | typing.SupportsIndex, trees: typing.Any, layout: typing.Any, prefix_length: typing.Any, out: typing.Any, status: typing.Any, *, first: typing.SupportsInt | typing.SupportsIndex = 0, window: typing.SupportsInt | typing.SupportsIndex = 0) -> None:
    """
    Fills `out` [B, M - first, columns] from the bits and positions of `layout`.
    
    One-byte arrays take 1 for visible, floats 0 for visible and the lowest finite value for hidden.
    window > 0 hides keys with query position - key position >= window.
    """
def finish_layers(stream: typing.SupportsInt | typing.SupportsIndex, request: typing.Any, workspace: typing.Any, trees: typing.Any) -> None:
    """
    Writes every array of `trees`.
    """
def finish_paths(stream: typing.SupportsInt | typing.SupportsIndex, list_width: typing.SupportsInt | typing.SupportsIndex, request: typing.Any, workspace: typing.Any, trees: typing.Any, law: typing.Any) -> None:
    """
    Writes every array of `trees` and their laws, as finish_shape.
    """
def finish_shape(stream: typing.SupportsInt | typing.SupportsIndex, shape: typing.Any, list_width: typing.SupportsInt | typing.SupportsIndex, proposal: str, request: typing.Any, workspace: typing.Any, trees: typing.Any, law: typing.Any) -> None:
    """
    Writes every array of `trees`, and the laws of drawn ones.
    
    law: row_of_node [B, M], row_offset [B * M + 1] int64, token and prob [B * M * list_width]; None for
    deterministic trees.
    """
def finish_slots(stream: typing.SupportsInt | typing.SupportsIndex, list_width: typing.SupportsInt | typing.SupportsIndex, request: typing.Any, workspace: typing.Any, trees: typing.Any, law: typing.Any, status: typing.Any) -> None:
    """
    Writes every array of `trees` and their laws, as finish_shape.
    """
def grow_layer(stream: typing.SupportsInt | typing.SupportsIndex, options: typing.Any, lists: typing.Any, trees: typing.Any, workspace: typing.Any, frontier: typing.Any, status: typing.Any) -> None:
    """
    Takes the rows of the frontier, from tables or as an expander's [B, rows, K], and replaces the frontier.
    """
def grow_paths(stream: typing.SupportsInt | typing.SupportsIndex, options: typing.Any, key: typing.Any, lists: typing.Any, trees: typing.Any, workspace: typing.Any, frontier: typing.Any, status: typing.Any) -> None:
    """
    Draws a level; key and lists as for grow_shape.
    """
def grow_shape(stream: typing.SupportsInt | typing.SupportsIndex, shape: typing.Any, proposal: str, key: typing.Any, lists: typing.Any, trees: typing.Any, workspace: typing.Any, frontier: typing.Any, status: typing.Any) -> None:
    """
    Fills a level. key: 64-bit integers [B, 2], the seed and sequence_id + (position << 32); None for deterministic trees.
    """
def grow_slots(stream: typing.SupportsInt | typing.SupportsIndex, options: typing.Any, key: typing.Any, lists: typing.Any, trees: typing.Any, workspace: typing.Any, frontier: typing.Any, status: typing.Any) -> None:
    """
    Draws slots; key and lists as for grow_shape.
    """
def layers_workspace_bytes(batch: typing.SupportsInt | typing.SupportsIndex, max_nodes: typing.SupportsInt | typing.SupportsIndex) -> int:
    ...
def link_transitions(stream: typing.SupportsInt | typing.SupportsIndex, lists: typing.Any, owner: typing.Any, linked: typing.Any) -> None:
    """
    Writes linked.token, linked.logprob and linked.next [B, D, R, K].
    
    lists: token and logprob [B, 1 + (D - 1) * R, K], the root's list first; owner [B, D - 1, R]: the
    token below which a list stands, negative for none. D = 1 does not read it.
    """
def paths_workspace_bytes(batch: typing.SupportsInt | typing.SupportsIndex, max_nodes: typing.SupportsInt | typing.SupportsIndex, list_width: typing.SupportsInt | typing.SupportsIndex) -> int:
    ...
def preorder_intervals(stream: typing.SupportsInt | typing.SupportsIndex, trees: typing.Any, rank: typing.Any, end: typing.Any, status: typing.Any) -> None:
    """
    Writes [B, M]: j is i or its ancestor iff rank[j] <= rank[i] < end[j].
    """
def rank_candidates(stream: typing.SupportsInt | typing.SupportsIndex, logits: typing.Any, temperature: typing.SupportsFloat | typing.SupportsIndex, workspace: typing.Any, lists: typing.Any, status: typing.Any, *, num_rows: typing.Any = None) -> None:
    """
    Writes lists.token and lists.logprob [B, R, K] for logits [B, R, V].
    
    num_rows [B]: rows from num_rows[b] on are not read, their lists are empty. An empty entry has
    token 0 and log-probability -inf.
    """
def rank_candidates_workspace_bytes(num_rows: typing.SupportsInt | typing.SupportsIndex, vocab_size: typing.SupportsInt | typing.SupportsIndex) -> int:
    """
    num_rows: B * R.
    """
def root_scalars(stream: typing.SupportsInt | typing.SupportsIndex, laws: typing.Any, workspace: typing.Any, scalars: typing.Any, status: typing.Any) -> None:
    """
    Writes scalars [B, 9] float32.
    
    laws: target_logits [B, V]; draft_logits and root_logits [B, any width]; sampling and
    draft_sampling, as verify has them; changes, as verify has them for trees of one node, or None;
    tokens_before [B].
    """
def root_scalars_workspace_bytes(laws: typing.Any) -> int:
    ...
def score_lists(stream: typing.SupportsInt | typing.SupportsIndex, rule: typing.Any, lists: typing.Any, scored: typing.Any) -> None:
    """
    Writes scored.token, scored.logprob and scored.next, in the shapes of lists.
    
    rule: temperature, calibration (float64 [points, 2]). lists: [B, D, K], or [B, D, R, K] with next;
    they may be written to themselves.
    """
def sequence_ids(stream: typing.SupportsInt | typing.SupportsIndex, trees: typing.Any, offset: typing.Any, id: typing.Any, status: typing.Any) -> None:
    """
    Writes offset [B, M + 1] and id [B, capacity]: the leaves of node i of sequence b are id[b, offset[b, i]:offset[b, i + 1]].
    """
def shape_workspace_bytes(batch: typing.SupportsInt | typing.SupportsIndex, max_nodes: typing.SupportsInt | typing.SupportsIndex, num_places: typing.SupportsInt | typing.SupportsIndex, list_width: typing.SupportsInt | typing.SupportsIndex, proposal: str) -> int:
    ...
def slots_workspace_bytes(batch: typing.SupportsInt | typing.SupportsIndex, max_nodes: typing.SupportsInt | typing.SupportsIndex, list_width: typing.SupportsInt | typing.SupportsIndex) -> int:
    ...
def tree_layout(stream: typing.SupportsInt | typing.SupportsIndex, trees: typing.Any, prefix_length: typing.Any, layout: typing.Any, status: typing.Any) -> None:
    """
    Writes layout.ancestor_bits [B, M, ceil(M / 32)] and layout.position [B, M]; also first_child and next_sibling [B, M] where they are not None.
    """
def verify(stream: typing.SupportsInt | typing.SupportsIndex, verifier: str, input: typing.Any, workspace: typing.Any, verdicts: typing.Any, status: typing.Any) -> None:
    """
    Writes verdicts.nodes [B, C], num_accepted [B] and next_token [B].
    
    input: trees, with draws; proposal; logits [B, M, V]; law, or None; sampling, 64-bit words [B, 4]:
    temperature, top_p and min_p as float64, top_k as an integer; changes, or None; seed [B] 64-bit;
    sequence_id and position [B]; lossy.
    law: row_of_node [B, M], and dense prob [rows, V], or row_offset int64, token, prob, vocab_size and
    max_support.
    changes: allowed [B, M, ceil(V / 32)]; bias_token and float64 bias [B, biases]; float64 penalties
    [B, 3] (repetition, presence, frequency) with history [B, T], history_length and prompt_length [B];
    each or None.
    """
def verify_workspace_bytes(verifier: str, input: typing.Any, verdicts: typing.Any) -> int:
    ...
