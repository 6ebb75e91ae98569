"""One plotting style for every picture: quiet axes, a palette for colour-blind eyes, PNG and SVG. No torch."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from engine.files import write_atomic

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's colours, the darkest first.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#8A6D00")
STYLE = {
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#E5E5E5",
    "grid.linewidth": 0.8,
    "axes.axisbelow": True,
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
    "legend.frameon": False,
    "svg.hashsalt": "bareloop",  # the same picture is the same file
    "figure.constrained_layout.use": True,
}


@contextmanager
def picture(
    path: Path, width: float = 7.0, height: float = 4.0, panels: int = 1
) -> Iterator[tuple[Figure, list[Axes]]]:
    """A figure of this size in inches, with panels side by side; written as PNG and SVG where `path` has no suffix.

        with picture(folder / "recall") as (figure, (axes,)):
            axes.plot(...)

    Both files are whole or not there. Raises `BareloopError` where they cannot be written.
    """
    import matplotlib as mpl
    from cycler import cycler
    from matplotlib.figure import Figure

    with mpl.rc_context({**STYLE, "axes.prop_cycle": cycler(color=PALETTE)}):
        figure = Figure(figsize=(width, height))
        yield figure, list(figure.subplots(1, panels, squeeze=False)[0])
        for suffix in (".png", ".svg"):
            image = io.BytesIO()
            date = {"Date": None} if suffix == ".svg" else None
            figure.savefig(image, format=suffix[1:], dpi=160, metadata=date)
            write_atomic(path.with_name(path.name + suffix), image.getvalue())
