"""Log-probabilities of the tokens of a prompt, for scoring texts: computed with its pieces, kept with its row.

Token i is scored by the logits at token i - 1. The first token of a piece is scored with its piece, by the hidden state
of the last token before it, which is kept. So a prompt that shares the first pieces of another is scored in the same
shapes as alone, and gets the same bits.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from engine.decoding.images import is_image_id
from engine.decoding.sampling import top_logprobs, unpack_logprobs
from engine.models.family import Model
from engine.runtime.device import upload
from engine.runtime.errors import UsageError, quote

# Likeliest tokens of each position, as many as OpenAI's API reports. They are kept for every prompt, so that any other
# can share them: 164 bytes per token, a hundredth of its keys and values.
MAX_ALTERNATIVES = 20
LOGITS_ROWS = 256  # rows of logits [vocab] in memory at once

Entry = tuple[float, list[tuple[int, float]]]  # log-probability of a token, and the likeliest tokens, best first


class PromptLogprobs:
    """The log-probabilities of the first `length` tokens of a prompt. The first token of all has none."""

    def __init__(self) -> None:
        self.length = 0
        self._parts: list[NDArray[np.float32]] = []  # as `top_logprobs` packs them; never changed, so they are shared
        self._ends: dict[int, Tensor] = {}  # lengths at which pieces end -> the hidden state [D] there

    @torch.inference_mode()
    def extend(self, model: Model, ids: Seq[int], start: int, hidden: Tensor) -> None:
        """Score a piece, the tokens `start` to the end of `ids`, which has these hidden states [N, D]."""
        first = max(self.length, 1)
        rows = hidden[:-1] if first > start else torch.cat((self._ends[start][None], hidden[:-1]))
        if len(rows):
            scored_ids = [0 if is_image_id(token) else token for token in ids[first:]]
            tokens = upload(scored_ids, torch.long, rows.device)
            blocks = zip(torch.split(rows, LOGITS_ROWS), torch.split(tokens, LOGITS_ROWS), strict=True)
            scored = [top_logprobs(model.logits(block), chosen, MAX_ALTERNATIVES) for block, chosen in blocks]
            self._parts.append(torch.cat(scored).cpu().numpy())
        self._ends[len(ids)] = hidden[-1].clone()
        self.length = len(ids)

    def shareable(self, common: int) -> int:
        """How many tokens a prompt can share that has `common` tokens in common with this one.

        The next token is scored by the hidden state there if a piece ends there; otherwise it must be a common one.
        """
        known = min(common, self.length)
        return known if known in self._ends else max(known - 1, 0)

    def prefix(self, length: int) -> PromptLogprobs:
        """What another prompt gets that shares `length` tokens, as many as `shareable` allows."""
        taken = PromptLogprobs()
        taken._ends = {end: hidden for end, hidden in self._ends.items() if end <= length}
        taken.length = length if length in taken._ends else length + 1
        rows = taken.length - 1
        for part in self._parts:
            if rows > 0:
                taken._parts.append(part[:rows])
                rows -= len(part)
        return taken

    def entries(self, ids: Seq[int], alternatives: int) -> list[Entry | None]:
        """One entry for each token of the prompt: None for the first, and for the vectors of images."""
        result: list[Entry | None] = [None]
        for part in self._parts:
            count = part.shape[1] // 2
            values, likeliest = part[:, : 1 + min(alternatives, count)], part[:, 1 + count :][:, :alternatives]
            result += unpack_logprobs(np.concatenate((values, likeliest), axis=1).tolist())
        return [None if is_image_id(token) else entry for token, entry in zip(ids, result, strict=True)]


def check_alternatives(number: int | None) -> int:
    """The number of likeliest tokens, 0 for None. Raises `UsageError` for one that is not supported."""
    if number is None:
        return 0
    if not isinstance(number, int) or isinstance(number, bool) or not 0 <= number <= MAX_ALTERNATIVES:
        raise UsageError(f"prompt_logprobs = {quote(number)}: use a whole number from 0 to {MAX_ALTERNATIVES}")
    return number
