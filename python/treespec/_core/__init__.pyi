"""
The native core of treespec: trees, builders, masks, verifiers, KV commit.
"""
from __future__ import annotations
import collections.abc
import numpy
import numpy.typing
import typing
from . import device
__all__: list[str] = ['BudgetRule', 'CandidateSource', 'CostModel', 'DelayedSelector', 'Frontier', 'FrontierNode', 'KvBuffers', 'Marginals', 'NgramIndex', 'PlannedBuilders', 'RoundPlan', 'RowParams', 'SuffixIndex', 'TokenTree', 'Transitions', 'TreeBuilder', 'TreeGrowth', 'Trie', 'Verdict', 'alpha_star', 'ancestor_bits', 'auto_verifier', 'beginning_of', 'builder_table', 'check_growth_map', 'check_logit_round', 'check_tree', 'check_verifier', 'child_slot', 'cuda_built', 'cuda_device_count', 'demo_acceptance', 'demo_accuracy', 'device', 'fill_mask', 'fixed_sum', 'inverse_cdf', 'needs_draft_law', 'node_acceptance', 'node_probability', 'non_increasing_fit', 'optimal_growth_map', 'optimal_growth_map_dp', 'philox', 'preorder_intervals', 'process_logits', 'random53', 'require_sound', 'root_scalars', 'root_tree', 'sample_at_position', 'score_lists', 'sequence_ids', 'share_budget', 'tree_positions', 'verifier_table', 'verify', 'verify_logits']
class TokenTree:
    """
    The draft tree of one round; node 0 is the root.
    
    Arrays are topological (parent[i] < i) in the builder's pop order. `draws`: child ids per node in
    draw order, repeats allowed in an i.i.d. tree; children by id when left out (deterministic trees
    only). `draft_probs`: [N, V] rows the first child of each node was drawn from. `draft_rows`: the same
    law without its zeros, as the property of that name has it. `path_logprob`: [N] float32, 0 when left
    out. All are copied, from CUDA memory, too.
    """
    def __init__(self, token: typing.Any, *, parent: typing.Any, proposal: str = 'deterministic', draws: collections.abc.Sequence[collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex]] | None = None, draft_probs: typing.Any | None = None, draft_rows: tuple[typing.SupportsInt | typing.SupportsIndex, typing.Any, typing.Any, typing.Any, typing.Any] | None = None, path_logprob: typing.Any | None = None) -> None:
        ...
    def __len__(self) -> int:
        ...
    def __repr__(self) -> str:
        ...
    def with_root(self, token: typing.SupportsInt | typing.SupportsIndex) -> TokenTree:
        """
        A copy whose root carries `token`.
        """
    @property
    def depth(self) -> numpy.typing.NDArray[numpy.int32]:
        """
        [N] int32, 0 for the root
        """
    @property
    def draft_probs(self) -> typing.Any:
        """
        [N, V] float32 rows, or None for a tree without draws
        """
    @property
    def draft_rows(self) -> typing.Any:
        """
        The law without its zeros, or None for a tree without draws.
        
        (vocab_size, row_of_node [N] int32, row_offset [R + 1] int64, token [E] int32, prob [E] float32): row
        r has the entries from row_offset[r] on, its tokens ascend; row_of_node is -1 for a node that drew
        nothing. Rows that no node has may be there.
        """
    @property
    def draws(self) -> list[list[int]]:
        """
        Child ids per node, draw order.
        """
    @property
    def expected_acceptance(self) -> float:
        """
        Sum over drafted nodes of exp(path_logprob) (OPT-Tree, 2024, 3.1).
        """
    @property
    def max_depth(self) -> int:
        """
        Depth of the deepest node; 0 for a root.
        """
    @property
    def num_nodes(self) -> int:
        """
        Root and drafted nodes.
        """
    @property
    def parent(self) -> numpy.typing.NDArray[numpy.int32]:
        """
        [N] int32, -1 for the root
        """
    @property
    def path_logprob(self) -> numpy.typing.NDArray[numpy.float32]:
        """
        [N] float32, sum of draft log-probabilities from the root
        """
    @property
    def proposal(self) -> str:
        ...
    @property
    def token(self) -> numpy.typing.NDArray[numpy.int32]:
        """
        [N] int32
        """
