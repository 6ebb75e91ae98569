"""The program: kill -9 anywhere, Ctrl-C, resuming, losses that are not finite, logs, refusals, full and quantized."""

from __future__ import annotations

import json
import os
import random
import re
import shlex
import signal
import subprocess
import sys
import time
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from engine import LLM
from engine.finetune import __main__ as program
from engine.finetune import checkpoint, evaluation, log, run
from engine.runtime.errors import BareloopError, UsageError
from evals import mmlu
from tests.engine.finetune.programs import count_steps, events, finetune, start, wait_for

RESULT = "adapter_model.safetensors"


def test_ten_kills_at_random_places_change_no_bit_of_the_adapter_or_the_log(flags, facts, tmp_path):
    texts = tmp_path / "texts.jsonl"  # which need no template, whose worker takes most of the time to start a run
    contents = (json.loads(line)["messages"][1]["content"] for line in facts.read_text().splitlines())
    texts.write_text("".join(json.dumps({"prompt": "Say it:", "completion": f" {text}"}) + "\n" for text in contents))
    more = ["--data", str(texts), "--save-every", "3", "--steps", "40", "--eval-every", "7"]
    more += ["--dropout", "0.2", "--accumulate", "2"]
    finetune(flags("whole", *more))
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    chance = random.Random(0)
    kills = [
        kill(start(flags("killed", "--resume", *more), tmp_path / "errors"), killed, chance.random() * 0.1)
        for _ in range(10)
    ]
    finetune(flags("killed", "--resume", *more))
    assert len(set(kills)) > 3 and max(kills) < 40
    assert (killed / RESULT).read_bytes() == (whole / RESULT).read_bytes()
    for kind in ("step", "held_out"):
        logs = [events(folder, kind) for folder in (whole, killed)]
        for event in (*logs[0], *logs[1]):
            event.pop("seconds", None)
            event.pop("tokens_per_second", None)
        assert logs[0] == logs[1]
    assert [event["step"] for event in events(killed, "step")] == list(range(1, 41))
    assert len(events(killed, "header")) == len(events(killed, "end")) == 1


def kill(process: BaseProcess, folder: Path, seconds: float) -> int:
    """Kill a run some time after its first new step -> the number of steps in its log."""
    before = count_steps(folder)
    wait_for(lambda: count_steps(folder) > before or not process.is_alive())
    time.sleep(seconds)
    process.kill()
    process.join()
    return count_steps(folder)


def test_a_run_that_is_cut_after_any_step_continues_with_the_same_bits(flags, tmp_path, monkeypatch):
    more = ("--steps", "6", "--dropout", "0.1", "--weight-decay", "0.01")
    finetune(flags("whole", *more))
    save = checkpoint.save_checkpoint

    def save_and_die(state, path):
        save(state, path)
        if "parameters" in state:
            raise OSError(5, "as if killed")

    monkeypatch.setattr(checkpoint, "save_checkpoint", save_and_die)
    for _ in range(6):
        with pytest.raises(OSError, match="as if killed"):
            finetune(flags("cut", "--resume", "--save-every", "1", *more))
    monkeypatch.setattr(checkpoint, "save_checkpoint", save)
    finetune(flags("cut", "--resume", "--save-every", "1", *more))
    assert (tmp_path / "cut" / RESULT).read_bytes() == (tmp_path / "whole" / RESULT).read_bytes()


def test_ctrl_c_saves_at_the_end_of_the_step_and_resuming_gives_the_same_bits(flags, tmp_path):
    more = ("--steps", "12", "--save-every", "100000")
    process = start(flags("stopped", *more), tmp_path / "errors", tmp_path / "interrupted")
    wait_for(lambda: count_steps(tmp_path / "stopped") > 3)
    os.kill(process.pid, signal.SIGINT)
    (tmp_path / "interrupted").touch()
    process.join(timeout=60)
    error = (tmp_path / "errors").read_text()
    assert process.exitcode == 130, error
    assert re.search(r"saved after step \d+ of 12; add --resume to continue\n$", error)
    done = count_steps(tmp_path / "stopped")
    assert 3 < done < 12
    state = torch.load(tmp_path / "stopped" / "checkpoint.pt", weights_only=True)
    assert state["step"] == done
    assert LLM.load(tmp_path / "stopped", device="cpu").logits([1, 2]).isfinite().all()
    finetune(flags("stopped", "--resume", *more))
    finetune(flags("whole", *more))
    assert (tmp_path / "stopped" / RESULT).read_bytes() == (tmp_path / "whole" / RESULT).read_bytes()


