"""Fixtures of the plot tests: three runs of two subjects and their figures, drawn once."""

from __future__ import annotations

from functools import partial

import pytest

from engine.cli import figures
from evals.analysis.patterns import common_misses
from evals.plots import available_plots
from evals.plotting import patterns
from tests.evals.synthetic import write_and_load


@pytest.fixture(autouse=True)
def quick_plots(monkeypatch):
    """Use small images and few permutations."""
    make_plots_quick(monkeypatch)


@pytest.fixture(scope="session")
def group(tmp_path_factory):
    """Three models on two subjects."""
    folder = tmp_path_factory.mktemp("runs")
    return write_and_load(folder, {"one": 0.3, "two": 0.5, "three": 0.8}, subjects={"anatomy": 50, "astronomy": 150})


@pytest.fixture(scope="session")
def plots(group):
    """The figures of the group's plots, by name."""
    with pytest.MonkeyPatch.context() as patch:
        make_plots_quick(patch)
        return {plot.name: plot.figure for plot in available_plots(group)}


def make_plots_quick(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(figures, "DPI", 30)
    patch.setattr(patterns, "common_misses", partial(common_misses, permutations=200))