class CandidateSource:
    """
    What a drafter hands to a tree builder.
    """
    @property
    def arrays(self) -> list[numpy.ndarray]:
        """
        The arrays it was made from, in order.
        """
    @property
    def kind(self) -> str:
        ...
    @property
    def max_depth(self) -> int:
        ...
class Marginals(CandidateSource):
    """
    Depth-wise lists of one-pass drafters.
    
    token [D, K] int32, logprob [D, K] float32 (natural log, <= 0; -inf pads). Copied, from CUDA memory,
    too.
    """
    @staticmethod
    def from_logits(logits: typing.Any, width: typing.SupportsInt | typing.SupportsIndex = 64, *, temperature: typing.SupportsFloat | typing.SupportsIndex = 1.0) -> Marginals:
        """
        The `width` likeliest tokens of every row under softmax(logits / temperature).
        
        logits [D, V], float32, float16, bfloat16 or float64, not copied. One pass over memory; a
        log-probability is within 2e-6 of the exact one, ties fall to the lower id. Logits in CUDA memory
        (not float64; V up to 2^18, width up to 1024) are ranked there, bit for bit the same, and the lists
        are copied. Raises ValueError for NaN, +inf, or a row without a finite logit, NotImplementedError
        for what a GPU does not rank.
        """
    def __init__(self, token: typing.Any, logprob: typing.Any) -> None:
        ...
class Transitions(CandidateSource):
    """
    First-order lists of conditional drafters.
    
    token, logprob, next [D, R, K]; next[d, r, k] is the row of depth d + 1 that continues this child,
    -1 for a leaf; depth 0 uses row 0 only. Copied, from CUDA memory, too.
    """
    @staticmethod
    def linked(token: typing.Any, logprob: typing.Any, owner: typing.Any) -> Transitions:
        """
        Finds the links of a drafter that conditions on the token before, and on nothing earlier.
        
        token, logprob [1 + (D - 1) * R, K]: the root's list, then the R lists of each further depth;
        owner [D - 1, R]: list r of depth d + 1 stands below the nodes whose token is owner[d, r], below
        none if that is negative. A candidate goes on at the first list that its token owns; without one it
        is a leaf. D = 1 takes an owner of [0, R]. Integers of 32 bits, logprob as for Transitions; copied.
        `arrays` are token, logprob and next [D, R, K], depth 0 padded with lists that nobody reads. Raises
        ValueError for shapes that do not fit, and for what Transitions refuses.
        
        Source: the drafter of Rheinboldt, Berdoz, Wattenhofer, "TreeFlash: Parallel AR-Approximation for
        Faster Speculative Decoding", 2026, arXiv 2606.03819.
        """
    def __init__(self, token: typing.Any, logprob: typing.Any, next: typing.Any) -> None:
        ...
class Trie(CandidateSource):
    """
    Scored nodes of suffix trees, n-grams and retrieval.
    
    parent [n] (-1 is the root, parents first), token [n], logprob [n] conditional on the parent. Copied.
    """
    def __init__(self, parent: typing.Any, token: typing.Any, logprob: typing.Any) -> None:
        ...
class FrontierNode:
    @property
    def depth(self) -> int:
        ...
    @property
    def index(self) -> int:
        ...
    @property
    def parent(self) -> int:
        ...
    @property
    def token(self) -> int:
        ...
class Frontier:
    """
    Nodes to expand; a sequence with array attributes.
    
    index: order of first hand-over, the root is 0 and comes first, alone; parent in that numbering.
    """
    def __getitem__(self, arg0: typing.SupportsInt | typing.SupportsIndex) -> FrontierNode:
        ...
    def __len__(self) -> int:
        ...
    @property
    def depth(self) -> numpy.typing.NDArray[numpy.int32]:
        ...
    @property
    def index(self) -> numpy.typing.NDArray[numpy.int32]:
        ...
    @property
    def parent(self) -> numpy.typing.NDArray[numpy.int32]:
        ...
    @property
    def token(self) -> numpy.typing.NDArray[numpy.int32]:
        ...
