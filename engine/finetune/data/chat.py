"""Conversations as tokens in a checkpoint's chat template, of which the assistant's replies are learned."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from engine.finetune.data.example import Example
from engine.finetune.data.rows import Conversation
from engine.text.chat_template import MARK, ChatTemplate

CONTEXTS = ("\n", "a", "")  # after which a reply is encoded that would share a token with its prompt


@dataclass
class Rendering:
    """The text of a conversation up to a reply, and the characters (first, last + 1) of replies in it to learn."""

    text: str
    replies: list[tuple[int, int]] = field(default_factory=list)


def encode_conversation(
    conversation: Conversation, template: ChatTemplate, eos: int | None, eos_ids: frozenset[int], mask_prompt: bool
) -> tuple[list[Example], int]:
    """The examples of a conversation, and the number of its replies that are not learned.

    It is one example, if earlier replies are in the prompt of the last one as they follow their own prompts. If they
    are not, they have an example each, with the text before it as a reply's prompt has it: some templates drop earlier
    reasoning, and some tokenizers join the end of a prompt with the reply's beginning, such as two line breaks.
    Replies that do not follow the template's own prompt are not learned; there may be no example.
    A reply's learned tokens are those with characters of it, and the token that ends it; white space that the template
    writes after that is not learned. After the last reply comes `eos`, unless one of `eos_ids` is there already.
    """
    examples, count = [], 0
    for rendering in renderings(conversation, template):
        count += len(rendering.replies)
        for ids, learned in _encode_replies(rendering, template):
            end = [] if eos is None or ids[-1] in eos_ids else [eos]
            flags = learned + [True] * len(end) if mask_prompt else [True] * len(ids + end)
            examples.append(Example(ids + end, [False, *flags[1:]]))
    return examples, len(conversation.learned) - count


def renderings(conversation: Conversation, template: ChatTemplate) -> list[Rendering]:
    """The texts in which every reply follows what the template writes before it, as few as possible, in order.

    White space at the end of that prompt may be missing, and EOS after a reply that is not the last one.
    Texts have the marks that `ChatTemplate.mark` inserts.
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
        result[-1].replies.insert(0, (first, len(text[:end].rstrip())))
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


def _encode_replies(rendering: Rendering, template: ChatTemplate) -> list[tuple[list[int], list[bool]]]:
    """Ids of a rendering up to its last reply, and whether each is learned; before them those of earlier replies.

    The ids before each reply are those of its prompt at inference. An earlier reply for which that is not so in the
    prompt of the last one is learned from ids that end with it.
    """
    text, replies = rendering.text, rendering.replies
    result: list[tuple[list[int], list[bool]]] = []
    while replies:
        *earlier, (first, last) = replies
        ids, offsets = _encode(text[:first], template)
        prompts = {reply: _encode(text[: reply[0]], template)[0] for reply in earlier}
        shared = [reply for reply, prompt in prompts.items() if ids[: len(prompt)] == prompt]
        answer = _encode_continuation(text[:first], text[first:last], ids, template)
        learned = _are_in(offsets, [(_unmarked(text[:start]), _unmarked(text[:stop])) for start, stop in shared])
        result.insert(0, ([*ids, *answer], [*learned, *[True] * len(answer)]))
        replies = [reply for reply in earlier if reply not in shared]
    return result


def _encode_continuation(prompt: str, reply: str, prompt_ids: list[int], template: ChatTemplate) -> list[int]:
    """Ids of a reply after its prompt. If a token would have characters of both, they are encoded apart.

    Another context is in the prompt's place then, as SentencePiece begins a text of its own with a space.
    """
    for context in (prompt, *CONTEXTS):
        before = prompt_ids if context is prompt else _encode(context, template)[0]
        both = _encode(context + reply, template)[0]
        if both[: len(before)] == before:
            break
    return both[len(before) :]


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
