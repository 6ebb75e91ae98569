"""--adapter in the programs of the engine and the chat."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import chat.__main__
import engine.__main__
from chat.models.local import LocalModel
from engine import LLM
from engine.checkpoints.adapters.config import CONFIG, WEIGHTS, LoraConfig
from engine.checkpoints.adapters.files import add_adapters, save_adapter
from engine.cli.parser import Parser, label, model_options, run, short_name
from engine.serve.engine import Engine, EngineOptions
from engine.serve.engines import public_names


@pytest.fixture
def tuned(tmp_path) -> Path:
    """The folder of an adapter of the demo model, after which it says something else."""
    llm = LLM.load("demo", "cpu")
    config = LoraConfig(rank=2, base="demo")
    add_adapters(llm.model, llm.family, config)
    for name, parameter in llm.model.named_parameters():
        if ".adapter.b." in name:
            torch.nn.init.normal_(parameter, 0, 0.2, generator=torch.Generator().manual_seed(1))
    save_adapter(llm.model, llm.family, config, tmp_path / "demo-tuned")
    return tmp_path / "demo-tuned"


def program(*arguments: str) -> int:
    """Run `python -m engine` in this process: -> its exit status."""
    with pytest.raises(SystemExit) as caught:
        run(engine.__main__.parser(), engine.__main__.main, arguments)
    return int(caught.value.code or 0)


def test_every_way_to_name_an_adapter_gives_the_same_text_and_saving_merges_it(tuned, tmp_path, capsys):
    texts = {}
    ways = {
        "base": ("-m", "demo"),
        "flag": ("-m", "demo", "--adapter", str(tuned)),
        "model": ("-m", str(tuned)),
        "alone": ("--adapter", str(tuned)),
    }
    for name, flags in ways.items():
        assert program(*flags, "--device", "cpu", "--json", "-n", "8", "The capital of France is") == 0
        texts[name] = json.loads(capsys.readouterr().out)
    assert texts["flag"]["model"] == "demo + demo-tuned"
    assert texts["flag"]["text"] == texts["model"]["text"] == texts["alone"]["text"] != texts["base"]["text"]
    assert program("-m", "demo", "--adapter", str(tuned), "--save", str(tmp_path / "merged")) == 0
    ids = [5, 6, 7, 8]
    assert torch.equal(LLM.load(tmp_path / "merged", "cpu").logits(ids), LLM.load(tuned, "cpu").logits(ids))
    assert not (tmp_path / "merged" / CONFIG).exists()


def test_inspect_shows_an_adapter(tuned, capsys):
    assert program("--inspect", "-m", str(tuned)) == 0
    out = capsys.readouterr().out
    assert "adapter" in out and "rank" in out and "q_proj" in out and "merged into the weights" in out


@pytest.mark.parametrize(
    ("flags", "code", "line"),
    [
        (("--adapter", "./nowhere", "hi"), 1, "no such folder: ./nowhere"),
        (("--adapter", "demo", "hi"), 1, "demo is a model, not an adapter; name it with -m"),
        (("-m", "demo", "--adapter", "demo", "hi"), 1, "demo is a model, not an adapter"),
        (("-m", "demo", "--adapter", "./nowhere", "hi"), 1, "no such folder: ./nowhere; an adapter is a folder with"),
        (("-m", "TUNED", "--adapter", "TUNED", "hi"), 2, "is an adapter itself, and two are not combined"),
        (("-m", "TUNED", "--save-quantized", "OUT", "--quant", "int8"), 2, "merge it with --save"),
    ],
)
def test_wrong_uses_are_refused_in_one_line(flags, code, line, tuned, tmp_path, capsys):
    places = {"TUNED": str(tuned), "OUT": str(tmp_path / "out")}
    assert program(*(places.get(flag, flag) for flag in flags)) == code
    assert line in capsys.readouterr().err


def test_a_chat_knows_the_adapter_and_a_servers_model_takes_none(tuned, capsys):
    base, adapted = LocalModel.load("demo", device="cpu"), LocalModel.load("demo", device="cpu", adapter=tuned)
    assert base.origin().fingerprint != adapted.origin().fingerprint
    assert adapted.origin() == LocalModel.load(tuned, device="cpu").origin()
    assert adapted.description.endswith(", adapter demo-tuned")
    with pytest.raises(SystemExit):
        run(chat.__main__.parser(), chat.__main__.main, ["--url", "http://127.0.0.1:1/v1", "--adapter", str(tuned)])
    assert "--adapter is for models that this program loads" in capsys.readouterr().err


def test_the_chats_adapter_is_not_that_of_a_model_that_is_opened_later(tuned, tmp_path):
    LLM.load("demo", "cpu").save(tmp_path / "other")
    options = chat.__main__.parser().parse_args(["-m", "demo", "--adapter", str(tuned), "--device", "cpu"])
    load, name = chat.__main__.local_models(options)
    adapters = [load(each).llm.adapter for each in (name, str(tmp_path / "other"), name)]
    assert adapters == [tuned, None, tuned]


def test_short_names_say_which_adapter_is_meant(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    snapshot = tmp_path / "models--owner--tuned" / "snapshots" / "0123"
    for folder in (snapshot, tmp_path / "squad" / "checkpoint-100", tmp_path / "squad" / "best"):
        folder.mkdir(parents=True)
    assert label("gpt2", None) == "gpt2"
    assert label("gpt2", "owner/tuned") == "gpt2 + owner__tuned"
    assert label("gpt2", "squad/checkpoint-100", "+") == "gpt2+squad__checkpoint-100"
    assert [short_name(name) for name in (snapshot, "squad/best", ".")] == ["owner__tuned", "best", tmp_path.name]
    monkeypatch.chdir(tmp_path / "squad")
    assert short_name("checkpoint-100") == "squad__checkpoint-100"


def test_replies_of_two_contents_of_one_adapter_folder_have_two_fingerprints(tuned):
    def fingerprint() -> str:
        options = EngineOptions(load={"device": "cpu"})
        return Engine("demo", LLM.load(tuned, device="cpu"), options).fingerprint

    first = fingerprint()
    assert fingerprint() == first
    tensors = load_file(tuned / WEIGHTS)
    save_file({name: tensor + 1 for name, tensor in tensors.items()}, tuned / WEIGHTS)
    assert fingerprint() != first


def test_a_server_names_the_adapter_and_counts_no_adapter_of_a_draft(tuned):
    assert public_names(["demo", "a/b"], ["first"], str(tuned)) == {"first": "demo", "a/b+demo-tuned": "a/b"}
    parser = Parser("program", "A program.")
    parser.add_model_options()
    options = model_options(parser.parse_args(["-m", "demo", "--adapter", str(tuned), "--device", "cpu"]))
    assert options["adapter"] == str(tuned)
    load = EngineOptions(load={**options, "draft": str(tuned)})
    assert load.needed_bytes("demo") > load.weight_bytes("demo") > 0
