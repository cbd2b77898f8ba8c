# SPDX-License-Identifier: Apache-2.0
"""The steps of a round on a GPU, each beside the bytes that it cannot avoid to move.

Every case is captured in a CUDA graph of several calls on different copies of its inputs, together
larger than the second-level cache, so that neither Python nor a warm cache is timed. With `--check`
each is compared with the CPU core first. Needs a CUDA GPU, treespec built with CUDA, and a torch
with CUDA:

    python benchmarks/bench_cuda.py --check --json benchmarks/results/cuda.json
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import floors
import harness
import numpy as np
import torch
from gpu_time import timed

import treespec
from treespec import device

VOCAB_SIZE = 151_936
NUM_NODES = 64
DRAFT_SUPPORT = 64  # tokens of a draft law, as after truncation
TEMPERATURE = 0.8
COLD_BYTES = 256 << 20  # several times the second-level cache of an H200


@dataclass
class Case:
    """`work(i)` and `floor(i)` run on copy i of `copies`; `bar_ratio`: most floors it may take."""

    name: str
    floor_name: str
    work: Callable[[int], Any]
    floor: Callable[[int], Any]
    copies: int
    check: Callable[[], None]
    bar_ratio: float = 0.0
    bar_seconds: float = 0.0


def copies_of(rows: torch.Tensor) -> list[torch.Tensor]:
    return [rows.clone() for _ in range(max(2, COLD_BYTES // rows.nbytes))]


def one_read(rows: torch.Tensor) -> torch.Tensor:
    """A sum over the bytes of an array: torch's own reduction reads them once."""
    return rows.view(torch.int32).sum()


def ints(values: Any, place: str) -> torch.Tensor:
    return torch.as_tensor(np.asarray(values), dtype=torch.int32, device=place)


# --- Build ----------------------------------------------------------------------------------------


def build_case(place: str, vocab_size: int) -> Case:
    """A tree of 64 nodes from the lists of a block drafter, its ancestor bits and positions."""
    depth, width = 15, NUM_NODES
    rng = np.random.default_rng(1)
    logits = rng.normal(size=(depth, vocab_size)).astype(np.float32) * 3
    status = device.new_status(1, place)
    lists = device.rank_candidates(torch.from_numpy(logits)[None].to(place), width, status=status)
    prefix = ints([1000], place)

    def work(_copy: int) -> Any:
        trees = device.build_tree("dtree", lists, NUM_NODES, status=status)
        return trees, device.tree_layout(trees, prefix, status=status)

    def check() -> None:
        trees, layout = work(0)
        device.check_status(status)
        ranked = treespec.Marginals.from_logits(logits, width)
        host = treespec.build_tree("dtree", ranked, NUM_NODES)
        np.testing.assert_array_equal(trees.token.cpu().numpy()[0], host.token)
        np.testing.assert_array_equal(trees.parent.cpu().numpy()[0], host.parent)
        positions = treespec.tree_positions(host, prefix_length=1000)
        np.testing.assert_array_equal(layout.position.cpu().numpy()[0], positions)

    return Case(
        f"build + mask + positions, {NUM_NODES} nodes from ranked lists",
        "copy of the lists",
        work,
        lambda _copy: lists.logprob.clone(),
        1,
        check,
        bar_seconds=15e-6,
    )


def rank_case(place: str, vocab_size: int, dtype: torch.dtype) -> Case:
    """Ranked lists of a block drafter's logits."""
    rng = np.random.default_rng(2)
    rows = torch.from_numpy(rng.normal(size=(1, 15, vocab_size)).astype(np.float32) * 3)
    pool = copies_of(rows.to(dtype).to(place))
    status = device.new_status(1, place)

    def work(copy: int) -> Any:
        return device.rank_candidates(pool[copy], NUM_NODES, status=status)

    def check() -> None:
        lists = work(0)
        host = treespec.Marginals.from_logits(rows.to(dtype)[0], NUM_NODES)
        table = treespec.build_tree("dtree", host, NUM_NODES)
        built = device.build_tree("dtree", lists, NUM_NODES, status=status)
        np.testing.assert_array_equal(built.token.cpu().numpy()[0], table.token)

    return Case(
        f"rank candidates, [15, {vocab_size}] {str(dtype)[6:]}, cold",
        "one read of the bytes",
        work,
        lambda copy: one_read(pool[copy]),
        len(pool),
        check,
        bar_ratio=3,
    )