def test_a_loss_that_is_not_finite_ends_the_run_with_the_last_good_weights(flags, tmp_path):
    """A learning rate with which the first update breaks the model."""
    more = ("--save-every", "1", "--learning-rate", "1e30", "--warmup", "0", "--clip", "0", "--held-out", "0")
    with pytest.raises(BareloopError, match=r"step 1: the .* is (nan|inf); .* after step 0; lower --learning-rate"):
        finetune(flags("broken", *more))
    assert LLM.load(tmp_path / "broken", device="cpu").logits(list(range(100))).isfinite().all()
    assert events(tmp_path / "broken", "stopped")[0]["step"] == 1
    assert events(tmp_path / "broken", "end") == []
    with pytest.raises(BareloopError, match=r"step 1: the loss after the update is (nan|inf)"):
        finetune([*flags("last", "--steps", "1"), *more[2:]])  # nothing comes after the last step
    assert LLM.load(tmp_path / "last", device="cpu").logits(list(range(100))).isfinite().all()


def test_the_log_has_all_steps_and_the_loss_falls(flags, tmp_path, capsys):
    finetune(flags("run", "--epochs", "12", "--learning-rate", "0.01", "--eval-every", "5"), draws=True)
    folder = tmp_path / "run"
    (header,), steps, tests, (end,) = (events(folder, kind) for kind in ("header", "step", "held_out", "end"))
    assert header["settings"]["rank"] == 16 and header["settings"]["alpha"] == 32
    assert header["steps"] == len(steps) == end["step"]
    assert header["examples"] == 12 and header["held_out_examples"] == 3
    assert sum(step["tokens"] for step in steps) == 12 * header["tokens_per_epoch"]
    assert sum(step["learned_tokens"] for step in steps) == 12 * header["learned_tokens_per_epoch"]
    assert {"loss", "learning_rate", "gradient_norm", "seconds", "tokens_per_second"} <= steps[0].keys()
    assert [test["step"] for test in tests] == sorted({0, *range(5, len(steps) + 1, 5), len(steps)})
    assert tests[-1]["loss"] < tests[0]["loss"] - 0.5
    assert (folder / "loss.png").read_bytes()[:4] == b"\x89PNG"
    output = capsys.readouterr()
    assert f"held-out loss {tests[0]['loss']:.3f} → {tests[-1]['loss']:.3f}" in output.out
    assert f"python -m chat -m {folder}" in output.out
    assert "«" in output.err
    finetune(flags("run", "--epochs", "12", "--learning-rate", "0.01", "--resume"))
    assert "is finished" in capsys.readouterr().err


def test_a_dry_run_says_what_would_be_done_and_writes_nothing(flags, tmp_path, capsys):
    finetune(flags("dry", "--dry-run", "--rank", "4", "--targets", "q_proj", "down_proj"))
    output = capsys.readouterr()
    trained = 2 * 4 * ((32 + 32) + (64 + 32))
    assert f"trains {trained:,} of" in output.err
    for word in ("gradients", "optimizer", "activations", "logits", "12 examples", "steps: 10"):
        assert word in output.err
    assert re.search(r"^time: about .* tokens/s$", output.out, re.MULTILINE)
    assert not (tmp_path / "dry").exists()


