"""python -m engine.finetune: adapt a model to data with LoRA, QLoRA, or by training all its weights."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from engine.checkpoints import embedded
from engine.cli.parser import Parser, choose_model, require_at_least, run
from engine.finetune.evaluation import BENCHMARKS, split_flags
from engine.finetune.settings import METHODS, SCHEDULES, settings_from
from engine.quant import QUANTS, canonical
from engine.runtime.errors import UsageError


def parser() -> Parser:
    """The program's flags."""
    result = Parser("python -m engine.finetune", "Fine-tune a model, see it learn, and score it before and after.")
    result.add_model_options(
        without=("device", "quant", "adapter"),
        default=embedded.default_model(),
        about="model folder, GGUF file or hub id",
    )
    result.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:N or mps (default: auto)")
    result.add_argument(
        "--data",
        required=True,
        help="JSON lines with messages, prompt and completion, or text; a folder of them; or squad",
    )
    result.add_argument(
        "--output-dir", metavar="DIR", help="of the result, the log and the checkpoint (default: results/MODEL-DATA)"
    )
    result.add_argument("--dry-run", action="store_true", help="only say what would be trained, its memory and time")
    result.add_argument("--resume", action="store_true", help="continue the run in --output-dir, if there is one")

    method = result.add_argument_group("method")
    method.add_argument(
        "--method",
        choices=METHODS,
        default="lora",
        help="lora: adapters beside frozen weights; qlora: the same with quantized weights; full: all weights "
        "(default: lora)",
    )
    method.add_argument(
        "--quant", type=canonical, metavar="FORMAT", help=f"of the frozen weights: {', '.join(QUANTS)} (qlora: nf4)"
    )
    method.add_argument("--rank", type=int, help="of the adapters (default: 16)")
    method.add_argument("--alpha", type=float, help="adapters are scaled by alpha / rank (default: twice the rank)")
    method.add_argument("--dropout", type=float, help="share of the adapters' inputs (default: 0)")
    method.add_argument(
        "--targets",
        nargs="+",
        metavar="NAME",
        help="modules with adapters: ends of their names in the checkpoint, such as q_proj v_proj, or a regular "
        "expression (default: all-linear)",
    )

    training = result.add_argument_group("training")
    training.add_argument("--epochs", type=int, help="passes over the data (default: 1)")
    training.add_argument("--steps", type=int, metavar="N", help="number of updates, instead of --epochs")
    training.add_argument("--learning-rate", type=float, metavar="RATE", help="peak (default: 2e-4; full: 2e-5)")
    training.add_argument("--schedule", choices=SCHEDULES, default="cosine", help="after the warm-up (default: cosine)")
    training.add_argument(
        "--warmup", type=float, default=0.03, help="share of the steps, or from 1 on their number (default: 0.03)"
    )
    training.add_argument(
        "--batch-tokens", type=int, default=2048, metavar="N", help="tokens per forward pass (default: 2048)"
    )
    training.add_argument("--accumulate", type=int, default=1, metavar="N", help="forward passes per step (default: 1)")
    training.add_argument("--clip", type=float, default=1.0, help="largest norm of the gradient; 0: any (default: 1)")
    training.add_argument("--weight-decay", type=float, default=0.0, help="of matrices (default: 0)")
    training.add_argument("--seed", type=int, default=0, help="of adapters, dropout and the order (default: 0)")
    training.add_argument(
        "--checkpointing",
        choices=("auto", "on", "off"),
        default="auto",
        help="compute blocks again in the backward pass, for less memory (default: auto, where memory is short)",
    )

    data = result.add_argument_group("data")
    data.add_argument(
        "--max-length", type=int, metavar="N", help="tokens of an example (default: 2048, or the model's window)"
    )
    data.add_argument("--limit", type=int, metavar="N", help="use only this many examples")
    data.add_argument("--held-out", type=int, metavar="N", help="examples to test on (default: a share of the data)")
    data.add_argument(
        "--no-mask-prompt", dest="mask_prompt", action="store_false", help="learn prompts too, not only answers"
    )

    reports = result.add_argument_group("saving and scoring")
    reports.add_argument("--eval-every", type=int, metavar="N", help="steps between held-out losses (default: 5 a run)")
    reports.add_argument(
        "--save-every", type=int, metavar="N", help="steps between checkpoints (default: a minute; full: ten minutes)"
    )
    reports.add_argument(
        "--evaluate", nargs="+", choices=BENCHMARKS, metavar="NAME", help="benchmarks to run before and after"
    )
    reports.add_argument(
        "--evaluate-options", default="", metavar="FLAGS", help='their flags, as one text: "--limit 200 --shots 0"'
    )
    return result


def main(options: Any) -> None:
    """Check the flags, load, train, and say what to do next."""
    positive = ("rank", "epochs", "steps", "batch_tokens", "accumulate", "limit", "eval_every", "save_every")
    require_at_least(1, options, *positive)
    require_at_least(2, options, "max_length")
    require_at_least(0, options, "held_out")
    settings = settings_from(options)
    if options.model is not None and len(options.model) != 1:
        raise UsageError(f"--model {' '.join(options.model)}: one model is trained; name one")
    split_flags(options.evaluate_options)
    choose_model(options, embedded.default_model())

    from engine.finetune import run as steps
    from engine.finetune.log import summary
    from engine.runtime.files import local_path

    output = local_path(options.output_dir or default_output(options.model[0], options.data))
    if not options.dry_run:
        steps.check_output(output, options.resume)
        steps.score_base(options, settings, output)  # while no other model is in memory
    prepared = steps.prepare(options, settings)
    steps.introduce(prepared, options.resume and not options.dry_run)
    if options.dry_run:
        print(steps.estimated_time(prepared))
        return
    steps.finetune(options, prepared, output)
    is_chat = prepared.trainee.has_template
    del prepared  # the model's memory is for the benchmarks
    steps.score(options, settings, str(output), output)
    for line in summary(output, options.model[0], settings.adapts, bool(options.evaluate), is_chat):
        print(line)


def default_output(model: str, data: str) -> Path:
    """The folder of a run that names none."""
    names = (re.sub(r"(\.jsonl|\.json|\.parquet|\.gguf|\.gz)+$", "", Path(name).name) for name in (model, data))
    return Path("results") / re.sub(r"[^\w.-]+", "-", "-".join(names)).strip("-")


if __name__ == "__main__":
    run(parser(), main)
