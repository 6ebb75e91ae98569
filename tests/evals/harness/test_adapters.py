"""Runs of a model with an adapter: their own folders, labels and identity, never mixed with the base model's."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import evals.mmlu
from engine import LLM
from engine.checkpoints.adapters.config import LoraConfig
from engine.checkpoints.adapters.files import add_adapters, save_adapter
from engine.cli.parser import run
from evals.compare import load_runs
from evals.runs.run_file import read

FLAGS = ("--data", "demo", "--limit", "2", "--shots", "0", "--device", "cpu")


def make_adapter(folder: Path, scale: float) -> Path:
    """An adapter of the demo model, of this strength."""
    llm = LLM.load("demo", "cpu")
    config = LoraConfig(rank=2, targets=("q_proj", "up_proj"), base="demo")
    add_adapters(llm.model, llm.family, config)
    for name, parameter in llm.model.named_parameters():
        if ".adapter.b." in name:
            parameter.data.fill_(scale)
    save_adapter(llm.model, llm.family, config, folder)
    return folder


@pytest.fixture
def tuned(tmp_path) -> Path:
    """The folder of an adapter of the demo model."""
    return make_adapter(tmp_path / "demo-tuned", 0.01)


def mmlu(*arguments: str) -> int:
    """Run evals.mmlu in this process: -> its exit status."""
    with pytest.raises(SystemExit) as caught:
        run(
            evals.mmlu.parser(),
            lambda options: evals.mmlu.run_program(options, evals.mmlu.load_tasks, "mmlu"),
            arguments,
        )
    return int(caught.value.code or 0)


def test_a_run_with_an_adapter_has_its_own_folder_label_and_identity(tuned, tmp_path, capsys):
    output = ("--output-dir", str(tmp_path / "results"))
    assert mmlu("-m", "demo", *FLAGS, *output) == 0
    assert mmlu("-m", "demo", "--adapter", str(tuned), *FLAGS, *output) == 0
    assert mmlu("-m", str(tuned), *FLAGS, *output) == 0
    runs = {run.path.parent.name: run for run in load_runs([str(tmp_path / "results")])}
    assert {name: run.label for name, run in runs.items()} == {
        "demo": "demo",
        "demo+demo-tuned": "demo + demo-tuned",
        "demo-tuned": "demo-tuned",
    }
    headers = [runs[name].header for name in ("demo", "demo+demo-tuned", "demo-tuned")]
    assert headers[0]["weights"] != headers[1]["weights"] == headers[2]["weights"]
    assert headers[1]["adapter"] == str(tuned.resolve()) and "adapter" not in headers[0]
    first, second, third = ([record["loglikelihoods"] for record in run.records.values()] for run in runs.values())
    assert len({json.dumps(each) for each in (first, second, third)}) == 2


def test_a_run_is_not_continued_with_another_adapter_of_the_same_name(tuned, tmp_path, capsys):
    arguments = ("-m", "demo", "--adapter", str(tuned), *FLAGS, "--output-dir", str(tmp_path / "results"))
    assert mmlu(*arguments) == 0
    (path,) = (tmp_path / "results").rglob("*.run.jsonl")
    before = read(path)
    make_adapter(tuned, 0.02)
    assert mmlu(*arguments) == 1
    assert "other weights" in capsys.readouterr().err
    assert read(path) == before


def test_a_servers_model_takes_no_adapter(tuned, capsys):
    assert mmlu("-m", "x", "--url", "http://127.0.0.1:1/v1", "--adapter", str(tuned), *FLAGS[:4]) == 2
    assert "--adapter: the server with --url decides that; leave it out" in capsys.readouterr().err
