"""python -m evals.plots: plots of the results in run files, as PNG and SVG. No model, no torch."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from engine.cli.figures import pdf, png, svg, write
from engine.cli.parser import Parser, run
from engine.runtime.files import local_path, write_atomic
from evals.plotting.accuracy import plot_accuracy
from evals.plotting.common import Plot, file_stem, run_colours
from evals.plotting.costs import plot_costs
from evals.plotting.judgments import draw_judged, judged_stems
from evals.plotting.patterns import plot_choices, plot_misses, plot_overlap, plot_reliability
from evals.plotting.subjects import plot_errors, plot_heat_map, plot_subjects
from evals.runs.collection import Group, Run, group_runs, load_runs, split_unpooled
from evals.runs.judged_folder import load_judged

__all__ = ["Plot", "available_plots", "draw_judged", "draw_plots", "plot_costs", "png", "svg"]


def parser() -> Parser:
    """Return the program's parser."""
    result = Parser(
        "python -m evals.plots",
        "Plot the results in run files and judgments: accuracies, mistakes, confidence, costs, scores.",
    )
    result.add_argument(
        "--result-dir",
        action="extend",
        nargs="+",
        metavar="PATH",
        help="folders of run files or of judged answers, or run files (default: results)",
    )
    result.add_argument("--output-dir", default="results/plots", metavar="FOLDER", help="default: results/plots")
    result.add_argument("--pdf", metavar="FILE", help="also write all plots to one PDF document")
    return result


def main(options: Any) -> None:
    """Write all plots of every group of runs and every folder of judged answers, and one of the costs of all runs."""
    paths = options.result_dir or ["results"]
    judged = load_judged(paths)
    runs = load_runs(paths, may_be_empty=bool(judged))
    folder, plots = local_path(options.output_dir), []
    for group in group_runs(runs) if runs else []:
        parts = split_unpooled(group)
        for part in parts:
            subject = part.subjects[0] if len(parts) > 1 else ""
            plots += _write(part.title, draw_plots(part, runs), folder, file_stem(group, subject))
    for answers, stem in zip(judged, judged_stems(judged), strict=True):
        plots += _write(answers.title, draw_judged(answers), folder, stem)
    if runs:
        plots.append(plot_costs(runs))
        write(plots[-1].figure, folder / plots[-1].name)
    print(f"{len(plots)} plots as PNG and SVG in {folder}")
    if options.pdf:
        file = local_path(options.pdf)
        write_atomic(file, pdf(plot.figure for plot in plots))
        print(f"all of them in {file}")


def _write(title: str, drawn: Iterable[tuple[str, Plot | str]], folder: Path, stem: str) -> list[Plot]:
    """Write plots, and say on stderr which ones are missing and why. Returns the plots."""
    plots = []
    names_by_reason: dict[str, list[str]] = {}
    for name, plot in drawn:
        if isinstance(plot, str):
            names_by_reason.setdefault(plot, []).append(name)
        else:
            write(plot.figure, folder / f"{stem}_{plot.name}")
            plots.append(plot)
    if names_by_reason:
        missing = "; ".join(f"{', '.join(names)} ({reason})" for reason, names in names_by_reason.items())
        print(f"{title}: no plot of {missing}", file=sys.stderr)
    return plots


def available_plots(group: Group, all_runs: Sequence[Run] = ()) -> Iterator[Plot]:
    """Draw the plots for which a group has the data. See `draw_plots`."""
    return (plot for _, plot in draw_plots(group, all_runs) if isinstance(plot, Plot))


def draw_plots(group: Group, all_runs: Sequence[Run] = ()) -> Iterator[tuple[str, Plot | str]]:
    """Yield the topic of each plot with the plot, or with the reason why there is none.

    A group from `split_unpooled`. If `all_runs` are given, a model has the same colour in the plots of all groups.
    """
    colours = run_colours(group.runs, all_runs)
    yield "accuracy", plot_accuracy(group, colours)
    yield "subjects", plot_subjects(group, colours)
    yield "heat map", plot_heat_map(group)
    yield "errors", plot_errors(group)
    yield "misses", plot_misses(group)
    yield "overlap", plot_overlap(group)
    yield "choices", plot_choices(group, colours)
    yield "reliability", plot_reliability(group, colours)


if __name__ == "__main__":
    run(parser(), main)