class TreeGrowth:
    """
    A tree being grown; asks for rows, takes them.
    """
    def finish(self, root_token: typing.SupportsInt | typing.SupportsIndex = 0) -> TokenTree:
        """
        The tree, in pop order. Call once.
        """
    def frontier(self, root_token: typing.SupportsInt | typing.SupportsIndex = 0) -> Frontier:
        """
        Nodes whose rows are wanted next; empty when grown.
        """
    def supply(self, rows: typing.Any) -> None:
        """
        [len(frontier), V] float32 log-probabilities, one row per frontier node.
        """
    def supply_lists(self, token: typing.Any, logprob: typing.Any) -> None:
        """
        Candidate lists [len(frontier), K] in place of whole rows, one per frontier node.
        
        token: integers of 32 bits, distinct in a list. logprob: given the node, -inf pads. Raises
        ValueError as Marginals does, and for other than one list per node.
        """
class TreeBuilder:
    """
    A named recipe with its options; may be shared.
    """
    def __init__(self, name: str, **kwargs) -> None:
        ...
    def begin(self, node_budget: typing.SupportsInt | typing.SupportsIndex, max_depth: typing.SupportsInt | typing.SupportsIndex = 2147483647, seed: typing.SupportsInt | typing.SupportsIndex = 0, sequence_id: typing.SupportsInt | typing.SupportsIndex = 0, position: typing.SupportsInt | typing.SupportsIndex = 0) -> TreeGrowth:
        ...
    def build(self, source: CandidateSource, node_budget: typing.SupportsInt | typing.SupportsIndex, max_depth: typing.SupportsInt | typing.SupportsIndex = 2147483647, seed: typing.SupportsInt | typing.SupportsIndex = 0, sequence_id: typing.SupportsInt | typing.SupportsIndex = 0, position: typing.SupportsInt | typing.SupportsIndex = 0, root_token: typing.SupportsInt | typing.SupportsIndex = 0) -> TokenTree:
        """
        The whole tree from a source that needs no model.
        """
    def check_source_kind(self, kind: str) -> None:
        """
        Raises ValueError, naming the builders that can, when it cannot read it.
        """
    @property
    def makes_chains(self) -> bool:
        """
        Whether every tree is a chain.
        """
    @property
    def name(self) -> str:
        ...
    @property
    def proposal(self) -> str:
        ...
class RowParams:
    """
    How a row of logits becomes a law (see SamplingParams).
    """
    def __init__(self, *, temperature: typing.SupportsFloat | typing.SupportsIndex = 1.0, top_k: typing.SupportsInt | typing.SupportsIndex = 0, top_p: typing.SupportsFloat | typing.SupportsIndex = 1.0, min_p: typing.SupportsFloat | typing.SupportsIndex = 0.0, repetition_penalty: typing.SupportsFloat | typing.SupportsIndex = 1.0, presence_penalty: typing.SupportsFloat | typing.SupportsIndex = 0.0, frequency_penalty: typing.SupportsFloat | typing.SupportsIndex = 0.0, logit_bias: collections.abc.Mapping[typing.SupportsInt | typing.SupportsIndex, typing.SupportsFloat | typing.SupportsIndex] = {}) -> None:
        ...
    @property
    def frequency_penalty(self) -> float:
        ...
    @property
    def has_penalties(self) -> bool:
        """
        Whether earlier tokens change a row.
        """
    @property
    def logit_bias(self) -> list[tuple[int, float]]:
        """
        (token, bias), by token.
        """
    @property
    def min_p(self) -> float:
        ...
    @property
    def presence_penalty(self) -> float:
        ...
    @property
    def repetition_penalty(self) -> float:
        ...
    @property
    def temperature(self) -> float:
        ...
    @property
    def top_k(self) -> int:
        ...
    @property
    def top_p(self) -> float:
        ...
class Verdict:
    """
    What a round decided.
    """
    def __init__(self, tree: TokenTree, accepted_nodes: collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex], next_token: typing.SupportsInt | typing.SupportsIndex) -> None:
        """
        One that was found on a device.
        """
    def __repr__(self) -> str:
        ...
    @property
    def accepted_nodes(self) -> numpy.typing.NDArray[numpy.int32]:
        """
        [num_accepted] int32 node ids, root excluded, top down
        """
    @property
    def next_token(self) -> int:
        """
        Correction or bonus token; the next root.
        """
    @property
    def num_accepted(self) -> int:
        ...
    @property
    def tokens(self) -> numpy.typing.NDArray[numpy.int32]:
        """
        [num_accepted + 1] int32: the path's tokens and next_token
        """
