"""Loading weights: peak memory, and messages if memory is short."""

from __future__ import annotations

import subprocess
import sys

import pytest

from engine import LLM
from engine.runtime.errors import BareloopError


def test_weights_that_do_not_fit_into_memory_are_refused_before_they_are_read(tiny_llama, monkeypatch):
    monkeypatch.setattr("engine.checkpoints.loading.free_memory", lambda device: 1000)
    with pytest.raises(BareloopError, match=r"out of memory: the weights take .* GB in bfloat16.*a model of at most"):
        LLM.load(tiny_llama.folder, "cpu", "bfloat16")


def test_the_message_about_memory_names_a_dtype_that_fits(tiny_llama, monkeypatch):
    size = sum(parameter.nbytes for parameter in LLM.load(tiny_llama.folder, "cpu", "float32").model.parameters())
    monkeypatch.setattr("engine.checkpoints.loading.free_memory", lambda device: size // 2)
    with pytest.raises(BareloopError, match=r"--dtype bfloat16 takes"):
        LLM.load(tiny_llama.folder, "cpu", "float32")


def test_the_message_about_memory_names_a_dtype_or_format_that_fits(tiny_llama, monkeypatch):
    monkeypatch.setattr("engine.checkpoints.loading._can_map", lambda *_: False)
    monkeypatch.setattr("engine.checkpoints.loading.free_memory", lambda _: 150_000)
    with pytest.raises(BareloopError, match=r"in float32, .*; --dtype bfloat16 takes"):
        LLM.load(tiny_llama.folder, "cpu")
    monkeypatch.setattr("engine.checkpoints.loading.free_memory", lambda _: 80_000)
    with pytest.raises(BareloopError, match="--quant int8 takes about"):
        LLM.load(tiny_llama.folder, "cpu", "bfloat16")


PROGRAM = """
import os, sys
import torch
from engine import LLM

def peak():
    return next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith("VmHWM"))

for dtype in ("bfloat16", "float32"):
    if os.fork():  # no thread has been started before
        _, status = os.wait()
        assert status == 0
        continue
    torch.ones(64, 64) @ torch.ones(64, 64)  # allocate the library's buffers
    before = peak()
    llm = LLM.load(sys.argv[1], device="cpu", dtype=dtype)
    total = sum(float(parameter.sum()) for parameter in llm.model.parameters())
    print(dtype, peak() - before, sum(parameter.nbytes for parameter in llm.model.parameters()), flush=True)
    os._exit(0)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is read from /proc")
def test_loading_never_keeps_a_second_copy_of_the_weights(tmp_path):
    """The benchmark bench/test_load.py measures it with 1 GB; here a fifth of that, each dtype in a new process."""
    config = {
        "model_type": "llama",
        "vocab_size": 16_000,
        "hidden_size": 1024,
        "intermediate_size": 6144,
        "num_hidden_layers": 4,
        "num_attention_heads": 16,
        "num_key_value_heads": 16,
        "dtype": "bfloat16",
    }
    LLM.from_config(config, device="cpu", dtype="bfloat16").save(tmp_path / "model")
    arguments = [sys.executable, "-c", PROGRAM, str(tmp_path / "model")]
    done = subprocess.run(arguments, capture_output=True, text=True, check=True)
    lines = [line.split() for line in done.stdout.splitlines()]
    assert [dtype for dtype, *_ in lines] == ["bfloat16", "float32"]
    for _, peak, weights in lines:
        assert int(peak) <= 1.1 * int(weights) + 150e6
