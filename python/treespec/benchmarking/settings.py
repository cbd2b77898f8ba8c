# SPDX-License-Identifier: Apache-2.0
"""What is compared: a builder, its node budget, a verifier and options, in one word."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from treespec.decoder import SpeculativeDecoder
from treespec.profile import Profile

PLAIN = "plain"  # the name of decoding without a drafter


@dataclass(frozen=True)
class Setting:
    """How trees are built and verified; the arguments of `treespec.load`.

    Attributes
    ----------
    name
        What it is called in tables.
    builder, verifier, node_budget, options, lossy, profile, selector
        As in `SpeculativeDecoder`: with a profile the size of every round is chosen by its costs,
        with a selector the shape of a delayed tree by its network.
    """

    name: str
    builder: str = "opt_tree"
    node_budget: int | None = None
    verifier: str = "auto"
    options: Mapping[str, Any] = field(default_factory=dict)
    lossy: bool = False
    profile: Profile | None = None
    selector: str | None = None

    def decoder(self, models: SpeculativeDecoder) -> SpeculativeDecoder:
        """A decoder over the same models.

        Raises
        ------
        ValueError, NotImplementedError
            For what `SpeculativeDecoder` refuses; names the setting.
        """
        try:
            return SpeculativeDecoder(
                models.target,
                models.drafter,
                tokenizer=models.tokenizer,
                builder=self.builder,
                builder_options=self.options,
                verifier=self.verifier,
                node_budget=self.node_budget,
                lossy=self.lossy,
                profile=self.profile,
                selector=self.selector,
            )
        except (ValueError, NotImplementedError) as error:
            raise type(error)(f"bench: setting {self.name!r}: {error}") from error
