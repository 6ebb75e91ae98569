"""Shared parts of the plots: colours."""

from __future__ import annotations

from engine.cli.figures import PALETTE
from evals.plotting.common import run_colours
from evals.runs.collection import group_runs, load_runs
from tests.evals.synthetic import write_runs


def test_a_model_has_the_same_colour_in_the_plots_of_all_benchmarks(tmp_path):
    write_runs(tmp_path, {"one": 0.5, "two": 0.5, "three": 0.5}, "mmlu", subjects={"anatomy": 2})
    write_runs(tmp_path, {"three": 0.5, "one": 0.5}, "gsm8k", subjects={"gsm8k": 2})
    runs = load_runs([str(tmp_path)])
    mmlu, gsm8k = ({run.label: run for run in group.runs} for group in group_runs(runs))
    colours = dict(zip(mmlu, run_colours(list(mmlu.values()), runs), strict=True))
    assert len(set(colours.values())) == 3
    assert run_colours(list(gsm8k.values()), runs) == [colours[label] for label in gsm8k]
    repeated = [*mmlu.values()] * 3
    assert len(set(run_colours(repeated))) == len(PALETTE), "runs of one model differ while there are colours"
