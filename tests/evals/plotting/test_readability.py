"""Every text of every plot can be read, for many models, few, and odd ones."""

from __future__ import annotations

import pytest

from evals.data.subjects import GROUPS
from evals.plots import available_plots, plot_costs
from evals.plotting.common import Plot
from evals.runs.collection import group_runs, load_runs, split_unpooled
from tests.evals.plotting.reading import assert_readable
from tests.evals.synthetic import write_runs

SHORT_NAMES = ["demo", "gpt2", "Qwen/Qwen2.5-0.5B", "google/gemma-2-2b"]
LONG_NAMES = [
    "NousResearch/Hermes-3-Llama-3.2-3B-preview-v2",
    "unbreakablenameofamodelthatgoesonandonandx/B",
    "meta-llama/Llama-3.2-1B-Instruct-finetuned-$1",
    "organisation-of-models/a-very-long-name-instruct",
]
SUBJECTS = [subject for listed in GROUPS.values() for subject in listed]
PLOTS = {"accuracy", "subjects", "heat_map", "errors", "misses", "overlap", "choices", "reliability"}


def all_plots(folder) -> list[Plot]:
    """Return all plots of the runs in a folder."""
    runs = load_runs([str(folder)])
    parts = [part for group in group_runs(runs) for part in split_unpooled(group)]
    return [plot for part in parts for plot in available_plots(part, runs)] + [plot_costs(runs)]


def test_eight_models_and_57_subjects(tmp_path):
    for number, name in enumerate([*LONG_NAMES, *SHORT_NAMES]):
        header = {"device": "cuda", "quant": "int8"} if number % 2 else {}
        write_runs(tmp_path, {name: 0.1 + 0.1 * number}, subjects=dict.fromkeys(SUBJECTS, 3), **header)
    plots = all_plots(tmp_path)
    assert {plot.name for plot in plots} == PLOTS | {"costs"}
    for plot in plots:
        assert_readable(plot)


def test_one_model(tmp_path):
    write_runs(tmp_path, {"a": 0.4}, subjects=dict.fromkeys(SUBJECTS[:14], 3))
    plots = all_plots(tmp_path)
    assert {plot.name for plot in plots} == PLOTS - {"heat_map", "misses", "overlap"} | {"costs"}
    for plot in plots:
        assert_readable(plot)


@pytest.mark.parametrize("task", ["arc", "gsm8k"])
def test_other_benchmarks(tmp_path, task):
    write_runs(tmp_path, {SHORT_NAMES[0]: 0.5, LONG_NAMES[0]: 0.4}, task)
    write_runs(tmp_path, {LONG_NAMES[1]: 0.4}, task, quant="int8")
    for plot in all_plots(tmp_path):
        assert_readable(plot)


@pytest.mark.parametrize(
    ("rates", "subjects"),
    [((1.0, 1.0), {"$x$_^": 3, "$$": 4}), ((0.0, 0.0), {"anatomy": 120}), ((1.0, 0.0), {"anatomy": 1})],
    ids=["all right", "all wrong", "one question"],
)
def test_extreme_results_and_names_with_formulas(tmp_path, rates, subjects):
    models = {f"/models/$a$ {number}": rate for number, rate in enumerate(rates)}
    write_runs(tmp_path, models, subjects=subjects, chat=True)
    for plot in all_plots(tmp_path):
        assert_readable(plot)
