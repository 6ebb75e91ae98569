"""A judge is known by more than its name: another one is refused, and judgments of two are never mixed."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest

from engine.checkpoints import embedded
from engine.runtime.errors import BareloopError
from evals.judging.judges import LocalJudge, RemoteJudge
from evals.judging.judgments import judge_matches
from evals.runs.judged import judgments_path, read_judgments
from tests.evals.judging.scripted import Scripted, pairs, singles


def other_judge(verdict="[[9]]"):
    judge = Scripted(lambda prompt, number: verdict)
    judge.judge_model = "another model"
    return judge


def settings_of(folder):
    return json.loads((folder / "model_judgment/scripted.settings.json").read_text())


def test_another_judge_of_the_same_name_is_refused_and_asked_nothing(tmp_path):
    judge_matches(singles()[:4], Scripted(), tmp_path, "single")
    assert settings_of(tmp_path) == {"judge": "a model"}
    for matches, mode in ((singles(), "single"), (pairs(), "pair")):
        with pytest.raises(
            BareloopError, match=r"scripted\.settings\.json was started with another judge \(a model, now"
        ):
            judge_matches(matches, judge := other_judge(), tmp_path, mode)
        assert (judge.asked, judge.started) == ([], 0)
    judge_matches(singles(), Scripted(), tmp_path, "single")
    assert len(read_judgments(judgments_path(tmp_path, "scripted", "single"))) == 8


def test_starting_over_with_another_judge_renames_all_of_the_first(tmp_path):
    judge_matches(singles("a", "b"), Scripted(), tmp_path, "single", passes=2)
    judge_matches(pairs(), Scripted(lambda prompt, number: "[[C]]"), tmp_path, "pair")
    folder = tmp_path / "model_judgment"
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    judge_matches(singles("a"), other_judge(), tmp_path, "single", passes=2, fresh=True)
    assert {path.name.partition(".2")[0]: path.read_bytes() for path in folder.glob("*.old")} == before
    for number in (1, 2):
        rows = read_judgments(judgments_path(tmp_path, "scripted", "single", number))
        assert {(row.model, row.score) for row in rows} == {("a", 9)} and len(rows) == 8
    assert not judgments_path(tmp_path, "scripted", "pair").exists()
    assert settings_of(tmp_path) == {"judge": "another model"}


def test_judgments_of_others_are_taken_as_they_are(tmp_path):
    judge_matches(singles("a"), Scripted(), tmp_path, "single")
    (tmp_path / "model_judgment/scripted.settings.json").unlink()
    judge_matches(singles("a", "b"), judge := other_judge(), tmp_path, "single")
    assert len(judge.asked) == 8


def test_what_identifies_a_judge_has_no_password():
    with RemoteJudge("http://me:secret@127.0.0.1:9/v1", "org/judge", "") as judge:
        here = judge.settings()
    assert "secret" not in json.dumps(here)
    assert (here["judge"], here["url"], here["server"]) == ("org/judge", "http://127.0.0.1:9", "this machine")
    with RemoteJudge("https://example.org", "org/judge", "") as judge:
        assert judge.settings()["server"] == "https://example.org"
    flags = SimpleNamespace(device="cpu", dtype="auto", quant="auto", allow_pickle=False, adapter=None)
    local = LocalJudge(str(embedded.FOLDER), flags).settings()
    assert {"weights", "config", "tokenizer", "dtype", "quant", "device"} <= local.keys()
