"""Plots of benchmark files, and one line for files of another kind."""

from __future__ import annotations

import json

import pytest

from bench import plot
from engine.runtime.errors import BareloopError

ROW = {
    "device": "cpu", "dtype": "bfloat16", "format": "bfloat16", "flops_per_byte": 1.0, "flops_per_second": 3e10,
    "latency_p50": 0.03, "latency_p99": 0.04, "read_bandwidth": 4e10, "gemm_flops_per_second": 4e11,
}  # fmt: skip


def write_benchmarks(path, *names: tuple[str, str]):
    benchmarks = [{"name": name, "group": group, "extra_info": ROW} for group, name in names]
    path.write_text(json.dumps({"benchmarks": benchmarks}))
    return path


def test_both_plots_are_written(tmp_path):
    names = ("decode", "test_decode[cpu-bfloat16-128-1]"), ("prefill", "test_prefill[cpu-bfloat16-512]")
    path = write_benchmarks(tmp_path / "run.json", *names)
    plot.main(plot.parser().parse_args([str(path), "--output-dir", str(tmp_path / "out")]))
    assert {file.name for file in (tmp_path / "out").iterdir()} == {
        f"{name}.{suffix}" for name in ("latency", "roofline") for suffix in ("png", "svg")
    }


def test_a_benchmark_is_labelled_by_its_parameters():
    benchmark = {**ROW, "group": "decode", "name": "test_decode[cpu-bfloat16-128-4]"}
    assert plot.label(benchmark) == "decode 128 tokens, 4 row(s)"
    assert plot.label({**benchmark, "group": "prefill", "name": "test_prefill[cpu-bfloat16-512]"}) == "prefill 512"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot read"),
        ("{}", "not a file written by --bench"),
        ('{"benchmarks": []}', "has no benchmark"),
    ],
)
def test_a_file_that_cannot_be_plotted_is_one_line(tmp_path, content, message):
    path = tmp_path / "run.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(BareloopError, match=message):
        plot.read(path)
