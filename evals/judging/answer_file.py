"""A model's file of answers while it is being written: what is missing in it, and what failures mean. No torch."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from engine.cli.progress import Progress
from engine.runtime.errors import BareloopError
from engine.runtime.wording import plural
from evals.data.mt_bench import JudgedQuestion
from evals.judging.settings import AFFORDABLE, resume_settings, settings_path, write_settings
from evals.runs.judged import Answer, read_answers
from evals.runs.judged_file import JudgedFile, rename_to_old

MAX_FAILURES = 8  # questions in a row; then nothing more is asked
OVERFLOW, FAILED = "overflow", "error"  # finish_reason of a turn without an answer: too long for the window; any other


def unanswered(
    questions: Iterable[JudgedQuestion], answers: Mapping[int, Answer], retry: bool = False
) -> list[JudgedQuestion]:
    """The questions without an answer to all turns; with `retry` also those whose answer failed."""

    def is_missing(question: JudgedQuestion) -> bool:
        answer = answers.get(question.id)
        return answer is None or len(answer.turns) < len(question.turns) or (retry and answer.has_failed)

    return [question for question in questions if is_missing(question)]


def describe(answers: Iterable[Answer]) -> str:
    """Describe how answers ended: how many there are, failed, were cut, repeat themselves, or lack their first turn."""
    rows = list(answers)
    turns = [usage for answer in rows for usage in answer.usage]
    ends = Counter(usage.get("finish_reason") for usage in turns)
    dropped = sum(bool(usage.get("dropped_turns")) for usage in turns)
    counts = {
        "failed (--retry asks again)": plural(sum(answer.has_failed for answer in rows), "answer"),
        "cut at the limit": plural(ends["length"], "turn"),
        "stopped, as they repeat themselves": plural(ends["loop"], "turn"),
        "without the turn before, for which the window has no room": plural(dropped, "turn"),
    }
    parts = [f"{text}: {count}" for text, count in counts.items() if not count.startswith("0 ")]
    return "; ".join([plural(len(rows), "answer"), *parts])


class AnswerFile:
    """A model's file of answers, with the settings beside it. Nothing is written before the first answer.

    `settings`: those of the first session. `answers`: those that stand, which nobody adds to while this is open.
    """

    def __init__(self, path: Path, wanted: Mapping[str, Any], fresh: bool = False) -> None:
        """`wanted`: the settings of this session. With `fresh`, start over: the old files are renamed to `*.old`.

        Raises as `JudgedFile` and `resume_settings`.
        """
        self.path, self.written = path, 0
        self._file = JudgedFile(path, fresh)
        try:
            self.settings = dict(wanted) if fresh else resume_settings(path, wanted)
            self.answers = {} if fresh else read_answers(path)
        except BaseException:
            self._file.close()
            raise
        self.has_success = any(not answer.has_failed for answer in self.answers.values())

    def warn(self, texts: Sequence[str], window: int | None) -> None:
        """Print what a user should know of the model. `window`: tokens for which there is memory now, if known."""
        if window is not None and (before := self.settings.setdefault(AFFORDABLE, window)) > window:
            texts = [
                *texts,
                f"{self.path} was started with memory for a window of {before:,} tokens, and now there is for "
                f"{window:,}: long conversations may be answered otherwise",
            ]
        for text in texts:
            print(text, file=sys.stderr, flush=True)

    def append(self, *answers: Answer) -> None:
        """Append answers."""
        for answer in answers:
            if self.written == 0:
                self._file.rename_old()  # first the answers: a kill leaves none beside the settings of others
                if not self.path.stat().st_size and (settings := settings_path(self.path)).exists():
                    rename_to_old(settings)
                write_settings(self.path, self.settings)
            self._file.append(answer)
            self.written += 1
            self.has_success |= not answer.has_failed

    @property
    def saved(self) -> str:
        """How many answers of this session are saved, for messages."""
        return f"saved in {self.path}: {plural(self.written, 'new answer')}"

    def __enter__(self) -> AnswerFile:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()


def append_answers(answers: Iterator[Answer], file: AnswerFile, total: int) -> None:
    """Append answers as they come. Failed ones wait for one that has not failed: a mistake must not fill the file.

    Raises `BareloopError` if all of them, or too many in a row, have failed.
    """
    failed: list[Answer] = []
    with Progress(f"answers of {file.path.stem}", total) as progress:
        for answer in answers:
            if answer.has_failed:
                failed.append(answer)
                reasons = [reason for waiting in failed for kind, reason in _failures(waiting) if kind == FAILED]
                if len(reasons) >= MAX_FAILURES:
                    raise BareloopError(f"{len(reasons)} questions in a row have failed, the last one: {reasons[-1]}")
            else:
                file.append(*failed, answer)
                failed.clear()
            progress.advance(1)
    if failed and not file.has_success:
        reasons = [reason for answer in failed for _, reason in _failures(answer)]
        raise BareloopError(f"none of {len(failed)} questions could be answered: {reasons[-1]}")
    file.append(*failed)


def _failures(answer: Answer) -> list[tuple[str, str]]:
    """Kind and reason of a failed answer: one pair."""
    turns = [usage for usage in answer.usage if "error" in usage]
    return [(str(turns[0]["finish_reason"]), str(turns[0]["error"])) if turns else (FAILED, "a further choice")]
