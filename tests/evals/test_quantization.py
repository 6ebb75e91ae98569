"""The program: its numbers against a plain loop, its files, how it goes on, its one-line errors."""

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
from evals.quantization import FORMATS, losses, main, parser

TEXT = "Once upon a time there was a cat called Mia who lived in a forest. Mia wished for a red ball. "
SMALL = ("--device", "cpu", "--text-tokens", "600", "--window", "128")


def run(output: Path, *words: str) -> dict[str, Any]:
    """The program with the demo model; -> quantization.json."""
    main(parser().parse_args(["-m", "demo", *SMALL, "--output-dir", str(output), *words]))
    return json.loads((output / "demo" / "quantization.json").read_text())


def lines(output: Path) -> list[str]:
    return (output / "demo" / "quantization.jsonl").read_text().splitlines()


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A run with MMLU."""
    output = tmp_path_factory.mktemp("whole")
    return output, run(output, "--formats", "int8", "int4", "--limit", "2", "--shots", "1")


def test_perplexity_and_agreement_equal_a_float64_loop(tmp_path):
    """By the forward pass without a state, one window after another, one token after another."""
    (tmp_path / "text").write_text(TEXT * 3)
    found = run(tmp_path, "--no-mmlu", "--text", str(tmp_path / "text"), "--window", "20", "--formats", "int4")
    rows = {row["format"]: row for row in found["formats"]}
    best: dict[str, list[int]] = {}
    for form in ("none", "int4"):
        llm = LLM.load("demo", device="cpu", quant=form)
        ids = llm.tokenizer.encode(TEXT * 3, add_special_tokens=False)
        surprise, best[form] = 0.0, []
        for first in range(0, len(ids), 19):
            window = [0, *ids[first : first + 19]]
            with torch.no_grad():
                logits = llm.model.logits(llm.model(Step.pack([window]))).double()
            for scores, target in zip(logits, window[1:], strict=False):
                surprise -= math.log(float(scores[target].exp()) / float(scores.exp().sum()))
                best[form].append(int(scores.argmax()))
        assert len(best[form]) == len(ids)
        assert rows[form]["perplexity"] == pytest.approx(math.exp(surprise / len(ids)), rel=1e-4)
    same = sum(a == b for a, b in zip(best["none"], best["int4"], strict=True)) / len(best["none"])
    assert rows["int4"]["agreement"] == pytest.approx(same, abs=1.5 / len(best["none"]))


def test_losses_of_many_rows_are_those_of_each():
    logits, targets = torch.randn(300, 50, generator=torch.Generator().manual_seed(0)), list(range(50)) * 6
    loss, likeliest = losses(logits, targets)
    expected = -logits.double().log_softmax(-1)[range(300), targets].sum()
    assert loss == pytest.approx(float(expected), rel=1e-6)
    assert likeliest.dtype == torch.int32
    assert likeliest.tolist() == logits.argmax(-1).tolist()


def test_the_files_tell_all(whole):
    output, found = whole
    assert [row["format"] for row in found["formats"]] == ["none", "int8", "int4"]
    plain, eight, four = found["formats"]
    assert plain["agreement"] == 1
    assert plain["bits"] == 32
    assert (plain["perplexity_change"], plain["mmlu_change"]) == (0, 0)
    assert abs(eight["perplexity_change"]) < 1
    assert 0.9 < four["agreement"] <= eight["agreement"] < 1
    assert 8 < eight["bits"] < 9
    assert plain["nbytes"] > eight["nbytes"] > four["nbytes"]
    assert all(row["tokens_per_second"] > 0 and row["load_seconds"] > 0 for row in found["formats"])
    assert all(0 <= row["mmlu"] <= 1 for row in found["formats"])
    assert found["settings"]["tokens"] == 600
    assert (found["settings"]["shots"], found["settings"]["limit"]) == (1, 2)
    assert found["torch"] == torch.__version__
    assert found["missing"] == {}
    text = (output / "demo" / "quantization.md").read_text()
    for expected in ("# Weight formats of demo", "| format | MB |", "| int4 | ", "±", found["date"], torch.__version__):
        assert expected in text
    runs = sorted(path.name for path in (output / "demo").glob("*.run.jsonl"))
    assert runs == [f"mmlu_1shot_cpu_float32_{form}.run.jsonl" for form in ("int4", "int8", "none")]


def test_weights_are_counted_as_the_model_counts_them(whole):
    for row in whole[1]["formats"]:
        model = LLM.load("demo", device="cpu", quant=row["format"]).model
        weights = sum(cost.parameters for cost in model.costs(0))
        assert row["bits"] == 8 * row["nbytes"] / weights


def test_what_is_done_is_not_done_again(whole, monkeypatch, capsys):
    output, found = whole
    before = lines(output)
    monkeypatch.setattr(LLM, "load", None)
    again = run(output, "--formats", "int8", "int4", "--limit", "2", "--shots", "1")
    assert again | {"date": ""} == found | {"date": ""}
    assert lines(output) == before
    assert "demo: 3 of 3 formats are in " in capsys.readouterr().err


def test_a_killed_run_goes_on(tmp_path, monkeypatch):
    """With a torn last line, and another setting's rows between: the same numbers as in one sitting."""
    run(tmp_path, "--no-mmlu", "--formats", "int8")
    run(tmp_path, "--no-mmlu", "--formats", "none", "--text-tokens", "300")
    path = tmp_path / "demo" / "quantization.jsonl"
    first, second, other = path.read_text().splitlines()
    path.write_text(f"{first}\n{other}\n{second[:50]}")
    found = run(tmp_path, "--no-mmlu", "--formats", "int8")
    kept, added = json.loads(first), json.loads(second)
    assert lines(tmp_path)[:2] == [first, other]
    assert len(lines(tmp_path)) == 3
    for row, expected in zip(found["formats"], (kept, added), strict=True):
        assert {name: row[name] for name in ("perplexity", "agreement", "nbytes", "mmlu")} == {
            name: expected[name] for name in ("perplexity", "agreement", "nbytes", "mmlu")
        }


