"""A benchmark declared: its rows as pure functions turn them into questions. What all but MMLU share."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn

from engine.cli.parser import Parser, run
from engine.runtime.errors import BareloopError, UsageError
from evals.data import source
from evals.data.catalogue import BENCHMARKS, Benchmark
from evals.harness import fewshot
from evals.harness.prompts import Render
from evals.harness.task import Item, Task, Writing
from evals.runs.run_file import correct_choices
from evals.runs.scoring import predict, predict_normalized

ALL = "all"


@dataclass(frozen=True)
class Asked:
    """One row: its question as the model reads it, and its choices or the answers that are accepted."""

    text: str
    gold: int | list[int] | list[str]
    target: str  # the answer that a solved example shows
    choices: Sequence[str] = ()
    shown: str = ""  # the question as a person reads it, where that is another
    more: Mapping[str, Any] = field(default_factory=dict)  # columns that lm-evaluation-harness adds to the row


@dataclass(frozen=True)
class Row:
    """An asked row at its place."""

    subject: str
    index: int
    doc: Mapping[str, Any]
    asked: Asked


def accuracies(asked: Asked, loglikelihoods: Sequence[float]) -> dict[str, float]:
    """acc: the likeliest choice is right; acc_norm: the likeliest for each of its characters is."""
    by_length = predict_normalized(loglikelihoods, asked.choices)
    return {"acc": float(predict(loglikelihoods) == asked.gold), "acc_norm": float(by_length == asked.gold)}


def metric_list(*names: str) -> list[dict[str, Any]]:
    """Metrics, in lm-evaluation-harness's words."""
    return [{"metric": name, "aggregation": "mean", "higher_is_better": True} for name in names]


@dataclass(frozen=True)
class Protocol:
    """How a benchmark is read, asked and judged."""

    name: str
    subjects: Mapping[str, str | None]  # its parts, and the configuration of the data set that each is in
    columns: str  # what a row needs, in words
    ask: Callable[[str, Mapping[str, Any]], Asked]  # a subject and its row; raises KeyError, TypeError, ValueError
    version: float
    definition: Mapping[str, Any]  # in lm-evaluation-harness's words
    examples: str | None = None  # the split that solved examples are drawn from
    first_examples: bool = False  # the first ones, not drawn for each question
    judge: Callable[[Asked, Sequence[float]], dict[str, float]] = accuracies
    writing: Writing | None = None
    read: Callable[[str, str, str | None, bool], list[Any]] = source.table
    mark: str = ""  # a column of some data sets, by which a flag picks rows

    @property
    def benchmark(self) -> Benchmark:
        """What the catalogue knows of it."""
        return BENCHMARKS[self.name]


def parser(protocol: Protocol, several_shots: bool = False) -> Parser:
    """The program's flags; where it takes several numbers of examples, they come as a list."""
    from evals.harness.program import add_run_options

    about = protocol.benchmark
    result = Parser(f"python -m evals.{protocol.name}", f"Score a model on {about.title}: {about.about}.")
    result.add_model_options()
    result.add_argument("--data", help=f"hub data set or folder (default: {about.data})")
    if len(protocol.subjects) > 1:
        names = (*protocol.subjects, ALL)
        result.add_argument("--subset", choices=names, default=ALL, help=f"{', '.join(names)} (default: {ALL})")
    if protocol.examples is not None:
        told = f"solved examples before each question (default: {about.shots})"
        many: dict[str, Any] = {"nargs": "+", "default": [about.shots]} if several_shots else {"default": about.shots}
        result.add_argument("--shots", type=int, metavar="N", help=told, **many)
    result.add_argument("--split", default=about.split, help=f"of the questions (default: {about.split})")
    if protocol.mark:
        told = f"only rows whose column {protocol.mark!r} is true, for data that marks them"
        result.add_argument(f"--{protocol.mark}-rows", dest="marked", action="store_true", help=told)
    add_run_options(result, writes=protocol.writing is not None)
    return result


