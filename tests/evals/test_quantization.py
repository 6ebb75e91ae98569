"""The study of weight formats: numbers compared with a plain loop, files, continuing, one-line errors."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from engine import LLM
from engine.cache.state import Step
from engine.quant import bitsandbytes as bnb
from engine.runtime.errors import BareloopError, UsageError
from evals.quantization import FORMATS, main, parser
from evals.studies.weight_formats import losses

TEXT = "Once upon a time there was a cat called Mia who lived in a forest. Mia wished for a red ball. "
SMALL = ("--device", "cpu", "--text-tokens", "600", "--window", "128")


def run(output: Path, *arguments: str) -> dict[str, Any]:
    """Run the program with the demo model. Return the content of quantization.json."""
    main(parser().parse_args(["-m", "demo", *SMALL, "--output-dir", str(output), *arguments]))
    return json.loads((output / "demo" / "quantization.json").read_text())


def lines(output: Path) -> list[str]:
    return (output / "demo" / "quantization.jsonl").read_text().splitlines()


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """The folder and the content of quantization.json of a run with MMLU."""
    output = tmp_path_factory.mktemp("study")
    return output, run(output, "--formats", "int8", "int4", "--limit", "2", "--shots", "1")


def test_perplexity_and_agreement_equal_a_float64_loop(tmp_path):
    """Forward passes without a cache, window by window and token by token."""
    (tmp_path / "text").write_text(TEXT * 3)
    report = run(tmp_path, "--no-mmlu", "--text", str(tmp_path / "text"), "--window", "44", "--formats", "int4")
    rows = {row["format"]: row for row in report["formats"]}
    best: dict[str, list[int]] = {}
    for name in ("none", "int4"):
        llm = LLM.load("demo", device="cpu", quant=name)
        ids = llm.tokenizer.encode(TEXT * 3, add_special_tokens=False)
        loss, best[name] = 0.0, []
        for first in range(0, len(ids), 43):
            window = [0, *ids[first : first + 43]]
            with torch.no_grad():
                logits = llm.model.logits(llm.model(Step.pack([window]))).double()
            for scores, target in zip(logits, window[1:], strict=False):
                loss -= math.log(float(scores[target].exp()) / float(scores.exp().sum()))
                best[name].append(int(scores.argmax()))
        assert len(best[name]) == len(ids)
        assert rows[name]["perplexity"] == pytest.approx(math.exp(loss / len(ids)), rel=1e-4)
    same = sum(a == b for a, b in zip(best["none"], best["int4"], strict=True)) / len(best["none"])
    assert rows["int4"]["agreement"] == pytest.approx(same, abs=1.5 / len(best["none"]))


def test_losses_of_many_rows_equal_a_log_softmax():
    logits, targets = torch.randn(300, 50, generator=torch.Generator().manual_seed(0)), list(range(50)) * 6
    loss, predictions = losses(logits, targets)
    expected = -logits.double().log_softmax(-1)[range(300), targets].sum()
    assert loss == pytest.approx(float(expected), rel=1e-6)
    assert predictions.dtype == torch.int32
    assert predictions.tolist() == logits.argmax(-1).tolist()


def test_the_files_are_complete(study):
    output, report = study
    assert [row["format"] for row in report["formats"]] == ["none", "int8", "int4"]
    plain, eight, four = report["formats"]
    assert plain["agreement"] == 1
    assert plain["bits"] == 32
    assert (plain["perplexity_change"], plain["mmlu_change"]) == (0, 0)
    assert abs(eight["perplexity_change"]) < 1
    assert 0.9 < four["agreement"] <= eight["agreement"] < 1
    assert 8 < eight["bits"] < 9
    assert plain["nbytes"] > eight["nbytes"] > four["nbytes"]
    assert all(row["tokens_per_second"] > 0 and row["load_seconds"] > 0 for row in report["formats"])
    assert all(0 <= row["mmlu"] <= 1 for row in report["formats"])
    assert report["settings"]["tokens"] == 600
    assert (report["settings"]["shots"], report["settings"]["limit"]) == (1, 2)
    assert report["torch"] == torch.__version__
    assert report["missing"] == {}
    text = (output / "demo" / "quantization.md").read_text()
    titles = ("# Weight formats of demo", "| format | MB |", "| int4 | ")
    for expected in (*titles, "±", report["date"], torch.__version__):
        assert expected in text
    runs = sorted(path.name for path in (output / "demo").glob("*.run.jsonl"))
    assert runs == [f"mmlu_1shot_cpu_float32_{form}.run.jsonl" for form in ("int4", "int8", "none")]


def test_weights_are_counted_as_the_model_counts_them(study):
    for row in study[1]["formats"]:
        model = LLM.load("demo", device="cpu", quant=row["format"]).model
        weights = sum(cost.parameters for cost in model.costs(0))
        assert row["bits"] == 8 * row["nbytes"] / weights


def test_a_finished_study_measures_nothing(study, monkeypatch, capsys):
    output, report = study
    before = lines(output)
    monkeypatch.setattr(LLM, "load", None)
    again = run(output, "--formats", "int8", "int4", "--limit", "2", "--shots", "1")
    assert again | {"date": ""} == report | {"date": ""}
    assert lines(output) == before
    assert "demo: 3 of 3 formats are in " in capsys.readouterr().err


def test_a_killed_run_continues(tmp_path, monkeypatch):
    """With a torn last line and rows of another setting: the same numbers as in one session."""
    run(tmp_path, "--no-mmlu", "--formats", "int8")
    run(tmp_path, "--no-mmlu", "--formats", "none", "--text-tokens", "300")
    path = tmp_path / "demo" / "quantization.jsonl"
    first, second, other = path.read_text().splitlines()
    path.write_text(f"{first}\n{other}\n{second[:50]}")
    report = run(tmp_path, "--no-mmlu", "--formats", "int8")
    kept, added = json.loads(first), json.loads(second)
    assert lines(tmp_path)[:2] == [first, other]
    assert len(lines(tmp_path)) == 3
    for row, expected in zip(report["formats"], (kept, added), strict=True):
        assert {name: row[name] for name in ("perplexity", "agreement", "nbytes", "mmlu")} == {
            name: expected[name] for name in ("perplexity", "agreement", "nbytes", "mmlu")
        }


def test_an_unavailable_format_is_named_and_the_others_are_measured(tmp_path, monkeypatch, capsys):
    def refuse(device: torch.device) -> None:
        raise BareloopError("bitsandbytes is not here")

    monkeypatch.setattr(bnb, "check", refuse)
    report = run(tmp_path, "--no-mmlu", "--formats", "4bit", "int8")
    assert [row["format"] for row in report["formats"]] == ["none", "int8"]
    assert report["missing"] == {"nf4": "bitsandbytes is not here"}
    assert "nf4 was not measured: bitsandbytes is not here" in capsys.readouterr().out
    assert "nf4 was not measured" in (tmp_path / "demo" / "quantization.md").read_text()


def test_missing_mmlu_data_is_an_error_only_if_it_was_named(shared, tmp_path, monkeypatch, capsys):
    (tmp_path / "text").write_text(TEXT)
    monkeypatch.setattr("evals.mmlu.DATA", str(tmp_path / "nowhere"))
    model = str(shared / "checkpoints" / "llama-tinystories-656k")
    arguments = ["-m", model, *SMALL, "--formats", "none", "--text", str(tmp_path / "text")]
    arguments += ["--output-dir", str(tmp_path / "results")]
    main(parser().parse_args(arguments))
    assert "without MMLU: --data" in capsys.readouterr().err
    with pytest.raises(BareloopError, match="is not a folder"):
        main(parser().parse_args([*arguments, "--data", str(tmp_path / "nowhere")]))


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        (["--window", "1"], "--window 1: use 2 or more"),
        (["--window", "1025"], "--window 1,025: the model's window holds 1,024 tokens"),
        (["--text-tokens", "1"], "--text-tokens 1: use 2 or more"),
        (["--formats", "int3"], "unknown weight format 'int3'"),
        (["--limit", "0"], "--limit 0: use 1 or more"),
        (["--shots", "9"], "--shots 9: the dev split"),
    ],
)
def test_wrong_flags_are_refused(tmp_path, flags, line):
    with pytest.raises(UsageError, match=line):
        run(tmp_path, *flags)
    assert not (tmp_path / "demo").exists()


def test_a_text_of_one_token_is_too_short(tmp_path):
    (tmp_path / "text").write_text("a")
    with pytest.raises(BareloopError, match=r"text has 1 token\(s\); perplexity needs 2 or more"):
        run(tmp_path, "--text", str(tmp_path / "text"))


def test_a_study_that_fails_leaves_no_empty_file(tmp_path, monkeypatch):
    def fail(*_: object) -> None:
        raise BareloopError("it is broken")

    monkeypatch.setattr("evals.studies.weight_formats.measure", fail)
    with pytest.raises(BareloopError, match="it is broken"):
        run(tmp_path, "--no-mmlu", "--formats", "none")
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_a_quantized_checkpoint_is_refused(tmp_path):
    LLM.load("demo", device="cpu", quant="int8").save(tmp_path / "quantized")
    with pytest.raises(UsageError, match="is in int8 already; name the unquantized checkpoint"):
        main(parser().parse_args(["-m", str(tmp_path / "quantized"), "--output-dir", str(tmp_path)]))


def test_help_needs_no_torch_and_an_error_is_one_line(tmp_path):
    command = [sys.executable, "-X", "importtime", "-m", "evals.quantization"]
    process = subprocess.run([*command, "--help"], capture_output=True, text=True)
    assert process.returncode == 0
    assert " ".join(FORMATS[:2]) in process.stdout
    assert not [line for line in process.stderr.splitlines() if line.rpartition("|")[2].strip() == "torch"]
    wrong = [*command[:1], *command[3:], "--formats", "int3", "--output-dir", str(tmp_path)]
    process = subprocess.run(wrong, capture_output=True, text=True)
    assert process.returncode == 2
    assert process.stderr.count("\n") == 1
