# SPDX-License-Identifier: Apache-2.0
"""Draws one round: as a tree in the terminal, as a PNG, SVG or PDF picture (needs matplotlib)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.text import Text
from rich.tree import Tree

from treespec.cli.round_view import ROOT, RoundView

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FORMATS = (".png", ".svg", ".pdf")

# Sizes in inches: the drawing's data unit is one inch, so text and boxes keep their proportion.
_FONT_POINTS = 8.5
_CHARACTER = 0.602 * _FONT_POINTS / 72  # advance of DejaVu Sans Mono
_BOX_HEIGHT = 0.22
_BOX_PADDING = 0.16
_ROW = 0.30
_GAP = 0.62  # between two columns: the bend of the edges and the probability on them
_CORNER = 0.07
_MARGIN = 0.35
_HEADER = 0.62
_FOOTER = 0.55
_LEAST_WIDTH = 8.0
_SUBTITLE_CHARACTER = 0.07  # a generous mean of DejaVu Sans at 8 points
_LONGEST_LABEL = 16
_MOST_PIXELS = 20_000
_DOTS_PER_INCH = 160

_INK = "#1f2933"
_FAINT = "#6b7785"
_EDGE = "#b6c0cb"
_GREEN = "#178a45"
_ORANGE = "#d9650b"
_NEXT = -1  # stands for the next token where nodes are numbered


def terminal_tree(view: RoundView) -> Tree:
    """Return the tree for the terminal: accepted nodes ticked and green, the next token apart."""
    accepted = set(view.accepted)
    root = Tree(_root_text(view), guide_style="dim")
    branches = {ROOT: root}
    for node in _preorder(view):
        text = _node_text(view, node, node in accepted)
        guide = "green" if node in accepted else "dim"
        branches[node] = branches[view.parents[node]].add(text, guide_style=guide)
    if view.next_label is not None:
        text = Text(f"+ {view.next_label}", style="bold dark_orange")
        text.append(f"  {view.next_kind}", style="not bold")
        branches[view.last].children.insert(0, Tree(text))
    return root


def save_picture(view: RoundView, path: Path, title: str, subtitle: str) -> None:
    """Draw the tree to `path`, which `check_picture` admits; its suffix chooses the format."""
    save_figure(draw_round(view, title, subtitle), path)


def check_picture(who: str, path: Path) -> None:
    """Refuse a format that is not drawn, and say what to install where nothing is."""
    if path.suffix.lower() not in FORMATS:
        known = ", ".join(FORMATS)
        raise ValueError(f"{who}: --out must end in one of {known}, got {str(path)!r}")
    try:
        import matplotlib  # noqa: F401
    except ModuleNotFoundError as error:
        message = f"{who}: --out needs matplotlib: pip install 'treespec[plot]'"
        raise ModuleNotFoundError(message) from error


def draw_round(view: RoundView, title: str, subtitle: str) -> Figure:
    """Draw the tree on white.

    Columns are depths. The top line is what the round emitted; refused guesses hang below it.
    """
    import matplotlib
    from matplotlib.figure import Figure

    boxes = _place(view)
    width = max(_LEAST_WIDTH, max(box.x + box.width for box in boxes.values()) + 2 * _MARGIN)
    height = _HEADER + _FOOTER + (max(box.row for box in boxes.values()) + 1) * _ROW
    with matplotlib.rc_context({"font.family": "DejaVu Sans"}):
        figure = Figure(figsize=(width, height), facecolor="white")
        axes = figure.add_axes((0, 0, 1, 1), frameon=False)
        axes.set(xlim=(0, width), ylim=(height, 0), xticks=[], yticks=[])
        _draw_tree(axes, view, boxes)
        _draw_header(axes, title, subtitle, width - 2 * _MARGIN)
        _draw_legend(axes, view, height - 0.27)
    return figure


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure, as large as a picture may be; its suffix chooses the format."""
    import matplotlib

    dpi = min(_DOTS_PER_INCH, _MOST_PIXELS / max(figure.get_size_inches()))
    metadata = {".svg": {"Date": None}, ".pdf": {"CreationDate": None}}
    # A fixed salt and no date make the same figures the same file.
    with matplotlib.rc_context({"svg.hashsalt": "treespec"}):
        figure.savefig(path, dpi=dpi, metadata=metadata.get(path.suffix.lower()))


