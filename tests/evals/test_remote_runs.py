"""Runs on servers beside runs that were computed here: in comparisons, plots and reports."""

from __future__ import annotations

import pytest

from evals import compare, report
from evals.runs.collection import load_runs
from evals.runs.summary import accuracy_table, cost_lines, summarize
from tests.evals.synthetic import SERVER, write_runs


@pytest.fixture
def results(tmp_path):
    """Runs of two benchmarks by one model, here and on a server."""
    for task in ("mmlu", "squad"):
        for device in ("cpu", "remote"):
            write_runs(tmp_path, {"owner/model": 0.6}, task, device=device, seed=3)
    return tmp_path


def test_they_are_labelled_and_have_no_costs_that_nobody_knows(results):
    runs = {run.path.name: run for run in load_runs([str(results)])}
    assert set(runs) == {
        "mmlu_5shot_cpu_float32_none.run.jsonl",
        "mmlu_5shot_remote.run.jsonl",
        "squad_0shot_cpu_float32_none.run.jsonl",
        "squad_0shot_remote.run.jsonl",
    }
    for name in ("mmlu_5shot_remote", "squad_0shot_remote"):
        run = runs[f"{name}.run.jsonl"]
        assert run.label == "owner/model remote"
        summary = summarize(run.header, run.records.values(), {})
        assert summary.setting.endswith("-shot, remote")
        lines = "\n".join(cost_lines(summary))
        for unknown in ("CPU", "memory", "shared", "prompts 0", "None"):
            assert unknown not in lines
        assert "questions/s" in lines
        assert accuracy_table([summary, summary]).row_count


def test_they_are_compared_plotted_and_reported(results, capsys):
    folder = str(results)
    compare.main(compare.parser().parse_args([folder]))
    assert "owner/model remote" in capsys.readouterr().out
    page = results / "page.html"
    report.main(report.parser().parse_args([folder, "--output", str(page)]))
    html = page.read_text()
    assert SERVER in html
    assert ">remote<" in html


def test_their_costs_are_plotted_without_memory(results):
    from evals.plotting.costs import costs_by_benchmark, plot_costs

    runs = load_runs([str(results)])
    costs = [cost for block in costs_by_benchmark(runs).values() for cost in block]
    remote = [cost for cost in costs if cost.setting == "remote"]
    assert len(remote) == 2
    assert all(list(cost.seconds) == ["real"] and cost.bars[2] == [] for cost in remote)
    assert plot_costs(runs).figure.axes
    assert plot_costs([run for run in runs if run.header["device"] == "remote"]).figure.axes
