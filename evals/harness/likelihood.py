"""Questions with choices: the log-likelihood of each."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from engine.runtime.errors import BareloopError
from evals.harness.prompts import encode_pairs, encoder
from evals.harness.task import Item, Task
from evals.runs.run_file import Key, correct_choices, sha256
from evals.runs.scoring import predict

if TYPE_CHECKING:
    from engine import LLM
    from engine.decoding.scoring import Batch, Prompt, Score, Scorer
    from engine.runtime.clocks import Stopwatch


def score(
    task: Task,
    llm: LLM,
    batch: tuple[int, int],
    blocks: Iterable[Sequence[tuple[Any, Item]]],
    missing: set[Key],
    watch: Stopwatch,
) -> Iterator[list[dict[str, Any]]]:
    """Blocks of rows and items -> the records of each batch that holds a missing question, but only of the missing.

    `batch`: the tokens that are computed at once; its second number is for answers in the model's own words.
    """
    from engine.runtime.memory import peak_memory

    scorer = llm.scorer(batch[0])
    encode_all = encoder(llm.tokenizer)
    for block in blocks:
        for planned in planned_batches(scorer, block, [encode_pairs(encode_all, item.requests) for _, item in block]):
            owners = [block[prompt.index] for prompt in planned.prompts]
            if missing.isdisjoint(item.key for _, item in owners):
                continue
            before = scorer.computed
            scored = zip(planned.prompts, owners, scorer.score(planned), strict=True)
            times = shares(asdict(watch.lap()) | {"computed": scorer.computed - before}, len(owners))
            times["peak_memory"] = peak_memory(llm.device)
            yield [
                record(task, row, item, prompt, scores, times)
                for prompt, (row, item), scores in scored
                if item.key in missing
            ]


def planned_batches(
    scorer: Scorer, block: Sequence[tuple[Any, Item]], questions: Sequence[list[tuple[list[int], list[int]]]]
) -> list[Batch]:
    """The batches of a block; a question that cannot be scored is named."""
    for (_, item), requests in zip(block, questions, strict=True):
        for place, (context, continuation) in enumerate(requests):
            if not context or not 1 <= len(continuation) <= scorer.prefix.max_length:
                most, tokens = scorer.prefix.max_length, len(continuation)
                raise BareloopError(
                    f"choice {place} of {item.subject} {item.index} has {tokens} tokens after {len(context)}; "
                    f"what can be scored are 1 to {most:,} after at least 1: "
                    "the row, or the model's tokenizer or window, does not suit this benchmark"
                )
    return scorer.plan(questions)


def shares(spent: Mapping[str, float | None], questions: int) -> dict[str, float]:
    """What one question has of what its batch took."""
    return {kind: round(value / questions, 6) for kind, value in spent.items() if value is not None}


def record(
    task: Task, row: Any, item: Item, prompt: Prompt, scores: Sequence[Score], times: Mapping[str, float]
) -> dict[str, Any]:
    """One line of the run file. `times` is the question's share of what its batch took, and no part of the result."""
    loglikelihoods = [own.loglikelihood for own in scores]
    if not all(map(math.isfinite, loglikelihoods)):
        raise BareloopError(
            f"the model's scores of {item.subject} {item.index} are not numbers ({loglikelihoods}): "
            "its weights are damaged, or too large for this dtype; try --dtype float32 or bfloat16"
        )
    first, second, *_ = sorted(loglikelihoods, reverse=True)
    told = {"gold": item.gold, "prediction": predict(loglikelihoods)}
    return {
        "subject": item.subject,
        "index": item.index,
        "prompt_sha256": sha256(item.requests[0][0]),
        **told,
        "correct": told["prediction"] in correct_choices(told),
        "metrics": task.judge(row, loglikelihoods),
        "loglikelihoods": loglikelihoods,
        "greedy": [own.is_greedy for own in scores],
        "margin": first - second,
        "tokens": prompt.tokens,
        "truncated": prompt.truncated,
        "times": dict(times),
    }
