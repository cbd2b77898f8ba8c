# SPDX-License-Identifier: Apache-2.0
"""One oracle per tree builder: ``build(source, *, node_budget, seed, ..., **options) -> Tree``."""
