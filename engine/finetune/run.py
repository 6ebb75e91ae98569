"""A run: load, prepare, train with saves and logs, and write the result."""

from __future__ import annotations

import hashlib
import signal
import sys
import time
from array import array
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from engine.cli.progress import duration
from engine.finetune import checkpoint, estimate, log
from engine.finetune.base import Trainee, load_trainee, open_base
from engine.finetune.data import Dataset, Example, load_data
from engine.finetune.evaluation import FOLDER as EVALUATIONS
from engine.finetune.evaluation import evaluate
from engine.finetune.loss import mean_loss
from engine.finetune.optimizer import NonFiniteError, adamw, check_finite
from engine.finetune.settings import Settings
from engine.finetune.trainer import Plan, held_out_loss, train
from engine.runtime.device import dtype_name
from engine.runtime.errors import BareloopError, UsageError
from engine.runtime.memory import free_memory, peak_memory, release_freed_memory, reset_peak_memory

SAVE_SECONDS = {True: 60.0, False: 600.0}  # between checkpoints of adapters, and of whole models
FEW_STEPS = 10  # that hardly change a model
EVALUATIONS_PER_RUN = 5  # of the held-out loss, unless --eval-every says otherwise


@dataclass(frozen=True)
class Prepared:
    """What a run needs, loaded and counted."""

    settings: Settings
    trainee: Trainee
    data: Dataset
    plan: Plan
    figures: dict[str, Any]  # see estimate.describe

    def identity(self) -> dict[str, Any]:
        """What must be equal for a checkpoint to continue this run: settings, weights and data."""
        exact = self.settings.as_json() | {"dtype": dtype_name(self.trainee.llm.dtype)}
        data = {"data": fingerprint(self.data.train), "held_out_data": fingerprint(self.data.held_out)}
        return exact | {"model": self.trainee.fingerprint()} | data


def prepare(options: Any, settings: Settings) -> Prepared:
    """Load the model and the data, and decide whether blocks are computed again.

    Raises `UsageError` for a warm-up that is as long as the run.
    """
    trainee = load_trainee(options.model[0], settings, options.device, options.allow_pickle)
    limits = {name: getattr(settings, name) for name in ("max_length", "limit", "held_out", "mask_prompt", "seed")}
    data = load_data(options.data, trainee.llm, **limits)
    plan = Plan(data.train, settings)
    if 1 <= settings.warmup >= plan.steps:
        raise UsageError(f"--warmup {settings.warmup:g}: the run has {plan.steps:,} steps; warm up in fewer")
    model = trainee.model
    longest = max(data.train, key=lambda example: len(example.ids))
    kept = estimate.kept_bytes(model, longest.ids, trainee.autocast)
    model.recompute = options.checkpointing == "on" or (
        options.checkpointing == "auto" and estimate.needs_recompute(model, plan, kept)
    )
    needed = estimate.memory(model, plan.largest_pass, kept, model.recompute)
    return Prepared(settings, trainee, data, plan, estimate.describe(model, data, plan, needed, model.recompute))


def fingerprint(examples: Iterable[Example]) -> str:
    """A SHA-256 of the tokens of examples, and which of them are learned."""
    digest = hashlib.sha256()
    for example in examples:
        digest.update(array("q", [len(example.ids), *example.ids]).tobytes() + bytes(example.learned))
    return digest.hexdigest()


class Interruption:
    """Ctrl-C ends the run after its step. A second one raises KeyboardInterrupt at once."""

    requested = False

    def __enter__(self) -> Interruption:
        self._before = signal.signal(signal.SIGINT, self._request)
        return self

    def __exit__(self, *_: object) -> None:
        signal.signal(signal.SIGINT, self._before)

    def _request(self, *_: object) -> None:
        if self.requested:
            raise KeyboardInterrupt("stopped within a step; --resume continues from the last checkpoint")
        self.requested = True
        print("\nsaving after this step; Ctrl-C again stops at once", file=sys.stderr, flush=True)