def main(protocol: Protocol) -> NoReturn:
    """The whole program."""
    from evals.harness.program import run_program

    run(parser(protocol), lambda options: run_program(options, lambda own: load_task(protocol, own), protocol.name))


def load_task(protocol: Protocol, options: Any) -> Task:
    """The benchmark as the flags choose it."""
    subset = getattr(options, "subset", ALL)
    chosen = [subject for subject in protocol.subjects if subset in (ALL, subject)]
    shots = options.shots if protocol.examples is not None else 0
    mark = protocol.mark if getattr(options, "marked", False) else ""
    everything: dict[str, list[Row]] = {}
    pools: dict[str, list[Asked]] = {}
    try:
        everything = {own: rows(protocol, options.data, own, options.split, mark) for own in protocol.subjects}
        pools = {subject: pool(protocol, options, subject, own) for subject, own in everything.items()}
    except BareloopError as error:
        source.do_without(error, options.rescore)
        everything = {}
    questions = {subject: own for subject, own in everything.items() if subject in chosen}
    drawn = {subject: draw(protocol, options, len(own), pools[subject]) for subject, own in questions.items()}
    kind = "multiple_choice" if protocol.writing is None else "generate_until"
    delimiters = {"target_delimiter": " ", "fewshot_delimiter": "\n\n"}
    definition = {"dataset_path": options.data, **protocol.definition, "output_type": kind, **delimiters}

    def item(row: Row, render: Render | None) -> Item:
        places = drawn[row.subject][row.index]
        solved = [(own.text, own.target) for own in (pools[row.subject][place] for place in places)]
        asked = fewshot.context(solved, row.asked.text, render, options.single_turn)
        ends = [f"{fewshot.delimiter(render)}{choice}" for choice in row.asked.choices]
        if protocol.writing is not None:
            ends = [protocol.writing.request]
        return Item(row.subject, row.index, [(asked, end) for end in ends], row.asked.gold)

    def alone(row: Row, render: Render | None) -> str:
        return fewshot.context([], row.asked.text, render)

    def config(subject: str) -> dict[str, Any]:
        told = {"dataset_name": protocol.subjects[subject], "num_fewshot": shots}
        return {"task": full(subject), **definition, **told, "metadata": {"version": protocol.version}}

    task = Task(
        name=protocol.name,
        title=protocol.benchmark.title,
        split=mark or options.split,
        shots=shots,
        digest=digest([*everything.values()], [own for own in pools.values() if own]),
        questions=questions,
        choose=lambda available: [subject for subject in available if subject in chosen],
        limit=options.limit,
        groups={},
        item=item,
        alone=alone,
        show=show,
        doc=lambda row: {**row.doc, **row.asked.more},
        text=readable,
        target=lambda row: row.asked.target if protocol.writing else str(record_gold(row.asked.gold)),
        config=config,
        version=protocol.version,
        judge=lambda row, scores: protocol.judge(row.asked, scores),
        writing=protocol.writing,
    )
    full = task.full_name
    return task


def rows(protocol: Protocol, data: str, subject: str, split: str, mark: str = "") -> list[Row]:
    """The rows of a split, asked; with a mark those that carry it."""
    config = protocol.subjects[subject]
    alone = len(set(protocol.subjects.values())) == 1
    found: list[Row] = []
    for number, doc in enumerate(protocol.read(data, split, config, alone), 1):
        try:
            if mark and doc[mark] is not True:
                continue
            asked = protocol.ask(subject, doc)
            check(doc, asked)
        except (KeyError, TypeError, ValueError, AttributeError, IndexError):
            where = f"{data}, {config or ''} {split} row {number}".replace(",  ", ", ")
            needed = ", ".join([protocol.columns, *([mark] if mark else [])])
            raise BareloopError(f"{where} is no question: it needs {needed}") from None
        found.append(Row(subject, len(found), doc, asked))
    if not found:
        raise BareloopError(f"the {split} split of {data} is empty" + (f" but for rows without {mark}" if mark else ""))
    return found


