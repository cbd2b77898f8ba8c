# SPDX-License-Identifier: Apache-2.0
"""The round with static shapes: lengths in device memory, no host in the way, capturable.

`ops` are the steps as torch custom ops. `attention`, `kv` and `runner` let a Hugging Face model
run over fixed buffers. `drafters` is the table of what can draft: `causal_lm` and `eagle3` by
`levels`, over a `growth` of trees on the device, and one-pass drafters (`block`, `heads`) by
`tables`.
`round` strings the parts together, `capture` makes CUDA graphs of them, and `decoding` lets a
decoder play these. On a CPU the same code runs uncaptured.
"""
