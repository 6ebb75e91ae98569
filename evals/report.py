"""python -m evals.report: one HTML page with the results of run files and every question. No torch.

The page is a single file that loads nothing else: tables, plots, the questions as JSON, and a script to browse them.
"""

from __future__ import annotations

import base64
import hashlib
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engine.cli.parser import Parser, run
from engine.cli.progress import Progress
from engine.runtime.errors import UsageError
from engine.runtime.files import local_path, write_atomic
from evals.analysis.comparison import Comparison, compare
from evals.analysis.findings import findings, notes, plural
from evals.analysis.tables import has_letters
from evals.page import tables
from evals.page.questions import controls, embeddable_json, model_controls, question_columns
from evals.page.tables import Table
from evals.runs.collection import Run, group_runs, load_runs, split_unpooled

if TYPE_CHECKING:
    from evals.plots import Plot

PAGE_FOLDER = Path(__file__).parent / "page"
HARDEST = 20  # questions in the table of the hardest
ROWS = 25  # height reserved for the question browser, in closed rows, so that the page does not jump
PLOTS = {  # names of the plots in each part of a section
    "accuracy": ("accuracy", "subjects", "heat_map", "errors"),
    "mistakes": ("misses", "overlap"),
    "confidence": ("choices", "reliability"),
}
FONTS = "'DejaVu Sans', Verdana, sans-serif"  # Verdana has the same widths and is more common
NO_TEXTS = "The texts of these questions were not saved: --save-question-data writes them beside a run file."
SOME_TEXTS = "The texts of some questions were not saved: --save-question-data writes them beside a run file."


@dataclass(frozen=True)
class EmbeddedPlot:
    """A plot as it is embedded in the page."""

    name: str
    title: str
    caption: str
    svg: str


@dataclass(frozen=True)
class Part:
    """A part of a group's section: findings, tables and plots on one topic."""

    name: str
    title: str
    answers: Sequence[Sequence[str]] = ()  # pairs of a question without its question mark and its answer
    notes: Sequence[str] = ()
    tables: Sequence[Table] = ()
    plots: list[EmbeddedPlot] = field(default_factory=list)


def parser() -> Parser:
    """Return the program's parser."""
    result = Parser("python -m evals.report", "Write an HTML page with the results of run files.")
    result.add_argument(
        "results", nargs="*", default=["results"], metavar="RESULTS", help="run files and folders (default: results)"
    )
    result.add_argument("--output", "-o", default="results/report.html", metavar="FILE", help="default: %(default)s")
    return result


def main(options: Any) -> None:
    """Load the runs and write the page."""
    path = local_path(options.output)
    if path.is_dir():
        raise UsageError(f"--output {path} is a folder; name a file, such as {path / 'report.html'}")
    runs = load_runs(options.results)
    if path.resolve() in {source.resolve() for single in runs for source in (single.path, single.questions_file)}:
        raise UsageError(f"--output {path} is one of the files that the report is made of; name another")
    write_atomic(path, page(runs).encode(errors="replace"))  # JSON texts may contain lone surrogates
    print(f"report: {path}", file=sys.stderr)


