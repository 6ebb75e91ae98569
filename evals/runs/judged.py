"""Answers that were judged, and judgments: files of FastChat's llm_judge, a JSON object on each line. No torch.

    model_answer/MODEL.jsonl                                   answers
    model_judgment/JUDGE_single.jsonl, JUDGE_pair.jsonl        judgments of answers, and of pairs of answers
    model_judgment/JUDGE_single.pass2.jsonl, …                 those of further passes

Lines are appended as they come; of several for the same question, the last one counts.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

from engine.runtime.errors import BareloopError
from engine.runtime.files import AppendFile, write_atomic

ERROR = "ERROR"  # text of an answer that failed
FAILED_JUDGMENT = "$ERROR$"  # text of a judgment that failed
NO_SCORE = -1.0
POSITIONS = ("model_1", "model_2")
WINNERS = (*POSITIONS, "tie", "error")

T = TypeVar("T")


@dataclass(frozen=True)
class Answer:
    """A model's answers to the turns of a question. `choices`: one or several answers to the question, by turn."""

    question_id: int
    model: str
    choices: tuple[tuple[str, ...], ...]
    usage: tuple[Mapping[str, Any], ...] = ()  # of each turn of the first choice: tokens, finish_reason, dropped_turns
    answer_id: str = ""
    tstamp: float = 0.0

    @property
    def turns(self) -> tuple[str, ...]:
        """The first choice, which is judged."""
        return self.choices[0]

    @property
    def has_failed(self) -> bool:
        """Whether a turn of a choice has no answer."""
        return any(text == ERROR for turns in self.choices for text in turns)


@dataclass(frozen=True)
class Judgment:
    """A judgment of a model's answer to one turn. `score` is -1 if the judge gave none."""

    question_id: int
    model: str
    judge: str
    prompt: str  # name
    user_prompt: str
    judgment: str
    score: float
    turn: int
    tstamp: float

    @property
    def key(self) -> tuple[int, str, int]:
        """What is judged."""
        return self.question_id, self.model, self.turn


@dataclass(frozen=True)
class PairJudgment:
    """Two judgments of two models' answers to one turn: in this order of the models, and in the other.

    `winners`: of each, one of `WINNERS`, by the models' positions in `models`.
    """

    question_id: int
    models: tuple[str, str]
    winners: tuple[str, str]
    judge: str
    prompt: str  # name
    user_prompts: tuple[str, str]
    judgments: tuple[str, str]
    turn: int
    tstamp: float

    @property
    def key(self) -> tuple[int, tuple[str, str], int]:
        """What is judged."""
        return self.question_id, self.models, self.turn

    @property
    def winner(self) -> str:
        """The winner in both orders, a tie if they disagree; "error" if one of them has no verdict."""
        first, second = self.winners
        if "error" in self.winners:
            return "error"
        return first if first == second else "tie"


def answers_path(folder: Path, model: str) -> Path:
    """The path of a model's answers."""
    return folder / "model_answer" / f"{model}.jsonl"


def judgments_path(folder: Path, judge: str, mode: str, number: int = 1) -> Path:
    """The path of a judge's judgments. `mode`: "single" or "pair"; `number`: the pass, from 1."""
    suffix = f".pass{number}" if number > 1 else ""
    return folder / "model_judgment" / f"{judge}_{mode}{suffix}.jsonl"


def read_answers(path: Path) -> dict[int, Answer]:
    """Read a model's answers by question. Raises `BareloopError` that names the line of a damaged file."""
    return {answer.question_id: answer for answer in _read(path, _answer, "an answer")}


def read_judgments(path: Path) -> list[Judgment]:
    """Read judgments of single answers. Raises as `read_answers`."""
    return [*{judgment.key: judgment for judgment in _read(path, _judgment, "a judgment")}.values()]


def read_pair_judgments(path: Path) -> list[PairJudgment]:
    """Read judgments of pairs. Raises as `read_answers`."""
    return [*{judgment.key: judgment for judgment in _read(path, _pair_judgment, "a judgment of a pair")}.values()]


class JudgedFile:
    """A file of answers or judgments, opened for appending. Only one process can have it open."""

    def __init__(self, path: Path, fresh: bool = False) -> None:
        """Open or create. With `fresh`, start over: the old file is renamed to `*.old` when a line is appended.

        Raises `BareloopError` if another process has it open, or it cannot be written.
        """
        self.path = path
        self._file = AppendFile(path)
        self._replaces_file = fresh
        if _object(self._file.torn) is not None:  # a whole line, whose end an editor has removed
            self._file.append(self._file.torn + "\n")

    def append(self, entry: Answer | Judgment | PairJudgment) -> None:
        """Append a line. It is handed to the system when this returns."""
        if self._replaces_file:
            self._replaces_file = False
            if self.path.stat().st_size:
                rename_to_old(self.path)
                old, self._file = self._file, AppendFile(self.path)
                old.close()
        self._file.append(as_line(entry))

    def close(self) -> None:
        """Close the file and release its lock. A file that is still empty is removed."""
        self._file.close()

    def __enter__(self) -> JudgedFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def rename_to_old(path: Path) -> None:
    """Rename a file to `*.old`, with the time in between."""
    path.rename(path.with_name(f"{path.name}.{datetime.now():%Y-%m-%dT%H-%M-%S.%f}.old"))


