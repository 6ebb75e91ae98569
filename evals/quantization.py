"""python -m evals.quantization: what each weight format costs in quality, and what it saves, in one table."""

from __future__ import annotations

import sys
from argparse import Namespace
from functools import partial
from typing import Any

from engine.checkpoints import embedded
from engine.cli.parser import Parser, choose_model, require_at_least, run
from engine.quant import ALIASES, GGUF, QUANTS, canonical
from engine.runtime.cycles import CycleCounter
from engine.runtime.errors import BareloopError, UsageError
from evals import mmlu
from evals.data.texts import WIKITEXT_PART
from evals.harness.identity import results_folder
from evals.harness.program import check_run_options
from evals.harness.task import Task
from evals.studies.weight_formats import DEFAULT_WINDOW, make_study, report, run_study, with_mmlu

FORMATS = ("none", "int8", "int4", "nf4", "fp4", "llm.int8")


def parser() -> Parser:
    """Return the program's parser."""
    result = Parser("python -m evals.quantization", "Compare weight formats: size, perplexity, MMLU, agreement, speed.")
    add_list = partial(result.add_argument, action="extend", nargs="+")
    result.add_model_options(without=("quant",))
    known, default = ", ".join((*QUANTS, *ALIASES)), " ".join(FORMATS) + ", gguf for a GGUF file"
    add_list(
        "--formats",
        metavar="FORMAT",
        help=f"{known}; none is always measured (default: {default})",
    )
    text = result.add_argument_group("text")
    demo_text = "for the demo model: unseen pages of its textbook"
    text.add_argument("--text", metavar="FILE", help=f"default: the test split of {WIKITEXT_PART}; {demo_text}")
    text.add_argument("--text-tokens", type=int, default=16_384, metavar="N", help="length (default: 16,384)")
    text.add_argument(
        "--window", type=int, metavar="N", help=f"tokens per forward pass (default: up to {DEFAULT_WINDOW:,})"
    )
    questions = result.add_argument_group("MMLU, as in python -m evals.mmlu")
    questions.add_argument("--data", help=f"default: {mmlu.DATA}; for the demo model: demo")
    questions.add_argument("--subjects", action="extend", nargs="+", metavar="SUBJECT")
    questions.add_argument("--shots", type=int, default=5, help="default: 5")
    questions.add_argument("--limit", type=int, metavar="N", help="questions per subject (default: all)")
    questions.add_argument("--no-mmlu", action="store_true", help="leave MMLU out")
    result.add_argument("--output-dir", default="results", metavar="FOLDER", help="default: results")
    return result


def main(options: Any) -> None:
    """Measure every model in every format and report."""
    counter = CycleCounter()  # must be created before torch starts its threads
    formats = list(dict.fromkeys(("none", *map(canonical, options.formats or FORMATS))))
    require_at_least(2, options, "text_tokens", "window")
    options = Namespace(**{**vars(mmlu.parser().parse_args([])), **vars(options)})
    check_run_options(options)
    choose_model(options)
    models = list(dict.fromkeys(options.model))
    if len({results_folder(options, model) for model in models}) < len(models):
        raise UsageError(f"two of {', '.join(models)} would share one folder of results; use --output-dir for each")
    studies = [make_study(options, model) for model in models]  # reports errors before hours of work
    task = load_mmlu(options)
    for study in studies if task is None else [with_mmlu(study, task) for study in studies]:
        own = [GGUF] if study.is_gguf and not options.formats else []
        report(study, *run_study(options, study, [*formats, *own], task, counter))


def load_mmlu(options: Any) -> Task | None:
    """Return MMLU as the flags select it.

    Returns None with --no-mmlu, and, after a message, if the default data is not available.
    """
    if options.no_mmlu:
        return None
    is_default = options.data is None
    if is_default:
        options.data = embedded.NAME if set(options.model) == {embedded.NAME} else mmlu.DATA
    try:
        return mmlu.load_task(options)
    except UsageError:
        raise
    except BareloopError as error:
        if not is_default:
            raise
        print(f"without MMLU: {error}", file=sys.stderr)
        return None


if __name__ == "__main__":
    run(parser(), main)
