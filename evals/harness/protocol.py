"""Benchmarks as declarations: pure functions turn rows into questions, the rest is shared. MMLU has its own file."""

from __future__ import annotations

import hashlib
import json
from argparse import Namespace
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from engine.cli.parser import Parser
from engine.runtime.errors import BareloopError, UsageError
from evals.data import source
from evals.data.catalogue import BENCHMARKS, Benchmark
from evals.harness import fewshot
from evals.harness.prompts import Render
from evals.harness.task import Generation, Item, Task
from evals.runs.run_file import correct_choices
from evals.runs.scoring import predict, predict_normalized

ALL = "all"


@dataclass(frozen=True)
class Question:
    """A row as a question to a model."""

    prompt: str
    gold: int | list[int] | list[str]  # index of the correct choice, indices, or accepted answers
    target: str  # the answer in a solved example
    choices: Sequence[str] = ()
    display: str = ""  # the question for people, if it differs from the prompt
    columns: Mapping[str, Any] = field(default_factory=dict)  # that lm-evaluation-harness adds to the row


@dataclass(frozen=True)
class Row:
    """A row of the data with its question."""

    subject: str
    index: int
    doc: Mapping[str, Any]  # columns as in the data
    question: Question


def accuracies(question: Question, loglikelihoods: Sequence[float]) -> dict[str, float]:
    """Return acc (the most likely choice is correct) and acc_norm (the most likely one per character is)."""
    normalized = predict_normalized(loglikelihoods, question.choices)
    return {"acc": float(predict(loglikelihoods) == question.gold), "acc_norm": float(normalized == question.gold)}


def metric_list(*names: str) -> list[dict[str, Any]]:
    """Return metrics in the form of lm-evaluation-harness's task definitions."""
    return [{"metric": name, "aggregation": "mean", "higher_is_better": True} for name in names]


@dataclass(frozen=True)
class Protocol:
    """How a benchmark's data is read, prompted and judged."""

    name: str
    subjects: Mapping[str, str | None]  # subject -> configuration of the data set
    columns: str  # required columns, for error messages
    parse: Callable[[str, Mapping[str, Any]], Question]  # (subject, row); raises KeyError, TypeError or ValueError
    version: float
    definition: Mapping[str, Any]  # in lm-evaluation-harness's terms
    example_split: str | None = None  # split of the solved examples; None if there are none
    uses_first_examples: bool = False  # instead of drawing examples for each question
    choice_metrics: Callable[[Question, Sequence[float]], dict[str, float]] = accuracies
    generation: Generation | None = None  # None for multiple choice
    load_rows: Callable[[str, str, str | None, bool], list[Any]] = source.load_rows
    mark: str = ""  # a boolean column by which a flag selects rows

    @property
    def benchmark(self) -> Benchmark:
        """The catalogue's entry."""
        return BENCHMARKS[self.name]


def program(
    protocol: Protocol, several_shots: bool = False
) -> tuple[Callable[[], Parser], Callable[[Any], list[Task]], Callable[[Any], object]]:
    """Return a benchmark program's `parser()`, `load_tasks(options)` and `main(options)`.

    `several_shots`: --shots takes a list; each number is a task.
    """

    def load_tasks(options: Any) -> list[Task]:
        if not several_shots:
            return [load_task(protocol, options)]
        shots = list(dict.fromkeys(options.shots))
        return [load_task(protocol, Namespace(**{**vars(options), "shots": number})) for number in shots]

    def main(options: Any) -> object:
        from evals.harness.program import run_program

        return run_program(options, load_tasks, protocol.name)

    return lambda: make_parser(protocol, several_shots), load_tasks, main


def make_parser(protocol: Protocol, several_shots: bool = False) -> Parser:
    """Return the parser of a benchmark's program."""
    from evals.harness.program import add_run_options

    about = protocol.benchmark
    result = Parser(f"python -m evals.{protocol.name}", f"Score a model on {about.title}: {about.about}.")
    result.add_model_options()
    result.add_argument("--data", help=f"hub data set or folder (default: {about.data})")
    if len(protocol.subjects) > 1:
        names = (*protocol.subjects, ALL)
        result.add_argument("--subset", choices=names, default=ALL, help=f"{', '.join(names)} (default: {ALL})")
    if protocol.example_split is not None:
        count: dict[str, Any] = {"nargs": "+", "default": [about.shots]} if several_shots else {"default": about.shots}
        result.add_argument(
            "--shots", type=int, metavar="N", help=f"solved examples per question (default: {about.shots})", **count
        )
    result.add_argument("--split", default=about.split, help=f"split to evaluate (default: {about.split})")
    if protocol.mark:
        result.add_argument(
            f"--{protocol.mark}-rows",
            dest="marked",
            action="store_true",
            help=f"only rows whose column {protocol.mark!r} is true, for data that has it",
        )
    add_run_options(result, generates=protocol.generation is not None)
    return result


