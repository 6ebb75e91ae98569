"""What is to be judged, what the judge is asked, and the verdicts in its texts. Pure: no model, no network, no torch.

Prompts and verdicts are those of FastChat's llm_judge (Zheng et al. 2023).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from engine.runtime.errors import BareloopError, quote
from engine.text.reasoning import CLOSE, OPEN, split
from evals.analysis.judgments import SCALE
from evals.data.mt_bench import NEEDS_REFERENCE, JudgedQuestion, JudgePrompt, QuestionSet
from evals.runs.judged import MAX_SCORE, NO_SCORE, POSITIONS, Answer, Judgment, PairJudgment

RATING, WINNER = "[[rating]]", "[[A]]"  # output formats
PROMPTS = {  # by output format: for all categories, for those that need a reference
    RATING: ("single-v1", "single-math-v1"),
    WINNER: ("pair-v2", "pair-math-v1"),
}
RATINGS = (re.compile(r"\[\[(\d+\.?\d*)\]\]"), re.compile(r"\[(\d+\.?\d*)\]"))
VERDICTS = {"[[A]]": "A", "[[B]]": "B", "[[C]]": "tie"}  # in the order in which they are looked for
BYTES_PER_TOKEN = 3.9  # of the prompts, with SmolLM2's tokenizer; 3.6 where they show references
TYPICAL_TOKENS = 300  # of a judgment
Key = tuple[int, str, int] | tuple[int, tuple[str, str], int]


@dataclass(frozen=True)
class Match:
    """Answers of one model, or of two, to one turn. `user_prompts`: one, or one for each order of the two models."""

    question: JudgedQuestion
    models: tuple[str, ...]
    turn: int
    prompt: JudgePrompt
    user_prompts: tuple[str, ...]

    @property
    def key(self) -> Key:
        """What is judged: the key of its judgment."""
        if len(self.models) == 1:
            return self.question.id, self.models[0], self.turn
        first, second = sorted(self.models)
        return self.question.id, (first, second), self.turn


def single_matches(question_set: QuestionSet, answers: Mapping[str, Mapping[int, Answer]]) -> list[Match]:
    """Every turn of every model's answers, question by question. `answers`: by model and question.

    Turn 2 is judged of questions with two turns. Raises `BareloopError` for a missing answer, reference or prompt.
    """
    return [
        _match(question_set, question, turn, (model,), answers)
        for question, turn in _turns(question_set)
        for model in answers
    ]


def pair_matches(
    question_set: QuestionSet, answers: Mapping[str, Mapping[int, Answer]], pairs: Iterable[tuple[str, str]]
) -> list[Match]:
    """Every turn of the answers of these pairs of models, as `single_matches`."""
    pairs = list(pairs)
    return [
        _match(question_set, question, turn, pair, answers) for question, turn in _turns(question_set) for pair in pairs
    ]


def make_judgment(match: Match, judge: str, texts: Sequence[str], tstamp: float) -> Judgment | PairJudgment:
    """Read the verdict in a judge's texts: one, or one for each order of two models."""
    verdicts = [verdict_text(text) for text in texts]
    question, prompt = match.question.id, match.prompt
    if len(match.models) == 1:
        score = read_score(verdicts[0])
        (model,), (user_prompt,), (text,) = match.models, match.user_prompts, texts
        return Judgment(question, model, judge, prompt.name, user_prompt, text, score, match.turn, tstamp)
    first, second = (read_winner(verdict, prompt.output_format) for verdict in verdicts)
    winners = (_position(first, POSITIONS), _position(second, POSITIONS[::-1]))
    models, prompts = (match.models[0], match.models[1]), (match.user_prompts[0], match.user_prompts[1])
    return PairJudgment(
        question, models, winners, judge, prompt.name, prompts, (texts[0], texts[1]), match.turn, tstamp
    )


def verdict_text(text: str) -> str:
    """The part of a judge's text that has the verdict: what follows its reasoning.

    Some servers leave out the opening tag, which the chat template has written.
    """
    if CLOSE in text and OPEN not in text:
        return text.partition(CLOSE)[2]
    return split(text)[1]


def read_score(text: str) -> float:
    """The first [[rating]] of a judgment, else the first [rating]; -1 if there is none.

    It may be outside the scale, as FastChat keeps such: see `is_outside`. A longer number than files may have is none.
    """
    for pattern in RATINGS:
        if match := pattern.search(text):
            score = float(match[1])
            return score if score < MAX_SCORE else NO_SCORE
    return NO_SCORE


def is_outside(score: float) -> bool:
    """Whether a score is none that a judge was asked for: not from 1 to 10."""
    return score != NO_SCORE and not SCALE[0] <= score <= SCALE[1]


