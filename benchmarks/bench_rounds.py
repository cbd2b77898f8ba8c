# SPDX-License-Identifier: Apache-2.0
"""Whole rounds with static shapes: forwards of the models, all else, and the gaps between rounds.

A target of the shape of an 8B model has random weights, of which the layers behind the first few
add nothing: these few are a drafter that guesses well and costs little, while a forward of the
target reads as many bytes as any. A round is one CUDA graph; another graph holds the forwards of
such a round and nothing else. Tokens per second stand beside Hugging Face's `generate` with a
static cache, compiled. Needs a CUDA GPU, and treespec and torch with CUDA:

    python benchmarks/bench_rounds.py --json benchmarks/results/rounds.json
"""

from __future__ import annotations

import copy
import shlex
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any

import harness
import numpy as np
import torch
from gpu_time import timed
from rich.console import Console
from rich.table import Table
from transformers import LlamaConfig, LlamaForCausalLM

import treespec
from treespec.decoder import SpeculativeDecoder
from treespec.static.attention import RowMask
from treespec.static.decoding import GraphRun
from treespec.static.levels import LevelDrafter, schedule
from treespec.static.round import play
from treespec.stats import Clock

DRAFT_LAYERS = 2
EIGHT_BILLION = LlamaConfig(
    hidden_size=4096,
    intermediate_size=14336,
    num_hidden_layers=32,
    num_attention_heads=32,
    num_key_value_heads=8,
    vocab_size=128_256,
    max_position_embeddings=8192,
    rope_parameters={"rope_type": "default", "rope_theta": 500_000.0},
)
TINY = LlamaConfig(
    hidden_size=64,
    intermediate_size=128,
    num_hidden_layers=4,
    num_attention_heads=4,
    num_key_value_heads=2,
    vocab_size=512,
    max_position_embeddings=2048,
)


@dataclass(frozen=True)
class Case:
    """A builder with its options, and the temperature of the text.

    Attributes
    ----------
    in_parts
        Whether the data decide how often the drafter is called, so that a round is several graphs
        with the host between them.
    """

    builder: str
    node_budget: int
    options: dict[str, Any] = field(default_factory=dict)
    temperature: float = 0.0
    in_parts: bool = False

    @property
    def name(self) -> str:
        options = ", ".join(f"{name} {value}" for name, value in self.options.items())
        return f"{self.builder} ({self.node_budget} nodes{', ' if options else ''}{options})"


CASES = [
    Case("chain", 5),
    Case("opt_tree", 64, {"max_depth": 6, "threshold": 0}),
    Case("eagle2", 60),
    Case("sequoia", 64),
    Case("opt_tree", 64, {"threshold": 0.4}, in_parts=True),
    Case("delayed", 32, temperature=0.8),
    Case("dyspec", 64, {"max_depth": 8}, temperature=0.8, in_parts=True),
]


# --- models -------------------------------------------------------------------------------------


def make_pair(
    config: LlamaConfig, dtype: torch.dtype, place: str
) -> tuple[LlamaForCausalLM, LlamaForCausalLM]:
    """The target, and its first layers as the drafter, which shares their weights."""
    torch.manual_seed(0)
    default = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(place):
            target = LlamaForCausalLM(config).eval()
            shallow = copy.deepcopy(config)
            shallow.num_hidden_layers = DRAFT_LAYERS
            drafter = LlamaForCausalLM(shallow).eval()
    finally:
        torch.set_default_dtype(default)
    with torch.no_grad():
        target.lm_head.weight.mul_(8)  # laws with a few likely tokens, as trained ones have
        for layer in target.model.layers[DRAFT_LAYERS:]:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
    own = drafter.state_dict()
    weights = {name: value for name, value in target.state_dict().items() if name in own}
    drafter.load_state_dict(weights, assign=True)
    return target, drafter


# --- rounds -------------------------------------------------------------------------------------


@contextmanager
def opened(
    decoder: SpeculativeDecoder, prompt: list[int], count: int, temperature: float
) -> Iterator[tuple[GraphRun, Any]]:
    """The rounds of one prefilled text with room for `count` tokens."""
    assert decoder.graph is not None
    params = treespec.SamplingParams(
        temperature=temperature, max_new_tokens=count, ignore_eos=True, seed=1
    )
    generations = decoder._generations([prompt], params, 1, 0)
    with ExitStack() as stack:
        stack.callback(decoder._close, generations)
        decoder._prefill(generations, decoder.graph)
        yield stack.enter_context(decoder.graph.open(generations)), generations


