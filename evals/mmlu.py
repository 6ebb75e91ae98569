"""python -m evals.mmlu: Massive Multitask Language Understanding (Hendrycks et al. 2021), by lm-eval's protocol."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from engine.cli import Parser, progress, run
from engine.errors import BareloopError, UsageError

if TYPE_CHECKING:
    from engine import LLM
    from evals.prompts import Question

DEFAULT_DATA = "cais/mmlu"
DEFAULT_SUBJECTS = ("astronomy", "business_ethics")


def parser() -> Parser:
    """The program's flags."""
    result = Parser("python -m evals.mmlu", "Score a model on MMLU, exactly as lm-evaluation-harness does.")
    result.add_model_options()
    result.add_argument("--data", default=DEFAULT_DATA, help=f"hub data set or local folder (default: {DEFAULT_DATA})")
    result.add_argument(
        "--subjects",
        action="extend",
        nargs="+",
        metavar="SUBJECT",
        help=f"names, or all (default: {' '.join(DEFAULT_SUBJECTS)})",
    )
    result.add_argument("--shots", type=int, default=5, help="solved examples before each question (default: 5)")
    result.add_argument("--limit", type=int, help="questions per subject (default: all)")
    return result


def main(options: Any) -> None:
    """Score every model in turn, and print a table for each."""
    if not options.model:
        raise UsageError("name a model: --model FOLDER or a hub id such as Qwen/Qwen2.5-0.5B")
    if options.limit is not None and options.limit < 1:
        raise UsageError(f"--limit {options.limit}: use 1 or more")
    tasks = load_tasks(options.data, options.subjects or DEFAULT_SUBJECTS, options.shots, options.limit)

    from rich.console import Console

    from engine import LLM
    from engine.device import Stopwatch, dtype_name
    from engine.hub import find_model
    from evals.report import accuracy_table
    from evals.scoring import predict

    for name in options.model:  # a wrong name is told before hours of work, not after
        find_model(name)
    for name in options.model:
        llm = LLM.load(name, device=options.device, dtype=options.dtype)
        watch = Stopwatch.start()
        correct: dict[str, list[bool]] = {subject: [] for subject, _, _ in tasks}
        work = [(question, shots) for _, shots, questions in tasks for question in questions]
        truncated = 0

        def status(values: dict[str, list[bool]] = correct) -> str:
            told = [value for listed in values.values() for value in listed]
            return f"accuracy {100 * sum(told) / len(told):.1f} %" if told else ""

        for question, shots in progress(work, len(work), "mmlu", status):
            pairs = encode_requests(llm, question, shots)
            truncated += any(len(context) + len(answer) > llm.max_length + 1 for context, answer in pairs)
            scores = [score.loglikelihood for score in llm.score(pairs)]
            correct[question.subject].append(predict(scores) == question.answer)
        console = Console(highlight=False, soft_wrap=True)
        console.print(f"MMLU, {options.shots}-shot, {name} ({llm.device}, {dtype_name(llm.dtype)})")
        console.print(accuracy_table(correct))
        if truncated:
            console.print(
                f"{truncated} prompts outgrew the window of {llm.max_length:,} tokens: their beginnings were cut"
            )
        rate = len(work) / watch.real
        console.print(f"real {watch.real:.1f} s, CPU {watch.cpu:.1f} s, {rate:.2f} questions/s")


def load_tasks(
    source: str, subjects: list[str] | tuple[str, ...], shots: int, limit: int | None
) -> list[tuple[str, list[Question], list[Question]]]:
    """(subject, its shots, its test questions) for every subject asked for."""
    from evals.data import MMLU

    data = MMLU(source)
    tasks = []
    for subject in data.choose(subjects, "test"):
        examples = data.questions(subject, "dev") if shots else []
        if not 0 <= shots <= len(examples):
            most = len(examples) or len(data.questions(subject, "dev"))
            raise UsageError(f"--shots {shots}: the dev split of {subject} has {most} examples; use 0 to {most}")
        questions = data.questions(subject, "test")[:limit]
        if not questions:
            raise BareloopError(f"the test split of {source} has no questions on {subject}")
        tasks.append((subject, examples[:shots], questions))
    return tasks


def encode_requests(llm: LLM, question: Question, shots: list[Question]) -> list[tuple[list[int], list[int]]]:
    """The ids of context and continuation for each of the four letters."""
    from evals.prompts import encode_pair, mmlu_requests

    return [encode_pair(llm.encode, *request) for request in mmlu_requests(question, shots)]


if __name__ == "__main__":
    run(parser(), main)