# --- Verify ---------------------------------------------------------------------------------------


def drawn_trees(rng: np.random.Generator, batch: int, vocab_size: int) -> list[Any]:
    """Trees of 64 drawn nodes with sparse laws, and likely tokens on a path."""
    trees = []
    for _ in range(batch):
        parent = [-1, *((node - 1) // 4 for node in range(1, NUM_NODES + 1))]
        token = rng.choice(vocab_size, NUM_NODES + 1, replace=False).astype(np.int32)
        draws = [[c for c, p in enumerate(parent) if p == node] for node in range(NUM_NODES + 1)]
        trees.append((token, parent, draws))
    return trees


def verify_case(place: str, vocab_size: int, verifier: str, batch: int, bar: float) -> Case:
    """64 drafted nodes per sequence, bfloat16 logits, no truncation, cold memory."""
    rng = np.random.default_rng(3)
    drawn = verifier != "target_only"
    proposal = "iid" if drawn else "deterministic"
    shapes = drawn_trees(rng, batch, vocab_size)
    logits = torch.from_numpy(
        rng.normal(size=(batch, NUM_NODES + 1, vocab_size)).astype(np.float32) * 2
    )
    host_trees, law = [], np.zeros((NUM_NODES + 1, vocab_size), np.float32)
    for b, (token, parent, draws) in enumerate(shapes):
        law[:] = 0
        for node, children in enumerate(draws):
            if not children:
                continue
            rest = rng.choice(vocab_size, DRAFT_SUPPORT - len(children), replace=False)
            support = np.unique(np.concatenate([token[children], rest]))
            law[node, support] = 1 / len(support)
            logits[b, node, token[children]] = 9.0 + torch.arange(len(children))
        host_trees.append(
            treespec.TokenTree(
                token=token,
                parent=parent,
                proposal=proposal,
                draws=draws,
                draft_probs=law.copy() if drawn else None,
            )
        )
    rows = logits.to(torch.bfloat16)
    pool = copies_of(rows.to(place))
    trees = device.Trees.pack(host_trees, device=place)
    status = device.new_status(batch, place)
    arguments: dict[str, Any] = {
        "max_depth": NUM_NODES,
        "sampling": device.sampling_words(
            *(torch.full((batch,), value, device=place) for value in (TEMPERATURE, 0, 1.0, 0.0))
        ),
        "seed": torch.arange(batch, dtype=torch.int64, device=place),
        "sequence_id": ints(range(batch), place),
        "position": ints([1000] * batch, place),
        "proposal": proposal,
        "law": packed_law(host_trees, place) if drawn else None,
        "status": status,
    }

    def work(copy: int) -> Any:
        return device.verify(trees, pool[copy], verifier, **arguments)

    def check() -> None:
        verdicts = work(0)
        device.check_status(status)
        for b, tree in enumerate(host_trees):
            host = treespec.verify_logits(
                tree,
                rows[b],
                sampling=treespec.SamplingParams(temperature=TEMPERATURE),
                verifier=verifier,
                seed=b,
                sequence_id=b,
                position=1000,
            )
            assert int(verdicts.next_token[b]) == host.next_token
            assert int(verdicts.num_accepted[b]) == host.num_accepted

    return Case(
        f"verify {verifier}, {batch} x {NUM_NODES} nodes, V = {vocab_size}, bfloat16, cold",
        "one read of the logits",
        work,
        lambda copy: one_read(pool[copy]),
        len(pool),
        check,
        bar_ratio=bar,
    )


def packed_law(trees: list[Any], place: str) -> device.Law:
    """The laws that the trees carry, as sparse rows."""
    row_of_node, offset, token, prob = [], [0], [], []
    for tree in trees:
        law = np.asarray(tree.draft_probs)
        own = []
        for node in range(tree.num_nodes):
            support = np.flatnonzero(law[node])
            own.append(len(offset) - 1 if len(support) else -1)
            if len(support):
                token.append(support)
                prob.append(law[node, support])
                offset.append(offset[-1] + len(support))
        row_of_node.append(own)
    return device.Law(
        row_of_node=ints(row_of_node, place),
        prob=torch.from_numpy(np.concatenate(prob)).to(place),
        token=ints(np.concatenate(token), place),
        row_offset=torch.tensor(offset, dtype=torch.int64, device=place),
        vocab_size=np.asarray(trees[0].draft_probs).shape[1],
        max_support=max(np.diff(offset)),
    )


# --- Commit ---------------------------------------------------------------------------------------


def commit_case(place: str, layers: int) -> Case:
    """Five rows of every layer and head of an 8B-class cache move."""
    batch, heads, rows, dim = 8, 8, 2048, 128
    arrays = [
        torch.randn(batch, heads, rows, dim, device=place).bfloat16() for _ in range(2 * layers)
    ]
    cache = device.KvCache(arrays)
    nodes = ints([[0, 3, 9, 17, 40]] * batch, place)
    accepted, prefix = ints([4] * batch, place), ints([1900] * batch, place)
    status = device.new_status(batch, place)
    moved = torch.randn(2 * layers, batch, heads, 4, dim, device=place).bfloat16()

    def work(_copy: int) -> None:
        device.commit_kv(cache, nodes, accepted, prefix, status=status)

    def check() -> None:
        before = [array[:, :, [1903, 1909, 1917, 1940]].clone() for array in arrays[:2]]
        work(0)
        device.check_status(status)
        for array, wanted in zip(arrays, before, strict=False):
            assert torch.equal(array[:, :, 1901:1905], wanted)

    return Case(
        f"commit 5 of 65 rows, {layers} layers, batch {batch}",
        "one copy of the moved bytes",
        work,
        lambda _copy: moved.clone(),
        1,
        check,
    )


# --- Timing ---------------------------------------------------------------------------------------


def cases(place: str, quick: bool) -> Iterator[Case]:
    vocab_size = 5_000 if quick else VOCAB_SIZE
    yield build_case(place, vocab_size)
    yield rank_case(place, vocab_size, torch.bfloat16)
    for verifier in ("target_only", "recursive_rejection", "traversal"):
        yield verify_case(place, vocab_size, verifier, 1, 3)
        yield verify_case(place, vocab_size, verifier, 2 if quick else 16, 2)
    yield commit_case(place, 2 if quick else 32)


def measure(case: Case, place: str, repetitions: int, check: bool) -> dict[str, Any]:
    if check:
        case.check()
    calls = max(case.copies, 20) if place == "cuda" else 1

    def several(one: Callable[[int], Any]) -> Callable[[], Any]:
        return lambda: [one(call % case.copies) for call in range(calls)]

    works = {name: timed(several(getattr(case, name)), place) for name in ("work", "floor")}
    seconds: dict[str, list[float]] = {name: [] for name in works}
    for repetition in range(repetitions + 1):
        for name, run in works.items():
            spent = run() / calls
            if repetition > 0:  # the first warms up
                seconds[name].append(spent)
    bars = {"bar_ratio": case.bar_ratio, "bar_seconds": case.bar_seconds}
    return {
        "side": "GPU" if place == "cuda" else "emulation",
        "name": case.name,
        "floor_name": case.floor_name,
        **{name: bar for name, bar in bars.items() if bar > 0},
        "seconds": harness.summarise(seconds["work"]),
        "floor_seconds": harness.summarise(seconds["floor"]),
        "ratio": harness.ratio_interval(seconds["work"], seconds["floor"]),
    }


def main(arguments: list[str], place: str = "cuda") -> list[dict[str, Any]]:
    options = harness.parser(__doc__ or "").parse_args(arguments)
    if place == "cuda" and not (treespec.cuda_available() and torch.cuda.is_available()):
        raise SystemExit("bench_cuda.py needs a CUDA GPU, treespec with CUDA and torch with CUDA")
    repetitions = options.repetitions or (3 if options.quick else 20)
    results = [
        measure(case, place, repetitions, options.check) for case in cases(place, options.quick)
    ]
    if place == "cuda":
        for row in results:
            row["gpu"] = torch.cuda.get_device_name()
    floors.show(results)
    command = shlex.join(["python", "benchmarks/bench_cuda.py", *arguments])
    harness.write_report(options.json, "cuda", command, options, results)
    return results


if __name__ == "__main__":
    main(sys.argv[1:])