def sort_file(path: Path) -> None:
    """Sort a file of answers by question, the last line of each, atomically. Nothing is written if it is sorted.

    Raises `BareloopError` if another process is writing it.
    """
    with JudgedFile(path):
        lines = {}
        for number, text, row in _lines(path):
            if row is None or type(row.get("question_id")) is not int:
                raise BareloopError(f"{path}, line {number} has no question_id; repair or move it")
            lines[row["question_id"]] = text
        content = "".join(f"{lines[question]}\n" for question in sorted(lines))
        if path.read_text(encoding="utf-8") != content:
            write_atomic(path, content)


def as_line(entry: Answer | Judgment | PairJudgment) -> str:
    """The line of a file, with its end: FastChat's fields in its order; like there, what is not ASCII is escaped."""
    return json.dumps(_fields(entry)) + "\n"


def _fields(entry: Answer | Judgment | PairJudgment) -> dict[str, Any]:
    if isinstance(entry, Answer):
        choices = [{"index": index, "turns": list(turns)} for index, turns in enumerate(entry.choices)]
        fields = {
            "question_id": entry.question_id,
            "answer_id": entry.answer_id,
            "model_id": entry.model,
            "choices": choices,
            "tstamp": entry.tstamp,
        }
        return fields | ({"usage": [dict(usage) for usage in entry.usage]} if entry.usage else {})
    judge, end = [entry.judge, entry.prompt], {"turn": entry.turn, "tstamp": entry.tstamp}
    if isinstance(entry, Judgment):
        texts = {"user_prompt": entry.user_prompt, "judgment": entry.judgment}
        score = int(entry.score) if entry.score == int(entry.score) else entry.score
        return {"question_id": entry.question_id, "model": entry.model, "judge": judge, **texts, "score": score, **end}
    names = {"model_1": entry.models[0], "model_2": entry.models[1]}
    winners = {"g1_winner": entry.winners[0], "g2_winner": entry.winners[1]}
    games = {
        f"g{number}_{name}": text
        for number, prompt, judgment in zip((1, 2), entry.user_prompts, entry.judgments, strict=True)
        for name, text in (("user_prompt", prompt), ("judgment", judgment))
    }
    return {"question_id": entry.question_id, **names, **winners, "judge": judge, **games, **end}


def _lines(path: Path) -> Iterator[tuple[int, str, dict[str, Any] | None]]:
    """Yield the complete lines of a file: number, text, and the object, or None. Another process may be appending."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise BareloopError(f"cannot read {path}: {error.strerror}") from error
    texts = content.decode("utf-8", errors="replace").split("\n")
    for number, text in enumerate(texts, 1):
        row = _object(text)
        if text.strip() and (row is not None or number < len(texts)):  # else torn, or being written
            yield number, text.rstrip("\r"), row


def _object(text: str) -> dict[str, Any] | None:
    """The object of a line; None if it is none."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _read(path: Path, parse: Callable[[dict[str, Any]], T | None], kind: str) -> Iterator[T]:
    for number, _, row in _lines(path):
        entry = None if row is None else parse(row)
        if entry is None:
            raise BareloopError(
                f"{path}, line {number} is not {kind}: the file is damaged or belongs to another program; repair or "
                "move it, or use --fresh, which renames it to *.old"
            )
        yield entry


def _answer(row: dict[str, Any]) -> Answer | None:
    choices, usage = row.get("choices"), row.get("usage", [])
    if not isinstance(choices, list) or not choices or not isinstance(usage, list):
        return None
    turns = [choice.get("turns") if isinstance(choice, dict) else None for choice in choices]
    if not all(isinstance(texts, list) and texts and _are(str, texts) for texts in turns) or not _are(dict, usage):
        return None
    question, model = row.get("question_id"), row.get("model_id")
    if type(question) is not int or not isinstance(model, str):
        return None
    texts = tuple(tuple(choice) for choice in turns if choice is not None)
    return Answer(question, model, texts, tuple(usage), str(row.get("answer_id", "")), _number(row.get("tstamp")))


def _judgment(row: dict[str, Any]) -> Judgment | None:
    match row:
        case {
            "question_id": int(question),
            "model": str(model),
            "judge": [str(judge), str(prompt), *_],
            "user_prompt": str(user_prompt),
            "judgment": str(judgment),
            "score": int() | float() as score,
            "turn": int(turn),
        }:
            tstamp = _number(row.get("tstamp"))
            return Judgment(question, model, judge, prompt, user_prompt, judgment, float(score), turn, tstamp)
    return None


def _pair_judgment(row: dict[str, Any]) -> PairJudgment | None:
    names = ("model_1", "model_2", "g1_winner", "g2_winner", "g1_user_prompt", "g2_user_prompt")
    texts = [row.get(name) for name in (*names, "g1_judgment", "g2_judgment")]
    winners = texts[2:4]
    match row:
        case {"question_id": int(question), "judge": [str(judge), str(prompt), *_], "turn": int(turn)} if _are(
            str, texts
        ) and all(winner in WINNERS for winner in winners):
            pairs = [(str(first), str(second)) for first, second in zip(texts[::2], texts[1::2], strict=True)]
            models, chosen, prompts, judgments = pairs
            tstamp = _number(row.get("tstamp"))
            return PairJudgment(question, models, chosen, judge, prompt, prompts, judgments, turn, tstamp)
    return None


def _are(kind: type, values: Sequence[Any]) -> bool:
    return all(isinstance(value, kind) for value in values)


def _number(value: Any) -> float:
    return float(value) if isinstance(value, int | float) else 0.0
