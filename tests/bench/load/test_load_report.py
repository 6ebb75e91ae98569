"""Tables, notes, files and pictures of runs that are made up."""

from __future__ import annotations

import json
from io import StringIO

import pytest
from rich.console import Console

from bench.load.records import Record, Run, Setting
from bench.load.report import draw, milliseconds, notes, tables
from engine.runtime.errors import BareloopError
from tests.bench.load.test_load_figures import made_up


def run_of(*settings: Setting, label: str = "model at host") -> Run:
    return Run(label, "http://host", "model", "chat", 0.5, 0.05, settings=list(settings))


def answer(sent: float, prompt_tokens: int = 10, cached: int | None = 5) -> Record:
    """A reply of three tokens: TTFT 0.2 s, then 0.004 s each."""
    times = [sent + 0.2, sent + 0.204, sent + 0.208]
    return Record(sent, sent, times, times[-1], "ok", "", prompt_tokens, 3, cached)


def shown(run: Run, width: int = 120) -> str:
    console = Console(file=StringIO(), width=width)
    console.print(*tables(run), sep="\n")
    return console.file.getvalue()


def test_the_tables_have_a_row_for_each_setting():
    failed = Record(0.0, 0.0, ended=0.1, status="429", error="busy")
    run = run_of(
        Setting("concurrency", 1, [answer(0.0), answer(0.208)]),
        Setting("concurrency", 4, [answer(0.0), failed, failed]),
        Setting("rate", 0.5, [answer(0.0, cached=None)]),
    )
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in shown(run).splitlines() if "│" in line]
    rates, times = rows[:3], rows[3:]
    assert rates[0] == ["1", "2", "0", "48.1", "14.4", "4.81", "4.81", "50%"]
    assert rates[1][:3] == ["4", "3", "429 (2)"]
    assert rates[2][0] == "0.5/s" and rates[2][-1] == "?"
    assert times[0] == ["1", "200/200/200", "4.0/4.0", "4.0/4.0/4.0", "208/208"]
    assert max(map(len, shown(run, 80).splitlines())) <= 80
    assert "429: busy" in notes(run)


def test_percentiles_without_values_are_a_dash():
    assert milliseconds([], 50, 99) == "-"
    assert milliseconds([0.001, 0.002, 1.0], 50, 100) == "2.0/1000"


def test_notes_say_what_makes_the_figures_doubtful():
    busy = Setting("concurrency", 1, [answer(0.0, cached=9)], cpu_seconds=0.2)
    late = Setting("rate", 2.0, [answer(1.0)])
    late.records[0].due = 0.75
    late.records[0].has_usage = False
    text = "\n".join(notes(run_of(busy, late)))
    assert "10 in, 3 out" in text
    assert "1 client: this client used 96% of a core" in text
    assert "2/s: requests were sent up to 250 ms late" in text
    assert "the server sent no usage" in text
    assert "another --seed" in text
    for options in ({"prompts": "file"}, {"shared_prefix": 80, "input_tokens": 100}):
        run = run_of(busy)
        run.options = options
        assert "another --seed" not in "\n".join(notes(run))


def test_a_file_holds_all_times_and_gives_the_same_tables(tmp_path):
    run = run_of(made_up(0), made_up(1))
    run.write(tmp_path / "run.json")
    again = Run.read(tmp_path / "run.json")
    assert shown(again) == shown(run)
    assert again == run


@pytest.mark.parametrize("content", ["{}", '{"format": "bareloop load 1"}', '{"format": "other"}', "[]", "no"])
def test_another_file_is_one_line(tmp_path, content):
    path = tmp_path / "run.json"
    path.write_text(content)
    with pytest.raises(BareloopError, match=str(path)):
        Run.read(path)


def test_a_record_of_another_shape_is_one_line(tmp_path):
    path = tmp_path / "run.json"
    run_of(made_up(0, 1)).write(path)
    content = json.loads(path.read_text())
    content["settings"][0]["records"][0]["speed"] = 3
    path.write_text(json.dumps(content))
    with pytest.raises(BareloopError, match="lacks something"):
        Run.read(path)


def test_the_picture_has_a_row_for_each_kind_of_load_and_a_line_for_each_run(tmp_path):
    def settings(scale: float) -> list[Setting]:
        made = [Setting("concurrency", number, [answer(0.0), answer(scale * number)]) for number in (1, 16)]
        return [*made, Setting("rate", 0.5, [answer(0.0)]), Setting("rate", 2.0, [Record(0, 0, status="500")])]

    draw([run_of(*settings(1)), run_of(*settings(2), label="the other")], tmp_path / "both")
    picture = (tmp_path / "both.svg").read_text()
    assert (tmp_path / "both.png").stat().st_size > 10_000
    for text in ("clients at a time", "requests per second that arrive", "model at host", "the other"):
        assert text in picture
    draw([run_of(Setting("rate", 1.0, [Record(0, 0, status="500")]))], tmp_path / "none")
    assert not (tmp_path / "none.png").exists()
