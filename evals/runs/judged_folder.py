"""Load folders of judged answers, in the layout of FastChat's llm_judge: answers, judgments and questions. No torch."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from engine.runtime.errors import BareloopError
from engine.runtime.files import local_path
from engine.runtime.rows import json_lines
from evals.data.mt_bench import QUESTIONS, JudgedQuestion
from evals.runs.judged import (
    ANSWERS,
    JUDGMENTS,
    Answer,
    Judgment,
    PairJudgment,
    read_answers,
    read_judgments,
    read_pair_judgments,
)

REFERENCE_FOLDER = "reference_answer"
JUDGMENT_FILE = re.compile(r"(?P<judge>.+)_(?P<mode>single|pair)(?:\.pass(?P<number>\d+))?\.jsonl")
REFERENCE = re.compile(r"The Start of Reference Answer\S+\n(.*?)\n\S+The End of Reference Answer", re.DOTALL)

T = TypeVar("T")


@dataclass(frozen=True)
class JudgeFiles:
    """All judgments of one judge by pass, the first pass first."""

    judge: str
    single: Sequence[Sequence[Judgment]] = ()
    pair: Sequence[Sequence[PairJudgment]] = ()


@dataclass(frozen=True)
class JudgedFolder:
    """Questions, answers and judgments in one folder. Each of them may be missing."""

    path: Path
    questions: Mapping[int, JudgedQuestion]
    expected: Mapping[int, tuple[str, ...]]  # references in the question file, by turn, which judges do not see
    answers: Mapping[str, Mapping[int, Answer]]  # by model and question
    judges: Sequence[JudgeFiles]
    sources: Sequence[Path]  # files that were read

    @property
    def title(self) -> str:
        name = self.path.resolve().name
        return "MT-Bench" if name == "mt_bench" else f"MT-Bench, {name}"

    @property
    def models(self) -> list[str]:
        """Models with answers or judgments, by name."""
        judged = {row.model for judge in self.judges for rows in judge.single for row in rows}
        compared = {model for judge in self.judges for rows in judge.pair for row in rows for model in row.models}
        return sorted({*self.answers, *judged, *compared})

    @property
    def question_ids(self) -> list[int]:
        """Questions that were answered or judged, in order."""
        answered = {question for rows in self.answers.values() for question in rows}
        judged = {row.question_id for judge in self.judges for rows in judge.single for row in rows}
        compared = {row.question_id for judge in self.judges for rows in judge.pair for row in rows}
        return sorted(answered | judged | compared)

    @property
    def categories(self) -> dict[int, str]:
        """Category of each question, as far as questions are known."""
        return {number: question.category for number, question in self.questions.items()}


def load_judged(paths: Sequence[str]) -> list[JudgedFolder]:
    """Load all folders with answers or judgments in the given folders and their subfolders.

    Damaged files are reported on stderr and skipped.
    """
    folders: dict[Path, Path] = {}
    for path in map(local_path, paths):
        found = [path] if path.name in (ANSWERS, JUDGMENTS) else []
        for name in (ANSWERS, JUDGMENTS) if path.is_dir() else ():
            found += path.rglob(name)
        for folder in sorted(found):
            if folder.is_dir():
                folders.setdefault(folder.resolve().parent, folder.parent)
    loaded = [_load(folder) for folder in folders.values()]
    return [folder for folder in loaded if folder.models]


def _load(folder: Path) -> JudgedFolder:
    answers, sources = {}, []
    for path in _files(folder / ANSWERS):
        if rows := _or_skip(read_answers, path):
            answers[path.stem] = rows
            sources.append(path)
    judges: dict[str, dict[str, dict[int, Any]]] = {}
    for path in _files(folder / JUDGMENTS):
        if (match := JUDGMENT_FILE.fullmatch(path.name)) is None:
            continue
        read: Callable[[Path], Sequence[Any]] = read_judgments if match["mode"] == "single" else read_pair_judgments
        if judgments := _or_skip(read, path):
            modes = judges.setdefault(match["judge"], {"single": {}, "pair": {}})
            modes[match["mode"]][int(match["number"] or 1)] = judgments
            sources.append(path)
    files = [
        JudgeFiles(
            judge, *([rows for _, rows in sorted(passes.items())] for passes in (modes["single"], modes["pair"]))
        )
        for judge, modes in judges.items()
    ]
    questions, expected = _questions(folder, files)
    return JudgedFolder(folder, questions, expected, answers, files, [*sources, folder / QUESTIONS])


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("*.jsonl") if not path.name.startswith(".") and path.is_file())


def _or_skip(read: Callable[[Path], T], path: Path) -> T | None:
    """Read a file; report on stderr if that fails."""
    try:
        return read(path)
    except BareloopError as error:
        print(f"skipped: {error}", file=sys.stderr)
        return None


def _questions(
    folder: Path, judges: Iterable[JudgeFiles]
) -> tuple[dict[int, JudgedQuestion], dict[int, tuple[str, ...]]]:
    """Return the questions that are saved in a folder, and the references in their file.

    The reference answers for judges are those in the prompts of the judgments, or else those in a folder of their own.
    """
    by_turn: dict[int, dict[int, str]] = {}
    for path in _files(folder / REFERENCE_FOLDER):
        for row in _rows(path):
            match row:
                case {"question_id": int(number), "choices": [{"turns": list(turns)}, *_]}:
                    by_turn[number] = dict(enumerate(map(str, turns), 1))
    for number, shown in _references_in_prompts(judges).items():
        by_turn[number] = by_turn.get(number, {}) | shown
    references = {
        number: tuple(texts.get(turn, "") for turn in range(1, max(texts, default=0) + 1))
        for number, texts in by_turn.items()
    }
    questions, expected = {}, {}
    for row in _rows(folder / QUESTIONS):
        match row:
            case {"question_id": int(number), "category": str(category), "turns": list(turns)}:
                questions[number] = JudgedQuestion(number, category, _texts(turns), references.get(number, ()))
                if isinstance(own := row.get("reference"), list):
                    expected[number] = _texts(own)
    return questions, expected


def _rows(path: Path) -> list[Any]:
    return _or_skip(lambda file: [row for _, row in json_lines(file)], path) or [] if path.exists() else []


def _texts(values: Sequence[Any]) -> tuple[str, ...]:
    return tuple(map(str, values))


def _references_in_prompts(judges: Iterable[JudgeFiles]) -> dict[int, dict[int, str]]:
    """Return the reference answers that were shown to judges, by turn."""
    found: dict[int, dict[int, str]] = {}
    for number, turn, prompt in _prompts(judges):
        if turn not in found.get(number, {}) and (match := REFERENCE.search(prompt)):
            *_, text = match[1].split("### Reference answer:\n")
            found.setdefault(number, {})[turn] = text.strip()
    return found


def _prompts(judges: Iterable[JudgeFiles]) -> Iterator[tuple[int, int, str]]:
    """Yield question, turn and prompt of all judgments."""
    for judge in judges:
        for rows in judge.single:
            yield from ((row.question_id, row.turn, row.user_prompt) for row in rows)
        for pairs in judge.pair:
            yield from ((row.question_id, row.turn, row.user_prompts[0]) for row in pairs)