def forwards_alone(run: GraphRun, envelope: int) -> Callable[[], Any]:
    """The models' forwards of a round over its buffers; rows behind the text are overwritten."""
    recipe, state = run._recipe, run._buffers.state
    drafter = recipe.drafter
    assert isinstance(drafter, LevelDrafter) and drafter.widths is not None
    draft = state.draft
    token = torch.zeros(1, max(recipe.max_nodes, drafter.max_rows), dtype=torch.int32)
    token = token.to(state.active.device)

    def chain(rows: int, before: int) -> RowMask:
        """Masks of as many rows and slots as a round has; which ones are seen costs nothing."""
        steps = torch.arange(before + rows, dtype=torch.int32, device=token.device)[None]
        slots = state.prefix_length[:, None] + steps
        words = -(-(before + rows) // 32)
        bits = torch.full((1, rows, words), -1, dtype=torch.int32, device=token.device)
        return RowMask(state.prefix_length, bits, slots[:, before:], slots, envelope)

    @torch.inference_mode()
    def forwards() -> Any:
        out = [drafter.model.catch_up(draft, drafter.pending_mask(draft, envelope))]
        for width, num_slots in schedule(drafter.widths):
            slots = torch.arange(num_slots - width, num_slots, device=token.device)[None]
            mask = chain(width, num_slots - width)
            out.append(drafter.model.grow(draft, token[:, :width], slots, slots - 1, mask))
        rows = token[:, : recipe.max_nodes]
        out.append(recipe.target.forward(state.target_kv, rows, chain(recipe.max_nodes, 0)))
        return out

    return forwards


def measure(
    case: Case, pair: Any, place: str, prompt: list[int], repetitions: int
) -> dict[str, Any]:
    decoder = treespec.load(
        *pair,
        builder=case.builder,
        builder_options=case.options,
        node_budget=case.node_budget,
        graph=True,
    )
    depth = decoder.graph._recipe.max_tokens  # type: ignore[union-attr]
    count = (3 * repetitions + 20) * depth
    row: dict[str, Any] = {"name": case.name, "temperature": case.temperature}
    with opened(decoder, prompt, count, case.temperature) as (run, generations):
        clock, before = Clock(), generations[0].length
        run.round(generations, clock)
        run.round(generations, clock)  # captured now
        walls = []
        for _ in range(repetitions):
            start = perf_counter()
            run.round(generations, clock)
            walls.append(perf_counter() - start)
        row["wall_seconds"] = harness.summarise(walls)
        emitted = generations[0].length - before
        row["tokens_per_round"] = emitted / (repetitions + 2)
        row["tokens_per_second"] = row["tokens_per_round"] / float(np.median(walls))
        if not case.in_parts:
            row |= split(run, place, repetitions, walls)
    return row


def split(run: GraphRun, place: str, repetitions: int, walls: list[float]) -> dict[str, Any]:
    """Seconds of a round on the device, of its forwards alone, and of the gap between rounds."""
    state = run._buffers.state
    # The rows that the last of these rounds looks at; they write on, which the host does not see.
    envelope = run._attention.envelope(state.target_kv.capacity, state.target_kv.capacity)
    works = {
        "round": timed(lambda: play(run._recipe, state, "round", envelope, run._how), place),
        "forwards": timed(forwards_alone(run, envelope), place),
    }
    seconds: dict[str, list[float]] = {name: [] for name in works}
    for repetition in range(repetitions + 2):
        for name, work in works.items():
            spent = work()
            if repetition > 1:  # the first ones warm up
                seconds[name].append(spent)
    whole, forwards = (float(np.median(seconds[name])) for name in works)
    return {
        "round_seconds": harness.summarise(seconds["round"]),
        "forward_seconds": harness.summarise(seconds["forwards"]),
        "share_outside_forwards": 1 - forwards / whole,
        "gap_seconds": float(np.median(walls)) - whole,
    }


def measure_generate(target: Any, prompt: list[int], count: int, place: str) -> float:
    """Tokens per second of Hugging Face's `generate` with a static cache."""
    ids = torch.tensor([prompt], device=place)
    options = {"do_sample": False, "cache_implementation": "static", "eos_token_id": None}
    if place == "cpu":
        options["disable_compile"] = True

    def seconds(new: int) -> float:
        start = perf_counter()
        target.generate(ids, max_new_tokens=new, min_new_tokens=new, **options)
        if place == "cuda":
            torch.cuda.synchronize()
        return perf_counter() - start

    for _ in range(2):
        seconds(count)  # compiles
    short, long = seconds(8), seconds(8 + count)
    return count / (long - short)


def show(results: list[dict[str, Any]]) -> None:
    table = Table(
        "builder", "T", "tokens/round", "tokens/s", "of generate's", "round", "outside", "gap"
    )
    for row in results:
        device = "round_seconds" in row
        table.add_row(
            row["name"],
            f"{row['temperature']:g}",
            f"{row['tokens_per_round']:.2f}",
            f"{row['tokens_per_second']:.0f}",
            f"{row['of_generate']:.2f} x",
            f"{1e3 * row['round_seconds']['median']:.2f} ms" if device else "",
            f"{100 * row['share_outside_forwards']:.1f} %" if device else "in parts",
            f"{1e6 * row['gap_seconds']:.0f} us" if device else "",
        )
    Console().print(table)


def main(arguments: list[str], place: str = "cuda") -> list[dict[str, Any]]:
    parser = harness.parser(__doc__ or "")
    parser.add_argument("--context", type=int, default=1024, metavar="N", help="prompt tokens")
    options = parser.parse_args(arguments)
    if place == "cuda" and not (treespec.cuda_available() and torch.cuda.is_available()):
        raise SystemExit("bench_rounds.py needs a CUDA GPU, treespec with CUDA, torch with CUDA")
    repetitions = options.repetitions or (2 if options.quick else 30)
    config = TINY if options.quick else EIGHT_BILLION
    pair = make_pair(config, torch.float32 if place == "cpu" else torch.bfloat16, place)
    context = 16 if options.quick else options.context
    prompt = np.random.default_rng(0).integers(0, config.vocab_size, context).tolist()
    plain = measure_generate(pair[0], prompt, 16 if options.quick else 128, place)
    results = []
    for case in CASES:
        row = measure(case, pair, place, prompt, repetitions)
        row |= {"generate_per_second": plain, "of_generate": row["tokens_per_second"] / plain}
        if place == "cuda":
            row["gpu"] = torch.cuda.get_device_name()
        results.append(row)
    show(results)
    command = shlex.join(["python", "benchmarks/bench_rounds.py", *arguments])
    harness.write_report(options.json, "rounds", command, options, results)
    return results


if __name__ == "__main__":
    main(sys.argv[1:])
