"""What a run leaves on the disk: logs, checkpoints and drafts after kills, damage and full disks."""

from __future__ import annotations

import json
import os
import resource
from contextlib import contextmanager

import pytest
import torch

from engine import LLM
from engine.finetune import __main__ as program
from engine.finetune import base, checkpoint, log
from engine.finetune.optimizer import adamw
from engine.runtime.errors import BareloopError, UsageError
from tests.engine.finetune.programs import events, finetune


def test_a_run_killed_before_its_first_checkpoint_leaves_nothing_in_the_log_of_the_next_one(
    flags, tmp_path, monkeypatch
):
    with monkeypatch.context() as patch:
        patch.setattr(log.Display, "step", lambda *_: (_ for _ in ()).throw(OSError(5, "as if killed")))
        with pytest.raises(OSError, match="as if killed"):
            finetune(flags("killed", "--seed", "7"))
    finetune(flags("killed", "--resume", "--steps", "3", "--eval-every", "10"))
    (header,) = events(tmp_path / "killed", "header")
    assert header["settings"]["seed"] == 0
    assert [event["step"] for event in events(tmp_path / "killed", "step")] == [1, 2, 3]
    assert [event["step"] for event in events(tmp_path / "killed", "held_out")] == [0, 3]


def test_a_folder_without_a_checkpoint_takes_a_new_run_and_a_resumed_one_says_where_it_continues(
    flags, tmp_path, capsys
):
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / log.FILE).write_text('{"kind": "header"}\n')  # as if killed before the first checkpoint
    finetune(flags("run", "--save-every", "2", "--steps", "4"))
    assert "«" in (shown := capsys.readouterr().err) and "4 steps change little" in shown
    state = torch.load(folder / checkpoint.FILE, weights_only=True)
    assert state["finished"]
    with pytest.raises(UsageError, match="add --resume"):
        finetune(flags("run"))


def test_the_display_of_a_resumed_run_goes_on_with_the_losses_before(tmp_path, capsys, monkeypatch):
    path = tmp_path / log.FILE
    path.write_text("".join(json.dumps({"kind": "step", "step": step, "loss": 4.0}) + "\n" for step in (1, 2)))
    history = log.Log(path, 2)
    with log.Display(3, 2, history.losses) as display:
        display.step({"step": 3, "loss": 1.0, "tokens": 10, "seconds": 1.0}, 0)
    history.close()
    (expected,) = log.smoothed([4.0, 4.0, 1.0])[2:]
    assert f"smoothed {expected:.3f}" in capsys.readouterr().err


def test_a_damaged_line_and_all_after_it_are_removed_under_the_runs_lock(tmp_path):
    path = tmp_path / log.FILE
    steps = [json.dumps({"kind": "step", "step": step}) for step in (1, 2, 3)]
    lines = ['{"kind": "header"}', steps[0], "\0\0}", steps[1], steps[2]]
    path.write_text("".join(f"{line}\n" for line in lines))
    assert [event.get("step") for event in log.read_log(path)] == [None, 1, 2, 3]
    before = path.stat()
    history = log.Log(path, 2)
    assert os.path.samestat(before, path.stat())  # with another file the lock would be given up
    history.write("step", {"step": 2})
    history.close()
    assert path.read_text().splitlines() == [*lines[:2], steps[1]]


def test_drafts_that_killed_runs_have_left_are_removed(flags, small, tmp_path):
    for name, method in (("lora", "lora"), ("full", "full")):
        folder = tmp_path / name
        for draft in ("..draft.x1y2", ".draft"):
            (folder / draft).mkdir(parents=True)
            (folder / draft / "model.safetensors").touch()
        (folder / ".adapter_model.safetensors.123").touch()
        (folder / ".hidden").touch()
        (folder / log.FILE).touch()
        finetune(flags(name, "--method", method, "--steps", "1", "--resume"))
        assert [path.name for path in folder.iterdir() if path.name[0] == "."] == [".hidden"]


@contextmanager
def full_disk(size):
    """Files may have at most this size, so that writing fails as on a full disk."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_a_full_disk_is_one_line(flags, small, tmp_path):
    with full_disk(20_000), pytest.raises(BareloopError, match=r"cannot write .*c.pt: File too large; free some space"):
        checkpoint.save_checkpoint({"a": torch.zeros(10_000), "b": torch.zeros(10_000)}, tmp_path / "c.pt")
    with full_disk(100), pytest.raises(BareloopError, match=r"cannot write .*loss.png: File too large"):
        log.draw([{"kind": "step", "step": 1, "loss": 1.0, "learning_rate": 0.1}], tmp_path / "loss.png", "title")
    trainee = base.load_trainee(str(small), program.settings_from(program.parser().parse_args(flags("f")[2:])), "cpu")
    with full_disk(1000), pytest.raises(BareloopError, match=r"cannot write .*: File too large"):
        trainee.save(tmp_path)
    with full_disk(1000), pytest.raises(BareloopError, match=r"cannot write .*; free some space, and resume"):
        base._save_weights(LLM.load(small, device="cpu"), torch.float32, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_what_is_restored_is_not_kept_a_second_time():
    model = torch.nn.Linear(3, 2)
    optimizer = adamw(model.parameters())
    state = checkpoint.training_state(model, optimizer, 5)
    assert checkpoint.restore(model, optimizer, state) == 5
    assert state == {"step": 5}


@pytest.mark.parametrize("content", [b"", b"PK\3\4 and nothing more", None])
def test_a_damaged_or_foreign_checkpoint_has_a_way_out_and_no_unsafe_advice(tmp_path, content):
    path = tmp_path / checkpoint.FILE
    if content is None:
        torch.save({"settings": {}, "step": 3, "model": {}}, path)
    else:
        path.write_bytes(content)
    expected = "is not from this version of the program; look" if content is None else "is damaged; remove it to start"
    with pytest.raises(BareloopError, match=expected) as error:
        checkpoint.load_checkpoint(path, {}, "look")
    assert "weights_only" not in str(error.value)


def test_other_held_out_data_is_noticed_when_a_run_is_resumed(flags, facts, tmp_path):
    rows = facts.read_text().splitlines(keepends=True)
    data = tmp_path / "data"
    data.mkdir()
    (data / "train.jsonl").write_text("".join(rows[:10]))
    (data / "valid.jsonl").write_text("".join(rows[10:12]))
    arguments = [*flags("run", "--steps", "2"), "--data", str(data)]
    finetune(arguments)
    (data / "valid.jsonl").write_text("".join(rows[12:14]))
    with pytest.raises(BareloopError, match="other settings: held_out_data "):
        finetune([*arguments, "--resume"])
