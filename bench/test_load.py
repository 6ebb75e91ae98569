"""How long a checkpoint takes from its files to a model, and how much memory at the peak.

pytest --benchmark-only bench/test_load.py
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

# About 1 GB in bfloat16, with the proportions of Llama-3.2-1B.
CONFIG = {
    "model_type": "llama",
    "vocab_size": 32_000,
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 7,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 64,
    "max_position_embeddings": 4096,
    "tie_word_embeddings": True,
    "dtype": "bfloat16",
}

# Runs in a process of its own, so that the peak is the load's: prints seconds, peak bytes beyond the imports
# and bytes of weights. VmHWM counts mapped pages too; a sum over all weights brings every one of them in.
PROGRAM = """
import sys, time, torch
from engine import LLM
def peak():
    return next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith("VmHWM"))
torch.ones(64, 64) @ torch.ones(64, 64)
import engine.llm
before = peak()
start = time.perf_counter()
llm = LLM.load(sys.argv[1], device="cpu", dtype=sys.argv[2])
seconds = time.perf_counter() - start
for parameter in llm.model.parameters():
    parameter.view(torch.int16 if parameter.itemsize == 2 else torch.int32).view(-1)[::1024].max()
print(seconds, peak() - before, sum(parameter.nbytes for parameter in llm.model.parameters()))
"""


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with about 1 GB of random weights, in the page cache because it was just written."""
    from engine import LLM

    folder = tmp_path_factory.mktemp("load") / "model"
    LLM.from_config(CONFIG, seed=0, device="cpu", dtype="bfloat16").save(folder)
    return folder


@pytest.mark.benchmark(group="load")
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_load(benchmark: Any, checkpoint: Path, dtype: str) -> None:
    """`bfloat16` is as stored (mapped, or read into place), `float32` converts every weight."""
    if sys.platform != "linux":
        pytest.skip("peak memory is read from /proc")
    told = []

    def load() -> None:
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM, str(checkpoint), dtype], capture_output=True, text=True, check=True
        )
        told.append([float(word) for word in done.stdout.split()])

    benchmark.pedantic(load, rounds=3)
    seconds, peak, weights = (sorted(column)[1] for column in zip(*told, strict=True))
    benchmark.extra_info |= {
        "config": json.dumps(CONFIG),
        "load_seconds": seconds,
        "peak_bytes_beyond_imports": peak,
        "weight_bytes": weights,
        "peak_minus_1.1_weights_MB": (peak - 1.1 * weights) / 1e6,
    }
    assert peak <= 1.1 * weights + 150e6
