"""Answers that were judged, and judgments: files of FastChat's llm_judge, a JSON object on each line. No torch.

    model_answer/MODEL.jsonl                                   answers
    model_judgment/JUDGE_single.jsonl, JUDGE_pair.jsonl        judgments of answers, and of pairs of answers
    model_judgment/JUDGE_single.pass2.jsonl, …                 those of further passes

Lines are appended as they come; of several for the same question, the last one counts.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from engine.runtime.errors import BareloopError

ANSWERS, JUDGMENTS = "model_answer", "model_judgment"  # folders
ERROR = "ERROR"  # text of an answer that failed
FAILED_JUDGMENT = "$ERROR$"  # text of a judgment that failed
NO_SCORE = -1.0
MAX_SCORE = 1e6  # a number that is not below it is no score
TURNS = (1, 2)  # that are judged
MAX_TIME = 1e15  # seconds; what is not below it is no time
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
        """What is judged: the same for both positions of the models, as both orders are judged."""
        first, second = sorted(self.models)
        return self.question_id, (first, second), self.turn

    def swapped(self) -> PairJudgment:
        """Return the same judgments with the models in the other positions."""
        other = dict(zip(POSITIONS, POSITIONS[::-1], strict=True))
        first, second = (other.get(winner, winner) for winner in self.winners[::-1])
        (one, two), prompts, texts = self.models, self.user_prompts, self.judgments
        return replace(
            self,
            models=(two, one),
            winners=(first, second),
            user_prompts=(prompts[1], prompts[0]),
            judgments=(texts[1], texts[0]),
        )

    @property
    def winner(self) -> str:
        """The winner in both orders, a tie if they disagree; "error" if one of them has no verdict."""
        first, second = self.winners
        if "error" in self.winners:
            return "error"
        return first if first == second else "tie"


def answers_path(folder: Path, model: str) -> Path:
    """The path of a model's answers."""
    return folder / ANSWERS / f"{model}.jsonl"


def judgments_path(folder: Path, judge: str, mode: str, number: int = 1) -> Path:
    """The path of a judge's judgments. `mode`: "single" or "pair"; `number`: the pass, from 1."""
    suffix = f".pass{number}" if number > 1 else ""
    return folder / JUDGMENTS / f"{judge}_{mode}{suffix}.jsonl"


def read_answers(path: Path) -> dict[int, Answer]:
    """Read a model's answers by question. Raises `BareloopError` that names the line of a damaged file."""
    return {answer.question_id: answer for answer in _read(path, _answer, "an answer")}


def read_judgments(path: Path) -> list[Judgment]:
    """Read judgments of single answers. Raises as `read_answers`."""
    return [*{judgment.key: judgment for judgment in _read(path, _judgment, "a judgment")}.values()]


def read_pair_judgments(path: Path) -> list[PairJudgment]:
    """Read judgments of pairs. Raises as `read_answers`."""
    return [*{judgment.key: judgment for judgment in _read(path, _pair_judgment, "a judgment of a pair")}.values()]


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


def complete_lines(path: Path) -> Iterator[tuple[int, str, dict[str, Any] | None]]:
    """Yield the complete lines of a file: number, text, and the object, or None. Another process may be appending."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise BareloopError(f"cannot read {path}: {error.strerror}") from error
    texts = content.decode("utf-8", errors="replace").split("\n")
    for number, text in enumerate(texts, 1):
        row = object_in(text)
        if text.strip() and (row is not None or number < len(texts)):  # else torn, or being written
            yield number, text.rstrip("\r"), row


def object_in(text: str) -> dict[str, Any] | None:
    """The object of a line; None if it is none."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _read(path: Path, parse: Callable[[Mapping[str, Any]], T | None], kind: str) -> Iterator[T]:
    for number, _, row in complete_lines(path):
        entry = None if row is None else parse(row)
        if entry is None:
            raise damaged(path, number, kind)
        yield entry


def damaged(path: Path, number: int, kind: str) -> BareloopError:
    """The error about a line that is not what it should be, such as "an answer"."""
    return BareloopError(
        f"{path}, line {number} is not {kind}: the file is damaged or belongs to another program; repair or move it, "
        "or use --fresh, which renames it to *.old"
    )


def judgment_in(row: Mapping[str, Any]) -> Judgment | PairJudgment | None:
    """The judgment in the object of a line, of one answer or of two; None if it is none."""
    return _judgment(row) or _pair_judgment(row)


def _answer(row: Mapping[str, Any]) -> Answer | None:
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


def _judgment(row: Mapping[str, Any]) -> Judgment | None:
    match row:
        case {
            "question_id": int(question),
            "model": str(model),
            "judge": [str(judge), str(prompt), *_],
            "user_prompt": str(user_prompt),
            "judgment": str(judgment),
            "score": int() | float() as score,
            "turn": int(turn),
        } if abs(score) < MAX_SCORE and turn in TURNS:
            tstamp = _number(row.get("tstamp"))
            return Judgment(question, model, judge, prompt, user_prompt, judgment, float(score), turn, tstamp)
    return None


def _pair_judgment(row: Mapping[str, Any]) -> PairJudgment | None:
    names = ("model_1", "model_2", "g1_winner", "g2_winner", "g1_user_prompt", "g2_user_prompt")
    texts = [row.get(name) for name in (*names, "g1_judgment", "g2_judgment")]
    winners = texts[2:4]
    match row:
        case {"question_id": int(question), "judge": [str(judge), str(prompt), *_], "turn": int(turn)} if (
            _are(str, texts) and all(winner in WINNERS for winner in winners) and turn in TURNS
        ):
            pairs = [(str(first), str(second)) for first, second in zip(texts[::2], texts[1::2], strict=True)]
            models, chosen, prompts, judgments = pairs
            tstamp = _number(row.get("tstamp"))
            return PairJudgment(question, models, chosen, judge, prompt, prompts, judgments, turn, tstamp)
    return None


def _are(kind: type, values: Sequence[Any]) -> bool:
    return all(isinstance(value, kind) for value in values)


def _number(value: Any) -> float:
    """A time; 0 if it is none."""
    return float(value) if isinstance(value, int | float) and abs(value) < MAX_TIME else 0.0