def check(doc: Mapping[str, Any], asked: Asked) -> None:
    """Refuse, by a ValueError, a question that could not be scored, saved or told."""
    json.dumps(doc, ensure_ascii=False).encode()  # half a character cannot be written
    gold = asked.gold if isinstance(asked.gold, list) else [asked.gold]
    places = [place for place in gold if isinstance(place, int)]
    if asked.choices and (len(asked.choices) < 2 or not all(0 <= place < len(asked.choices) for place in places)):
        raise ValueError("too few choices, or the right one is none of them")
    if not gold:
        raise ValueError("nothing is right")


def text(value: Any) -> str:
    """What must be text."""
    if not isinstance(value, str):
        raise TypeError("no text")
    return value


def texts(value: Any) -> list[str]:
    """What must be a list of texts."""
    if not isinstance(value, list):
        raise TypeError("no list")
    return [text(own) for own in value]


def pool(protocol: Protocol, options: Any, subject: str, questions: Sequence[Row]) -> list[Asked]:
    """What examples are taken from; nothing where none are asked for."""
    shots = options.shots if protocol.examples is not None else 0
    if shots == 0 or protocol.examples is None:
        return []
    own = options.split == protocol.examples
    found = questions if own else rows(protocol, options.data, subject, protocol.examples)
    most = len(found) - own
    if not 0 <= shots <= most:
        raise UsageError(f"--shots {shots}: the {protocol.examples} split has {most} examples; use 0 to {most}")
    return [row.asked for row in found]


def draw(protocol: Protocol, options: Any, questions: int, examples: Sequence[Asked]) -> list[Sequence[int]]:
    """For each question the places of its examples."""
    if not examples:
        return [()] * questions
    own_split = options.split == protocol.examples
    if protocol.first_examples:
        drawn = [[*range(options.shots + own_split)]] * questions
    else:
        drawn = fewshot.draws(questions, len(examples), options.shots + own_split)
    if not own_split:
        return [*drawn]
    return [fewshot.others(places, own, options.shots) for own, places in enumerate(drawn)]


def digest(questions: Sequence[Sequence[Row]], pools: Sequence[Sequence[Asked]]) -> str:
    """A SHA-256 over what is asked and shown, the same whatever kind of file it comes from."""
    told = [[row.asked for row in own] for own in questions] + [list(own) for own in pools]
    parts = [[[own.text, list(own.choices), own.gold, own.target] for own in part] for part in told]
    return hashlib.sha256(json.dumps(parts, ensure_ascii=False).encode()).hexdigest()


def record_gold(gold: int | list[int] | list[str]) -> int | str:
    """The first of what is right."""
    return gold[0] if isinstance(gold, list) else gold


def readable(row: Row) -> dict[str, Any]:
    """A row to be read: its question, and its choices or the accepted answers."""
    asked = row.asked
    question = {"question": asked.shown or asked.text, "answer": asked.gold}
    return question | ({"choices": list(asked.choices)} if asked.choices else {"solution": asked.target})


def show(row: Row, record: Mapping[str, Any]) -> str:
    """A question, what the model made of it, right or wrong."""
    head, asked = f"[{row.subject} {row.index}] {row.asked.text}", row.asked
    if not asked.choices:
        verdict = "right" if record["correct"] else f"wrong, it is {' or '.join(map(str, record['gold']))}"
        return f"{head}{record['response']}\n-> {record['prediction']} ({verdict})\n"
    right = correct_choices(record)
    marks = [
        f"{'>' if place == record['prediction'] else ' '} {'+' if place in right else '-'} {choice}"
        for place, choice in enumerate(asked.choices)
    ]
    verdict = "right" if record["correct"] else "wrong"
    return "\n".join([head, *marks, f"({verdict}; margin {record['margin']:.3f})\n"])