class DelayedSelector:
    """
    The network that scores (K, L1, L2) trees; selector.h.
    """
    def __init__(self, *, state_widths: collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex], projection_width: typing.SupportsInt | typing.SupportsIndex, num_scalars: typing.SupportsInt | typing.SupportsIndex, layer_widths: collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex], parameters: typing.Annotated[numpy.typing.ArrayLike, numpy.float32], shapes: collections.abc.Sequence[typing.Annotated[collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex], "FixedSize(3)"]]) -> None:
        ...
    def choose(self, states: collections.abc.Sequence[typing.Annotated[numpy.typing.ArrayLike, numpy.float32]], scalars: typing.Annotated[numpy.typing.ArrayLike, numpy.float32], node_budget: typing.SupportsInt | typing.SupportsIndex, max_depth: typing.SupportsInt | typing.SupportsIndex) -> int:
        """
        Place of the best shape that fits, the first among equals.
        """
    def choose_at_root(self, states: collections.abc.Sequence[typing.Annotated[numpy.typing.ArrayLike, numpy.float32]], node_budget: typing.SupportsInt | typing.SupportsIndex, max_depth: typing.SupportsInt | typing.SupportsIndex, target_logits: typing.Any, params: RowParams, history_ids: typing.Any, prompt_length: typing.SupportsInt | typing.SupportsIndex, draft_logits: typing.Any, root_logits: typing.Any, draft_temperature: typing.SupportsFloat | typing.SupportsIndex, draft_top_k: typing.SupportsInt | typing.SupportsIndex, draft_top_p: typing.SupportsFloat | typing.SupportsIndex) -> int:
        """
        choose() with the numbers of root_scalars(), in one call for a round.
        """
    def score(self, states: collections.abc.Sequence[typing.Annotated[numpy.typing.ArrayLike, numpy.float32]], scalars: typing.Annotated[numpy.typing.ArrayLike, numpy.float32]) -> numpy.typing.NDArray[numpy.float32]:
        """
        [num_shapes] float32
        """
class CostModel:
    """
    What the parts of a round cost, in seconds.
    """
    def __init__(self, *, target: collections.abc.Sequence[tuple[typing.SupportsInt | typing.SupportsIndex, typing.SupportsInt | typing.SupportsIndex, collections.abc.Mapping[typing.SupportsInt | typing.SupportsIndex, typing.SupportsFloat | typing.SupportsIndex]]], draft_call: collections.abc.Mapping[typing.SupportsInt | typing.SupportsIndex, typing.SupportsFloat | typing.SupportsIndex], drafts_by_level: bool, drafted_round_seconds: typing.SupportsFloat | typing.SupportsIndex, plain_round_seconds: typing.SupportsFloat | typing.SupportsIndex) -> None:
        """
        target: (context, batch, {rows: seconds}) of forwards over the rows of all sequences;
        draft_call: {rows: seconds}, empty when drafting costs nothing. Raises ValueError for
        numbers that no measurement gives.
        """
    def draft_seconds(self, depth: typing.SupportsInt | typing.SupportsIndex, rows_per_call: typing.SupportsFloat | typing.SupportsIndex, backlog: typing.SupportsFloat | typing.SupportsIndex) -> float:
        """
        Seconds of the drafter's calls for a tree.
        """
    def target_seconds(self, context: typing.SupportsFloat | typing.SupportsIndex, batch: typing.SupportsInt | typing.SupportsIndex, most_rows: typing.SupportsInt | typing.SupportsIndex) -> list[float]:
        """
        [most_rows] seconds of a forward over 1, 2, ... rows: the padded envelope.
        """
class RoundPlan:
    """
    How a round is to be drafted.
    """
    @property
    def floor(self) -> float:
        """
        Path probability that pays for one more row.
        """
    @property
    def kind(self) -> str:
        """
        plain, chain or tree
        """
    @property
    def max_depth(self) -> int:
        ...
    @property
    def node_budget(self) -> int:
        ...
    @property
    def threshold(self) -> float:
        """
        Expected tokens that pay for one more drafter call.
        """
