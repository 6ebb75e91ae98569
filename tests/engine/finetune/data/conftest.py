"""Fixtures for the tests of training data: what it needs of a model, without the model."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from engine.text.chat_template import ChatTemplate
from engine.text.tokenizer import Tokenizer

NOW = datetime(2026, 1, 2)  # one time for all, for which a template is compiled once


@pytest.fixture(scope="session")
def load_checkpoint(shared, load_tokenizer) -> Callable[..., Any]:
    """A tokenizer of the shared folder, with a chat template of it, as an LLM has them."""

    def load(name: str, template: str | None = None, max_length: int = 4096) -> Any:
        tokenizer = load_tokenizer(f"tokenizers/{name}")
        source = None if template is None else (shared / "chat_templates" / f"{template}.jinja").read_text()
        return checkpoint(tokenizer, source, max_length)

    return load


def checkpoint(tokenizer: Tokenizer, source: str | None, max_length: int = 4096) -> Any:
    """What `load_data` reads of an LLM."""
    eos = tokenizer.token_id(tokenizer.special_tokens.get("eos_token", ""))
    return SimpleNamespace(
        tokenizer=tokenizer,
        chat_template=None if source is None else ChatTemplate(source, tokenizer, NOW),
        eos_token_ids=() if eos is None else (eos,),
        config=SimpleNamespace(vocab_size=200_000),
        max_length=max_length,
    )


@pytest.fixture
def write(tmp_path) -> Callable[..., str]:
    """Write rows into a file of a new folder, and return its path: write("train.jsonl", rows)."""

    def write_rows(name: str, rows: Sequence[Any]) -> str:
        path: Path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".parquet":
            import pyarrow
            import pyarrow.parquet

            pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
            return str(path)
        lines = json.dumps(rows) if ".json." in f"{name}." else "".join(json.dumps(row) + "\n" for row in rows)
        path.write_bytes(gzip.compress(lines.encode()) if path.suffix == ".gz" else lines.encode())
        return str(path)

    return write_rows