def _root_text(view: RoundView) -> Text:
    return Text(view.labels[ROOT], style="bold").append("  root", style="dim")


def _node_text(view: RoundView, node: int, accepted: bool) -> Text:
    text = Text()
    if accepted:
        text.append("✓ ", style="bold green")
    text.append(view.labels[node], style="bold green" if accepted else "default")
    text.append(f"  {view.own_probs[node]:.2f}", style="cyan")
    return text.append(f"  path {view.path_probs[node]:.3f}", style="dim")


def _preorder(view: RoundView) -> Iterator[int]:
    """Yield the nodes below the root, parents first, likelier siblings first."""
    stack = list(reversed(view.children[ROOT]))
    while stack:
        node = stack.pop()
        yield node
        stack.extend(reversed(view.children[node]))


@dataclass(frozen=True)
class _Box:
    """Where one node goes: left edge and width in inches, row counted from the top."""

    x: float
    width: float
    row: int
    label: str

    @property
    def y(self) -> float:
        return _HEADER + (self.row + 0.5) * _ROW


def _place(view: RoundView) -> dict[int, _Box]:
    """Return the box of every node, and of the next token under `_NEXT`."""
    rows = _rows(view)
    depths = dict(enumerate(view.depths))
    labels = dict(enumerate(view.labels))
    if view.next_label is not None:
        depths[_NEXT] = view.depths[view.last] + 1
        labels[_NEXT] = view.next_label
    labels = {node: _printable(label) for node, label in labels.items()}
    widths = {node: len(label) * _CHARACTER + _BOX_PADDING for node, label in labels.items()}
    left = _column_edges(depths, widths)
    return {n: _Box(left[depths[n]], widths[n], rows[n], labels[n]) for n in depths}


def _column_edges(depths: dict[int, int], widths: dict[int, float]) -> list[float]:
    edges = [_MARGIN]
    for depth in range(max(depths.values()) + 1):
        widest = max((widths[node] for node in depths if depths[node] == depth), default=0.0)
        edges.append(edges[-1] + widest + _GAP)
    return edges


def _rows(view: RoundView) -> dict[int, int]:
    """Return a row per node such that edges never cross and nothing overlaps.

    Bottom up, every subtree is a list with its lowest row per depth, counted from its own root.
    A node's first child stays on the node's row; each further child subtree is lowered just below
    the contour of those before it, so shallow subtrees slide under deep ones.
    """
    order = _drawing_order(view)
    lowest: dict[int, list[int]] = {}
    offsets: dict[int, int] = {}
    for node in (_NEXT, *reversed(range(len(view.parents)))):
        contour: list[int] = []
        for child in order.get(node, []):
            below = lowest.pop(child)
            offsets[child] = max((row + 1 for row in contour[: len(below)]), default=0)
            merged = [row + offsets[child] for row in below]
            contour = [max(a, b) for a, b in _zip_longest(contour, merged)]
        lowest[node] = [0, *contour]
    rows = {ROOT: 0}
    for node in range(len(view.parents)):
        rows.update({child: rows[node] + offsets[child] for child in order.get(node, [])})
    return rows


def _drawing_order(view: RoundView) -> dict[int, list[int]]:
    """Return each node's children from top to bottom: the emitted one, then by probability."""
    accepted = set(view.accepted)
    order = {
        n: sorted(c, key=lambda child: child not in accepted) for n, c in enumerate(view.children)
    }
    if view.next_label is not None:
        order[view.last] = [_NEXT, *order[view.last]]
    return order


