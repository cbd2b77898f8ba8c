# SPDX-License-Identifier: Apache-2.0
"""The round with static shapes: lengths in device memory, no host in the way, capturable.

`ops` are the steps as torch custom ops, `attention` and `kv` let a Hugging Face model run over
fixed buffers, `draft` and `round` string them together, `capture` makes CUDA graphs of the result,
and `generation` lets a decoder play them. On a CPU the same code runs uncaptured.
"""
