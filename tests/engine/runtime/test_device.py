"""Choice of device and dtype."""

from __future__ import annotations

import pytest
import torch

from engine.cli.parser import Parser, run
from engine.runtime.device import choose_device, choose_dtype
from engine.runtime.errors import BareloopError, UsageError


@pytest.mark.parametrize("name", ["foo", "", "cuda:x", "meta", "xla"])
def test_an_unknown_device_is_a_usage_error_with_the_known_ones(name):
    with pytest.raises(UsageError, match="use auto, cpu, cuda, cuda:N or mps"):
        choose_device(name)


def test_an_unknown_device_ends_a_program_with_status_2(capsys):
    parser = Parser("program", "A program.")
    parser.add_model_options()
    with pytest.raises(SystemExit) as caught:
        run(parser, lambda options: choose_device(options.device), ["--device", "foo"])
    assert caught.value.code == 2
    assert capsys.readouterr().err == "program: unknown device 'foo'; use auto, cpu, cuda, cuda:N or mps\n"


@pytest.mark.parametrize("name", ["cuda", "cuda:1", "mps"])
def test_a_device_that_is_not_there_is_one_line(name, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(BareloopError, match=rf"device {name}: .*available here; use --device cpu or auto"):
        choose_device(name)


def test_auto_is_the_cpu_if_there_is_no_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert choose_device("auto") == torch.device("cpu")


def test_auto_is_the_stored_dtype_and_an_unknown_one_is_refused():
    assert choose_dtype("auto", "bfloat16") == torch.bfloat16
    assert choose_dtype("float16", "bfloat16") == torch.float16
    with pytest.raises(UsageError, match="unknown dtype 'int3'; use auto, float32, bfloat16"):
        choose_dtype("int3", "bfloat16")
