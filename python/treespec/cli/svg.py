# SPDX-License-Identifier: Apache-2.0
"""Pictures inside a page: SVG whose colours are the page's, light or dark (needs matplotlib)."""

from __future__ import annotations

import io
import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Stand-ins: matplotlib draws with them, `to_svg` turns them into variables of the page's style.
INK, FAINT, GRID = "#010101", "#010102", "#010103"
# Seven hues that colour-blind people tell apart (Okabe and Ito, 2008), and grey.
SERIES = tuple(f"#0201{place:02x}" for place in range(7))
GREY = "#020110"
_VARIABLES = {
    INK: "--ink",
    FAINT: "--faint",
    GRID: "--grid",
    GREY: "--grey",
    **{color: f"--series-{place}" for place, color in enumerate(SERIES)},
}
MARKERS = ("o", "s", "^", "D", "v", "P", "X")


def style() -> dict[str, Any]:
    """Matplotlib settings of every picture: thin axes, text that stays text, no background."""
    return {
        "svg.fonttype": "none",
        "svg.hashsalt": "treespec",  # the same figures give the same file
        "font.family": "DejaVu Sans",
        "font.size": 9,
        "text.color": INK,
        "text.parse_math": False,  # a `$` in a name is no formula
        "axes.edgecolor": FAINT,
        "axes.labelcolor": FAINT,
        "axes.titlecolor": INK,
        "axes.titlesize": 9.5,
        "axes.titlelocation": "left",
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.facecolor": "none",
        "axes.axisbelow": True,
        "figure.facecolor": "none",
        "grid.color": GRID,
        "grid.linewidth": 0.6,
        "xtick.color": FAINT,
        "ytick.color": FAINT,
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
        Whether the stand-in colours become the page's variables.
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
        for color, variable in _VARIABLES.items():
            text = text.replace(color, f"var({variable})")
    return text


_NO_METADATA = ("Date", "Creator", "Format", "Type")
