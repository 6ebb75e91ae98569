"""The plot of a timing study shows every measured configuration."""

from __future__ import annotations

from dataclasses import replace

import pytest

from evals.plotting.timing import plot_measurements
from evals.runs.measurements import Configuration, Measurement, Result

ON_GPU = Measurement(
    questions=10, accuracy=0.5, stderr=0.1667, tokens=2651, load=0.1, real=0.25, cpu=3.9, gpu=0.2, cycles=None,
    peak_memory=300_000_000, gpu_memory=50_000_000, weights=19_000_000,
)  # fmt: skip


@pytest.mark.parametrize("count", [1, 18])
def test_the_plot_shows_every_configuration_with_its_accuracy(tmp_path, count):
    results = [
        Result(Configuration(f"cuda:{number}", "none"), replace(ON_GPU, accuracy=number / 100))
        for number in range(count)
    ]
    unmeasured = Result(Configuration("mps", "none"), reason="not available")
    plot_measurements([*results, unmeasured], "a title", tmp_path / "timing")
    assert (tmp_path / "timing.png").read_bytes().startswith(b"\x89PNG")
    text = (tmp_path / "timing.svg").read_text()
    for number in range(count):
        assert f"<!-- cuda:{number} none -->" in text
        assert f"<!-- 0.25 s, {number:.2f} ± 16.67 % -->" in text
    assert text.count("<!-- 50 MB -->") == count
    assert "mps" not in text


def test_each_device_shows_its_plain_run_first(tmp_path):
    names = [("cuda", "int4"), ("cpu", "int8"), ("cuda", "none"), ("cpu", "none")]
    plot_measurements([Result(Configuration(*pair), ON_GPU) for pair in names], "a title", tmp_path / "timing")
    text = (tmp_path / "timing.svg").read_text()
    labels = [f"<!-- {name} -->" for name in ("cuda none", "cuda int4", "cpu none", "cpu int8")]
    assert sorted(labels, key=text.index) == labels
