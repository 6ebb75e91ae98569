"""python -m evals.report: one page of what run files say, and of every question, to open in a browser. No torch.

The page is a single file that loads nothing: tables, pictures, the questions as JSON, and the program that shows them.
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
from evals.analysis.findings import count, notes, words
from evals.analysis.tables import lettered
from evals.page import tables
from evals.page.questions import by_model, controls, embedded, questions
from evals.page.tables import Table
from evals.runs.collection import Run, groups, load, parts

if TYPE_CHECKING:
    from evals.plots import Picture

ROOM = Path(__file__).parent / "page"
HARDEST = 20  # questions of a table
ROWS = 25  # closed rows of questions for which there is room before any is shown
PICTURES = {  # those of each part
    "accuracy": ("accuracy", "subjects", "heat_map", "errors"),
    "mistakes": ("misses", "overlap"),
    "confidence": ("choices", "reliability"),
}
FONTS = "'DejaVu Sans', Verdana, sans-serif"  # Verdana is as wide, and on most machines
SAVE = "The texts of these questions were not saved: --save-question-data writes them beside a run file."
SAVE_SOME = "The texts of some questions were not saved: --save-question-data writes them beside a run file."


@dataclass(frozen=True)
class Drawing:
    """A picture as a page shows it."""

    name: str
    title: str
    caption: str
    svg: str


@dataclass(frozen=True)
class Part:
    """A part of what is said of a group of runs."""

    name: str
    title: str
    answers: Sequence[Sequence[str]] = ()  # a question without its mark, and its answer
    notes: Sequence[str] = ()
    tables: Sequence[Table] = ()
    pictures: list[Drawing] = field(default_factory=list)


def parser() -> Parser:
    """The program's flags."""
    result = Parser("python -m evals.report", "Write one page of what run files say, to open in a browser.")
    result.add_argument(
        "results", nargs="*", default=["results"], metavar="RESULTS", help="run files and folders (default: results)"
    )
    result.add_argument("--output", "-o", default="results/report.html", metavar="FILE", help="default: %(default)s")
    return result


def main(options: Any) -> None:
    """Read, compute, write."""
    path = local_path(options.output)
    if path.is_dir():
        raise UsageError(f"--output {path} is a folder; name a file, such as {path / 'report.html'}")
    runs = load(options.results)
    if path.resolve() in {own.resolve() for one in runs for own in (one.path, one.questions_file)}:
        raise UsageError(f"--output {path} is one of the files that the report is made of; name another")
    write_atomic(path, page(runs).encode(errors="replace"))  # a text may hold half a character, as JSON can
    print(f"report: {path}", file=sys.stderr)


