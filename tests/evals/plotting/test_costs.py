"""The plot of costs shows the values of the records."""

from __future__ import annotations

from evals.plotting.costs import costs_by_benchmark, plot_costs
from evals.runs.collection import load_runs
from tests.evals.plotting.reading import texts
from tests.evals.synthetic import write_runs


def test_costs_of_every_run_are_shown_by_benchmark(tmp_path):
    write_runs(tmp_path, {"one": 0.5}, "gsm8k", device="cuda", subjects={"gsm8k": 4})
    write_runs(tmp_path, {"one": 0.5}, "mmlu", subjects={"anatomy": 4})
    runs = load_runs([str(tmp_path)])
    labels = texts(plot_costs(runs).figure)
    assert [text for text in labels if text.endswith("-shot")] == ["MMLU, 5-shot", "GSM8K, 5-shot"]
    for run in runs:
        times = [record["times"] for record in run.records.values()]
        for kind in {"real", "cpu", "gpu"} & times[0].keys():
            start, end = f"{1000 * sum(time[kind] for time in times) / 4:.3g}", f"ms {kind}"
            assert len([text for text in labels if text.startswith(start) and text.lower().endswith(end)]) == 1
    assert labels.count("1,500 MB") == 2
    assert sum("tokens/s" in text for text in labels) == 1


def test_the_plain_run_comes_before_its_weight_formats(tmp_path):
    for quant in ("int4", "int8", "none"):
        write_runs(tmp_path, {"b": 0.5, "a": 0.5}, subjects={"anatomy": 2}, quant=quant)
    (block,) = costs_by_benchmark(load_runs([str(tmp_path)])).values()
    assert [cost.label for cost in block] == ["a", "a int8", "a int4", "b", "b int8", "b int4"]
