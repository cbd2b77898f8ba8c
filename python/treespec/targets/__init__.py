# SPDX-License-Identifier: Apache-2.0
"""Step 4 of a round: models whose distribution is reproduced."""
