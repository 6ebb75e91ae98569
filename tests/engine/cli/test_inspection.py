"""--inspect: what a checkpoint is, from its headers alone."""

from __future__ import annotations

import io

import pytest
import torch
from rich.console import Console

from engine import LLM
from engine.cli.inspection import families, inspect
from engine.models import FAMILIES
from engine.runtime.errors import BareloopError


def text(folder: object, **options: object) -> str:
    console = Console(width=200, record=True, file=open("/dev/null", "w"))  # noqa: PTH123, SIM115
    for table in inspect(str(folder), **options):  # type: ignore[arg-type]
        console.print(table)
    return console.export_text()


def test_tells_family_shapes_tokens_and_costs(shared):
    told = text(shared / "checkpoints" / "llama-tinystories-656k", context=100)
    for expected in ("llama", "656,000", "512 tokens", "<|start_story|>", "2,626,168 bytes", "after 100 others"):
        assert expected in told


def test_costs_add_up_to_the_weights(tiny):
    llm = LLM.load(tiny.folder, device="cpu")
    costs = list(llm.model.costs(0))
    numbers = sum(parameter.numel() for parameter in llm.model.parameters())
    assert sum(cost.parameters for cost in costs) == numbers
    if not hasattr(llm.config, "num_heads"):
        return
    tables = [table for name, table in llm.model.named_parameters() if name in ("embed.weight", "positions.weight")]
    looked_up = sum(table.numel() for table in tables)
    matrices = sum(p.numel() for p in llm.model.parameters() if p.dim() == 2) - looked_up
    head = tables[0].numel() if llm.config.tie_word_embeddings else 0
    attention = 4 * llm.config.num_heads * llm.config.head_dim * llm.config.num_layers
    assert sum(cost.flops for cost in costs) == 2 * (matrices + head) + attention
    rows = sum(table[0].nbytes for table in tables)
    cache = 2 * 4 * llm.config.num_kv_heads * llm.config.head_dim * llm.config.num_layers
    assert sum(cost.nbytes for cost in costs) == 4 * (numbers - looked_up + head) + rows + cache


def test_windows_bound_what_a_token_reads(draw_tiny):
    llm = LLM.load(draw_tiny("mistral-window").folder, device="cpu", dtype="bfloat16")
    assert llm.dtype == torch.bfloat16
    far, near = (sum(cost.nbytes for cost in llm.model.costs(context)) for context in (200, 6))
    assert far == near


def test_a_checkpoint_that_does_not_fit_is_told(tiny_llama, tmp_path):
    (tmp_path / "config.json").write_text(
        (tiny_llama.folder / "config.json").read_text().replace('"hidden_size": 48', '"hidden_size": 72')
    )
    (tmp_path / "model.safetensors").write_bytes((tiny_llama.folder / "model.safetensors").read_bytes())
    with pytest.raises(BareloopError, match="misshapen"):
        text(tmp_path)


def test_the_table_of_families_shows_in_what_they_differ():
    console = Console(width=250, record=True, file=io.StringIO())
    console.print(families())
    lines = {line.split()[0]: line for line in console.export_text().splitlines() if line.strip()}
    assert set(FAMILIES) <= set(lines)
    assert "layer; before, one for both branches" in lines["phi"]
    assert "3 of 6 layers with a window" in lines["gemma2"]
    assert "backbone.layers.*" in lines["mamba"]
