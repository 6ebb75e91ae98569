"""Conversations as tokens in a checkpoint's chat template, of which the assistant's replies are learned."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from engine.finetune.data.example import Example
from engine.finetune.data.rows import Conversation
from engine.text.chat_template import MARK, ChatTemplate


@dataclass
class Rendering:
    """The text of a conversation up to a reply, and the characters (first, last + 1) of replies in it to learn."""

    text: str
    replies: list[tuple[int, int]] = field(default_factory=list)


def encode_conversation(
    conversation: Conversation, template: ChatTemplate, eos: int | None, eos_ids: frozenset[int], mask_prompt: bool
) -> list[Example]:
    """The examples of a conversation: one, if the template renders earlier replies as it renders the last one.

    If it does not (some drop earlier reasoning), replies are in an example each, with the text before it as a reply's
    prompt has it. Replies that do not follow the template's own prompt are not learned; there may be no example.
    A reply's learned tokens are those with characters of it, and the token that ends it; white space that the template
    writes after that is not learned. After the last reply comes `eos`, unless one of `eos_ids` is there already.
    """
    examples = []
    for rendering in renderings(conversation, template):
        ids, offsets = _encode(rendering.text, template)
        learned = _are_in(offsets, rendering.replies)
        length = max((index + 1 for index, flag in enumerate(learned) if flag), default=0)
        if not length:
            continue
        ids, learned = ids[:length], learned[:length]
        if eos is not None and ids[-1] not in eos_ids:
            ids, learned = [*ids, eos], [*learned, True]
        learned = learned if mask_prompt else [True] * len(ids)
        examples.append(Example(ids, [False, *learned[1:]]))
    return examples


def renderings(conversation: Conversation, template: ChatTemplate) -> list[Rendering]:
    """The texts in which every reply follows what the template writes before it, as few as possible, in order.

    White space at the end of that prompt may be missing, and EOS after a reply that is not the last one.
    Positions are those of the text without the marks that `ChatTemplate.mark` inserts.
    """
    messages = template.mark(conversation.messages)
    eos = template.tokenizer.special_tokens.get("eos_token", "")
    result: list[Rendering] = []
    for index in reversed(conversation.learned):
        if index == 0:  # no template writes a prompt for it
            continue
        text = template.render(messages[: index + 1], add_generation_prompt=False)
        prompt = template.render(messages[:index], continues=False)
        first = _after(text, prompt)
        if first is None:
            continue
        end = _end(text, result[-1].text, eos) if result else 0
        if end <= first:
            result.append(Rendering(text))
            end = len(text)
        result[-1].replies.insert(0, (_unmarked(text[:first]), _unmarked(text[:end].rstrip())))
    return result[::-1]


def _after(text: str, prompt: str) -> int | None:
    """Where a text goes on after its prompt; None if it does not begin with it, or has only white space after it."""
    first = len(prompt)
    if not text.startswith(prompt):
        prompt = prompt.rstrip()
        first = len(text) - len(text[len(prompt) :].lstrip())
    return first if text.startswith(prompt) and text[first:].strip() else None


def _end(text: str, longer: str, eos: str) -> int:
    """Up to where a longer text has this one, which may have EOS at its end that the other has not; 0 if it has not."""
    without_eos = text.rstrip().removesuffix(eos)
    return next((len(part) for part in (text, without_eos) if longer.startswith(part.rstrip())), 0)


def _unmarked(text: str) -> int:
    """The length of a text without marks."""
    return len(text) - text.count(MARK)


def _are_in(offsets: Sequence[tuple[int, int]], replies: Sequence[tuple[int, int]]) -> list[bool]:
    """Whether each token has characters of a reply. Both are in order."""
    result = []
    place = 0
    for start, stop in offsets:
        while place < len(replies) and start >= replies[place][1]:
            place += 1
        first = replies[place][0] if place < len(replies) else None
        result.append(first is not None and (start >= first or stop > first))
    return result


def _encode(text: str, template: ChatTemplate) -> tuple[list[int], list[tuple[int, int]]]:
    """Ids and offsets of a rendering, as `ChatTemplate.encode`; offsets are those of the text without marks."""
    tokenizer = template.tokenizer
    if MARK not in text:
        return tokenizer.encode_with_offsets(text)
    ids: list[int] = []
    offsets: list[tuple[int, int]] = []
    position = 0
    for part, control in template.split_marked(text):
        if control is None:
            new, places = tokenizer.encode_with_offsets(part, is_plain=True)
            ids += new
            offsets += [(position + start, position + stop) for start, stop in places]
        else:
            ids.append(control)
            offsets.append((position, position + len(part)))
        position += len(part)
    return ids, offsets
