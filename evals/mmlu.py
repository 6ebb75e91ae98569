"""python -m evals.mmlu: Massive Multitask Language Understanding (Hendrycks et al. 2021).

By lm-evaluation-harness's protocol.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from engine.cli.parser import Parser, run
from engine.runtime.errors import BareloopError, UsageError
from evals.data.catalogue import BENCHMARKS
from evals.data.mmlu import MMLU, choose
from evals.data.question import LETTERS, MMLUQuestion
from evals.data.source import continue_without_data
from evals.data.subjects import GROUPS
from evals.harness.fewshot import build_context, target_delimiter
from evals.harness.program import add_run_options, run_program
from evals.harness.prompts import Render, mmlu_description, mmlu_examples, question_block
from evals.harness.task import Item, Task
from evals.runs.scoring import predict

DATA = BENCHMARKS["mmlu"].data
SUBJECTS = ("astronomy", "business_ethics")


def parser() -> Parser:
    """Return the program's parser."""
    result = Parser("python -m evals.mmlu", "Score a model on MMLU, exactly as lm-evaluation-harness does.")
    result.add_model_options()
    result.add_argument("--data", help=f"hub data set, folder, or demo (default: {DATA}; for the demo model: demo)")
    result.add_argument(
        "--subjects",
        action="extend",
        nargs="+",
        metavar="SUBJECT",
        help=f"subjects, groups ({', '.join(GROUPS)}), or all (default: {' '.join(SUBJECTS)})",
    )
    result.add_argument("--shots", type=int, default=5, help="solved examples per question (default: 5)")
    result.add_argument("--split", default="test", help="split to evaluate (default: test); examples are from dev")
    add_run_options(result)
    return result


def load_tasks(options: Any) -> list[Task]:
    """Return the task that the flags select, in a list."""
    return [load_task(options)]


def load_task(options: Any) -> Task:
    """Return the task that the flags select."""
    split, shots, names = options.split, options.shots, options.subjects or SUBJECTS
    questions: dict[str, list[MMLUQuestion]] = {}
    examples: dict[str, list[MMLUQuestion]] = {}
    digest = ""
    try:
        data = MMLU(options.data)
        questions = {subject: data.split(split)[subject] for subject in data.choose(names, split)}
        examples = {subject: data.split("dev").get(subject, []) if shots else [] for subject in questions}
        digest = data.digest(split, *(["dev"] if shots else []))
    except BareloopError as error:
        continue_without_data(error, options.rescore)
    for subject, solved in examples.items():
        if not 0 <= shots <= len(solved):
            limit = len(solved) or len(data.split("dev").get(subject, []))
            raise UsageError(f"--shots {shots}: the dev split of {subject} has {limit} examples; use 0 to {limit}")

    def make_item(question: MMLUQuestion, render: Render | None) -> Item:
        context = question_context(question, examples[question.subject][:shots], render, options.single_turn)
        requests = [(context, f"{target_delimiter(render)}{letter}") for letter in LETTERS]
        return Item(question.subject, question.index, requests, question.answer)

    return Task(
        name="mmlu",
        title="MMLU",
        split=split,
        shots=shots,
        digest=digest,
        questions=questions,
        choose_subjects=lambda available: choose(options.subjects or available, available, "the run file"),
        limit=options.limit,
        groups=GROUPS,
        make_item=make_item,
        context_without_examples=lambda question, render: question_context(question, [], render),
        show=show,
        doc=lambda question: {
            "question": question.question,
            "subject": question.subject,
            "choices": list(question.choices),
            "answer": question.answer,
        },
        display_fields=lambda _: {},
        target=lambda question: str(question.answer),
        harness_config=lambda subject: harness_config(subject, options.data, split, shots),
        version=1.0,
        choice_metrics=lambda question, scores: {"acc": float(predict(scores) == question.answer)},
    )


def question_context(
    question: MMLUQuestion, shots: Sequence[MMLUQuestion], render: Render | None = None, single_turn: bool = False
) -> str:
    """Return the text before the letter of the answer, through a chat template if `render` is given."""
    description = mmlu_description(question.subject)
    return build_context(mmlu_examples(shots), question_block(question), render, single_turn, description)


def show(question: MMLUQuestion, record: Mapping[str, Any]) -> str:
    """Format a question with the model's answer, and whether it is correct."""
    verdict = "right" if record["correct"] else f"wrong, it is {LETTERS[question.answer]}"
    answer = f"{LETTERS[record['prediction']]} ({verdict}; margin {record['margin']:.3f})"
    return f"[{question.subject} {question.index}] {question_block(question)} {answer}\n"


def harness_config(subject: str, source: str, split: str, shots: int) -> dict[str, Any]:
    """Return a subject's definition in the form of lm-evaluation-harness."""
    text = "{{question.strip()}}\nA. {{choices[0]}}\nB. {{choices[1]}}\nC. {{choices[2]}}\nD. {{choices[3]}}\nAnswer:"
    prompt = {"doc_to_text": text, "doc_to_target": "answer", "doc_to_choice": list(LETTERS)}
    delimiters = {"target_delimiter": " ", "fewshot_delimiter": "\n\n"}
    return {
        "task": f"mmlu_{subject}",
        "task_alias": subject,
        "dataset_path": source,
        "dataset_name": subject,
        "test_split": split,
        "fewshot_split": "dev",
        **prompt,
        "description": mmlu_description(subject),
        **delimiters,
        "fewshot_config": {"sampler": "first_n", "split": "dev", **prompt, **delimiters},
        "num_fewshot": shots,
        "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
        "output_type": "multiple_choice",
        "repeats": 1,
        "metadata": {"version": 1.0},
    }


def main(options: Any) -> None:
    """Run the program."""
    run_program(options, load_tasks, "mmlu")


if __name__ == "__main__":
    run(parser(), main)
