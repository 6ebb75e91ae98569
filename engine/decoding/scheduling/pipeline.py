"""On a GPU the next decoding step begins before the tokens of this one are known on the host.

    device   | step 1 | choose | step 2          | choose | step 3 …
    host                       | events of step 1         | events of step 2

The chosen tokens are fed on the device, so it works while the host turns them into events. A reply that ends has been
fed a token too many, which is taken back.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq

import torch
from torch import Tensor

from engine.decoding.capture import CapturedSteps
from engine.decoding.loop import Reply, feed_tokens
from engine.runtime.device import upload


class Pipeline:
    """The steps of replies that come and go. Without captured steps nothing begins early."""

    def __init__(self, captured: CapturedSteps | None) -> None:
        self.captured = captured
        self._begun: dict[Reply, int] = {}  # replies whose last token was fed early, and their rows of `_logits`
        self._logits: Tensor | None = None

    def logits(self, replies: Seq[Reply]) -> Tensor:
        """The logits [R, V] after each reply's last token, which is fed now unless it was before."""
        for reply in [reply for reply in self._begun if reply not in replies]:  # paused, or ended
            self.forget(reply)
        begun = {reply: self._begun[reply] for reply in replies if reply in self._begun}
        if self._logits is None or not begun:
            return feed_tokens(replies, captured=self.captured)
        early, rows = self._logits, [*begun.values()]
        self._begun, self._logits = {}, None
        for reply in begun:
            reply.sequence.logits = None
            reply.sequence.ids.append(reply.token_ids[-1])
        if [*begun] == [*replies] and rows == [*range(len(early))]:
            return early
        index = {reply: number for number, reply in enumerate(begun)}
        early = _select(early, rows)  # a copy, before other steps overwrite it
        late = [reply for reply in replies if reply not in begun]
        if late:
            index |= {reply: len(begun) + number for number, reply in enumerate(late)}
            early = torch.cat((early, feed_tokens(late, captured=self.captured)))
        return _select(early, [index[reply] for reply in replies])

    def begin(self, replies: Seq[Reply], tokens: Tensor) -> None:
        """Feed the tokens [R] that were chosen for these replies, on the device, to those that do not end with them."""
        if self.captured is None:
            return
        going_on = [number for number, reply in enumerate(replies) if reply.remaining > 1]
        if not going_on:
            return
        continued = [replies[number] for number in going_on]
        if len(going_on) < len(replies):
            tokens = _select(tokens, going_on)
        logits = self.captured.run([reply.sequence.row for reply in continued], tokens.clamp(min=0))
        if logits is not None:
            self._begun, self._logits = {reply: number for number, reply in enumerate(continued)}, logits

    def forget(self, reply: Reply) -> None:
        """Take back what was fed early to a reply."""
        if self._begun.pop(reply, None) is not None and not reply.sequence.closed:
            reply.sequence.synchronize()


def _select(tensor: Tensor, rows: Seq[int]) -> Tensor:
    """These rows of a tensor."""
    return tensor.index_select(0, upload(rows, torch.long, tensor.device))