def page(runs: Sequence[Run]) -> str:
    """Return the page's HTML."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    from evals.plots import plot_costs

    groups = group_runs(runs)
    parts = [part for group in groups for part in split_unpooled(group)]
    slugs = _unique([re.sub(r"[^a-z0-9]+", "-", group.title.lower()).strip("-") for group in parts])
    comparisons, sections = [], []
    with Progress("report", len(parts)) as progress:
        for group, slug in zip(parts, slugs, strict=True):
            comparisons.append(compare(group, hardest=HARDEST))
            sections.append(_section(comparisons[-1], slug, runs))
            progress.advance(1, group.title)
    script, style = ((PAGE_FOLDER / f"page.{kind}").read_text(encoding="utf-8") for kind in ("js", "css"))
    environment = Environment(
        loader=FileSystemLoader(PAGE_FOLDER),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    return environment.get_template("page.html.jinja").render(
        title="Benchmark report",
        about=f"{plural(len(runs), 'run')} in {plural(len(groups), 'group')}",
        overview=tables.overview(comparisons, slugs) if len(comparisons) > 1 else None,
        sections=sections,
        costs=[tables.costs(groups), tables.files(groups)],
        cost_plots=[_embed(plot_costs(runs), "costs")],
        style=Markup(style),
        script=Markup(script),
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )


def _section(comparison: Comparison, slug: str, runs: Sequence[Run]) -> dict[str, Any]:
    """Return the template's variables for one group of runs."""
    from markupsafe import Markup

    from evals.plots import available_plots

    group = comparison.group
    parts = _parts(comparison, slug)
    part_of = {name: part for part in parts for name in PLOTS.get(part.name, ())}
    for plot in available_plots(group, runs):
        part_of.get(plot.name, parts[-1]).plots.append(_embed(plot, slug))
    saved = sum(key in group.texts for key in group.keys)
    counts = [
        plural(len(group.runs), "run"),
        plural(len(group.keys), "question"),
        plural(len(group.subjects), "subject"),
    ]
    return {
        "title": group.title,
        "slug": slug,
        "about": ", ".join(counts),
        "parts": parts,
        "subjects": group.subjects,
        "controls": controls(group),
        "model_controls": model_controls(group),
        "rows": min(ROWS, len(group.keys)),
        "hint": NO_TEXTS if saved == 0 else SOME_TEXTS if saved < len(group.keys) else "",
        "data": Markup(embeddable_json({"group": slug, "letters": has_letters(comparison), **question_columns(group)})),
    }


def _parts(comparison: Comparison, slug: str) -> list[Part]:
    """Return the parts of a section. A single run has no parts that compare runs."""
    runs, parts = len(comparison.group.runs), []
    if runs > 1:
        answers = [line.partition("? ")[::2] for line in findings(comparison)]
        parts.append(Part("answers", "Answers", answers, notes(comparison)))
    accuracy = [tables.metrics(comparison), tables.subjects(comparison, slug)]
    parts.append(Part("accuracy", "Accuracy", tables=accuracy))
    if runs > 1:
        mistakes = [tables.misses(comparison, slug), tables.overlap(comparison, slug)]
        mistakes += [tables.one_against_all(comparison, slug)] if runs > 2 else []
        parts.append(Part("differences", "Differences", tables=[tables.pairs(comparison, slug)]))
        parts.append(Part("mistakes", "Mistakes", tables=[*mistakes, tables.hardest(comparison, slug)]))
    if confidence := list(tables.confidence(comparison)):
        parts.append(Part("confidence", "Confidence", tables=confidence))
    return parts


def _embed(plot: Plot, slug: str) -> EmbeddedPlot:
    """Convert a plot to an element of the page."""
    import matplotlib as mpl
    from markupsafe import Markup

    from evals.plots import svg

    name = f"{slug}-plot-{plot.name}"
    with mpl.rc_context({"svg.fonttype": "none"}):  # keep text as text: to search, copy and read aloud
        element = inline_svg(svg(plot.figure), name, plot.title)
    return EmbeddedPlot(name, plot.title, plot.caption, Markup(element))


def inline_svg(svg: str, name: str, title: str) -> str:
    """Convert an SVG file to an element of an HTML page, with `title` for screen readers.

    Ids get the prefix `name`, because ids are shared by the whole page. The XML header, metadata and styles are
    dropped; a <style> would apply to the whole page.
    """
    body = svg[svg.index("<svg") :]
    body = re.sub(r"<!--.*?-->|<metadata>.*?</metadata>|<style.*?</style>", "", body, flags=re.DOTALL)
    used = set(re.findall(r'(?:href="#|url\(#)([^")]+)', body))
    body = re.sub(r' id="([^"]+)"', lambda match: f' id="{name}-{match[1]}"' if match[1] in used else "", body)
    body = re.sub(r'(href="#|url\(#)', rf"\g<1>{name}-", body)
    width = re.search(r'width="([\d.]+)pt"', body)
    body = re.sub(r' (?:width|height)="[\d.]+pt"', "", body, count=2)
    body = re.sub(r"(['\"]?)DejaVu Sans\1", FONTS, body)
    size = f' style="--width: {float(width[1]):.0f}pt"' if width else ""
    return body.replace("<svg", f'<svg role="img" aria-label="{escape(title)}"{size}', 1)


def _unique(names: Sequence[str]) -> list[str]:
    """Append a number to names that have occurred before."""
    return [name if names.index(name) == index else f"{name}-{index + 1}" for index, name in enumerate(names)]


if __name__ == "__main__":
    run(parser(), main)