def read_winner(text: str, output_format: str) -> str:
    """The verdict about two answers: "A", "B", "tie", or "error" if there is none.

    Raises `BareloopError` for an output format that has no winner.
    """
    if output_format != WINNER:
        raise BareloopError(
            f"the output format {quote(output_format)} has no winner; use a judge's prompt with {WINNER}"
        )
    return next((verdict for mark, verdict in VERDICTS.items() if mark in text), "error")


def estimate(games: Iterable[tuple[Match, int]]) -> tuple[int, int, int]:
    """What judging costs: judgments that are asked for, tokens of their prompts, and tokens of typical judgments.

    `games`: matches, each with one order of its models. The tokens of the prompts are estimated from their bytes.
    """
    asked = [(match.prompt.system_prompt, match.user_prompts[order]) for match, order in games]
    size = sum(len(text.encode("utf-8", "surrogatepass")) for texts in asked for text in texts)
    return len(asked), round(size / BYTES_PER_TOKEN), len(asked) * TYPICAL_TOKENS


def _turns(question_set: QuestionSet) -> Iterator[tuple[JudgedQuestion, int]]:
    for question in question_set.questions:
        for turn in (1, 2) if len(question.turns) == 2 else (1,):
            yield question, turn


def _match(
    question_set: QuestionSet,
    question: JudgedQuestion,
    turn: int,
    models: tuple[str, ...],
    answers: Mapping[str, Mapping[int, Answer]],
) -> Match:
    prompt = _prompt(question_set, question, turn, RATING if len(models) == 1 else WINNER)
    turns = [_answer(question, turn, model, answers) for model in models]
    orders = [turns] if len(models) == 1 else [turns, turns[::-1]]
    return Match(question, models, turn, prompt, tuple(_fill(prompt, question, turn, order) for order in orders))


def _prompt(question_set: QuestionSet, question: JudgedQuestion, turn: int, output_format: str) -> JudgePrompt:
    """The judge's prompt for a turn. Raises `BareloopError` if it, or the reference that it shows, is missing."""
    needs_reference = question.category in NEEDS_REFERENCE
    name = PROMPTS[output_format][needs_reference] + ("-multi-turn" if turn == 2 else "")
    prompt = question_set.prompts.get(name)
    if prompt is None:
        raise BareloopError(f"judge_prompts.jsonl has no prompt {name}; take FastChat's file, or add it")
    if prompt.output_format != output_format:
        raise BareloopError(
            f"the judge's prompt {name} has the output format {quote(prompt.output_format)}; only {output_format} can "
            "be read here"
        )
    if needs_reference and len(question.references) < turn:
        raise BareloopError(
            f"question {question.id} ({question.category}) has no reference answer for turn {turn}, which {name} shows "
            "to the judge; add it to reference_answer/gpt-4.jsonl, or leave out the question"
        )
    return prompt


def _answer(
    question: JudgedQuestion, turn: int, model: str, answers: Mapping[str, Mapping[int, Answer]]
) -> tuple[str, ...]:
    """A model's answers to the turns of a question, up to this one. Raises `BareloopError` if one is missing."""
    answer = answers.get(model, {}).get(question.id)
    if answer is None or len(answer.turns) < turn:
        raise BareloopError(
            f"{model} has no answer to turn {turn} of question {question.id}; answer all questions before they are "
            f"judged, or leave out {model}"
        )
    return answer.turns[:turn]


def _fill(prompt: JudgePrompt, question: JudgedQuestion, turn: int, answers: Sequence[tuple[str, ...]]) -> str:
    """Fill a prompt's template. Values are inserted as they are: braces in them mean nothing."""
    labels = ("",) if len(answers) == 1 else ("_a", "_b")
    values = {f"ref_answer_{number}": text for number, text in enumerate(question.references, 1)}
    if turn == 1:
        values["question"] = question.turns[0]
        values |= {f"answer{label}": texts[0] for label, texts in zip(labels, answers, strict=True)}
    else:
        values |= {f"question_{number}": text for number, text in enumerate(question.turns, 1)}
        for label, texts in zip(labels, answers, strict=True):
            values |= {f"answer{label}_{number}": text for number, text in enumerate(texts, 1)}
    try:
        return prompt.template.format(**values)
    except (LookupError, ValueError, AttributeError) as error:
        raise BareloopError(
            f"the template of the judge's prompt {prompt.name} cannot be filled ({error}); its fields for turn {turn} "
            f"are {', '.join(values)}"
        ) from None


def _position(verdict: str, positions: Sequence[str]) -> str:
    """The winner's position, of the models in the order in which they were shown; a tie or error is kept."""
    return {"A": positions[0], "B": positions[1]}.get(verdict, verdict)
