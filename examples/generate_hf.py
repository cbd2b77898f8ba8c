# SPDX-License-Identifier: Apache-2.0
"""Speculative decoding of a Hugging Face model, next to plain decoding of the same model.

    python examples/generate_hf.py
    python examples/generate_hf.py --target Qwen/Qwen3-8B --drafter Qwen/Qwen3-0.6B -t 0
    python examples/generate_hf.py --target ./my-model --drafter suffix --builder trie

With no model named the bundled demo pair runs and nothing is downloaded.
"""

from __future__ import annotations

import argparse

import treespec

parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
)
parser.add_argument("prompt", nargs="?", default="class Stack:")
parser.add_argument("--target", default="demo", help="the model whose text you want")
parser.add_argument("--drafter", default="demo", help="a smaller model, or ngram, or suffix")
parser.add_argument("--builder", default="opt_tree", help=", ".join(treespec.builder_names()))
parser.add_argument("--nodes", type=int, default=None, help="most guesses per round")
parser.add_argument("-n", "--max-new-tokens", type=int, default=96)
parser.add_argument("-t", "--temperature", type=float, default=0.7)
parser.add_argument("--seed", type=int, default=1)
arguments = parser.parse_args()

settings = {
    "max_new_tokens": arguments.max_new_tokens,
    "temperature": arguments.temperature,
    "seed": arguments.seed,
}

# A target and a drafter. Both may be "demo", a folder, a hub id, or a transformers model object.
decoder = treespec.load(
    arguments.target,
    drafter=arguments.drafter,
    builder=arguments.builder,
    node_budget=arguments.nodes,
)

# `stream` yields a piece per round; the last one brings the whole result with its counters.
print(arguments.prompt, end="")
result = None
for piece in decoder.stream(arguments.prompt, **settings):
    print(piece.text, end="", flush=True)
    result = piece.result
assert result is not None
stats = result.stats
print(f"\n\n{stats.tokens} tokens in {stats.rounds} target forwards:", end=" ")
print(f"{stats.block_efficiency:.2f} per forward, {stats.tokens_per_second:.0f} tokens/s")

# The same target without a drafter. SpeculativeDecoder takes ready objects, so nothing loads twice.
plain = treespec.SpeculativeDecoder(decoder.target, None, tokenizer=decoder.tokenizer)
expected = plain.generate(arguments.prompt, **settings)
print(f"plain decoding: {expected.stats.tokens_per_second:.0f} tokens/s,", end=" ")
print("the same text" if expected.token_ids == result.token_ids else "another text")
# "another text": a sampled tree (`proposal=`) has the same distribution but other draws, and two
# kernels of a float32 model may disagree about a near-tie. See docs/sampling.md.
