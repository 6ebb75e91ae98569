"""The comparison with other engines, on the smallest shape."""

from __future__ import annotations

import json

import pytest
import torch

from bench import peer_engines, peers, shapes
from engine import LLM
from engine.runtime.errors import BareloopError, UsageError
from tests.bench.workers import SharedWorker, load_nothing

IDS = list(range(5, 25))


def options(*flags: str):
    return peers.parser().parse_args(list(flags))


def test_every_engine_has_a_row_with_all_rounds(tiny_shape, tmp_path, capsys, monkeypatch):
    def start(name, *settings):
        return (SharedWorker if name == "bareloop-float32" else peer_engines.Worker)(name, *settings)

    monkeypatch.setattr(peers, "Worker", start)  # only the first one in its own process, to save time
    flags = ["-m", str(tiny_shape), "--rounds", "2", "--new-tokens", "4", "--prefill-tokens", "20"]
    engines = ["bareloop-bfloat16", "bareloop-float32"]
    peers.main(options(*flags, "--engines", *engines, "--output-dir", str(tmp_path / "out")))
    report = json.loads(next((tmp_path / "out").glob("*.json")).read_text())
    assert [entry["engine"] for entry in report["engines"]] == engines
    assert all(len(entry[key]) == 2 for entry in report["engines"] for key in ("decode", "prefill", "bandwidth"))
    assert "bareloop-float32" in capsys.readouterr().out


def test_an_unknown_engine_is_refused():
    with pytest.raises(UsageError, match="unknown engine 'vllm'; use bareloop-bfloat16"):
        peers.main(options("--engines", "vllm"))


class FakeWorker:
    """An engine without a process: "llama.cpp-BF16" fails at its second run, "llama.cpp-Q8_0" does not load."""

    def __init__(self, name, folder, threads, window):
        if name == "llama.cpp-Q8_0":
            raise BareloopError(f"{name}: no such format")
        self.name, self.runs = name, 0

    def run(self, ids, new):
        self.runs += 1
        if self.name == "llama.cpp-BF16" and self.runs > 2:
            raise BareloopError(f"{self.name} crashed (SIGSEGV)")
        return [0.1 * (number + 1) for number in range(new)]

    def close(self):
        pass


def test_an_engine_that_fails_is_named_and_the_others_keep_their_rows(tiny_shape, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(peers, "Worker", FakeWorker)
    monkeypatch.setattr(peers, "token_bytes", lambda *_: 1000)
    engines = ["bareloop-bfloat16", "llama.cpp-BF16", "llama.cpp-Q8_0"]
    peers.main(options("-m", str(tiny_shape), "--rounds", "2", "--engines", *engines, "--output-dir", str(tmp_path)))
    captured = capsys.readouterr()
    assert "bareloop-bfloat16" in captured.out
    assert "left out: llama.cpp-BF16 crashed (SIGSEGV)" in captured.err
    assert "left out: llama.cpp-Q8_0: no such format" in captured.err
    report = json.loads((tmp_path / f"{tiny_shape.name}.json").read_text())["engines"]
    assert [len(entry["decode"]) for entry in report] == [2, 0, 0]
    assert [entry["error"] for entry in report] == [
        "",
        "llama.cpp-BF16 crashed (SIGSEGV)",
        "llama.cpp-Q8_0: no such format",
    ]


def test_a_comparison_without_any_result_fails(tiny_shape, tmp_path, monkeypatch):
    monkeypatch.setattr(peers, "Worker", FakeWorker)
    with pytest.raises(BareloopError, match=r"no engine could be measured: .*no such format"):
        peers.main(options("-m", str(tiny_shape), "--engines", "llama.cpp-Q8_0", "--output-dir", str(tmp_path)))


def test_a_crash_of_a_worker_is_an_error_with_its_signal():
    worker = peer_engines.Worker("bareloop-float32", load=load_nothing)
    worker.process.kill()
    with pytest.raises(BareloopError, match=r"^bareloop-float32 crashed \(SIGKILL\)$"):
        worker.run(IDS, 2)
    worker.close()


@pytest.mark.parametrize("model_type", ["qwen2", "llama", "olmo2"])
def test_llama_cpp_gets_the_same_weights(model_type, tmp_path, monkeypatch):
    """Its logits equal ours, after the conversion of names, permutations and rotary embeddings."""
    pytest.importorskip("llama_cpp")
    pytest.importorskip("gguf")
    monkeypatch.setattr("bench.gguf_files.cache_folder", lambda: tmp_path / "shapes")
    config = {**shapes.SHAPES["tiny"], "model_type": model_type, "tie_word_embeddings": model_type != "olmo2"}
    if model_type == "llama":
        scaling = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
        config |= {"rope_scaling": {**scaling, "original_max_position_embeddings": 64}, "rope_theta": 500.0}
    config |= {"num_key_value_heads": 4} if model_type == "olmo2" else {}
    folder = tmp_path / "model"
    shapes.write(config, folder)
    llm = LLM.load(folder, device="cpu")
    import llama_cpp.llama_cpp as lib

    from bench.gguf_files import gguf_file

    model = lib.llama_model_load_from_file(str(gguf_file(folder, "BF16")).encode(), lib.llama_model_default_params())
    context = lib.llama_init_from_model(model, lib.llama_context_default_params())
    tokens = (lib.llama_token * len(IDS))(*IDS)
    assert lib.llama_decode(context, lib.llama_batch_get_one(tokens, len(IDS))) == 0
    theirs = torch.tensor(lib.llama_get_logits_ith(context, -1)[: config["vocab_size"]])
    ours = llm.logits(IDS)[-1]
    assert torch.nn.functional.cosine_similarity(ours, theirs, dim=0) > 0.999
