"""The texts of /stats and /logprobs."""

from __future__ import annotations

import math

from chat.session import Session
from chat.workspace import Workspace


def statistics(workspace: Workspace) -> str:
    """Messages, window, evictions, tokens, speed and memory, one line each."""
    session, counters = workspace.session, workspace.session.statistics
    messages = sum(len(turn) for turn in session.turns)
    budget = session.budget
    used = session.count(session.visible_messages()) if session.turns else 0
    about = "" if session.model.counts_exactly else "about "
    lines = [
        f"model      {workspace.name}, {session.model.description}",
        f"messages   {messages} in {len(session.turns)} turns; in the window: "
        + (f"turn {session.start + 1} and later" if session.settings.history else "the last turn only"),
        f"window     {about}{used:,} of {budget.window:,} tokens ({used / budget.window:.0%}), "
        f"{budget.reserve:,} reserved for the reply",
        f"strategy   {session.settings.strategy}, history {'on' if session.settings.history else 'off'}",
        f"dropped    {counters.dropped_turns} turns, {counters.dropped_tokens:,} tokens, in {counters.evictions} "
        f"evictions; {counters.summaries} summaries",
    ]
    if counters.replies:
        prompt = sum(reply.prompt_tokens for reply in counters.replies)
        completion = sum(reply.completion_tokens for reply in counters.replies)
        cached = sum(reply.cached_tokens for reply in counters.replies)
        last = counters.replies[-1]
        lines += [
            f"tokens     prompts {prompt:,}, of which cached {cached:,} ({cached / max(prompt, 1):.0%}); "
            f"replies {completion:,}, {completion / len(counters.replies):.0f} per turn",
            f"last       TTFT {last.ttft:.2f} s, {last.tokens_per_second:.1f} tokens/s",
        ]
    if session.model.drafts is not None:
        lines.append(f"drafts     {session.model.drafts}")
    if session.model.peak_memory:
        lines.append(f"memory     {session.model.peak_memory / 2**30:.2f} GiB peak")
    return "\n".join(lines)


def alternatives(session: Session) -> str:
    """Each token of the last reply with its probability, and the alternatives with theirs."""
    replies = session.statistics.replies
    tokens = session.model.probabilities(replies[-1].events) if replies else []
    if not tokens:
        return "no probabilities yet: /set logprobs 3, then send a message"
    lines = []
    for token in tokens:
        others = ", ".join(f"{text!r} {math.exp(logprob):.1%}" for text, logprob in token.alternatives)
        lines.append(f"{token.text!r:<16} {math.exp(token.logprob):>6.1%}   {others}")
    return "\n".join(lines)