def load_task(protocol: Protocol, options: Any) -> Task:
    """Return the task that the flags select."""
    subset = getattr(options, "subset", ALL)
    chosen = [subject for subject in protocol.subjects if subset in (ALL, subject)]
    shots = options.shots if protocol.example_split is not None else 0
    mark = protocol.mark if getattr(options, "marked", False) else ""
    all_rows: dict[str, list[Row]] = {}
    pools: dict[str, list[Question]] = {}
    try:
        for subject in protocol.subjects:
            all_rows[subject] = load_questions(protocol, options.data, subject, options.split, mark)
        pools = {subject: example_pool(protocol, options, subject, rows) for subject, rows in all_rows.items()}
    except BareloopError as error:
        source.continue_without_data(error, options.rescore)
        all_rows = {}
    questions = {subject: rows for subject, rows in all_rows.items() if subject in chosen}
    examples = {
        subject: choose_examples(protocol, options, len(rows), pools[subject]) for subject, rows in questions.items()
    }
    output_type = "multiple_choice" if protocol.generation is None else "generate_until"
    delimiters = {"target_delimiter": " ", "fewshot_delimiter": "\n\n"}
    definition = {"dataset_path": options.data, **protocol.definition, "output_type": output_type, **delimiters}

    def make_item(row: Row, render: Render | None) -> Item:
        solved = [pools[row.subject][index] for index in examples[row.subject][row.index]]
        pairs = [(example.prompt, example.target) for example in solved]
        context = fewshot.build_context(pairs, row.question.prompt, render, options.single_turn)
        continuations = [f"{fewshot.target_delimiter(render)}{choice}" for choice in row.question.choices]
        if protocol.generation is not None:
            continuations = [protocol.generation.request]
        requests = [(context, continuation) for continuation in continuations]
        return Item(row.subject, row.index, requests, row.question.gold)

    def context_without_examples(row: Row, render: Render | None) -> str:
        return fewshot.build_context([], row.question.prompt, render)

    def harness_config(subject: str) -> dict[str, Any]:
        setting = {"dataset_name": protocol.subjects[subject], "num_fewshot": shots}
        return {"task": full_name(subject), **definition, **setting, "metadata": {"version": protocol.version}}

    task = Task(
        name=protocol.name,
        title=protocol.benchmark.title,
        split=mark or options.split,
        shots=shots,
        digest=digest([*all_rows.values()], [pool for pool in pools.values() if pool]),
        questions=questions,
        choose_subjects=lambda available: [subject for subject in available if subject in chosen],
        limit=options.limit,
        groups={},
        make_item=make_item,
        context_without_examples=context_without_examples,
        show=show,
        doc=lambda row: {**row.doc, **row.question.columns},
        display_fields=display_fields,
        target=lambda row: row.question.target if protocol.generation else str(first_gold(row.question.gold)),
        harness_config=harness_config,
        version=protocol.version,
        choice_metrics=lambda row, loglikelihoods: protocol.choice_metrics(row.question, loglikelihoods),
        generation=protocol.generation,
    )
    full_name = task.full_name
    return task


def load_questions(protocol: Protocol, data: str, subject: str, split: str, mark: str = "") -> list[Row]:
    """Load the questions of a split; with `mark`, only rows in which that column is true.

    Raises `BareloopError` that names an invalid row, or if there is no question.
    """
    config = protocol.subjects[subject]
    is_only_config = len(set(protocol.subjects.values())) == 1
    rows: list[Row] = []
    for number, doc in enumerate(protocol.load_rows(data, split, config, is_only_config), 1):
        try:
            if mark and doc[mark] is not True:
                continue
            question = protocol.parse(subject, doc)
            check(doc, question)
        except (KeyError, TypeError, ValueError, AttributeError, IndexError):
            where = f"{data}, {config or ''} {split} row {number}".replace(",  ", ", ")
            needed = ", ".join([protocol.columns, *([mark] if mark else [])])
            raise BareloopError(f"{where} is not a question: it needs {needed}") from None
        rows.append(Row(subject, len(rows), doc, question))
    if not rows:
        raise BareloopError(f"the {split} split of {data} has no rows" + (f" in which {mark} is true" if mark else ""))
    return rows


