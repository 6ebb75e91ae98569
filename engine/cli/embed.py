"""`python -m engine --embed`: texts, one a line -> vectors, each a JSON array on a line."""

from __future__ import annotations

import sys
import time
from typing import Any

from engine.checkpoints.embedded import MINILM
from engine.cli.complete import read_text
from engine.cli.parser import model_options
from engine.cli.progress import Progress
from engine.decoding.embedding import json_arrays
from engine.llm import LLM
from engine.runtime.errors import BareloopError, UsageError

BLOCK = 1024  # texts whose vectors are printed at once


def embed(options: Any) -> None:
    """Embed the prompt, the lines of --file or those of stdin, and print the vectors in the same order."""
    if len(options.model) != 1:
        raise UsageError("--embed takes one model")
    texts = read_texts(options)
    llm = LLM.load(options.model[0], **model_options(options) | {"draft": None})
    embedder = llm.embedder
    if not embedder.is_trained and not llm.is_encoder:  # of an encoder, the embedder has said so
        print(untrained(options.model[0]), file=sys.stderr)
    tokens = cut = 0
    start = time.perf_counter()
    with Progress("embed", len(texts)) as progress:
        for first in range(0, len(texts), BLOCK):
            encoded = embedder.encode(texts[first : first + BLOCK], first, len(texts))
            for line in json_arrays(embedder.vectors(encoded.rows, progress=progress.advance)):
                print(line)
            sys.stdout.flush()
            tokens, cut = tokens + encoded.tokens, cut + encoded.truncated
    seconds = time.perf_counter() - start
    count = f"{len(texts):,} text{'' if len(texts) == 1 else 's'}"
    line = f"{count}, {tokens:,} tokens in {seconds:.1f} s, {embedder.size} dimensions"
    if cut:
        line += f"; {cut:,} longer than {embedder.max_length:,} tokens, and cut there"
    print(line, file=sys.stderr)


def untrained(name: str) -> str:
    """The note for a model whose checkpoint does not say how it embeds texts."""
    return (
        f"{name} was not trained to embed texts: a vector is the mean of its last hidden states; for a model that was "
        f"add -m {MINILM}"
    )


def read_texts(options: Any) -> list[str]:
    """The prompt, or the lines of --file or stdin; an empty line is an empty text."""
    if options.prompt is not None and options.file is not None:
        raise UsageError("give one of: a text, --file")
    if options.prompt is not None:
        return [options.prompt]
    if options.file is not None:
        content = read_text(options.file, "texts")
    elif sys.stdin.isatty():
        raise UsageError('give texts, one a line, on stdin or in --file: echo "a text" | python -m engine --embed')
    else:
        content = sys.stdin.buffer.read().decode("utf-8", errors="replace")
    lines = content.split("\n")  # not where `splitlines` also does, so that there is a vector for each line
    texts = [line.removesuffix("\r") for line in (lines[:-1] if lines[-1] == "" else lines)]
    if not texts:
        raise BareloopError("there are no texts to embed")
    return texts
