"""The texts of /stats, /logprobs and /version."""

from __future__ import annotations

import math
from collections.abc import Sequence

from chat.conversation.session import Session
from chat.images import count_images, shown
from chat.workspace import Workspace
from engine.runtime.wording import plural

SCORED = "the tokens of the text, as the model reads it, with their probabilities now; it may have generated others"
SKIPPED = 20  # characters that versions have in common, from which on they are shown from where they differ
SHOWN = 60  # characters of a text in a list


def statistics(workspace: Workspace) -> str:
    """Messages, window, evictions, tokens, speed and memory, one line each."""
    session, counters = workspace.session, workspace.session.statistics
    messages = sum(len(turn) for turn in session.turns)
    budget = session.budget
    used = session.count(session.visible_messages()) if session.turns else 0
    about = "" if session.model.counts_exactly else "about "
    images = f" and {plural(counters.dropped_images, 'image')}" if counters.dropped_images else ""
    lines = [
        f"model      {workspace.name}, {session.model.description}",
        f"messages   {messages} in {len(session.turns)} turns; in the window: "
        + (f"turn {session.start + 1} and later" if session.settings.history else "the last turn only"),
        f"window     {about}{used:,} of {budget.window:,} tokens ({used / budget.window:.0%}), "
        f"{budget.reserve:,} reserved for the reply",
        f"strategy   {session.settings.strategy}, history {'on' if session.settings.history else 'off'}",
        f"dropped    {counters.dropped_turns} turns, {counters.dropped_tokens:,} tokens{images}, "
        f"in {counters.evictions} evictions; {counters.summaries} summaries",
    ]
    if any(numbers := [count_images(turn) for turn in session.turns]):
        visible = numbers[session.start if session.settings.history else -1 :]
        lines.append(f"images     {sum(numbers)}, of which in the window {sum(visible)}")
    if counters.last is not None:
        prompt, completion, cached = counters.prompt_tokens, counters.completion_tokens, counters.cached_tokens
        lines += [
            f"tokens     prompts {prompt:,}, of which cached {cached:,} ({cached / max(prompt, 1):.0%}); "
            f"replies {completion:,}, {completion / counters.replies:.0f} per turn",
            f"last       TTFT {counters.last.ttft:.2f} s, {counters.last.tokens_per_second:.1f} tokens/s",
        ]
    if session.memory is not None:
        recalled = session.memory.recalled
        lines.append(
            f"memories   {len(recalled.pieces)} in the prompt, {plural(recalled.tokens, 'token')}, of "
            f"{budget.memories:,} set aside; {session.memory.store.count():,} in all"
        )
    if session.model.drafts is not None:
        lines.append(f"drafts     {session.model.drafts}")
    if session.model.peak_memory:
        lines.append(f"memory     {session.model.peak_memory / 2**30:.2f} GiB peak")
    return "\n".join(lines)


def alternatives(session: Session, turn: int | None = None) -> str:
    """Each token of a reply, by default the last, with its probability and numbered alternatives with theirs.

    If they were scored, a line above says so.
    """
    tokens = session.tokens_of(turn) if session.turns else []
    if all(token.logprob is None for token in tokens):
        return "no probabilities yet: /set logprobs 3, then send a message"
    width = len(str(len(tokens)))
    lines = [SCORED] if session.was_scored(turn) else []
    for number, token in enumerate(tokens, 1):
        others = ", ".join(
            f"{choice} {text!r} {math.exp(logprob):.1%}" for choice, (text, logprob) in enumerate(token.alternatives, 1)
        )
        share = "" if token.logprob is None else f"{math.exp(token.logprob):.1%}"
        lines.append(f"{number:>{width}} {token.text!r:<16} {share:>6}   {others}")
    return "\n".join(lines)


def versions(session: Session, turn: int) -> str:
    """The versions of a message, numbered, with the beginnings of both texts; the chosen one is marked.

    A long beginning that all versions have in common is left out.
    """
    chosen, _ = session.tree.version(turn)
    nodes = session.tree.versions(turn)
    messages = _distinct([shown(node.turn[0]["content"]) for node in nodes])
    replies = _distinct([node.turn[1]["content"] if len(node.turn) > 1 else "" for node in nodes])
    return "\n".join(
        f"{'*' if index == chosen else ' '} {index + 1}  {message} | {reply}"
        for index, (message, reply) in enumerate(zip(messages, replies, strict=True))
    )


def _distinct(texts: Sequence[str]) -> list[str]:
    """The beginning of each text in one line, or a part that begins shortly before they differ."""
    lines = [" ".join(text.split()) for text in texts]
    differing = (index for index, characters in enumerate(zip(*lines, strict=False)) if len(set(characters)) > 1)
    common = lines[0][: next(differing, min(map(len, lines)))] if len(set(lines)) > 1 else ""
    start = max(common.rfind(" ") + 1, len(common) - SKIPPED) if len(common) > SKIPPED else 0
    parts = [line[start : start + SHOWN] + "…" * (len(line) > start + SHOWN) for line in lines]
    return [f"… {part}" for part in parts] if start else parts