def test_full_fine_tuning_writes_a_model_that_loads_and_resumes_with_the_same_bits(flags, small, tmp_path, monkeypatch):
    more = ("--method", "full", "--learning-rate", "0.003", "--steps", "8", "--save-every", "4")
    finetune(flags("whole", *more))
    with monkeypatch.context() as patch:
        original = run.checkpoint.save_checkpoint

        def save_and_die(state, path):
            original(state, path)
            raise OSError(5, "as if killed")

        patch.setattr(run.checkpoint, "save_checkpoint", save_and_die)
        with pytest.raises(OSError, match="as if killed"):
            finetune(flags("cut", *more))
    finetune(flags("cut", "--resume", *more))
    files = [tmp_path / name / "model.safetensors" for name in ("whole", "cut")]
    assert files[0].read_bytes() == files[1].read_bytes()
    llm = LLM.load(tmp_path / "whole", device="cpu")
    assert llm.tokenizer.encode("door") == LLM.load(small).tokenizer.encode("door")
    tests = events(tmp_path / "whole", "held_out")
    assert tests[-1]["loss"] < tests[0]["loss"]
    config = [json.loads((folder / "config.json").read_text()) for folder in (small, tmp_path / "whole")]
    assert config[0] == config[1]
    changed = [
        not torch.equal(a, b) for a, b in zip(llm.model.parameters(), LLM.load(small).model.parameters(), strict=True)
    ]
    assert all(changed)


@pytest.mark.parametrize("quant", ["int8", "int4"])
def test_adapters_are_trained_on_a_quantized_base(quant, flags, tmp_path):
    finetune(flags(quant, "--method", "qlora", "--quant", quant, "--epochs", "12", "--learning-rate", "0.01"))
    tests = events(tmp_path / quant, "held_out")
    assert tests[-1]["loss"] < tests[0]["loss"] - 0.5
    assert events(tmp_path / quant, "header")[0]["quant"] == quant
    assert LLM.load(tmp_path / quant, device="cpu", quant=quant).quant == quant


def test_checkpointing_by_block_changes_no_bit(flags, tmp_path):
    for name in ("on", "off"):
        finetune(flags(name, "--checkpointing", name, "--dropout", "0.3"))
    assert (tmp_path / "on" / RESULT).read_bytes() == (tmp_path / "off" / RESULT).read_bytes()


def test_an_output_folder_with_a_run_or_anything_else_is_refused(flags, tmp_path):
    finetune(flags("run"))
    with pytest.raises(UsageError, match="has a run: add --resume"):
        finetune(flags("run"))
    with pytest.raises(
        BareloopError, match=r"learning_rate 0.0002, not 0.1.*; use those, or name another --output-dir"
    ):
        finetune(flags("run", "--resume", "--learning-rate", "0.1"))
    with pytest.raises(BareloopError, match=r"other settings: mask_prompt True, not False, data '[0-9a-f…]+, not "):
        finetune([*flags("run", "--resume"), "--no-mask-prompt"])
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "note").touch()
    with pytest.raises(UsageError, match="not empty; name a new folder"):
        finetune(flags("other"))


@pytest.mark.parametrize(
    ("more", "line"),
    [
        (("--method", "qlora", "--quant", "none"), "needs a weight format"),
        (("--method", "full", "--quant", "int8"), "leave out --quant"),
        (("--quant", "int8"), "use --method qlora with --quant int8"),
        (("--dtype", "float16"), "gradients overflow"),
        (("--method", "full", "--dtype", "bfloat16"), "keeps its weights in float32"),
        (("--epochs", "2", "--steps", "3"), "give one of them"),
        (("--rank", "0"), "--rank 0: use 1 or more"),
        (("--learning-rate", "-1"), "--learning-rate -1.0: use a number above 0"),
        (("--warmup", "1.5"), "share of the steps below 1, or a whole number"),
        (("--dropout", "1"), "--dropout 1.0: use 0 or more, and less than 1"),
        (("--clip", "nan"), "--clip nan: use 0 or more"),
        (("--batch-tokens", "0"), "--batch-tokens 0: use 1 or more"),
        (("--seed", "99999999999999"), "--seed 99999999999999: use 0 to 4294967295"),
        (("--seed", "-1"), "--seed -1: use 0 to 4294967295"),
        (("--evaluate-options", "'"), "No closing quotation; give flags as in a shell"),
        (("--warmup", "10"), "--warmup 10: the run has 10 steps; warm up in fewer"),
        (("--method", "full", "--rank", "4", "--dropout", "0"), "has no adapters: leave out --rank, --dropout"),
        (("--method", "full", "--targets", "q_proj", "--alpha", "2"), "leave out --alpha, --targets"),
        (("-m", "a", "b"), "one model is trained"),
    ],
)
def test_bad_flags_are_refused_with_one_line(flags, more, line):
    with pytest.raises(UsageError, match=re.escape(line)):
        finetune([*flags("refused"), *more])


