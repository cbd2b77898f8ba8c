# SPDX-License-Identifier: Apache-2.0
"""One oracle per verifier: ``verify(tree, target_probs, draft_probs, *, seed, ...)``."""
