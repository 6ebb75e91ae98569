"""Solved examples before a question, as lm-evaluation-harness draws and places them. Pure: no model, no torch."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

from engine.runtime.errors import TemplateError
from evals.harness.prompts import Render

SEED = 1234
ROLES = ("user", "assistant")
Example = tuple[str, str]  # a question as it is asked, and its answer


def context(
    examples: Sequence[Example],
    question: str,
    render: Render | None = None,
    single_turn: bool = False,
    description: str = "",
) -> str:
    """What a model is given before it answers; `render` puts it into a chat template.

    There the description is the system's message, and each example a turn of the user's and one of the assistant's;
    with `single_turn` all of them stand in one message.
    """
    plain = "".join(f"{asked} {answer}\n\n" for asked, answer in examples) + question
    if render is None:
        return description + plain
    turns = [{"role": "user", "content": plain}]
    if not single_turn:
        roles = ({"role": role, "content": text} for own in examples for role, text in zip(ROLES, own, strict=True))
        turns = [*roles, {"role": "user", "content": question}]
    system = [{"role": "system", "content": description}] if description else []
    return render_chat(render, [*system, *turns])


def render_chat(render: Render, messages: list[dict[str, str]]) -> str:
    """A conversation by its template; without the system message where the template refuses it."""
    try:
        return render(messages)
    except TemplateError:
        if messages[0]["role"] != "system":
            raise
        return render(messages[1:])


def delimiter(render: Render | None) -> str:
    """What stands between a question and its answer: a chat template has its own."""
    return " " if render is None else ""


def draws(questions: int, pool: int, shots: int, seed: int = SEED) -> list[list[int]]:
    """For each question in order the places of its examples in the pool, drawn afresh by one generator."""
    generator = Random(seed)
    return [generator.sample(range(pool), shots) for _ in range(questions)]


def others(drawn: Sequence[int], own: int, shots: int) -> list[int]:
    """Of one example more than needed, drawn from the questions' own split, those that are not the question itself."""
    return [place for place in drawn if place != own][:shots]
