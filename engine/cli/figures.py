"""One plotting style for every picture: quiet axes, a palette for colour-blind eyes, PNG and SVG. No torch.

`picture` is for a plot or two that lay themselves out. `page` and `place` are for pictures of many parts, measured in
inches: `text_width` and `fold` say how much room a name takes, before anything is drawn.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engine.runtime.files import write_atomic

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's colours, the darkest first.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#8A6D00")
INK, QUIET, PALE = "#1A1A1A", "#5F5F5F", "#E5E5E5"  # what is read, what goes with it, what guides the eye
FONT = "DejaVu Sans"  # comes with matplotlib: a text is as wide everywhere
SMALLEST = 8.0  # points, of any text
STYLE = {
    "font.family": FONT,
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": PALE,
    "grid.linewidth": 0.8,
    "axes.axisbelow": True,
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
    "legend.frameon": False,
    "svg.hashsalt": "bareloop",  # the same picture is the same file
}
DPI = 160  # of PNG
MARGIN, TITLE, NOTE = 0.15, 12.0, 9.0  # inches round a page's heading; points of its two parts
BREAKS = r"(?: %|[^ /])+[ /]?|[ /]", r"[^-_]+[-_]?|[-_]", "."  # the pieces that a line is made of; 95 % is one
LINE = 1.25 / 72  # inches that a line of text takes, for each point of its size


@contextmanager
def style() -> Iterator[None]:
    """The style, for what is made or drawn inside; also as `@style()` over a function."""
    import matplotlib as mpl
    from cycler import cycler

    with mpl.rc_context({**STYLE, "axes.prop_cycle": cycler(color=PALETTE)}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")  # it is drawn as a box
        yield


@contextmanager
def picture(
    path: Path, width: float = 7.0, height: float = 4.0, panels: int = 1
) -> Iterator[tuple[Figure, list[Axes]]]:
    """A figure of this size in inches, with panels side by side; written as PNG and SVG where `path` has no suffix.

        with picture(folder / "recall") as (figure, (axes,)):
            axes.plot(...)

    Both files are whole or not there. Raises `BareloopError` where they cannot be written.
    """
    from matplotlib.figure import Figure

    with style():
        figure = Figure(figsize=(width, height), layout="constrained")
        yield figure, list(figure.subplots(1, panels, squeeze=False)[0])
        write(figure, path)


def write(figure: Figure, path: Path) -> None:
    """Write a figure as PNG and SVG, to `path` with these endings."""
    write_atomic(path.with_name(path.name + ".png"), png(figure))
    write_atomic(path.with_name(path.name + ".svg"), svg(figure))


def png(figure: Figure) -> bytes:
    """A figure as a PNG file."""
    return _image(figure, "png")


def svg(figure: Figure) -> str:
    """A figure as an SVG file; the same figure gives the same text."""
    return _image(figure, "svg").decode()


def pdf(figures: Iterable[Figure]) -> bytes:
    """Figures as one PDF file, each on a page of its own size."""
    from matplotlib.backends.backend_pdf import PdfPages

    content = io.BytesIO()
    with style(), PdfPages(content, metadata={"CreationDate": None}) as pages:
        for figure in figures:
            pages.savefig(figure)
    return content.getvalue()


def _image(figure: Figure, kind: str) -> bytes:
    content = io.BytesIO()
    with style():
        figure.savefig(content, format=kind, dpi=DPI, metadata={"Date": None} if kind == "svg" else None)
    return content.getvalue()


def page(title: str, note: str, width: float, height: float) -> Figure:
    """An empty figure under a heading. `width` and `height` are what is free for `place`, in inches.

    The note under the title says in a few words what the marks are. Long ones take more lines.
    """
    from matplotlib.figure import Figure

    told: list[tuple[str, dict[str, Any]]] = [
        (fold(title, width - 2 * MARGIN, TITLE, bold=True), {"size": TITLE, "weight": "bold", "color": INK}),
        (fold(note, width - 2 * MARGIN, NOTE), {"size": NOTE, "color": QUIET}),
    ]
    sizes = [lines(text) * LINE * how["size"] for text, how in told]
    whole = height + 2 * MARGIN + sum(sizes)
    figure = Figure(figsize=(width, whole))
    top = whole - MARGIN
    for (text, how), size in zip(told, sizes, strict=True):
        figure.text(MARGIN / width, top / whole, text, ha="left", va="top", linespacing=1.15, parse_math=False, **how)
        top -= size
    return figure


def place(figure: Figure, left: float, bottom: float, width: float, height: float) -> Axes:
    """Axes at a place of the figure, all in inches."""
    across, up = figure.get_size_inches()
    return figure.add_axes((left / across, bottom / up, width / across, height / up))


@lru_cache(maxsize=4096)
def text_width(text: str, size: float, bold: bool = False) -> float:
    """How wide a line of text is drawn, in inches, rounded up by a fiftieth, as renderers round; `size` in points."""
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import text_to_path

    font = FontProperties(family=FONT, size=size, weight="bold" if bold else "normal")
    return 1.02 * text_to_path.get_text_width_height_descent(text, font, ismath=False)[0] / 72


def fold(text: str, width: float, size: float, bold: bool = False) -> str:
    """A text in lines of at most this width in inches: broken at spaces and slashes, else at - and _, else anywhere."""

    def pieces(text: str, places: Sequence[str]) -> Iterator[str]:
        for piece in re.findall(places[0], text):
            if len(places) > 1 and text_width(piece.rstrip(), size, bold) > width:
                yield from pieces(piece, places[1:])
            else:
                yield piece

    folded = [""]
    for piece in pieces(" ".join(text.split()), BREAKS):
        if folded[-1] and text_width(folded[-1] + piece.rstrip(), size, bold) > width:
            folded.append("")
        folded[-1] += piece
    return "\n".join(line.rstrip() for line in folded)


def lines(text: str) -> int:
    """How many lines a folded text has."""
    return text.count("\n") + 1 if text else 0
