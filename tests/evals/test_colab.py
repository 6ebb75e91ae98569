"""The notebook: its cells run from the first to the last, on the embedded model."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType

NOTEBOOK = Path(__file__).parents[2] / "evals" / "colab.ipynb"


def test_every_cell_runs_and_shows_progress_and_pictures(tmp_path, monkeypatch, capsys):
    """In a plain interpreter; all of IPython that it uses is what shows a picture."""
    notebook = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    assert notebook["nbformat"] == 4
    assert not any(cell.get("outputs") for cell in notebook["cells"])
    shown: list[str] = []
    display = ModuleType("IPython.display")
    display.Image, display.display = (lambda filename: filename), shown.append  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "IPython", ModuleType("IPython"))
    monkeypatch.setitem(sys.modules, "IPython.display", display)
    monkeypatch.setenv("PYTHONPATH", str(NOTEBOOK.parents[1]))
    monkeypatch.chdir(tmp_path)
    variables: dict[str, object] = {}
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            exec("".join(cell["source"]).replace("LIMIT = 20", "LIMIT = 3"), variables)
    told = capsys.readouterr().out
    for expected in ("evals.mmlu", "[2/2] mmlu, demo int8", "mmlu: 6/6", "Are the mistakes random?", "Hardest"):
        assert expected in told, expected
    assert (tmp_path / "results" / "report.html").stat().st_size > 100_000
    assert len(shown) >= 7
    assert all(Path(name).read_bytes().startswith(b"\x89PNG") for name in shown)
