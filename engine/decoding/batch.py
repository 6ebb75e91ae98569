"""Prefill many prompts: shared parts are computed once, the rest in packed steps.

    root     the common beginning of all prompts: few-shot examples
    stem     the common continuation of some of them: the paragraph that their questions are about
    row      one prompt

The plan depends only on the prompts, so the same prompts give the same bits whenever they are prefilled together.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq
from typing import NamedTuple

import torch

from engine.decoding.scoring import groups
from engine.decoding.sequence import PREFILL_CHUNK, Sequence, prefill

STEM_COST = 32  # tokens that a stem must save to be worth its forward pass, which it shares with the other stems


class PrefilledBatch(NamedTuple):
    """Sequences that are ready to decode, and the number of tokens that were computed."""

    rows: list[Sequence]
    computed: int


def prefill_batch(root: Sequence, texts: Seq[Seq[int]], chunk: int = PREFILL_CHUNK) -> PrefilledBatch:
    """Fork `root` for each text and feed it, ready to decode. All texts must begin with the ids of `root`.

    `chunk` bounds the tokens of a forward pass. Raises `BareloopError` if a text is empty or longer than the window.
    """
    root_length = len(root.ids)
    grouped = groups([text[root_length:-1] for text in texts], STEM_COST)
    shared = [(root_length + depth, members) for depth, members in grouped if depth]
    stems = root.fork(len(shared))
    stem_texts = [texts[members[0]][:length] for length, members in shared]
    if stems:
        prefill(stems, stem_texts, [1] * len(stems), chunk)
    computed = sum(map(len, stem_texts)) - root_length * len(stems)
    rows: dict[int, Sequence] = {}
    for stem, (_, members) in zip(stems, shared, strict=True):
        rows |= zip(members, stem.fork(len(members)), strict=True)
        stem.close()
    ungrouped = [index for index in range(len(texts)) if index not in rows]
    rows |= zip(ungrouped, root.fork(len(ungrouped)), strict=True)
    ordered = [rows[index] for index in range(len(texts))]
    starts, ends = prefill(ordered, texts, [1] * len(texts), chunk, checkpoints=True)
    with torch.inference_mode():
        for row, logits in zip(ordered, root.model.logits(torch.cat(ends)), strict=True):
            row.logits = logits
    return PrefilledBatch(ordered, computed + sum(map(len, texts)) - sum(starts))
