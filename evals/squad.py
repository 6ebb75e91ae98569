"""python -m evals.squad: questions about a paragraph, generated answers (Rajpurkar et al. 2016).

EM and F1 normalise as the official script does. `contains`, which decides here, requires only that the response
contains an accepted answer.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from engine.cli.parser import run
from evals.data import source
from evals.harness.program import print_table, run_program
from evals.harness.protocol import Protocol, Question, Row, metric_list, program, text, texts
from evals.harness.task import Generation
from evals.runs.run_file import sha256

if TYPE_CHECKING:
    from rich.table import Table

    from evals.runs.summary import Summary

ARTICLES = re.compile(r"\b(a|an|the)\b")
PUNCTUATION = str.maketrans("", "", string.punctuation)
EXAMPLES = "fewshot_train"
# SHA-256 of the questions of OLMES's five fixed examples, which are rows of the train split.
EXAMPLE_QUESTIONS = (
    "0c6d333e8dbcbb33fcac65407ade2f96178827d7e95d4e183333c5ef0bb5281e",
    "f077927166b796a0c7427d1b48d242a08e1963bc64dd11387e819121e6d69cb3",
    "a9cd9d0f84b8bb6891832dd5f9603d66c83f3ee1230d462eab8a41571beedcca",
    "29aa7b0bd408cfddeff316084230745ec097b857f9d43ff854bf90a8be1cf53e",
    "b79487ead485f20528818f4069ac008eb10af5f7a95e3afbdcd55a214a7bd260",
)


def parse(_: str, doc: Mapping[str, Any]) -> Question:
    """Return a question about a paragraph."""
    answers = texts(doc["answers"]["text"])
    title, passage, question = (text(doc[name]) for name in ("title", "context", "question"))
    display = f"{title}\n{passage}\n{question}"
    prompt = f"Title: {title}\nBackground: {passage}\nQuestion: {question}\nAnswer:"
    return Question(prompt, list(dict.fromkeys(answers)), answers[0], display=display)


def normalize(text: str) -> str:
    """Lower the case, remove punctuation and articles, collapse white space."""
    return " ".join(ARTICLES.sub(" ", text.lower().translate(PUNCTUATION)).split())


def f1(response: str, answer: str) -> float:
    """Return the F1 score of the common words."""
    response_words, answer_words = normalize(response).split(), normalize(answer).split()
    if not response_words or not answer_words:
        return 0.0  # as in the official script of v1.1
    common = sum((Counter(response_words) & Counter(answer_words)).values())
    return 2 * common / (len(response_words) + len(answer_words))


def judge(row: Row, response: str) -> tuple[dict[str, str], dict[str, float]]:
    """Return the response without surrounding white space, and its metrics."""
    accepted = row.question.gold if isinstance(row.question.gold, list) else []
    return {"none": response.strip()}, measures(response, [answer for answer in accepted if isinstance(answer, str)])


def measures(response: str, answers: Sequence[str]) -> dict[str, float]:
    """Return contains, em and f1 of a response, each for the accepted answer that gives the most."""
    normalized = normalize(response)
    accepted = [normalize(answer) for answer in answers]
    return {
        "contains": float(any(f" {answer} " in f" {normalized} " for answer in accepted if answer)),
        "em": float(normalized in accepted),
        "f1": max(f1(response, answer) for answer in answers),
    }


def load_rows(data: str, split: str, config: str | None, is_only_config: bool) -> list[Any]:
    """Return the rows of a split. On the hub, the five examples are selected from the train split."""
    if split != EXAMPLES or source.data_folder(data) is not None:
        return source.load_rows(data, split, config, is_only_config)
    by_question = {sha256(doc["question"]): doc for doc in source.load_rows(data, "train", config, is_only_config)}
    return [by_question[question] for question in EXAMPLE_QUESTIONS if question in by_question]


SETTINGS = {"until": ["\n"], "do_sample": False, "temperature": 0.0, "max_gen_toks": 50}

PROTOCOL = Protocol(
    name="squad",
    subjects={"squad": "plain_text"},
    example_split=EXAMPLES,
    uses_first_examples=True,
    columns="title, context, question, and answers with at least one text",
    parse=parse,
    generation=Generation(("\n",), 50, SETTINGS, judge),
    load_rows=load_rows,
    version=1.0,
    definition={
        "validation_split": "validation",
        "fewshot_split": EXAMPLES,
        "doc_to_text": "Title: {{title}}\nBackground: {{context}}\nQuestion: {{question}}\nAnswer:",
        "doc_to_target": "{{answers.text[0]}}",
        "generation_kwargs": SETTINGS,
        "metric_list": metric_list("contains", "em", "f1"),
    },
)

parser, load_tasks, _ = program(PROTOCOL, several_shots=True)


def main(options: Any) -> None:
    """Run every model with every number of shots. For more than one run, print a table of all."""
    summaries = run_program(options, load_tasks, PROTOCOL.name)
    if sum(map(len, summaries)) > 1:
        shots = list(dict.fromkeys(options.shots))
        title = "SQuAD: responses that contain an accepted answer (%), and tokens/s"
        print_table(title, comparison_table(shots, summaries))


def comparison_table(shots: Sequence[int], summaries: Sequence[Sequence[Summary]]) -> Table:
    """Tabulate accuracy and tokens/s of prompts and answers: a row per model, three columns per number of shots."""
    from rich.table import Table
    from rich.text import Text

    table = Table("model")
    for number in shots:
        for name in ("accuracy", "prompt tokens/s", "answer tokens/s"):
            table.add_column(Text(f"{number}-shot\n{name}"), justify="right")
    for runs in zip(*summaries, strict=True):
        cells = [cell for run in runs for cell in (str(run.overall), *speeds(run))]
        table.add_row(Text(runs[0].model), *cells)
    return table


def speeds(summary: Summary) -> tuple[str, str]:
    """Return the tokens per second of a run's prompts, which a server does not tell, and answers."""
    cost = summary.generation
    assert cost is not None
    prompts = cost.prompt_tokens_per_second
    return "" if prompts is None else f"{prompts:,.0f}", f"{cost.tokens_per_second:,.1f}"


if __name__ == "__main__":
    run(parser(), main)
