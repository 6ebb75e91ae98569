"""The notebook: all cells run in order, with the embedded model."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType

import pytest

from evals import __main__ as overview

NOTEBOOK = Path(__file__).parents[2] / "evals" / "colab.ipynb"


def run_here(*command: object) -> None:
    """Run `python -m evals…` in this process, which saves the imports."""
    _, _, module, *arguments = map(str, command)
    name = module.removeprefix("evals").removeprefix(".")
    with pytest.raises(SystemExit) as status:
        overview.dispatch([*([name] if name else []), *arguments])
    assert status.value.code == 0


def test_every_cell_runs_and_shows_progress_and_plots(tmp_path, monkeypatch, capfd):
    """In a plain interpreter: of IPython only the functions that show an image are used, and they are faked."""
    notebook = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    assert notebook["nbformat"] == 4
    assert not any(cell.get("outputs") for cell in notebook["cells"])
    shown: list[str] = []
    ipython, display = ModuleType("IPython"), ModuleType("IPython.display")
    ipython.version_info = (9, 0)  # type: ignore[attr-defined]  # matplotlib reads it
    display.Image, display.display = (lambda filename: filename), shown.append  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "IPython", ipython)
    monkeypatch.setitem(sys.modules, "IPython.display", display)
    monkeypatch.setenv("PYTHONPATH", str(NOTEBOOK.parents[1]))
    monkeypatch.setattr("evals.run.run_in_subprocess", lambda score, *arguments, debug: score(*arguments))
    monkeypatch.chdir(tmp_path)
    variables: dict[str, object] = {}
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            exec("".join(cell["source"]).replace("LIMIT = 20", "LIMIT = 3"), variables)
            if "run" in variables:  # it has run one program in a subprocess
                variables["run"] = run_here
    output = capfd.readouterr()
    text = output.out + output.err
    for expected in ("evals.mmlu", "[2/2] mmlu, demo int8", "mmlu: 6/6", "Are the mistakes random?", "Hardest"):
        assert expected in text, expected
    assert (tmp_path / "results" / "report.html").stat().st_size > 100_000
    assert len(shown) >= 7
    assert all(Path(name).read_bytes().startswith(b"\x89PNG") for name in shown)
