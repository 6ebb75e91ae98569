"""The trainer: the schedule, and that a killed run goes on as if nothing had happened."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
import torch

from engine.cache.state import Step
from engine.decoding.sampling import SamplingParams
from engine.demo import train, vocabulary
from engine.llm import LLM
from engine.runtime.errors import BareloopError, UsageError


def options(folder: Any, *more: str) -> Any:
    words = ("--output", str(folder), "--steps", "4", "--batch-tokens", "512", "--checkpoint-steps", "2")
    return train.parser().parse_args([*words, *more])


def test_the_loss_is_that_of_each_page_alone():
    """Sorting, padding and choosing the tokens that count must not move a weight from its token."""
    tokenizer = vocabulary.build(0)
    llm = LLM.from_config({**train.CONFIG, "vocab_size": tokenizer.get_vocab_size(), "num_hidden_layers": 2})
    for step in range(12):
        pages = train.step_pages(tokenizer, 0, step, 100, 1024)
        total = weight = 0.0
        for ids, weights in pages:
            logits = llm.model.logits(llm.model(Step.pack([ids])))[:-1]
            losses = torch.nn.functional.cross_entropy(logits, torch.tensor(ids[1:]), reduction="none")
            total += float((losses.detach() * torch.tensor(weights[1:])).sum())
            weight += sum(weights[1:])
        assert train.loss_and_letters(llm, pages)[0].item() == pytest.approx(total / weight, rel=1e-5)


def test_every_step_has_as_many_tokens():
    tokenizer = vocabulary.build(0)
    for step in range(40):
        sizes = [len(ids) for ids, _ in train.step_pages(tokenizer, 0, step, 100, 1024)]
        assert all(sizes)
        assert sum(size + -size % train.GRAIN for size in sizes) == 1024


def test_the_rate_rises_falls_twice_and_is_nowhere_above_its_peak():
    rates = [train.schedule(step, 1000) for step in range(1000)]
    peak = rates.index(1.0)
    assert rates[: peak + 1] == sorted(rates[: peak + 1])
    main, second = rates[peak:800], rates[800:]
    assert main == sorted(main, reverse=True)
    assert second == sorted(second, reverse=True)
    assert max(second) <= train.SECOND < 1.0
    assert max(main[-1], second[-1]) < 0.01


def test_every_step_has_a_mix_at_last_in_all_sorts_of_words():
    mixes = [train.mix(step / 100) for step in range(125)]
    assert all(0 < mix.drills < 1 and 0 < mix.quizzes < 1 for mix in mixes)
    assert all(mix.rewording > 0 for mix in mixes[80:])


def test_a_killed_run_goes_on_with_the_same_bits(tmp_path, monkeypatch, capsys):
    train.main(options(tmp_path / "whole"))
    keep = train.keep

    def keep_and_die(state: dict[str, Any], path: Any) -> None:
        keep(state, path)
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(train, "keep", keep_and_die)
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


def test_what_exists_is_left_alone(tmp_path):
    (tmp_path / "made").mkdir()
    (tmp_path / "made" / "note").touch()
    with pytest.raises(UsageError, match="not empty"):
        train.main(options(tmp_path / "made"))
    with pytest.raises(UsageError, match="--steps 0: use 1 or more"):
        train.main(options(tmp_path / "new", "--steps", "0"))


def test_the_program_says_what_it_does():
    done = subprocess.run([sys.executable, "-m", "engine.demo.train", "--help"], capture_output=True, text=True)
    assert "--checkpoint-steps" in done.stdout
