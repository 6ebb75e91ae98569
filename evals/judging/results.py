"""Tables and plots of what has been judged, from the files. No torch."""

from __future__ import annotations

import sys
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path
from typing import Any

from engine.runtime.errors import BareloopError, UsageError
from engine.runtime.files import write_atomic
from engine.runtime.wording import plural
from evals.harness.identity import file_name
from evals.judging.contestants import choose_questions
from evals.judging.settings import model_id
from evals.runs.judged_folder import JudgedFolder, JudgeFiles, load_judged


def conclude(folder: Path, options: Any, models: Collection[str] = (), judge: str | None = None) -> None:
    """Print tables of these models and this judge, or else of all; write tables and plots of the judge's models.

    Only the questions of --categories and --limit count. Raises `BareloopError` if none of them has been judged.
    """
    from evals.analysis.judgment_tables import markdown, print_judged
    from evals.analysis.judgments import analyse
    from evals.plotting.judgments import draw_judged

    found = next((each for each in load_judged([str(folder)]) if each.path.resolve() == folder.resolve()), None)
    name = options.judge or options.judge_model
    judge = judge or (name and file_name(name))
    models = models or {name for model in options.model or () for name in (model_id(model, options), file_name(model))}
    parts = [] if found is None else [select(found, options, models), select(found, options)]
    # by all judges, as one of them tells how far another prefers its own answers
    analyses = [
        [each for each in analyse(part.judges, part.categories) if judge in (None, each.judge)] for part in parts
    ]
    if not analyses or not analyses[0]:
        raise BareloopError(
            f"{folder} has no judgments of these models and questions; judge them with --judge MODEL or --judge-url URL"
        )
    (printed, written), (shown, all_shown) = parts, analyses
    print_judged(printed, shown)
    write_atomic(folder / "results.md", markdown(written, all_shown) + "\n")
    plots = 0
    for topic, plot in draw_judged(written, all_shown):
        if isinstance(plot, str):
            print(f"no plot of {topic}: {plot}", file=sys.stderr)
            continue
        from engine.cli.figures import write

        write(plot.figure, folder / plot.name)
        plots += 1
    print(f"results.md and {plural(plots, 'plot')} as PNG and SVG in {folder}")


def select(folder: JudgedFolder, options: Any, models: Collection[str] = ()) -> JudgedFolder:
    """Return a folder with the questions of the flags only, and with these models only, if any. Judges of none go, too.

    Raises `UsageError` for categories that are not there.
    """
    if not folder.questions and (options.categories or options.limit is not None):
        raise UsageError(f"{folder.path} has no question.jsonl, which --categories and --limit need")
    questions = {question.id for question in choose_questions([*folder.questions.values()], options)}

    def is_chosen(question: int, names: Collection[str]) -> bool:
        return (question in questions or not folder.questions) and (not models or set(names) <= set(models))

    def chosen(files: JudgeFiles) -> JudgeFiles:
        single = [[row for row in rows if is_chosen(row.question_id, [row.model])] for rows in files.single]
        pair = [[row for row in rows if is_chosen(row.question_id, row.models)] for rows in files.pair]
        return JudgeFiles(files.judge, [rows for rows in single if rows], [rows for rows in pair if rows])

    judges = [chosen(files) for files in folder.judges]
    answers = {name: rows for name, rows in folder.answers.items() if not models or name in models}
    return replace(folder, answers=answers, judges=[files for files in judges if files.single or files.pair])
