"""The questions of MT-Bench (Zheng et al. 2023), their reference answers, and the prompts of the judge. No torch.

From a folder, or from the hub's Space lmsys/mt-bench. The files are those of FastChat's `llm_judge/data`.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from engine.runtime.errors import BareloopError, quote
from engine.runtime.rows import HUB_TIMEOUT, json_lines
from evals.data.source import data_folder

SPACE = "lmsys/mt-bench"  # on the hub
CATEGORIES = ("writing", "roleplay", "reasoning", "math", "coding", "extraction", "stem", "humanities")
NEEDS_REFERENCE = frozenset({"math", "reasoning", "coding", "arena-hard-200"})  # categories
MAX_TURNS = 2  # that the judge's prompts can show
QUESTIONS, REFERENCES, PROMPTS = "question.jsonl", "reference_answer/gpt-4.jsonl", "judge_prompts.jsonl"
LAYOUTS = (  # where they are: a flat folder; the folder llm_judge of FastChat, and the Space
    {name: name for name in (QUESTIONS, REFERENCES, PROMPTS)},
    {
        QUESTIONS: f"data/mt_bench/{QUESTIONS}",
        REFERENCES: f"data/mt_bench/{REFERENCES}",
        PROMPTS: f"data/{PROMPTS}",
    },
)
ALTERNATIVE = "name a folder with them with --data, such as fastchat/llm_judge of a FastChat checkout"


@dataclass(frozen=True)
class JudgedQuestion:
    """A question whose answers are judged. `references`: by turn; empty unless its category needs reference answers."""

    id: int
    category: str
    turns: tuple[str, ...]
    references: tuple[str, ...] = ()


@dataclass(frozen=True)
class JudgePrompt:
    """What a judge is asked. `template` is filled by `str.format`."""

    name: str
    type: str  # "single" or "pairwise"
    system_prompt: str
    template: str
    output_format: str  # "[[rating]]" or "[[A]]"


@dataclass(frozen=True)
class QuestionSet:
    """Questions in the order of their file, and the judge's prompts by name."""

    questions: tuple[JudgedQuestion, ...]
    prompts: Mapping[str, JudgePrompt]
    digest: str  # SHA-256 of the three files
    files: Mapping[str, Path] = field(default_factory=dict, compare=False)  # by their names in a flat folder


def load_question_set(name: str | None) -> QuestionSet:
    """Load MT-Bench, or other questions in the same files: from a folder, or a Space of the hub (default: MT-Bench's).

    Raises `BareloopError` that names the file and the line of what is missing or invalid.
    """
    folder = None if name is None else data_folder(name)
    paths = _in_folder(folder) if folder is not None else _from_hub(name or SPACE)
    references = {}
    if paths[REFERENCES].exists():
        references = dict(_reference(*line, paths[REFERENCES]) for line in json_lines(paths[REFERENCES]))
    questions: dict[int, JudgedQuestion] = {}
    for number, row in json_lines(paths[QUESTIONS]):
        question = _question(number, row, paths[QUESTIONS], references)
        if question.id in questions:
            raise BareloopError(f"{paths[QUESTIONS]}, line {number}: there are two questions {question.id}")
        questions[question.id] = question
    prompts = [_prompt(*line, paths[PROMPTS]) for line in json_lines(paths[PROMPTS])]
    if not questions or not prompts:
        raise BareloopError(f"{paths[PROMPTS if questions else QUESTIONS]} is empty")
    by_name = {prompt.name: prompt for prompt in prompts}
    return QuestionSet(tuple(questions.values()), by_name, _digest(paths), paths)


def _in_folder(folder: Path) -> dict[str, Path]:
    """The paths of the files in a folder. Raises `BareloopError` without questions or prompts."""
    for layout in LAYOUTS:
        paths = {name: folder / path for name, path in layout.items()}
        if paths[QUESTIONS].exists() and paths[PROMPTS].exists():
            return paths
    raise BareloopError(f"{folder} has no {QUESTIONS} with {PROMPTS}; {ALTERNATIVE}")


def _from_hub(name: str) -> dict[str, Path]:
    """The paths of the files in the hub's cache, where they are downloaded to once."""
    from huggingface_hub import HfApi, errors, hf_hub_download

    def paths(local: bool) -> dict[str, Path]:
        places = LAYOUTS[1].items()
        return {
            file: Path(hf_hub_download(name, place, repo_type="space", local_files_only=local))
            for file, place in places
        }

    with contextlib.suppress(Exception):  # it is not in the cache; the type depends on why
        return paths(local=True)
    try:
        HfApi().space_info(name, timeout=HUB_TIMEOUT)  # without a network it fails at once, a download after retries
        return paths(local=False)
    except Exception as error:  # offline; the type depends on the HTTP library
        absent = (errors.EntryNotFoundError, errors.RepositoryNotFoundError, errors.HFValidationError)
        if isinstance(error, absent) and not isinstance(error, errors.LocalEntryNotFoundError):
            reason = f"the hub has no Space {name} with {', '.join(LAYOUTS[1].values())}"
            raise BareloopError(f"{reason}; {ALTERNATIVE}") from None
        reason = f"cannot get the questions from the hub's Space {name} ({type(error).__name__})"
        raise BareloopError(f"{reason}; go online once to fetch them, or {ALTERNATIVE}") from error


def _digest(paths: Mapping[str, Path]) -> str:
    digests = [hashlib.sha256(path.read_bytes()).hexdigest() for path in paths.values() if path.exists()]
    return hashlib.sha256("".join(digests).encode()).hexdigest()


def _texts(value: Any) -> tuple[str, ...] | None:
    """A list of texts; None for anything else."""
    is_list = isinstance(value, list) and value and all(isinstance(text, str) for text in value)
    return tuple(value) if is_list else None


def _question(number: int, row: Any, path: Path, references: Mapping[int, tuple[str, ...]]) -> JudgedQuestion:
    match row:
        case {"question_id": int(id_), "category": str(category), "turns": list(turns)} if (
            type(id_) is int and (texts := _texts(turns)) is not None and all(text.strip() for text in texts)
        ):
            pass
        case _:
            raise BareloopError(
                f"{path}, line {number} is not a question: question_id must be a whole number, category text, turns a "
                "list of texts"
            )
    if len(texts) > MAX_TURNS:
        raise BareloopError(
            f"{path}, line {number}: question {id_} has {len(texts)} turns; the judge's prompts show up to {MAX_TURNS}"
        )
    answers = references.get(id_, ()) if category in NEEDS_REFERENCE else ()
    return JudgedQuestion(id_, category, texts, answers[: len(texts)])


def _reference(number: int, row: Any, path: Path) -> tuple[int, tuple[str, ...]]:
    match row:
        case {"question_id": int(id_), "choices": [{"turns": list(turns)}, *_]} if (texts := _texts(turns)) is not None:
            return id_, texts
    raise BareloopError(f"{path}, line {number} is not an answer: question_id, and choices with turns are expected")


def _prompt(number: int, row: Any, path: Path) -> JudgePrompt:
    names = ("name", "type", "system_prompt", "prompt_template", "output_format")
    values = [row.get(name) if isinstance(row, dict) else None for name in names]
    missing = [name for name, value in zip(names, values, strict=True) if not isinstance(value, str)]
    if missing:
        raise BareloopError(f"{path}, line {number} is not a judge's prompt: {quote(', '.join(missing))} must be text")
    return JudgePrompt(*map(str, values))