def _zip_longest(a: list[int], b: list[int]) -> Iterator[tuple[int, int]]:
    for index in range(max(len(a), len(b))):
        yield (a[index] if index < len(a) else 0, b[index] if index < len(b) else 0)


def _printable(label: str) -> str:
    """Shorten a label, and escape what the drawing font has no glyph for."""
    from matplotlib.font_manager import FontProperties, findfont, get_font

    font = get_font(findfont(FontProperties(family="DejaVu Sans Mono")))
    text = "".join(c if font.get_char_index(ord(c)) else ascii(c)[1:-1] for c in label)
    return text if len(text) <= _LONGEST_LABEL else f"{text[: _LONGEST_LABEL - 1]}…"


def _draw_tree(axes: Axes, view: RoundView, boxes: dict[int, _Box]) -> None:
    accepted = set(view.accepted)
    for node in sorted(range(1, len(view.parents)), key=accepted.__contains__):
        style = _accepted_edge() if node in accepted else _plain_edge(view.own_probs[node])
        _draw_edge(axes, boxes[view.parents[node]], boxes[node], style)
        _draw_probability(axes, boxes[node], view.own_probs[node], node in accepted)
    if _NEXT in boxes:
        style = {"edgecolor": _ORANGE, "linewidth": 1.6, "linestyle": (0, (2.5, 1.5)), "zorder": 2}
        _draw_edge(axes, boxes[view.last], boxes[_NEXT], style)
        _draw_box(axes, boxes[_NEXT], _next_style(), bold=True)
    _draw_box(axes, boxes[ROOT], _root_style(), bold=True)
    for node in range(1, len(view.parents)):
        style = _node_style(view.path_probs[node], node in accepted)
        _draw_box(axes, boxes[node], style, bold=node in accepted)


def _plain_edge(own_prob: float) -> dict[str, Any]:
    return {"edgecolor": _EDGE, "linewidth": 0.6 + 1.6 * own_prob, "zorder": 1}


def _accepted_edge() -> dict[str, Any]:
    return {"edgecolor": _GREEN, "linewidth": 2.4, "zorder": 2}


def _root_style() -> dict[str, Any]:
    return {"facecolor": _INK, "edgecolor": _INK, "linewidth": 1.0, "text": "white"}


def _next_style() -> dict[str, Any]:
    return {
        "facecolor": "white",
        "edgecolor": _ORANGE,
        "linewidth": 1.6,
        "linestyle": (0, (2.5, 1.5)),
        "text": _ORANGE,
    }


def _node_style(path_prob: float, accepted: bool) -> dict[str, Any]:
    """Fill by path probability (square root, so that small ones still differ)."""
    from matplotlib import colormaps
    from matplotlib.colors import to_hex

    shade = 0.06 + 0.76 * path_prob**0.5
    fill = to_hex(colormaps["Greens" if accepted else "Blues"](shade))
    return {
        "facecolor": fill,
        "edgecolor": _GREEN if accepted else "#9fb3c8",
        "linewidth": 2.0 if accepted else 0.7,
        "text": "white" if shade > 0.58 else _INK,
    }


def _draw_box(axes: Axes, box: _Box, style: dict[str, Any], bold: bool = False) -> None:
    from matplotlib.patches import FancyBboxPatch

    shape = {name: value for name, value in style.items() if name != "text"}
    corner = (box.x, box.y - _BOX_HEIGHT / 2)
    rounded = f"round,pad=0,rounding_size={_BOX_HEIGHT * 0.35}"
    axes.add_patch(
        FancyBboxPatch(corner, box.width, _BOX_HEIGHT, boxstyle=rounded, zorder=3, **shape)
    )
    _write(
        axes, box.x + box.width / 2, box.y, box.label, style["text"],
        ha="center", va="center_baseline", family="DejaVu Sans Mono",
        size=_FONT_POINTS, weight="bold" if bold else "normal", zorder=4,
    )  # fmt: skip


