"""One plotting style for all figures: quiet axes, a colour-blind-safe palette, PNG and SVG. Loads without torch.

`plot_file` is for one or two plots with automatic layout. `page` and `add_axes` are for figures of many parts, measured
in inches; `text_width` and `fold` tell how much room a text takes, before anything is drawn.
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

# Okabe and Ito's colours, darkest first.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#8A6D00")
INK, QUIET, PALE = "#1A1A1A", "#5F5F5F", "#E5E5E5"  # text, secondary text, grid
FONT = "DejaVu Sans"  # ships with matplotlib, so that text has the same width everywhere
MIN_FONT_SIZE = 8.0  # points
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
    "svg.hashsalt": "bareloop",  # so that the same figure gives the same file
}
DPI = 160  # of PNG
MARGIN, TITLE, NOTE = 0.15, 12.0, 9.0  # inches around a page's heading; font sizes of title and note in points
BREAKS = (
    r"(?: %|[^ /])+[ /]?|[ /]",
    r"[^-_]+[-_]?|[-_]",
    ".",
)  # where lines may break, in order of preference; 95 % is kept together
LINE = 1.25 / 72  # height of a line in inches, per point of font size


@contextmanager
def style() -> Iterator[None]:
    """Apply the style to figures that are created or drawn inside; also a decorator, `@style()`."""
    import matplotlib as mpl
    from cycler import cycler

    with mpl.rc_context({**STYLE, "axes.prop_cycle": cycler(color=PALETTE)}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")  # it is drawn as a box
        yield


@contextmanager
def plot_file(
    path: Path, width: float = 7.0, height: float = 4.0, panels: int = 1
) -> Iterator[tuple[Figure, list[Axes]]]:
    """Create a figure of this size in inches with panels side by side, and write it to `path` + .png and .svg.

        with plot_file(folder / "recall") as (figure, (axes,)):
            axes.plot(...)

    The files are written atomically. Raises `BareloopError` if they cannot be written.
    """
    from matplotlib.figure import Figure

    with style():
        figure = Figure(figsize=(width, height), layout="constrained")
        yield figure, list(figure.subplots(1, panels, squeeze=False)[0])
        write(figure, path)


def write(figure: Figure, path: Path) -> None:
    """Write a figure to `path` + .png and .svg."""
    write_atomic(path.with_name(path.name + ".png"), png(figure))
    write_atomic(path.with_name(path.name + ".svg"), svg(figure))


def png(figure: Figure) -> bytes:
    """A figure as a PNG file."""
    return _image(figure, "png")


def svg(figure: Figure) -> str:
    """A figure as an SVG file; the same figure gives the same text."""
    return _image(figure, "svg").decode()


def pdf(figures: Iterable[Figure]) -> bytes:
    """Figures as one PDF file, one per page."""
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
    """An empty figure with a heading. `width` and `height`, in inches, are the space below it, for `add_axes`.

    `note` explains the marks in a few words, below the title. Long texts are wrapped.
    """
    from matplotlib.figure import Figure

    texts: list[tuple[str, dict[str, Any]]] = [
        (fold(title, width - 2 * MARGIN, TITLE, bold=True), {"size": TITLE, "weight": "bold", "color": INK}),
        (fold(note, width - 2 * MARGIN, NOTE), {"size": NOTE, "color": QUIET}),
    ]
    sizes = [lines(text) * LINE * options["size"] for text, options in texts]
    total = height + 2 * MARGIN + sum(sizes)
    figure = Figure(figsize=(width, total))
    top = total - MARGIN
    for (text, options), size in zip(texts, sizes, strict=True):
        figure.text(
            MARGIN / width, top / total, text, ha="left", va="top", linespacing=1.15, parse_math=False, **options
        )
        top -= size
    return figure


def add_axes(figure: Figure, left: float, bottom: float, width: float, height: float) -> Axes:
    """Add axes at this position, all in inches."""
    figure_width, figure_height = figure.get_size_inches()
    return figure.add_axes((left / figure_width, bottom / figure_height, width / figure_width, height / figure_height))


@lru_cache(maxsize=4096)
def text_width(text: str, size: float, bold: bool = False) -> float:
    """Width of a line of text in inches, plus 2 % for the rounding of renderers; `size` in points."""
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import text_to_path

    font = FontProperties(family=FONT, size=size, weight="bold" if bold else "normal")
    return 1.02 * text_to_path.get_text_width_height_descent(text, font, ismath=False)[0] / 72


def fold(text: str, width: float, size: float, bold: bool = False) -> str:
    """Wrap a text to a width in inches: at spaces and slashes, else at - and _, else anywhere."""

    def pieces(text: str, patterns: Sequence[str]) -> Iterator[str]:
        for piece in re.findall(patterns[0], text):
            if len(patterns) > 1 and text_width(piece.rstrip(), size, bold) > width:
                yield from pieces(piece, patterns[1:])
            else:
                yield piece

    folded = [""]
    for piece in pieces(" ".join(text.split()), BREAKS):
        if folded[-1] and text_width(folded[-1] + piece.rstrip(), size, bold) > width:
            folded.append("")
        folded[-1] += piece
    return "\n".join(line.rstrip() for line in folded)


def lines(text: str) -> int:
    """Number of lines of a wrapped text."""
    return text.count("\n") + 1 if text else 0
