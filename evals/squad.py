"""python -m evals.squad: answers from a paragraph, in the model's own words (Rajpurkar et al. 2016).

EM and F1 by the official script's normalisation; `contains`, which decides here, asks only that an accepted answer
stands in the response.
"""

from __future__ import annotations

import re
import string
from argparse import Namespace
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from engine.cli.parser import run
from engine.runtime.errors import UsageError
from evals.data import source
from evals.harness.program import print_table, run_program
from evals.harness.protocol import Asked, Protocol, Row, load_task, metric_list, parser, text, texts
from evals.harness.task import Writing
from evals.runs.run_file import sha256

if TYPE_CHECKING:
    from rich.table import Table

    from evals.runs.summary import Summary

ARTICLES = re.compile(r"\b(a|an|the)\b")
PUNCTUATION = str.maketrans("", "", string.punctuation)
EXAMPLES = "fewshot_train"
# Of OLMES' five fixed examples, which are rows of the train split: SHA-256 of their questions.
QUESTIONS = (
    "0c6d333e8dbcbb33fcac65407ade2f96178827d7e95d4e183333c5ef0bb5281e",
    "f077927166b796a0c7427d1b48d242a08e1963bc64dd11387e819121e6d69cb3",
    "a9cd9d0f84b8bb6891832dd5f9603d66c83f3ee1230d462eab8a41571beedcca",
    "29aa7b0bd408cfddeff316084230745ec097b857f9d43ff854bf90a8be1cf53e",
    "b79487ead485f20528818f4069ac008eb10af5f7a95e3afbdcd55a214a7bd260",
)


def ask(_: str, doc: Mapping[str, Any]) -> Asked:
    """A paragraph and a question about it."""
    answers = texts(doc["answers"]["text"])
    title, passage, question = (text(doc[name]) for name in ("title", "context", "question"))
    shown = f"{title}\n{passage}\n{question}"
    asked = f"Title: {title}\nBackground: {passage}\nQuestion: {question}\nAnswer:"
    return Asked(asked, list(dict.fromkeys(answers)), answers[0], shown=shown)


def normalized(text: str) -> str:
    """Lower case, without punctuation, articles and more than one space."""
    return " ".join(ARTICLES.sub(" ", text.lower().translate(PUNCTUATION)).split())


def f1(response: str, answer: str) -> float:
    """The harmonic mean of the shares of words that the one has of the other."""
    ours, theirs = normalized(response).split(), normalized(answer).split()
    if not ours or not theirs:
        return 0.0  # as the official script of v1.1
    common = sum((Counter(ours) & Counter(theirs)).values())
    return 2 * common / (len(ours) + len(theirs))


def judge(row: Row, response: str) -> tuple[dict[str, str], dict[str, float]]:
    """The response as it stands, and what it is worth."""
    accepted = row.asked.gold if isinstance(row.asked.gold, list) else []
    return {"none": response.strip()}, measures(response, [own for own in accepted if isinstance(own, str)])


def measures(response: str, answers: Sequence[str]) -> dict[str, float]:
    """contains, em and f1 of a response, each by the answer that suits it best."""
    own = normalized(response)
    accepted = [normalized(answer) for answer in answers]
    return {
        "contains": float(any(f" {answer} " in f" {own} " for answer in accepted if answer)),
        "em": float(own in accepted),
        "f1": max(f1(response, answer) for answer in answers),
    }


def read(data: str, split: str, config: str | None, alone: bool) -> list[Any]:
    """A split's rows; the five examples are found in the train split where they have no file of their own."""
    if split != EXAMPLES or source.data_folder(data) is not None:
        return source.table(data, split, config, alone)
    by_question = {sha256(doc["question"]): doc for doc in source.table(data, "train", config, alone)}
    return [by_question[own] for own in QUESTIONS if own in by_question]


GENERATION = {"until": ["\n"], "do_sample": False, "temperature": 0.0, "max_gen_toks": 50}

PROTOCOL = Protocol(
    name="squad",
    subjects={"squad": "plain_text"},
    examples=EXAMPLES,
    first_examples=True,
    columns="title, context, question, and answers with at least one text",
    ask=ask,
    writing=Writing(("\n",), 50, GENERATION, judge),
    read=read,
    version=1.0,
    definition={
        "validation_split": "validation",
        "fewshot_split": EXAMPLES,
        "doc_to_text": "Title: {{title}}\nBackground: {{context}}\nQuestion: {{question}}\nAnswer:",
        "doc_to_target": "{{answers.text[0]}}",
        "generation_kwargs": GENERATION,
        "metric_list": metric_list("contains", "em", "f1"),
    },
)


def squad(options: Any) -> None:
    """The program: one setting after the other, and a table of them all."""
    settings = list(dict.fromkeys(options.shots))
    each = [Namespace(**vars(options) | {"shots": shots}) for shots in settings]
    if options.requests_only and len(each) > 1:
        raise UsageError("--requests-only writes the requests of one setting; use one number of --shots")
    found = [run_program(own, lambda chosen: load_task(PROTOCOL, chosen), PROTOCOL.name) for own in each]
    if len(found) > 1 or len(found[0]) > 1:
        print_table("SQuAD: contains an accepted answer (%), and tokens/s of the answers", beside(settings, found))


def beside(settings: Sequence[int], found: Sequence[Sequence[Summary]]) -> Table:
    """A row for each model: by number of shots its accuracy and tokens/s of prompts and answers."""
    from rich.table import Table
    from rich.text import Text

    table = Table("model")
    for shots in settings:
        for name in ("accuracy", "prompt tokens/s", "answer tokens/s"):
            table.add_column(Text(f"{shots}-shot\n{name}"), justify="right")
    for runs in zip(*found, strict=True):
        cells = [cell for own in runs for cell in (str(own.overall), *rates(own))]
        table.add_row(Text(runs[0].model), *cells)
    return table


def rates(own: Summary) -> tuple[str, str]:
    """Tokens a second of a run's prompts and answers."""
    assert own.generation is not None
    return f"{own.generation.prompt_tokens_per_second:,.0f}", f"{own.generation.tokens_per_second:,.1f}"


if __name__ == "__main__":
    run(parser(PROTOCOL, several_shots=True), squad)
