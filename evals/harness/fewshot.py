"""Solved examples before a question, chosen and placed as in lm-evaluation-harness. Pure: no model, no torch."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

from engine.runtime.errors import TemplateError
from evals.harness.prompts import Render

SEED = 1234
ROLES = ("user", "assistant")
Example = tuple[str, str]  # (formatted question, answer)


def build_context(
    examples: Sequence[Example],
    question: str,
    render: Render | None = None,
    single_turn: bool = False,
    description: str = "",
) -> str:
    """Return the text before the answer, through a chat template if `render` is given.

    In a chat, the description is the system message, and each example is a user turn and an assistant turn; with
    `single_turn`, examples and question form one user message.
    """
    plain = "".join(f"{prompt} {answer}\n\n" for prompt, answer in examples) + question
    if render is None:
        return description + plain
    turns = [{"role": "user", "content": plain}]
    if not single_turn:
        solved = (
            {"role": role, "content": text} for example in examples for role, text in zip(ROLES, example, strict=True)
        )
        turns = [*solved, {"role": "user", "content": question}]
    system = [{"role": "system", "content": description}] if description else []
    return render_chat(render, [*system, *turns])


def render_chat(render: Render, messages: list[dict[str, str]]) -> str:
    """Render a conversation; without the system message if the template rejects it."""
    try:
        return render(messages)
    except TemplateError:
        if messages[0]["role"] != "system":
            raise
        return render(messages[1:])


def target_delimiter(render: Render | None) -> str:
    """Return the text between a question and its answer. In a chat the template separates them."""
    return " " if render is None else ""


def draw_examples(questions: int, pool: int, shots: int, seed: int = SEED) -> list[list[int]]:
    """Return indices into the pool for each question in order; all are drawn by one generator."""
    generator = Random(seed)
    return [generator.sample(range(pool), shots) for _ in range(questions)]


def exclude_question(drawn: Sequence[int], question: int, shots: int) -> list[int]:
    """Return `shots` of the drawn indices without the question itself.

    If examples come from the split of the questions, one more than needed is drawn.
    """
    return [index for index in drawn if index != question][:shots]
