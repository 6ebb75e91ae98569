"""Time and peak memory of loading a checkpoint.

pytest --benchmark-only bench/test_load.py
"""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

from bench.measure import load_options
from bench.shapes import checkpoint

# Run in a subprocess, so that the peak is that of loading. Prints seconds, peak bytes beyond the imports, and bytes of
# weights. VmHWM counts mapped pages, too, so all weights are touched.
PROGRAM = """
import sys, time, torch
from engine import LLM
def peak():
    return next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith("VmHWM"))
torch.ones(64, 64) @ torch.ones(64, 64)
import engine.llm
before = peak()
start = time.perf_counter()
llm = LLM.load(sys.argv[1], device="cpu", dtype=sys.argv[2], quant=sys.argv[3])
seconds = time.perf_counter() - start
for parameter in llm.model.parameters():
    parameter.view(-1).view(torch.uint8)[::1024].max()
print(seconds, peak() - before, sum(parameter.nbytes for parameter in llm.model.parameters()))
"""


@pytest.mark.benchmark(group="load")
@pytest.mark.parametrize("weight_format", ["bfloat16", "float32", "int8", "int4"])
def test_load(benchmark: Any, request: pytest.FixtureRequest, weight_format: str) -> None:
    """`bfloat16` is as stored, the others convert every weight. After the first round the file is in the page cache."""
    if sys.platform != "linux":
        pytest.skip("peak memory is read from /proc")
    folder = checkpoint(request.config.getoption("--bench-model"))
    outputs, options = [], load_options(weight_format)

    def load() -> None:
        process = subprocess.run(
            [sys.executable, "-c", PROGRAM, str(folder), options["dtype"], options.get("quant", "none")],
            capture_output=True,
            text=True,
            check=True,
        )
        outputs.append([float(word) for word in process.stdout.split()])

    benchmark.pedantic(load, rounds=3)
    seconds, peak, weights = (sorted(column)[1] for column in zip(*outputs, strict=True))
    benchmark.extra_info |= {
        "model": folder.name,
        "load_seconds": seconds,
        "peak_bytes_beyond_imports": peak,
        "weight_bytes": weights,
        "peak_minus_1.1_weights_MB": (peak - 1.1 * weights) / 1e6,
    }
    assert peak <= 1.1 * weights + 150e6