class BudgetRule:
    """
    Decides how large the trees of one sequence are, or that there are none.
    """
    def __init__(self, costs: CostModel, *, acceptance: collections.abc.Sequence[collections.abc.Sequence[typing.SupportsFloat | typing.SupportsIndex]], max_nodes: typing.SupportsInt | typing.SupportsIndex, max_depth: typing.SupportsInt | typing.SupportsIndex = 2147483647, ranked_trees: bool = True, chains: bool = True) -> None:
        ...
    def advantage(self, *, chain: bool = False) -> float:
        """
        Speed over plain decoding, as last seen.
        """
    def learn(self, tree: TokenTree, verdict: Verdict) -> None:
        """
        After verification, once for every plan.
        """
    def plan(self, context: typing.SupportsInt | typing.SupportsIndex, batch: typing.SupportsInt | typing.SupportsIndex, useful_depth: typing.SupportsInt | typing.SupportsIndex) -> RoundPlan:
        """
        Before the drafter is asked.
        """
    @property
    def price(self) -> float:
        """
        Tokens per second in the long run.
        """
    @property
    def reliability(self) -> float:
        """
        Accepted tokens over promised ones.
        """
class PlannedBuilders:
    """
    The builders that play the plans of a rule.
    """
    def __init__(self, name: str, max_nodes: typing.SupportsInt | typing.SupportsIndex, **kwargs) -> None:
        """
        Options as TreeBuilder takes them.
        """
    def at(self, plan: RoundPlan) -> TreeBuilder:
        """
        The builder of a round that is not plain.
        """
    @property
    def max_depth(self) -> int:
        """
        No deeper tree.
        """
    @property
    def proposal(self) -> str:
        """
        Of its trees.
        """
    @property
    def ranked(self) -> bool:
        """
        Whether trees are the best nodes in order of falling score.
        """
class KvBuffers:
    """
    KV tensors [..., rows, dim] of one sequence, borrowed.
    """
    def __init__(self, arrays: collections.abc.Sequence[typing.Any]) -> None:
        ...
    def commit(self, base: typing.SupportsInt | typing.SupportsIndex, nodes: typing.Any) -> None:
        """
        Moves row base + nodes[d] to base + d in every tensor, in place; nodes ascend.
        """
class NgramIndex:
    """
    Prompt lookup: the longest n-gram at the end of the text that occurred before.
    
    P(child | node) = c(child) / (c(node) + kappa) over the latest `max_hits` occurrences; `recency` < 1
    weighs an occurrence by recency^(age / 100 tokens). One index per sequence and thread.
    """
    def __init__(self, max_ngram: typing.SupportsInt | typing.SupportsIndex = 4, *, min_ngram: typing.SupportsInt | typing.SupportsIndex = 1, kappa: typing.SupportsFloat | typing.SupportsIndex = 1.0, max_hits: typing.SupportsInt | typing.SupportsIndex = 64, recency: typing.SupportsFloat | typing.SupportsIndex = 1.0) -> None:
        ...
    def append(self, token_ids: typing.Any) -> None:
        """
        Add [n] committed tokens at the end of the text. Raises ValueError for ids outside [0, 2^31), adding nothing.
        """
    def clear(self) -> None:
        """
        Forget the text.
        """
    def draft(self, max_depth: typing.SupportsInt | typing.SupportsIndex, node_budget: typing.SupportsInt | typing.SupportsIndex) -> tuple:
        """
        (parent, token, logprob), the arguments of `Trie`: at most `node_budget` nodes of depth <= `max_depth`, most probable first.
        """
    @property
    def size(self) -> int:
        """
        Tokens in the text.
        """