def test_help_needs_no_torch():
    code = (
        "import sys; from engine.finetune.__main__ import parser; parser().format_help(); print('torch' in sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.stdout == "False\n", result.stderr


def test_benchmarks_run_before_and_after_as_programs_of_their_own(flags, tmp_path, capfd, monkeypatch):
    """The second one here, by the same command line: it takes as long to start as all the rest."""
    commands = []

    def run_command(command, check):
        commands.append(command)
        if len(commands) == 1:
            return subprocess.run(command, check=check)
        mmlu.main(mmlu.parser().parse_args(command[3:]))
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(evaluation, "subprocess", SimpleNamespace(run=run_command))
    finetune(
        flags("scored", "--evaluate", "mmlu", "--evaluate-options", "--data demo --limit 1 --shots 0", "--steps", "2")
    )
    runs = sorted(path.parent.name for path in (tmp_path / "scored" / "evaluations").rglob("*.run.jsonl"))
    assert len(runs) == len(set(runs)) == 2
    assert [command[:3] for command in commands] == 2 * [[sys.executable, "-m", "evals.mmlu"]]
    output = capfd.readouterr()
    assert "python -m evals.compare" in output.out


def test_benchmarks_of_the_base_run_before_it_is_loaded_for_training(flags, tmp_path, monkeypatch):
    order = []
    load = run.load_trainee
    monkeypatch.setattr(run, "evaluate", lambda names, model, *_: order.append(model))
    monkeypatch.setattr(run, "load_trainee", lambda *arguments: order.append("load") or load(*arguments))
    (tmp_path / "scored" / "evaluations").mkdir(parents=True)  # as a run that was killed while it scored
    arguments = flags("scored", "--evaluate", "mmlu", "--steps", "2", "--resume")
    finetune(arguments)
    assert order == [arguments[1], "load", str(tmp_path / "scored")]


def test_the_output_folder_is_named_after_model_and_data():
    assert str(program.default_output("org/Model-1B", "data/my facts.jsonl.gz")) == "results/Model-1B-my-facts"


def test_an_adapter_is_refused_as_the_base_of_another_one_and_merged_by_full_fine_tuning(flags, tmp_path):
    finetune(flags("my adapter", "--steps", "2"))
    adapter = str(tmp_path / "my adapter")
    arguments = ["-m", adapter, *flags("second", "--evaluate", "mmlu")[2:]]
    with pytest.raises(UsageError, match=re.escape(f"python -m engine -m '{adapter}' --save '{adapter}-merged'")):
        finetune(arguments)
    assert not (tmp_path / "second").exists()
    finetune(["-m", adapter, *flags("full", "--method", "full", "--steps", "2")[2:]])
    state = torch.load(tmp_path / "full" / "checkpoint.pt", weights_only=True)
    finetune(flags("plain", "--method", "full", "--steps", "2"))
    assert (
        state["settings"]["model"]
        != torch.load(tmp_path / "plain" / "checkpoint.pt", weights_only=True)["settings"]["model"]
    )
    assert LLM.load(tmp_path / "full", device="cpu").adapter is None


def test_the_largest_seed_works_with_dropout(flags, tmp_path):
    finetune(flags("run", "--seed", str(2**32 - 1), "--dropout", "0.1", "--steps", "2"))
    assert len(events(tmp_path / "run", "step")) == 2


def test_the_next_commands_are_quoted_for_a_shell(tmp_path):
    folder = tmp_path / "a b"
    folder.mkdir()
    (folder / log.FILE).touch()
    lines = log.summary(folder, "my model", True, False) + log.summary(folder, "my model", True, True)
    commands = [shlex.split(line) for line in lines if line.startswith("  python")]
    assert ["python", "-m", "engine", "-m", "my model", str(folder), "-p", "PROMPT"] in commands
    assert ["python", "-m", "engine", "-m", str(folder), "--save", f"{folder}-merged"] in commands
    assert all(str(folder) in " ".join(command) and len(command) < 9 for command in commands)
