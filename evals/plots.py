"""python -m evals.plots: pictures of what run files say, as PNG and SVG. No model, no torch."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from typing import Any

from engine.cli.figures import pdf, png, svg, write
from engine.cli.parser import Parser, run
from engine.runtime.files import local_path, write_atomic
from evals.plotting.accuracy import accuracy
from evals.plotting.common import Picture, colours, stem
from evals.plotting.costs import costs_figure
from evals.plotting.patterns import choices, misses, overlap, reliability
from evals.plotting.subjects import errors, heat_map, subjects
from evals.runs.collection import Group, Run, groups, load, parts

__all__ = ["Picture", "costs_figure", "drawn", "figures", "png", "svg"]


def parser() -> Parser:
    """The program's flags."""
    result = Parser("python -m evals.plots", "Draw what run files say: accuracies, mistakes, confidence, costs.")
    result.add_argument(
        "--result-dir",
        action="extend",
        nargs="+",
        metavar="PATH",
        help="folders of run files, or run files (default: results)",
    )
    result.add_argument("--output-dir", default="results/plots", metavar="FOLDER", help="default: results/plots")
    result.add_argument("--pdf", metavar="FILE", help="also write all pictures to one PDF document")
    return result


def main(options: Any) -> None:
    """Every picture of every group of runs, and one of what all runs took."""
    runs = load(options.result_dir or ["results"])
    folder, made = local_path(options.output_dir), []
    for group in groups(runs):
        shown = parts(group)
        for part in shown:
            subject = part.subjects[0] if len(shown) > 1 else ""
            missing: dict[str, list[str]] = {}
            for name, picture in drawn(part, runs):
                if isinstance(picture, str):
                    missing.setdefault(picture, []).append(name)
                else:
                    write(picture.figure, folder / f"{stem(group, subject)}_{picture.name}")
                    made.append(picture)
            if missing:
                told = "; ".join(f"{', '.join(names)} ({reason})" for reason, names in missing.items())
                print(f"{part.title}: no picture of {told}", file=sys.stderr)
    made.append(costs_figure(runs))
    write(made[-1].figure, folder / made[-1].name)
    print(f"{len(made)} pictures as PNG and SVG in {folder}")
    if options.pdf:
        file = local_path(options.pdf)
        write_atomic(file, pdf(picture.figure for picture in made))
        print(f"all of them in {file}")


def figures(group: Group, everyone: Sequence[Run] = ()) -> Iterator[Picture]:
    """The pictures that this group of runs can show; subjects that are no whole are groups of their own, by `parts`.

    With `everyone`, all runs that there are, a model has the same colour in the pictures of all groups.
    """
    return (picture for _, picture in drawn(group, everyone) if isinstance(picture, Picture))


def drawn(group: Group, everyone: Sequence[Run] = ()) -> Iterator[tuple[str, Picture | str]]:
    """What every picture is of, with the picture, or with the reason why there is none."""
    own = colours(group.runs, everyone)
    yield "accuracy", accuracy(group, own)
    yield "subjects", subjects(group, own)
    yield "heat map", heat_map(group)
    yield "errors", errors(group)
    yield "misses", misses(group)
    yield "overlap", overlap(group)
    yield "choices", choices(group, own)
    yield "reliability", reliability(group, own)


if __name__ == "__main__":
    run(parser(), main)
