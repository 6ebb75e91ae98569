"""Many prompts side by side: what they share is computed once, the rest in packed steps.

    root     what all of them begin with: few-shot examples
    stem     what some of them go on with: the paragraph that their questions are about
    row      one prompt

The plan depends on the prompts alone, so the same prompts give the same bits whenever they are fed together.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq
from typing import NamedTuple

import torch

from engine.decoding.loop import PREFILL_CHUNK, Sequence, prefill
from engine.decoding.scoring import groups

LEAST_SHARED = 32  # tokens that a stem must save; it costs a forward, together with the other stems


class Fed(NamedTuple):
    """Sequences that are ready to decode, and the tokens that were computed for it."""

    rows: list[Sequence]
    computed: int


def feed_together(root: Sequence, texts: Seq[Seq[int]], chunk: int = PREFILL_CHUNK) -> Fed:
    """A fork of `root` for each text, at its end and ready to decode. All texts begin with what `root` holds.

    `chunk` bounds the tokens of a forward. Raises `BareloopError` where a text is empty or outgrows the window.
    """
    held = len(root.ids)
    found = groups([text[held:-1] for text in texts], LEAST_SHARED)
    shared = [(held + depth, members) for depth, members in found if depth]
    stems = root.fork(len(shared))
    begun = [texts[members[0]][:length] for length, members in shared]
    if stems:
        prefill(stems, begun, [1] * len(stems), chunk)
    computed = sum(map(len, begun)) - held * len(stems)
    rows: dict[int, Sequence] = {}
    for stem, (_, members) in zip(stems, shared, strict=True):
        rows |= zip(members, stem.fork(len(members)), strict=True)
        stem.close()
    alone = [place for place in range(len(texts)) if place not in rows]
    rows |= zip(alone, root.fork(len(alone)), strict=True)
    ordered = [rows[place] for place in range(len(texts))]
    starts, ends = prefill(ordered, texts, [1] * len(texts), chunk, returns=True)
    with torch.inference_mode():
        for row, logits in zip(ordered, root.model.logits(torch.cat(ends)), strict=True):
            row.logits = logits
    return Fed(ordered, computed + sum(map(len, texts)) - sum(starts))