def test_a_format_that_cannot_be_had_is_named_and_the_others_go_on(tmp_path, monkeypatch, capsys):
    def refuse(device: torch.device) -> None:
        raise BareloopError("bitsandbytes is not here")

    monkeypatch.setattr(bnb, "check", refuse)
    found = run(tmp_path, "--no-mmlu", "--formats", "4bit", "int8")
    assert [row["format"] for row in found["formats"]] == ["none", "int8"]
    assert found["missing"] == {"nf4": "bitsandbytes is not here"}
    assert "nf4 was not measured: bitsandbytes is not here" in capsys.readouterr().out
    assert "nf4 was not measured" in (tmp_path / "demo" / "quantization.md").read_text()


def test_questions_that_cannot_be_had_are_left_out_unless_they_were_named(shared, tmp_path, monkeypatch, capsys):
    (tmp_path / "text").write_text(TEXT)
    monkeypatch.setattr("evals.mmlu.DATA", str(tmp_path / "nowhere"))
    model = str(shared / "checkpoints" / "llama-tinystories-656k")
    words = ["-m", model, *SMALL, "--formats", "none", "--text", str(tmp_path / "text")]
    words += ["--output-dir", str(tmp_path / "results")]
    main(parser().parse_args(words))
    assert "without MMLU: --data" in capsys.readouterr().err
    with pytest.raises(BareloopError, match="is no folder here"):
        main(parser().parse_args([*words, "--data", str(tmp_path / "nowhere")]))


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--window", "1"], "--window 1: use 2 or more"),
        (["--window", "1025"], "--window 1,025: the model's window holds 1,024 tokens"),
        (["--text-tokens", "1"], "--text-tokens 1: use 2 or more"),
        (["--formats", "int3"], "unknown weight format 'int3'"),
        (["--limit", "0"], "--limit 0: use 1 or more"),
        (["--shots", "9"], "--shots 9: the dev split"),
    ],
)
def test_wrong_flags_are_refused(tmp_path, words, line):
    with pytest.raises(UsageError, match=line):
        run(tmp_path, *words)
    assert not (tmp_path / "demo").exists()


def test_a_text_of_one_token_is_too_short(tmp_path):
    (tmp_path / "text").write_text("a")
    with pytest.raises(BareloopError, match=r"text has 1 token\(s\); perplexity needs 2 or more"):
        run(tmp_path, "--text", str(tmp_path / "text"))


def test_a_quantized_checkpoint_is_refused(tmp_path):
    LLM.load("demo", device="cpu", quant="int8").save(tmp_path / "quantized")
    with pytest.raises(UsageError, match="is in int8 already; name the unquantized checkpoint"):
        main(parser().parse_args(["-m", str(tmp_path / "quantized"), "--output-dir", str(tmp_path)]))


def test_help_needs_no_torch_and_an_error_is_one_line(tmp_path):
    words = [sys.executable, "-X", "importtime", "-m", "evals.quantization"]
    told = subprocess.run([*words, "--help"], capture_output=True, text=True, timeout=60)
    assert told.returncode == 0
    assert " ".join(FORMATS[:2]) in told.stdout
    assert not [line for line in told.stderr.splitlines() if line.rpartition("|")[2].strip() == "torch"]
    wrong = [*words[:1], *words[3:], "--formats", "int3", "--output-dir", str(tmp_path)]
    done = subprocess.run(wrong, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
