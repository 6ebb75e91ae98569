"""python -m bench.plot FILE…: plots of the files written by `pytest --benchmark-only --benchmark-json FILE`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from engine.cli.parser import Parser, run
from engine.runtime.errors import BareloopError

GIGA = 1e9


def parser() -> Parser:
    """The program's flags."""
    result = Parser("python -m bench.plot", "Plot the latency per token by device and format, and the roofline.")
    result.add_argument(
        "files", nargs="+", metavar="FILE", help="written by pytest --benchmark-only --benchmark-json FILE"
    )
    result.add_argument("--output-dir", default="results/bench", metavar="FOLDER", help="default: results/bench")
    return result


def main(options: Any) -> None:
    """Read the files and draw the plots."""
    from rich.console import Console

    from engine.runtime.files import local_path

    rows = [row for name in options.files for row in read(Path(name))]
    folder = local_path(options.output_dir)
    draw_latency(rows, folder / "latency")
    draw_roofline(rows, folder / "roofline")
    Console(stderr=True).print(f"{folder}/latency and roofline, .png and .svg", style="dim", soft_wrap=True)


def read(path: Path) -> list[dict[str, Any]]:
    """The `extra_info` of a file's prefill and decode benchmarks, with name and group.

    Raises `BareloopError` if the file has none.
    """
    try:
        benchmarks = json.loads(path.read_text(encoding="utf-8"))["benchmarks"]
        rows = [{**entry["extra_info"], "name": entry["name"], "group": entry["group"]} for entry in benchmarks]
    except (OSError, UnicodeDecodeError) as error:
        raise BareloopError(f"cannot read {path}: {error}") from error
    except (ValueError, KeyError, TypeError):
        raise BareloopError(f"{path} is not a file written by --benchmark-json") from None
    rows = [row for row in rows if "flops_per_byte" in row]
    if not rows:
        raise BareloopError(f"{path} has no benchmark of prefill or decode")
    return rows


def label(row: dict[str, Any]) -> str:
    """A benchmark's parameters, without device and format, which are in the legend."""
    parameters = row["name"].partition("[")[2].rstrip("]")
    name = parameters.replace(f"{row['device']}-{row['format']}", "").strip("-")
    return f"{row['group']} {name.replace('-', ' tokens, ', 1) + ' row(s)' if '-' in name else name}".strip()


def draw_latency(rows: list[dict[str, Any]], path: Path) -> None:
    """Bars of the median milliseconds per step, with error bars up to the 99th percentile."""
    from engine.cli.figures import PALETTE, plot_file

    decoded = [row for row in rows if row["group"] == "decode"] or rows
    kinds = list(dict.fromkeys((row["device"], row["format"]) for row in decoded))
    labels = list(dict.fromkeys(label(row) for row in decoded))
    with plot_file(path, height=1.5 + 0.4 * len(decoded)) as (_, (axes,)):
        for number, kind in enumerate(kinds):
            selected = [row for row in decoded if (row["device"], row["format"]) == kind]
            positions = [labels.index(label(row)) + 0.8 * (number + 0.5) / len(kinds) - 0.4 for row in selected]
            median = [1000 * row["latency_p50"] for row in selected]
            tail = [1000 * (row["latency_p99"] - row["latency_p50"]) for row in selected]
            colour, height = PALETTE[number % len(PALETTE)], 0.8 / len(kinds)
            name = f"{kind[0]}, {kind[1]}"
            axes.barh(positions, median, height=height, xerr=[[0] * len(selected), tail], color=colour, label=name)
        axes.set_yticks(range(len(labels)), labels)
        axes.invert_yaxis()
        axes.set(title="Latency of a step: median, and p99", xlabel="milliseconds")
        axes.legend()


def draw_roofline(rows: list[dict[str, Any]], path: Path) -> None:
    """FLOP/s over FLOPs per byte, with the bandwidth and compute limits measured in the same run."""
    from engine.cli.figures import PALETTE, plot_file

    kinds = list(dict.fromkeys((row["device"], row["format"]) for row in rows))
    intensities = [row["flops_per_byte"] for row in rows]
    ends = min(intensities) / 2, max(intensities) * 2
    with plot_file(path, height=5.0) as (_, (axes,)):
        for number, kind in enumerate(kinds):
            selected = [row for row in rows if (row["device"], row["format"]) == kind]
            colour = PALETTE[number % len(PALETTE)]
            bandwidth = max(row["read_bandwidth"] for row in selected)
            peak = max(row["gemm_flops_per_second"] for row in selected)
            corner = peak / bandwidth
            xs = sorted({*ends, min(max(corner, ends[0]), ends[1])})
            axes.plot(xs, [min(x * bandwidth, peak) / GIGA for x in xs], color=colour, label=f"{kind[0]}, {kind[1]}")
            for row in selected:
                x, y = row["flops_per_byte"], row["flops_per_second"] / GIGA
                axes.plot([x], [y], marker="o", color=colour)
                axes.annotate(label(row), (x, y), fontsize=7, xytext=(4, -8), textcoords="offset points")
        axes.set(xscale="log", yscale="log", title="Roofline", xlabel="FLOPs per byte read", ylabel="GFLOP/s")
        axes.legend()


if __name__ == "__main__":
    run(parser(), main)