def finetune(options: Any, prepared: Prepared, output: Path) -> None:
    """Train, or continue, and write the result into `output`.

    Raises `BareloopError` if the checkpoint is from a run with other settings.
    """
    output.mkdir(parents=True, exist_ok=True)
    path, identity, state = output / checkpoint.FILE, prepared.identity(), None
    if path.exists():
        state = checkpoint.load_checkpoint(path, identity, "name another --output-dir")
    if state is not None and state.get("finished"):
        show([f"{output} is finished, after {state['step']:,} steps"])
        return
    if state is not None:
        show([f"continues after step {state['step']:,} of {prepared.plan.steps:,}"])
    history = log.Log(output / log.FILE, None if state is None else state["step"])
    try:
        if history.is_empty:
            history.write("header", header(options, prepared))
        train_and_save(options, prepared, output, history, state, identity)
    finally:
        history.close()


def score_base(options: Any, settings: Settings, output: Path) -> None:
    """Run the benchmarks of --evaluate before training. Raises `UsageError` at once for a model that is not trained."""
    if options.evaluate:
        open_base(options.model[0], settings, options.device, options.allow_pickle)
        score(options, settings, options.model[0], output)


def score(options: Any, settings: Settings, model: str, output: Path) -> None:
    """Run the benchmarks of --evaluate with a model. What has been scored before is not scored again."""
    if not options.evaluate:
        return
    release_freed_memory()
    flags = ["--device", options.device, *(["--allow-pickle"] if options.allow_pickle else [])]
    flags += ["--quant", settings.quant] if settings.method == "qlora" else []
    evaluate(options.evaluate, model, flags, options.evaluate_options, output / EVALUATIONS)


