"""python -m evals.mt_bench: MT-Bench, two-turn conversations that a model judges (Zheng et al. 2023).

Files and prompts are those of FastChat's llm_judge.
"""

from __future__ import annotations

from argparse import Namespace
from dataclasses import replace
from typing import Any

from engine.cli.parser import Parser, choose_model, require_at_least, run
from engine.runtime.errors import UsageError
from engine.runtime.files import local_path
from evals.data.mt_bench import SPACE, load_question_set
from evals.harness.evaluate import command_to_continue
from evals.harness.program import check_remote_options
from evals.harness.workers.driver import add_worker_options, check_worker_options
from evals.judging.contestants import (
    BASELINE,
    MODES,
    PAIRWISE_BASELINE,
    answer_all,
    choose_questions,
    list_contestants,
)
from evals.judging.program import Selection, build_judge, save_data
from evals.judging.results import conclude
from evals.judging.servers import answer_key, only_model_of
from evals.judging.settings import questions_digest

MAX_NEW_TOKENS = 1024


def parser() -> Parser:
    """Return the program's parser."""
    result = Parser("python -m evals.mt_bench", "Answer the questions of MT-Bench, and let a model judge the answers.")
    result.add_model_options()
    result.add_argument(
        "--data",
        metavar="NAME",
        help=f"folder with question.jsonl, or Space on the hub (default: {SPACE})",
    )
    result.add_argument(
        "--categories", action="extend", nargs="+", metavar="CATEGORY", help="such as math (default: all)"
    )
    result.add_argument("--limit", type=int, metavar="N", help="questions of each category (default: all)")
    _add_answer_options(result)
    add_worker_options(result)
    _add_judge_options(result)
    files = result.add_argument_group("files")
    files.add_argument("--output-dir", default="results/mt_bench", metavar="FOLDER", help="default: results/mt_bench")
    files.add_argument("--fresh", action="store_true", help="start over; earlier answers are renamed to *.old")
    files.add_argument("--rescore", action="store_true", help="tables and plots from the files, without any model")
    result.add_argument("--dry-run", action="store_true", help="tell what would be asked, and what it costs")
    result.add_argument("--yes", action="store_true", help="ask another machine's judge without asking you before")
    return result


def _add_answer_options(parser: Parser) -> None:
    answers = parser.add_argument_group("answers")
    answers.add_argument("--no-history", action="store_true", help="the second question without the first turn")
    answers.add_argument(
        "--max-new-tokens",
        type=int,
        default=MAX_NEW_TOKENS,
        metavar="N",
        help=f"the longest answer (default: {MAX_NEW_TOKENS:,})",
    )
    answers.add_argument(
        "--num-choices", type=int, default=1, metavar="N", help="answers to each question; the first is judged"
    )
    answers.add_argument(
        "--batch-size", type=int, metavar="N", help="conversations at the same time (default: 16, on CUDA 32)"
    )
    answers.add_argument("--retry", action="store_true", help="ask again where an answer or a judgment has failed")
    answers.add_argument(
        "--url", nargs=1, metavar="URL", help="ask the model -m of an OpenAI-compatible server for the answers"
    )
    answers.add_argument(
        "--api-key-file",
        metavar="FILE",
        help="its key (default: from BARELOOP_API_KEY, else OPENAI_API_KEY; none if a judge on another host gets that)",
    )
    answers.add_argument(
        "--concurrency", type=int, metavar="N", help="conversations with it at the same time (default: 4)"
    )
    parser.set_defaults(tokenizer=None, max_length=None, batch_tokens=None)  # flags of other benchmarks


def _add_judge_options(parser: Parser) -> None:
    judges = parser.add_argument_group("judge")
    judges.add_argument("--judge", metavar="MODEL", help="a model that is computed here: folder, GGUF file or hub id")
    judges.add_argument("--judge-url", metavar="URL", help="an OpenAI-compatible server whose model judges")
    judges.add_argument("--judge-model", metavar="NAME", help="the server's model (default: its only one)")
    judges.add_argument(
        "--judge-api-key-file", metavar="FILE", help="its key (default: from BARELOOP_API_KEY, else OPENAI_API_KEY)"
    )
    judges.add_argument(
        "--judge-concurrency",
        type=int,
        metavar="N",
        help="judgments at a time (default: 4 of a server, else 16)",
    )
    judges.add_argument(
        "--judge-price",
        nargs=2,
        type=float,
        metavar=("IN", "OUT"),
        help="dollars per million tokens of prompts and judgments, for the estimate of the cost",
    )
    judges.add_argument(
        "--mode",
        choices=MODES,
        default=MODES[0],
        help="score each answer, or compare the models' answers in pairs (default: single)",
    )
    judges.add_argument("--baseline", metavar="NAME", help=f"the model of pairwise-baseline (default: {BASELINE})")
    judges.add_argument("--passes", type=int, default=1, metavar="N", help="judge N times, to see how far it agrees")


def main(options: Any) -> None:
    """Answer what is missing, judge what is missing, print tables, draw plots."""
    check_options(options)
    folder = local_path(options.output_dir)
    if options.rescore:
        conclude(folder, options)
        return
    data = load_question_set(options.data)
    questions = choose_questions(data.questions, options)
    if options.url and not options.model:
        options.model = [only_model_of(options.url[0], answer_key(options), "-m")]
    choose_model(options)
    contestants = list_contestants(options, folder, questions)
    selection = Selection(options, folder, replace(data, questions=tuple(questions)), contestants)
    with build_judge(options) as judge:
        selection.report(judge)
        if options.dry_run:
            return
        save_data(data, folder)
        answer_all(contestants, options, folder, questions_digest(data.questions))
        if judge is None:
            again = command_to_continue()
            print(f"the answers are in {folder}; --judge MODEL or --judge-url URL judges them, added to: {again}")
            return
        selection.judge(judge)
    conclude(folder, options, [contestant.id for contestant in contestants], judge.name)


def check_options(options: Any) -> None:
    """Raise `UsageError` for invalid numbers and combinations of flags, before anything is loaded."""
    numbers = ("limit", "max_new_tokens", "num_choices", "batch_size", "concurrency", "judge_concurrency", "passes")
    require_at_least(1, options, *numbers)
    for flag, other in (("fresh", "rescore"), ("dry_run", "rescore"), ("retry", "rescore"), ("fresh", "retry")):
        if getattr(options, flag) and getattr(options, other):
            raise UsageError(f"--{flag.replace('_', '-')} and --{other} exclude each other; use one of them")
    if options.judge is not None and options.judge_url is not None:
        raise UsageError("--judge is computed here and --judge-url is a server; use one of them")
    for flag in ("judge_model", "judge_api_key_file"):
        if getattr(options, flag) is not None and options.judge_url is None and not options.rescore:
            raise UsageError(f"--{flag.replace('_', '-')} is for a server's judge; add --judge-url URL")
    if options.judge_price is not None and min(options.judge_price) < 0:
        raise UsageError(f"--judge-price {options.judge_price[0]:g} {options.judge_price[1]:g}: use 0 or more")
    if options.baseline is not None and options.mode != PAIRWISE_BASELINE:
        raise UsageError(f"--baseline is for --mode {PAIRWISE_BASELINE}, not {options.mode}")
    check_worker_options(options)
    # with --url the flags for devices are those of a local judge
    devices = {"device": "auto", "gpu_memory": None, "cuda_graphs": True, "allow_pickle": False}
    check_remote_options(Namespace(**{**vars(options), **(devices if options.judge is not None else {})}))


if __name__ == "__main__":
    run(parser(), main)