def check(doc: Mapping[str, Any], question: Question) -> None:
    """Raise `ValueError` for a question that cannot be scored, saved or displayed."""
    json.dumps(doc, ensure_ascii=False).encode()  # raises for a lone surrogate
    gold = question.gold if isinstance(question.gold, list) else [question.gold]
    indices = [index for index in gold if isinstance(index, int)]
    count = len(question.choices)
    if question.choices and (count < 2 or not all(0 <= index < count for index in indices)):
        raise ValueError("too few choices, or the correct index is out of range")
    if not gold:
        raise ValueError("no correct answer")


def text(value: Any) -> str:
    """Return the value if it is a string. Raises `TypeError` otherwise."""
    if not isinstance(value, str):
        raise TypeError("not a string")
    return value


def texts(value: Any) -> list[str]:
    """Return the value if it is a list of strings. Raises `TypeError` otherwise."""
    if not isinstance(value, list):
        raise TypeError("not a list")
    return [text(element) for element in value]


def example_pool(protocol: Protocol, options: Any, subject: str, questions: Sequence[Row]) -> list[Question]:
    """Return the questions that examples are chosen from; an empty list if no examples are wanted.

    Raises `UsageError` if --shots is out of range.
    """
    shots = options.shots if protocol.example_split is not None else 0
    if shots == 0 or protocol.example_split is None:
        return []
    is_same_split = options.split == protocol.example_split
    rows = questions if is_same_split else load_questions(protocol, options.data, subject, protocol.example_split)
    limit = len(rows) - is_same_split  # a question is not its own example
    if not 0 <= shots <= limit:
        raise UsageError(f"--shots {shots}: the {protocol.example_split} split has {limit} examples; use 0 to {limit}")
    return [row.question for row in rows]


def choose_examples(protocol: Protocol, options: Any, questions: int, pool: Sequence[Question]) -> list[Sequence[int]]:
    """Return, for each question, the indices of its examples in the pool."""
    if not pool:
        return [()] * questions
    is_same_split = options.split == protocol.example_split
    if protocol.uses_first_examples:
        drawn = [[*range(options.shots + is_same_split)]] * questions
    else:
        drawn = fewshot.draw_examples(questions, len(pool), options.shots + is_same_split)
    if not is_same_split:
        return [*drawn]
    return [fewshot.exclude_question(indices, question, options.shots) for question, indices in enumerate(drawn)]


def digest(rows: Sequence[Sequence[Row]], pools: Sequence[Sequence[Question]]) -> str:
    """Return a SHA-256 of all prompts and answers. It does not depend on the file format."""
    parts = [[row.question for row in part] for part in rows] + [list(pool) for pool in pools]
    fields = [
        [[question.prompt, list(question.choices), question.gold, question.target] for question in part]
        for part in parts
    ]
    return hashlib.sha256(json.dumps(fields, ensure_ascii=False).encode()).hexdigest()


def first_gold(gold: int | list[int] | list[str]) -> int | str:
    """Return the first correct choice or accepted answer."""
    return gold[0] if isinstance(gold, list) else gold


def display_fields(row: Row) -> dict[str, Any]:
    """Return a question for people, with its choices or its solution."""
    question = row.question
    fields = {"question": question.display or question.prompt, "answer": question.gold}
    return fields | ({"choices": list(question.choices)} if question.choices else {"solution": question.target})


def show(row: Row, record: Mapping[str, Any]) -> str:
    """Format a question with the model's answer, and whether it is correct."""
    question, heading = row.question, f"[{row.subject} {row.index}] {row.question.prompt}"
    if not question.choices:
        verdict = "right" if record["correct"] else f"wrong, it is {' or '.join(map(str, record['gold']))}"
        return f"{heading}{record['response']}\n-> {record['prediction']} ({verdict})\n"
    correct = correct_choices(record)
    marks = [
        f"{'>' if index == record['prediction'] else ' '} {'+' if index in correct else '-'} {choice}"
        for index, choice in enumerate(question.choices)
    ]
    verdict = "right" if record["correct"] else "wrong"
    return "\n".join([heading, *marks, f"({verdict}; margin {record['margin']:.3f})\n"])