class SuffixIndex:
    """
    Suffix automaton over the text, with exact counts.
    
    Tries every length at which the end of the text occurred before, and keeps the draft of the largest
    sum of node probabilities; P(child | node) = c(child) / (c(node) + kappa / context length). A match
    of length p drafts at most alpha * p + beta nodes, none below `min_token_prob` (path probability).
    One index per sequence and thread.
    """
    def __init__(self, *, max_match: typing.SupportsInt | typing.SupportsIndex = 64, max_depth: typing.SupportsInt | typing.SupportsIndex = 64, alpha: typing.SupportsFloat | typing.SupportsIndex = 2.0, beta: typing.SupportsFloat | typing.SupportsIndex = 4.0, min_token_prob: typing.SupportsFloat | typing.SupportsIndex = 0.02, kappa: typing.SupportsFloat | typing.SupportsIndex = 2.0, max_children: typing.SupportsInt | typing.SupportsIndex = 128) -> None:
        ...
    def append(self, token_ids: typing.Any) -> None:
        """
        Add [n] committed tokens at the end of the text. Raises ValueError for ids outside [0, 2^31), adding nothing.
        """
    def clear(self) -> None:
        """
        Forget the text.
        """
    def count(self, token_ids: typing.Any) -> int:
        """
        Occurrences of a string of at most max_match + max_depth tokens in the text.
        """
    def draft(self, max_depth: typing.SupportsInt | typing.SupportsIndex, node_budget: typing.SupportsInt | typing.SupportsIndex) -> tuple:
        """
        (parent, token, logprob), the arguments of `Trie`: at most `node_budget` nodes of depth <= `max_depth`, most probable first.
        """
    @property
    def match_length(self) -> int:
        """
        Longest suffix of the text that also ends earlier, at most max_match.
        """
    @property
    def size(self) -> int:
        """
        Tokens in the text.
        """
def alpha_star(target: collections.abc.Sequence[typing.SupportsFloat | typing.SupportsIndex], draft: collections.abc.Sequence[typing.SupportsFloat | typing.SupportsIndex], num_draws: typing.SupportsInt | typing.SupportsIndex, proposal: str) -> float:
    ...
def ancestor_bits(parent: typing.Any) -> numpy.typing.NDArray[numpy.uint32]:
    """
    [N, ceil(N / 32)] uint32: bit j of row i is set iff j is i or its ancestor.
    """
def auto_verifier(proposal: str, greedy: bool) -> str:
    """
    What verifier="auto" stands for.
    """
def beginning_of(tree: TokenTree, num_drafted: typing.SupportsInt | typing.SupportsIndex) -> TokenTree:
    """
    The root and the first drafted nodes of a deterministic tree.
    """
def builder_table() -> list[tuple[str, str]]:
    """
    (name, summary) of every builder, in table order.
    """
def check_growth_map(parent: collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex]) -> None:
    """
    Raises ValueError for a parent that is no earlier node.
    """
def check_logit_round(tree: TokenTree, target_logits: tuple[typing.SupportsInt | typing.SupportsIndex, typing.SupportsInt | typing.SupportsIndex], draft_probs: tuple[typing.SupportsInt | typing.SupportsIndex, typing.SupportsInt | typing.SupportsIndex] | None, params: RowParams, verifier: str, prefix_ids: typing.Any, prompt_length: typing.SupportsInt | typing.SupportsIndex, lossy: bool = False) -> None:
    """
    Raises for what verify_logits refuses without looking at a logit.
    
    target_logits, draft_probs: [rows, V], the shapes of arrays that are elsewhere. Without draft_probs
    the law is the tree's own, whose rows are checked.
    """
def check_tree(tree: TokenTree) -> list[str]:
    """
    Violated invariants; [] for a sound tree.
    """
def check_verifier(verifier: str, proposal: str, chain: bool, lossy: bool = False) -> None:
    """
    Raises ValueError for a pair that would be biased; names the verifiers that fit.
    """
def child_slot(parent_slot: typing.SupportsInt | typing.SupportsIndex, token: typing.SupportsInt | typing.SupportsIndex) -> int:
    """
    Path slot of a child; slot(root) = 0.
    """
def cuda_built() -> bool:
    """
    Whether this build holds the CUDA code.
    """
def cuda_device_count() -> int:
    """
    Usable GPUs; 0 without a driver.
    """
def demo_acceptance() -> list[list[float]]:
    """
    The default table of sequoia.
    """
def demo_accuracy() -> list[list[float]]:
    """
    The default table of medusa_choices.
    """