def page(runs: Sequence[Run]) -> str:
    """The page's HTML; raises one line for runs that make no groups."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    from evals.plots import costs_figure

    found = groups(runs)
    held = [part for group in found for part in parts(group)]
    slugs = _unique([re.sub(r"[^a-z0-9]+", "-", group.title.lower()).strip("-") for group in held])
    comparisons, sections = [], []
    with Progress("report", len(held)) as progress:
        for group, slug in zip(held, slugs, strict=True):
            comparisons.append(compare(group, hardest=HARDEST))
            sections.append(_section(comparisons[-1], slug, runs))
            progress.advance(1, group.title)
    script, style = ((ROOM / f"page.{kind}").read_text(encoding="utf-8") for kind in ("js", "css"))
    environment = Environment(
        loader=FileSystemLoader(ROOM), autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined
    )
    return environment.get_template("page.html.jinja").render(
        title="Benchmark report",
        about=f"{count(len(runs), 'run')} in {count(len(found), 'group')}",
        overview=tables.overview(comparisons, slugs) if len(comparisons) > 1 else None,
        sections=sections,
        costs=[tables.costs(found), tables.files(found)],
        cost_pictures=[_drawing(costs_figure(runs), "costs")],
        style=Markup(style),
        script=Markup(script),
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )


def _section(own: Comparison, slug: str, runs: Sequence[Run]) -> dict[str, Any]:
    """All that the page says of a group of runs."""
    from markupsafe import Markup

    from evals.plots import figures

    group = own.group
    made = _parts(own, slug)
    places = {name: part for part in made for name in PICTURES.get(part.name, ())}
    for picture in figures(group, runs):
        places.get(picture.name, made[-1]).pictures.append(_drawing(picture, slug))
    texts = sum(key in group.texts for key in group.keys)
    counts = [count(len(group.runs), "run"), count(len(group.keys), "question"), count(len(group.subjects), "subject")]
    return {
        "title": group.title,
        "slug": slug,
        "about": ", ".join(counts),
        "parts": made,
        "subjects": group.subjects,
        "controls": controls(group),
        "by_model": by_model(group),
        "rows": min(ROWS, len(group.keys)),
        "hint": SAVE if texts == 0 else SAVE_SOME if texts < len(group.keys) else "",
        "data": Markup(embedded({"group": slug, "letters": lettered(own), **questions(group)})),
    }


def _parts(own: Comparison, slug: str) -> list[Part]:
    """Words and tables; what compares is left out where there is one run."""
    several = len(own.group.runs) > 1
    made = (
        [Part("answers", "Answers", [line.partition("? ")[::2] for line in words(own)], notes(own))] if several else []
    )
    made.append(Part("accuracy", "Accuracy", tables=[tables.metrics(own), tables.subjects(own, slug)]))
    if several:
        common = [tables.misses(own, slug), tables.overlap(own, slug)]
        common += [tables.alone(own, slug)] if len(own.group.runs) > 2 else []
        made.append(Part("differences", "Differences", tables=[tables.pairs(own, slug)]))
        made.append(Part("mistakes", "Mistakes", tables=[*common, tables.hardest(own, slug)]))
    if confidence := list(tables.confidence(own)):
        made.append(Part("confidence", "Confidence", tables=confidence))
    return made


def _drawing(picture: Picture, slug: str) -> Drawing:
    """A picture as it stands in the page: ids that no other picture has, and as wide as there is room."""
    import matplotlib as mpl
    from markupsafe import Markup

    from evals.plots import svg

    name = f"{slug}-picture-{picture.name}"
    with mpl.rc_context({"svg.fonttype": "none"}):  # text stays text: to be found, copied, read aloud
        drawn = inline(svg(picture.figure), name, picture.title)
    return Drawing(name, picture.title, picture.caption, Markup(drawn))


def inline(svg: str, name: str, title: str) -> str:
    """An SVG file -> an element of a page, with a name for those who do not see it.

    Ids begin with `name`, so that those of several pictures differ. What is for files is left out, as is the style,
    which would be the whole page's.
    """
    body = svg[svg.index("<svg") :]
    body = re.sub(r"<!--.*?-->|<metadata>.*?</metadata>|<style.*?</style>", "", body, flags=re.DOTALL)
    used = set(re.findall(r'(?:href="#|url\(#)([^")]+)', body))
    body = re.sub(r' id="([^"]+)"', lambda own: f' id="{name}-{own[1]}"' if own[1] in used else "", body)
    body = re.sub(r'(href="#|url\(#)', rf"\g<1>{name}-", body)
    width = re.search(r'width="([\d.]+)pt"', body)
    body = re.sub(r' (?:width|height)="[\d.]+pt"', "", body, count=2)
    body = re.sub(r"(['\"]?)DejaVu Sans\1", FONTS, body)
    size = f' style="--width: {float(width[1]):.0f}pt"' if width else ""
    return body.replace("<svg", f'<svg role="img" aria-label="{escape(title)}"{size}', 1)


def _unique(names: Sequence[str]) -> list[str]:
    """Names of which none is there twice."""
    return [name if names.index(name) == place else f"{name}-{place + 1}" for place, name in enumerate(names)]


if __name__ == "__main__":
    run(parser(), main)