def _draw_edge(axes: Axes, start: _Box, end: _Box, style: dict[str, Any]) -> None:
    """Draw right, down and right again with a round bend; a straight line on one row."""
    from matplotlib.patches import PathPatch
    from matplotlib.path import Path as Outline

    x0, y0, x1, y1 = start.x + start.width, start.y, end.x, end.y
    bend = end.x - _GAP * 0.78
    points, codes = [(x0, y0)], [Outline.MOVETO]
    if y1 > y0:
        points += [(bend - _CORNER, y0), (bend, y0), (bend, y0 + _CORNER)]
        points += [(bend, y1 - _CORNER), (bend, y1), (bend + _CORNER, y1)]
        codes += [Outline.LINETO, Outline.CURVE3, Outline.CURVE3] * 2
    points.append((x1, y1))
    codes.append(Outline.LINETO)
    axes.add_patch(PathPatch(Outline(points, codes), facecolor="none", capstyle="round", **style))


def _draw_probability(axes: Axes, box: _Box, own_prob: float, accepted: bool) -> None:
    color = _GREEN if accepted else _FAINT
    text = f"{own_prob:.2f}".removeprefix("0") if own_prob < 0.995 else "1.0"
    x = box.x - _GAP * 0.06
    _write(axes, x, box.y - 0.02, text, color, ha="right", va="bottom", size=6.3, zorder=4)


def _draw_header(axes: Axes, title: str, subtitle: str, width: float) -> None:
    most = int(width / _SUBTITLE_CHARACTER)
    if len(subtitle) > most:
        subtitle = f"{subtitle[: most - 1]}…"
    _write(axes, _MARGIN, 0.22, title, _INK, size=11, weight="bold", va="center")
    _write(axes, _MARGIN, 0.42, subtitle, _FAINT, size=8, va="center")


def _draw_legend(axes: Axes, view: RoundView, y: float) -> None:
    """One row of samples at the bottom, each a small box or ramp with its meaning."""
    x = _legend_entry(axes, _MARGIN, y, _root_style(), "root")
    x = _legend_entry(axes, x, y, _node_style(0.3, True), "accepted")
    kind = "next token" if view.next_label is None else f"next token ({view.next_kind})"
    x = _legend_entry(axes, x, y, _next_style(), kind)
    for step in range(12):
        style = _node_style((step + 0.5) / 12, False)
        axes.add_patch(_rectangle(x + 0.06 * step, y - 0.055, 0.06, 0.11, style["facecolor"]))
    _write(axes, x + 0.8, y, "path probability 0 to 1", _FAINT, size=7.5, va="center")
    _write(axes, x + 2.25, y, ".42  own probability", _FAINT, size=7.5, va="center")


def _legend_entry(axes: Axes, x: float, y: float, style: dict[str, Any], text: str) -> float:
    from matplotlib.patches import FancyBboxPatch

    shape = {name: value for name, value in style.items() if name != "text"}
    boxstyle = "round,pad=0,rounding_size=0.04"
    axes.add_patch(FancyBboxPatch((x, y - 0.065), 0.24, 0.13, boxstyle=boxstyle, **shape))
    _write(axes, x + 0.32, y, text, _FAINT, size=7.5, va="center")
    return x + 0.32 + 0.06 * len(text) + 0.22


def _rectangle(x: float, y: float, width: float, height: float, color: str) -> Any:
    from matplotlib.patches import Rectangle

    return Rectangle((x, y), width, height, facecolor=color, edgecolor="none")


def _write(axes: Axes, x: float, y: float, text: str, color: str, **style: Any) -> None:
    """Write text as it is: a `$` in a token is no formula."""
    axes.text(x, y, text, color=color, parse_math=False, **style)
