"""Whether a model can decode speculatively, and with which draft model."""

from __future__ import annotations

from collections.abc import Mapping

from engine.models.family import Model
from engine.runtime.errors import BareloopError

Vocabulary = Mapping[str, int] | int  # tokens and their ids; without a tokenizer their number


def check_draft(model: Model, vocabulary: Vocabulary, draft: Model | None, draft_vocabulary: Vocabulary) -> None:
    """Raise `BareloopError` if tokens cannot be drafted for a model, or not by `draft`; None: from its text."""
    for each in (model, draft):
        if each is not None and not each.new_state().rewinds_anywhere:
            raise BareloopError(
                f"{each.source}: a {each.config.model_type} model cannot take back tokens, which speculative decoding "
                "needs; leave out the draft"
            )
    if draft is not None and vocabulary != draft_vocabulary:
        raise BareloopError(
            f"{draft.source} has another vocabulary than {model.source}; use a draft model of the same family, or "
            "prompt"
        )