def fill_mask(parent: typing.Any, depth: typing.Any, first: typing.SupportsInt | typing.SupportsIndex, prefix_length: typing.SupportsInt | typing.SupportsIndex, window: typing.SupportsInt | typing.SupportsIndex, out: typing.Any) -> None:
    """
    Fills `out` [N - first, prefix + N] for the queries first..N-1.
    
    One-byte arrays take 1 for visible, floats 0 for visible and the lowest finite value for hidden.
    window > 0 hides keys with query position - key position >= window.
    """
def fixed_sum(values: typing.Annotated[numpy.typing.ArrayLike, numpy.float64]) -> int:
    """
    Sum of floor(value * 2^60).
    """
def inverse_cdf(values: typing.Annotated[numpy.typing.ArrayLike, numpy.float64], u: typing.SupportsFloat | typing.SupportsIndex) -> int:
    """
    Smallest id whose cumulative weight exceeds u * total.
    """
def needs_draft_law(verifier: str) -> bool:
    """
    Whether it reads the laws that tokens were drawn from.
    """
def node_acceptance(parent: collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex], acceptance: collections.abc.Sequence[collections.abc.Sequence[typing.SupportsFloat | typing.SupportsIndex]]) -> list[float]:
    """
    [n + 1] probability that each node is accepted, the root first.
    """
def node_probability(tree: TokenTree, target_probs: typing.Any, draft_probs: typing.Any | None, verifier: str, lossy: bool = False) -> numpy.typing.NDArray[numpy.float64]:
    """
    [N] float64: probability over the coins that each node of this tree is accepted.
    """
def non_increasing_fit(values: collections.abc.Sequence[typing.SupportsFloat | typing.SupportsIndex], weights: collections.abc.Sequence[typing.SupportsFloat | typing.SupportsIndex] = []) -> list[float]:
    """
    Weighted isotonic regression, falling.
    """
def optimal_growth_map(acceptance: collections.abc.Sequence[collections.abc.Sequence[typing.SupportsFloat | typing.SupportsIndex]], num_nodes: typing.SupportsInt | typing.SupportsIndex, max_depth: typing.SupportsInt | typing.SupportsIndex = 2147483647) -> numpy.typing.NDArray[numpy.int32]:
    """
    Parents of the best map for the smoothed table, in order of falling value.
    """
def optimal_growth_map_dp(acceptance: collections.abc.Sequence[collections.abc.Sequence[typing.SupportsFloat | typing.SupportsIndex]], num_nodes: typing.SupportsInt | typing.SupportsIndex, max_depth: typing.SupportsInt | typing.SupportsIndex = 2147483647) -> numpy.typing.NDArray[numpy.int32]:
    """
    Parents of the best map for the table as it is, in order of depth.
    """
def philox(c0: typing.SupportsInt | typing.SupportsIndex, c1: typing.SupportsInt | typing.SupportsIndex, c2: typing.SupportsInt | typing.SupportsIndex, c3: typing.SupportsInt | typing.SupportsIndex, seed: typing.SupportsInt | typing.SupportsIndex) -> tuple[int, int, int, int]:
    """
    Philox4x32-10: four words of a counter; the key is the seed's two halves.
    """
def preorder_intervals(parent: typing.Any) -> tuple[numpy.typing.NDArray[numpy.int32], numpy.typing.NDArray[numpy.int32]]:
    """
    (rank, end): j is i or its ancestor iff rank[j] <= rank[i] < end[j].
    """
def process_logits(logits: typing.Any, params: RowParams, history_ids: typing.Any, prompt_length: typing.SupportsInt | typing.SupportsIndex, path: typing.Any, allowed: typing.Annotated[numpy.typing.ArrayLike, numpy.uint32] | None = None) -> numpy.typing.NDArray[numpy.float64]:
    """
    [V] float64 weights exp(score - max), 0 off the support.
    """
def random53(seed: typing.SupportsInt | typing.SupportsIndex, sequence_id: typing.SupportsInt | typing.SupportsIndex, position: typing.SupportsInt | typing.SupportsIndex, purpose: typing.SupportsInt | typing.SupportsIndex, node_slot: typing.SupportsInt | typing.SupportsIndex, draw_index: typing.SupportsInt | typing.SupportsIndex) -> int:
    """
    53 random bits of one counter.
    """
