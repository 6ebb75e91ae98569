"""The training program: schedule, pages and loss of a step, and resuming with the same bits."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
import torch

from engine.cache.state import Step
from engine.decoding.params import SamplingParams
from engine.demo import train, vocabulary
from engine.finetune import checkpoint
from engine.llm import LLM
from engine.runtime.errors import BareloopError, UsageError

# A smaller model than the demo: bfloat16 products are very slow on CPUs without instructions for them.
SMALL = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "initializer_range": 0.125,
}


@pytest.fixture(autouse=True)
def small_model(monkeypatch):
    monkeypatch.setattr(train, "CONFIG", train.CONFIG | SMALL)


def options(folder: Any, *more: str) -> Any:
    arguments = ("--output", str(folder), "--steps", "4", "--batch-tokens", "512", "--checkpoint-steps", "2")
    return train.parser().parse_args([*arguments, *more])


def test_the_loss_of_a_step_equals_the_loss_of_its_pages_one_by_one(tokenizer):
    """Sorting, padding and selecting the weighted positions must keep each weight with its token."""
    llm = LLM.from_config({**train.CONFIG, "vocab_size": tokenizer.get_vocab_size()})
    for step in range(12):
        pages = train.step_pages(tokenizer, 0, step, 100, 1024)
        total = weight = 0.0
        for ids, weights in pages:
            logits = llm.model.logits(llm.model(Step.pack([ids])))[:-1]
            losses = torch.nn.functional.cross_entropy(logits, torch.tensor(ids[1:]), reduction="none")
            total += float((losses.detach() * torch.tensor(weights[1:])).sum())
            weight += sum(weights[1:])
        assert train.loss_and_accuracy(llm, pages)[0].item() == pytest.approx(total / weight, rel=1e-5)


def test_every_step_has_the_same_number_of_tokens(tokenizer):
    for step in range(40):
        sizes = [len(ids) for ids, _ in train.step_pages(tokenizer, 0, step, 100, 1024)]
        assert all(sizes)
        assert sum(size + -size % train.PAGE_MULTIPLE for size in sizes) == 1024


def test_the_learning_rate_rises_to_its_peak_then_falls_in_each_phase():
    rates = [train.schedule(step, 1000) for step in range(1000)]
    peak = rates.index(1.0)
    assert rates[: peak + 1] == sorted(rates[: peak + 1])
    main, second = rates[peak:800], rates[800:]
    assert main == sorted(main, reverse=True)
    assert second == sorted(second, reverse=True)
    assert max(second) <= train.SECOND_RATE < 1.0
    assert max(main[-1], second[-1]) < 0.01


def test_every_step_has_drills_and_quizzes_and_the_last_ones_have_nonsense_questions():
    mixes = [train.mix_at(step / 100) for step in range(125)]
    assert all(0 < mix.drills < 1 and 0 < mix.quizzes < 1 for mix in mixes)
    assert all(mix.nonsense > 0 for mix in mixes[80:])


def test_a_killed_run_is_resumed_with_the_same_bits(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(vocabulary, "CORPUS_PAGES", 500)
    monkeypatch.setattr(train, "HELD_OUT_PAGES", 8)
    train.main(options(tmp_path / "whole"))
    save_checkpoint = checkpoint.save_checkpoint

    def save_and_die(state: dict[str, Any], path: Any) -> None:
        save_checkpoint(state, path)
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(checkpoint, "save_checkpoint", save_and_die)
        with pytest.raises(KeyboardInterrupt):
            train.main(options(tmp_path / "killed"))
    train.main(options(tmp_path / "killed"))
    files = [tmp_path / name / "model.safetensors" for name in ("whole", "killed")]
    assert files[0].read_bytes() == files[1].read_bytes()
    assert "held-out loss" in capsys.readouterr().err

    llm = LLM.load(tmp_path / "killed")
    assert len(llm.chat([{"role": "user", "content": "Hi!"}], SamplingParams(max_new_tokens=3)).token_ids) <= 3
    (tmp_path / "killed.checkpoint").rename(tmp_path / "other.checkpoint")
    with pytest.raises(BareloopError, match="other settings"):
        train.main(options(tmp_path / "other", "--seed", "1"))


def test_an_existing_folder_is_not_overwritten_and_zero_steps_are_refused(tmp_path):
    (tmp_path / "existing").mkdir()
    (tmp_path / "existing" / "note").touch()
    with pytest.raises(UsageError, match="not empty"):
        train.main(options(tmp_path / "existing"))
    with pytest.raises(UsageError, match="--steps 0: use 1 or more"):
        train.main(options(tmp_path / "new", "--steps", "0"))


def test_help_lists_the_flags():
    result = subprocess.run([sys.executable, "-m", "engine.demo.train", "--help"], capture_output=True, text=True)
    assert "--checkpoint-steps" in result.stdout


def test_a_checkpoint_of_an_older_version_and_a_loss_that_is_not_finite_name_a_way_out(tmp_path, monkeypatch):
    monkeypatch.setattr(vocabulary, "CORPUS_PAGES", 500)
    settings = {"steps": 4, "batch_tokens": 512, "learning_rate": 1e-3, "seed": 0}
    torch.save({"settings": settings, "step": 1, "optimizer": {}, "model": {}, "main": {}}, tmp_path / "a.checkpoint")
    with pytest.raises(BareloopError, match="is not from this version of the program; add --fresh"):
        train.main(options(tmp_path / "a"))
    monkeypatch.setattr(train, "loss_and_accuracy", lambda *_: (torch.tensor(torch.nan, requires_grad=True), 0.0))
    with pytest.raises(BareloopError, match=r"step 1: the loss is nan; lower --learning-rate 0.001, and add --fresh"):
        train.main(options(tmp_path / "b"))
