# SPDX-License-Identifier: Apache-2.0
"""Pictures inside a page: SVG whose colours are the page's, light or dark (needs matplotlib)."""

from __future__ import annotations

import io
import re
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_NO_METADATA = ("Date", "Creator", "Format", "Type")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")


class Palette(NamedTuple):
    """Colours of a picture.

    Attributes
    ----------
    ink, faint, grid, grey
        Text, axes, lines behind the figures, and what is of no interest.
    series
        Hues that colour-blind people tell apart (after Okabe and Ito, 2008).
    """

    ink: str
    faint: str
    grid: str
    grey: str
    series: tuple[str, ...]

    def variables(self) -> dict[str, str]:
        """The colours by the names that a page's style has for them."""
        named = {f"--{name}": getattr(self, name) for name in ("ink", "faint", "grid", "grey")}
        return {**named, **{f"--series-{n}": color for n, color in enumerate(self.series)}}


LIGHT = Palette(
    "#1b2530", "#5d6a78", "#d9dfe5", "#8792a0",
    ("#0072b2", "#d55e00", "#009e73", "#b8608f", "#c98a00", "#56b4e9", "#6b5b95"),
)  # fmt: skip
DARK = Palette(
    "#e8edf2", "#9eabb9", "#323c48", "#8f9baa",
    ("#4da3e0", "#ff8a47", "#37c497", "#e294bd", "#f0b840", "#9ad4fb", "#a99ad8"),
)  # fmt: skip
# Stand-ins: matplotlib draws with them, `to_svg` turns them into variables of the page's style.
PAGE = Palette("#010101", "#010102", "#010103", "#010104", tuple(f"#0201{n:02x}" for n in range(7)))


def style(palette: Palette) -> dict[str, Any]:
    """Matplotlib settings of every picture: thin axes, text that stays text, no background."""
    return {
        "svg.fonttype": "none",
        "svg.hashsalt": "treespec",  # the same figures give the same file
        "font.family": "DejaVu Sans",
        "font.size": 9,
        "text.color": palette.ink,
        "text.parse_math": False,  # a `$` in a name is no formula
        "axes.edgecolor": palette.faint,
        "axes.labelcolor": palette.faint,
        "axes.titlecolor": palette.ink,
        "axes.titlesize": 9.5,
        "axes.titlelocation": "left",
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.facecolor": "none",
        "axes.axisbelow": True,
        "figure.facecolor": "none",
        "grid.color": palette.grid,
        "grid.linewidth": 0.6,
        "xtick.color": palette.faint,
        "ytick.color": palette.faint,
        "legend.frameon": False,
        "lines.linewidth": 1.6,
        "lines.markersize": 4.5,
    }


def to_svg(figure: Figure, name: str, *, themed: bool = True) -> str:
    """The picture as an ``<svg>`` element that fills the width of its place.

    Parameters
    ----------
    name
        Goes before every id, so that the pictures of a page do not mix up theirs.
    themed
        Whether the colours of `PAGE` become the page's variables.
    """
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata=dict.fromkeys(_NO_METADATA))
    text = buffer.getvalue()
    text = text[text.index("<svg") :]  # without the XML prologue
    text = re.sub(r"<metadata>.*?</metadata>\s*", "", text, flags=re.DOTALL)
    text = re.sub(r'^<svg ([^>]*?)width="[^"]*" height="[^"]*" ?', r"<svg \1", text, count=1)
    text = re.sub(r'\bid="', f'id="{name}-', text)
    text = text.replace('href="#', f'href="#{name}-').replace("url(#", f"url(#{name}-")
    if themed:
        for variable, color in PAGE.variables().items():
            text = text.replace(color, f"var({variable})")
    return text