def require_sound(who: str, tree: TokenTree) -> None:
    """
    Raises ValueError with the first violation.
    """
def root_scalars(target_logits: typing.Any, params: RowParams, history_ids: typing.Any, prompt_length: typing.SupportsInt | typing.SupportsIndex, draft_logits: typing.Any, root_logits: typing.Any, draft_temperature: typing.SupportsFloat | typing.SupportsIndex = 1.0, draft_top_k: typing.SupportsInt | typing.SupportsIndex = 0, draft_top_p: typing.SupportsFloat | typing.SupportsIndex = 1.0) -> numpy.typing.NDArray[numpy.float32]:
    """
    What a selector reads beside hidden states: [9] float32.
    
    H(p), H(q), H(q_root), KL(p || q), KL(q || p), ||p - q||_1, the logarithm of the history's length,
    temperature and top-p: p is the processed target row after the history, q and q_root are the drafter's
    before and after the root at its own temperature and truncation.
    """
def root_tree(token: typing.SupportsInt | typing.SupportsIndex) -> TokenTree:
    """
    The tree of one root with nothing drafted.
    """
def sample_at_position(weights: typing.Annotated[numpy.typing.ArrayLike, numpy.float64], seed: typing.SupportsInt | typing.SupportsIndex, sequence_id: typing.SupportsInt | typing.SupportsIndex, position: typing.SupportsInt | typing.SupportsIndex) -> int:
    """
    Winner of the exponential race keyed by position; distributed as the weights.
    """
def score_lists(token: typing.Annotated[numpy.typing.ArrayLike, numpy.int32], logprob: typing.Annotated[numpy.typing.ArrayLike, numpy.float32], next: typing.Annotated[numpy.typing.ArrayLike, numpy.int32] | None = None, **kwargs) -> tuple:
    """
    Ranked lists [..., K] as a deterministic builder with these options scores and ranks them.
    
    token and next int32, logprob float32; options: score_temperature, calibration. Returns the three
    arrays, the last None without `next`. Lists that break the rules of Marginals are left as they are.
    """
def sequence_ids(parent: typing.Any) -> tuple[numpy.typing.NDArray[numpy.int32], numpy.typing.NDArray[numpy.int32]]:
    """
    (offset, id): sequences (one per leaf) of node i are id[offset[i]:offset[i + 1]].
    """
def share_budget(rules: collections.abc.Sequence[BudgetRule], trees: collections.abc.Sequence[TokenTree]) -> list[int]:
    """
    [B] drafted nodes of each tree that are worth verifying.
    """
def tree_positions(depth: typing.Any, prefix_length: typing.SupportsInt | typing.SupportsIndex) -> numpy.typing.NDArray[numpy.int32]:
    """
    [N] int32: prefix_length + depth.
    """
def verifier_table() -> list[tuple[str, str]]:
    """
    (name, summary) of every verifier, in table order.
    """
def verify(tree: TokenTree, target_probs: typing.Any, draft_probs: typing.Any | None, verifier: str, seed: typing.SupportsInt | typing.SupportsIndex, sequence_id: typing.SupportsInt | typing.SupportsIndex, position: typing.SupportsInt | typing.SupportsIndex, accept: collections.abc.Sequence[collections.abc.Sequence[typing.SupportsFloat | typing.SupportsIndex]] | None = None, sample: collections.abc.Sequence[typing.SupportsFloat | typing.SupportsIndex] | None = None, select: collections.abc.Sequence[collections.abc.Sequence[typing.SupportsFloat | typing.SupportsIndex]] | None = None, lossy: bool = False) -> Verdict:
    ...
def verify_logits(tree: TokenTree, target_logits: typing.Any, draft_probs: typing.Any | None, params: RowParams, verifier: str, prefix_ids: typing.Any, prompt_length: typing.SupportsInt | typing.SupportsIndex, allowed: typing.Annotated[numpy.typing.ArrayLike, numpy.uint32] | None, seed: typing.SupportsInt | typing.SupportsIndex, sequence_id: typing.SupportsInt | typing.SupportsIndex, position: typing.SupportsInt | typing.SupportsIndex, lossy: bool = False) -> Verdict:
    ...
__version__: str
