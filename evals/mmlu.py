"""python -m evals.mmlu: Massive Multitask Language Understanding (Hendrycks et al. 2021), by lm-eval's protocol."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from engine.cli.parser import Parser, run
from engine.runtime.errors import BareloopError, UsageError
from evals.data import source
from evals.data.catalogue import BENCHMARKS
from evals.data.mmlu import MMLU, choose
from evals.data.question import LETTERS, Question
from evals.data.subjects import GROUPS
from evals.harness import fewshot
from evals.harness.program import add_run_options, run_program
from evals.harness.prompts import Render, mmlu_description, mmlu_examples, question_block
from evals.harness.task import Item, Task
from evals.runs.scoring import predict

DATA = BENCHMARKS["mmlu"].data
SUBJECTS = ("astronomy", "business_ethics")


def parser() -> Parser:
    """The program's flags."""
    result = Parser("python -m evals.mmlu", "Score a model on MMLU, exactly as lm-evaluation-harness does.")
    result.add_model_options()
    result.add_argument("--data", help=f"hub data set, folder, or demo (default: {DATA}; the demo model's: demo)")
    result.add_argument(
        "--subjects",
        action="extend",
        nargs="+",
        metavar="SUBJECT",
        help=f"names, {', '.join(GROUPS)}, or all (default: {' '.join(SUBJECTS)})",
    )
    result.add_argument("--shots", type=int, default=5, help="solved examples before each question (default: 5)")
    result.add_argument("--split", default="test", help="of the questions (default: test); examples are from dev")
    add_run_options(result)
    return result


def load_task(options: Any) -> Task:
    """MMLU as the flags choose it."""
    split, shots, names = options.split, options.shots, options.subjects or SUBJECTS
    questions: dict[str, list[Question]] = {}
    examples: dict[str, list[Question]] = {}
    digest = ""
    try:
        data = MMLU(options.data)
        questions = {subject: data.split(split)[subject] for subject in data.choose(names, split)}
        examples = {subject: data.split("dev").get(subject, []) if shots else [] for subject in questions}
        digest = data.digest(split, *(["dev"] if shots else []))
    except BareloopError as error:
        source.do_without(error, options.rescore)
    for subject, own in examples.items():
        if not 0 <= shots <= len(own):
            most = len(own) or len(data.split("dev").get(subject, []))
            raise UsageError(f"--shots {shots}: the dev split of {subject} has {most} examples; use 0 to {most}")

    def item(question: Question, render: Render | None) -> Item:
        asked = context(question, examples[question.subject][:shots], render, options.single_turn)
        between = fewshot.delimiter(render)
        requests = [(asked, f"{between}{letter}") for letter in LETTERS]
        return Item(question.subject, question.index, requests, question.answer)

    return Task(
        name="mmlu",
        title="MMLU",
        split=split,
        shots=shots,
        digest=digest,
        questions=questions,
        choose=lambda available: choose(options.subjects or available, available, "the run file"),
        limit=options.limit,
        groups=GROUPS,
        item=item,
        alone=lambda question, render: context(question, [], render),
        show=show,
        doc=lambda question: {
            "question": question.question,
            "subject": question.subject,
            "choices": list(question.choices),
            "answer": question.answer,
        },
        text=lambda _: {},
        target=lambda question: str(question.answer),
        config=lambda subject: harness_config(subject, options.data, split, shots),
        version=1.0,
        judge=lambda question, scores: {"acc": float(predict(scores) == question.answer)},
    )


def context(
    question: Question, shots: Sequence[Question], render: Render | None = None, single_turn: bool = False
) -> str:
    """What stands before the letter; `render` puts it into a chat template."""
    about = mmlu_description(question.subject)
    return fewshot.context(mmlu_examples(shots), question_block(question), render, single_turn, about)


def show(question: Question, record: Mapping[str, Any]) -> str:
    """A question, its choices, the model's answer, right or wrong."""
    verdict = "right" if record["correct"] else f"wrong, it is {LETTERS[question.answer]}"
    answer = f"{LETTERS[record['prediction']]} ({verdict}; margin {record['margin']:.3f})"
    return f"[{question.subject} {question.index}] {question_block(question)} {answer}\n"


def harness_config(subject: str, source: str, split: str, shots: int) -> dict[str, Any]:
    """How lm-evaluation-harness writes down a subject's definition."""
    text = "{{question.strip()}}\nA. {{choices[0]}}\nB. {{choices[1]}}\nC. {{choices[2]}}\nD. {{choices[3]}}\nAnswer:"
    asked = {"doc_to_text": text, "doc_to_target": "answer", "doc_to_choice": list(LETTERS)}
    delimiters = {"target_delimiter": " ", "fewshot_delimiter": "\n\n"}
    return {
        "task": f"mmlu_{subject}",
        "task_alias": subject,
        "dataset_path": source,
        "dataset_name": subject,
        "test_split": split,
        "fewshot_split": "dev",
        **asked,
        "description": mmlu_description(subject),
        **delimiters,
        "fewshot_config": {"sampler": "first_n", "split": "dev", **asked, **delimiters},
        "num_fewshot": shots,
        "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
        "output_type": "multiple_choice",
        "repeats": 1,
        "metadata": {"version": 1.0},
    }


if __name__ == "__main__":
    run(parser(), lambda options: run_program(options, load_task, "mmlu"))