def train_and_save(
    options: Any,
    prepared: Prepared,
    output: Path,
    history: log.Log,
    state: dict[str, Any] | None,
    identity: Mapping[str, Any],
) -> None:
    """Train all steps after those of `state`, and save the training state and the result every few steps.

    Weights are saved only if they give a finite loss. Raises `BareloopError` for one that is not finite, and
    KeyboardInterrupt after a Ctrl-C.
    """
    settings, trainee, plan = prepared.settings, prepared.trainee, prepared.plan
    model, steps = trainee.model, plan.steps
    optimizer = adamw(checkpoint.trained(model).values(), settings.weight_decay)
    done = saved = 0
    if state is not None:
        done = saved = checkpoint.restore(model, optimizer, state)
        history.write("resumed", {"step": done, "time": log.timestamp()})
    elif settings.adapts:
        trainee.save(output)  # so that the folder can be loaded from the first step on
    eval_every = options.eval_every or max(1, steps // EVALUATIONS_PER_RUN)

    def test() -> None:
        loss = held_out_loss(model, prepared.data.held_out, settings.batch_tokens, trainee.autocast)
        if loss is not None:
            check_finite(done, "held-out loss", loss)
            history.write("held_out", {"step": done, "loss": loss})
            display.held_out(loss)

    def save() -> None:
        check_weights(prepared, done)
        history.sync()
        checkpoint.save_checkpoint(
            {**checkpoint.training_state(model, optimizer, done), "settings": dict(identity)}, output / checkpoint.FILE
        )
        trainee.save(output)

    saved_at = time.monotonic()
    reset_peak_memory(trainee.llm.device)
    with Interruption() as interruption, log.Display(steps, done, history.losses) as display:
        try:
            if not done:
                test()
            for result in train(model, optimizer, plan, done, trainee.autocast):
                done = result.step
                event = asdict(result) | {"tokens_per_second": round(result.tokens / result.seconds, 1)}
                history.write("step", event)
                display.step(event, peak_memory(trainee.llm.device))
                if done % eval_every == 0 or done == steps:
                    test()
                now = time.monotonic()
                if options.save_every:
                    is_due = done % options.save_every == 0
                else:
                    is_due = now - saved_at > SAVE_SECONDS[settings.adapts]
                if is_due or interruption.requested:
                    save()
                    saved, saved_at = done, now
                if interruption.requested:
                    raise KeyboardInterrupt(f"saved after step {done:,} of {steps:,}; add --resume to continue")
            check_weights(prepared, done)
        except NonFiniteError as error:
            history.write("stopped", {"step": error.step, "reason": str(error)})
            kept = f"{output} has the weights after step {saved:,}" if saved or settings.adapts else "nothing was saved"
            raise BareloopError(
                f"{error}; {kept}; lower --learning-rate {settings.learning_rate:g}, in another --output-dir"
            ) from None
    finish(options, prepared, output, history, {"settings": dict(identity), "step": done, "finished": True})


def check_weights(prepared: Prepared, step: int) -> None:
    """Raise `NonFiniteError` if the weights give no finite loss; that of a step is of the weights before its update."""
    loss = mean_loss(prepared.trainee.model, [prepared.plan.first_pass], prepared.trainee.autocast)
    check_finite(step, "loss after the update", loss)


def finish(options: Any, prepared: Prepared, output: Path, history: log.Log, state: Mapping[str, Any]) -> None:
    """Write the result, the last line of the log, the picture, and the note that the run is finished."""
    trainee = prepared.trainee
    trainee.save(output)
    history.write(
        "end", {"step": state["step"], "time": log.timestamp(), "peak_memory": peak_memory(trainee.llm.device)}
    )
    title = f"{trainee.name}, {prepared.settings.method}, {options.data}"
    log.draw(log.read_log(output / log.FILE), output / log.PICTURE, title)
    checkpoint.save_checkpoint(state, output / checkpoint.FILE)


def header(options: Any, prepared: Prepared) -> dict[str, Any]:
    """The first line of the log."""
    try:
        own = version("bareloop")
    except PackageNotFoundError:
        own = "unknown"
    llm = prepared.trainee.llm
    return {
        "time": log.timestamp(),
        "model": prepared.trainee.name,
        "data": options.data,
        "settings": prepared.settings.as_json(),
        "device": str(llm.device),
        "threads": torch.get_num_threads(),
        "dtype": dtype_name(llm.dtype),
        "autocast": None if prepared.trainee.autocast is None else dtype_name(prepared.trainee.autocast),
        "quant": llm.quant,
        "versions": {"bareloop": own, "torch": torch.__version__},
        **prepared.figures,
        "notes": prepared.data.notes,
    }


def check_output(output: Path, resume: bool) -> None:
    """Raise `UsageError` for a folder that has a run that is not to be resumed, or something else."""
    if not output.exists() or (output.is_dir() and not any(output.iterdir())):
        return
    if not output.is_dir() or not any((output / name).exists() for name in (log.FILE, checkpoint.FILE, EVALUATIONS)):
        raise UsageError(f"--output-dir {output} exists and is not empty; name a new folder")
    if not resume and (output / checkpoint.FILE).exists():  # without a checkpoint there is nothing to lose
        raise UsageError(f"--output-dir {output} has a run: add --resume to continue it, or name a new folder")


def estimated_time(prepared: Prepared) -> str:
    """The time of all steps, from a measured forward and backward pass."""
    rate = estimate.seconds_per_token(prepared.trainee.model, prepared.plan, prepared.trainee.autocast)
    tokens = prepared.figures["tokens_per_epoch"] * prepared.plan.steps / prepared.figures["steps_per_epoch"]
    return f"time: about {duration(rate * tokens)}, at {1 / rate:,.0f} tokens/s"


def show(lines: Iterable[str]) -> None:
    """Print lines on stderr."""
    for line in lines:
        print(line, file=sys.stderr, flush=True)


def introduce(prepared: Prepared, resumes: bool = False) -> None:
    """Print the first examples with their learned tokens, unless a run continues, and the figures, on stderr."""
    from rich.console import Console

    from engine.finetune.data import preview

    if not resumes:
        console = Console(stderr=True, highlight=False, soft_wrap=True)
        console.print(preview(prepared.data, prepared.trainee.llm.tokenizer))
    show(prepared.data.notes)
    llm = prepared.trainee.llm
    quant = "not quantized" if llm.quant == "none" else llm.quant
    show([f"{prepared.trainee.name}: {prepared.settings.method}, {dtype_name(llm.dtype)}, {quant}, {llm.device}"])
    free = free_memory(llm.device)
    show(estimate.lines(prepared.figures, free))
    if prepared.plan.steps < FEW_STEPS:
        show([f"{prepared.plan.steps} steps change little: give more with --steps or --epochs"])
    needed = prepared.figures["bytes"]["total"] - prepared.figures["bytes"]["weights"]
    if free is not None and needed > free:
        show(
            ["memory may be short: use --checkpointing on, a smaller --batch-tokens or --max-length, or --method qlora"]
        )
