"""python -m evals.timing: MMLU on every device and in every weight format, each in its own process."""

from __future__ import annotations

from typing import Any

from engine.checkpoints import embedded
from engine.cli.parser import Parser, choose_model, run
from engine.quant import ALIASES, QUANTS, canonical
from engine.runtime.errors import BareloopError, UsageError, quote
from evals.harness.identity import results_folder
from evals.harness.program import DEVICES, check_run_options
from evals.mmlu import DATA, SUBJECTS, load_task
from evals.studies.timing import make_plan, report, run_study

FORMATS = ("none", "int8", "int4", "nf4", "fp4", "llm.int8")
# Options of evals.mmlu for which this program has no flags.
FIXED = {"split": "test", "quant": "none", "batch_tokens": None}
OFF = dict.fromkeys(("chat_template", "single_turn", "rescore", "verbose"), False)


def parser() -> Parser:
    """Return the program's parser."""
    result = Parser("python -m evals.timing", "Time MMLU on every device and in every weight format.")

    def add_list(name: str, metavar: str, text: str) -> None:
        result.add_argument(name, action="extend", nargs="+", metavar=metavar, help=text)

    result.add_model_options(without=("device", "quant"))
    known = ", ".join((*QUANTS, *ALIASES))
    add_list("--devices", "DEVICE", f"cpu, cuda, cuda:N, mps (default: {' '.join(DEVICES)})")
    add_list("--formats", "FORMAT", f"weight formats: {known} (default: {' '.join(FORMATS)})")
    result.add_argument("--data", help=f"hub data set, folder, or demo (default: {DATA}; for the demo model: demo)")
    add_list("--subjects", "SUBJECT", f"subjects, groups, or all (default: {' '.join(SUBJECTS)})")
    result.add_argument("--shots", type=int, default=5, help="solved examples per question (default: 5)")
    result.add_argument("--limit", type=int, metavar="N", help="questions per subject (default: all)")
    result.add_argument("--output-dir", default="results/timing", metavar="FOLDER", help="default: results/timing")
    result.add_argument("--fresh", action="store_true", help="start over; an earlier study is renamed to *.old")
    result.set_defaults(**FIXED, **OFF)
    return result


def main(options: Any) -> None:
    """Plan, measure and report, model by model."""
    check(options)
    choose_model(options)
    options.model = list(dict.fromkeys(options.model))
    if options.data is None:
        options.data = embedded.NAME if options.model == [embedded.NAME] else DATA
    if len({results_folder(options, model) for model in options.model}) < len(options.model):
        raise UsageError("two models would share one folder of results; time them separately, with --output-dir")
    plan = make_plan(options, load_task)
    failures = []
    for model in options.model:
        results = run_study(options, load_task, model, plan)
        if any(result.measurement for result in results):
            report(options, model, plan.settings[model], results)
        else:
            failures.append(f"nothing could be measured of {model} ({results[0].configuration}: {results[0].reason})")
    if failures:
        raise BareloopError("; ".join(failures))


def check(options: Any) -> None:
    """Set the defaults of lists and the canonical names of formats. Raises `UsageError` for invalid flags."""
    check_run_options(options)
    options.devices = list(dict.fromkeys(options.devices or DEVICES))
    for device in options.devices:
        if device.partition(":")[0] not in DEVICES:
            raise UsageError(f"unknown device {quote(device)}; use cpu, cuda, cuda:N or mps")
    options.formats = list(dict.fromkeys(canonical(name) for name in options.formats or FORMATS))


if __name__ == "__main__":
    run(parser(), main)
