"""python -m evals.report: one HTML page with the results of run files, judged answers and every question. No torch.

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
from engine.runtime.wording import plural
from evals.analysis.comparison import Comparison, compare
from evals.analysis.findings import findings, notes
from evals.analysis.judgment_tables import cut_turns
from evals.analysis.judgment_tables import findings as judged_findings
from evals.analysis.judgments import analyse
from evals.analysis.tables import has_letters
from evals.page import judgments, tables
from evals.page.questions import controls, embeddable_json, model_controls, question_columns
from evals.page.tables import Table
from evals.runs.collection import Run, group_runs, load_runs, split_unpooled
from evals.runs.judged_folder import JudgedFolder, load_judged

if TYPE_CHECKING:
    from evals.plots import Plot

PAGE_FOLDER = Path(__file__).parent / "page"
SCRIPTS = "judged.js", "page.js"  # joined in this order
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
    result = Parser("python -m evals.report", "Write an HTML page with the results of run files and judged answers.")
    result.add_argument(
        "results",
        nargs="*",
        default=["results"],
        metavar="RESULTS",
        help="run files, and folders of them or of judged answers (default: results)",
    )
    result.add_argument("--output", "-o", default="results/report.html", metavar="FILE", help="default: %(default)s")
    return result


def main(options: Any) -> None:
    """Load the runs and write the page."""
    path = local_path(options.output)
    if path.is_dir():
        raise UsageError(f"--output {path} is a folder; name a file, such as {path / 'report.html'}")
    judged = load_judged(options.results)
    runs = load_runs(options.results, may_be_empty=bool(judged))
    sources = [source for single in runs for source in (single.path, single.questions_file)]
    sources += [source for folder in judged for source in folder.sources]
    if path.resolve() in {source.resolve() for source in sources}:
        raise UsageError(f"--output {path} is one of the files that the report is made of; name another")
    write_atomic(path, page(runs, judged).encode(errors="replace"))  # JSON texts may contain lone surrogates
    print(f"report: {path}", file=sys.stderr)


def page(runs: Sequence[Run], judged: Sequence[JudgedFolder] = ()) -> str:
    """Return the page's HTML."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    from evals.plots import plot_costs

    groups = group_runs(runs) if runs else []
    parts = [part for group in groups for part in split_unpooled(group)]
    titles = [*(group.title for group in parts), *(folder.title for folder in judged)]
    slugs = _unique([re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-") for title in titles])
    comparisons, sections = [], []
    with Progress("report", len(titles)) as progress:
        for group, slug in zip(parts, slugs, strict=False):
            comparisons.append(compare(group, hardest=HARDEST))
            sections.append(_section(comparisons[-1], slug, runs))
            progress.advance(1, group.title)
        for folder, slug in zip(judged, slugs[len(parts) :], strict=True):
            sections.append(_judged_section(folder, slug))
            progress.advance(1, folder.title)
    script, style = ("".join(map(_page_file, names)) for names in (SCRIPTS, ["page.css"]))
    about = [f"{plural(len(runs), 'run')} in {plural(len(groups), 'group')}"] if runs else []
    about += [f"{plural(len(judged), 'folder')} of judged answers"] if judged else []
    environment = Environment(
        loader=FileSystemLoader(PAGE_FOLDER),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    return environment.get_template("page.html.jinja").render(
        title="Benchmark report",
        about=", ".join(about),
        overview=tables.overview(comparisons, slugs[: len(parts)]) if len(comparisons) > 1 else None,
        sections=sections,
        costs=[tables.costs(groups), tables.files(groups)] if runs else [],
        cost_plots=[_embed(plot_costs(runs), "costs")] if runs else [],
        style=Markup(style),
        script=Markup(script),
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )


def _page_file(name: str) -> str:
    return (PAGE_FOLDER / name).read_text(encoding="utf-8")


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
        "subject_name": "Subject",
        "searched": "words in the question, its choices, its answers",
        "controls": controls(group),
        "model_controls": model_controls(group),
        "model_title": "Right or wrong by model",
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


def _judged_section(folder: JudgedFolder, slug: str) -> dict[str, Any]:
    """Return the template's variables for one folder of judged answers."""
    from markupsafe import Markup

    from evals.plots import draw_judged

    parts = []
    for index, analysis in enumerate(analyse(folder.judges, folder.categories), 1):
        name, prefix = f"by {analysis.judge}", f"judge{index}"
        answers = [line.partition("? ")[::2] for line in judged_findings(analysis, cut_turns(folder, analysis))]
        plots = [_embed(plot, slug) for _, plot in draw_judged(folder, [analysis]) if not isinstance(plot, str)]
        if analysis.models:
            score_tables = judgments.score_tables(analysis, slug, prefix)
            parts.append(Part(f"{prefix}-scores", f"Scores {name}", answers, tables=score_tables, plots=plots))
        if analysis.pairs:
            pair_tables = judgments.comparison_tables(analysis, prefix)
            only = [] if analysis.models else answers
            parts.append(Part(f"{prefix}-comparisons", f"Comparisons {name}", only, tables=pair_tables))
    counts = [plural(len(folder.models), "model"), plural(len(folder.question_ids), "question")]
    is_known = set(folder.question_ids) <= set(folder.questions)
    return {
        "title": folder.title,
        "slug": slug,
        "about": ", ".join([*counts, plural(len(folder.judges), "judge")]),
        "parts": parts,
        "subjects": judgments.subjects_of(folder),
        "subject_name": "Category",
        "searched": "words in the question, its answers, their judgments",
        "controls": judgments.judged_controls(folder),
        "model_controls": judgments.judged_model_controls(folder),
        "model_title": "Mean score by model",
        "rows": min(ROWS, len(folder.question_ids)),
        "hint": "" if is_known else judgments.NO_QUESTIONS,
        "data": Markup(embeddable_json({"group": slug, **judgments.judged_columns(folder)})),
    }


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
