# SPDX-License-Identifier: Apache-2.0
"""Who drafts in a round, and which tree: a file for each way to decide."""
