"""Multiple-choice questions: the log-likelihood of each choice."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Protocol

from engine.runtime.errors import BareloopError
from evals.harness.prompts import encode_pairs, encoder
from evals.harness.task import BatchLimits, Item, Task
from evals.runs.run_file import Key, correct_choices, sha256
from evals.runs.scoring import predict

if TYPE_CHECKING:
    from engine import LLM
    from engine.decoding.scoring import Batch, Scorer
    from engine.runtime.clocks import Stopwatch


def score_questions(
    task: Task,
    llm: LLM,
    limits: BatchLimits,
    blocks: Iterable[Sequence[tuple[Any, Item]]],
    missing: set[Key],
    watch: Stopwatch,
) -> Iterator[list[dict[str, Any]]]:
    """Score blocks of (row, item). Yield the records of missing questions, batch by batch.

    Batches without a missing question are skipped. The others are computed whole, so that their bits do not depend on
    what is missing.
    """
    from engine.runtime.memory import peak_memory

    scorer = llm.scorer(limits.tokens)
    encode_all = encoder(llm.tokenizer)
    for block in blocks:
        pairs = [encode_pairs(encode_all, item.requests) for _, item in block]
        for batch in plan_batches(scorer, block, pairs):
            members = [block[prompt.index] for prompt in batch.prompts]
            if missing.isdisjoint(item.key for _, item in members):
                continue
            before = scorer.computed
            scored = zip(batch.prompts, members, scorer.score(batch), strict=True)
            times = per_question(asdict(watch.lap()) | {"computed": scorer.computed - before}, len(members))
            times["peak_memory"] = peak_memory(llm.device)
            yield [
                make_record(task, row, item, scores, prompt.tokens, prompt.truncated, times)
                for prompt, (row, item), scores in scored
                if item.key in missing
            ]


def plan_batches(
    scorer: Scorer, block: Sequence[tuple[Any, Item]], pairs: Sequence[list[tuple[list[int], list[int]]]]
) -> list[Batch]:
    """Return the batches of a block. Raises `BareloopError` that names a question that cannot be scored."""
    max_length = scorer.prefix.max_length
    for (_, item), requests in zip(block, pairs, strict=True):
        for choice, (context, continuation) in enumerate(requests):
            if not context or not 1 <= len(continuation) <= max_length:
                raise BareloopError(
                    f"cannot score choice {choice} of {item.subject} {item.index}: it has {len(continuation)} tokens "
                    f"after a context of {len(context)}; use data whose choices have 1 to {max_length:,} tokens after "
                    "a context of at least 1, or another model"
                )
    return scorer.plan(pairs)


def per_question(cost: Mapping[str, float | None], questions: int) -> dict[str, float]:
    """Divide the cost of a batch by its number of questions. Unknown costs are dropped."""
    return {name: round(value / questions, 6) for name, value in cost.items() if value is not None}


class ScoredChoice(Protocol):
    """The score of a choice, computed here or by a server."""

    @property
    def loglikelihood(self) -> float:
        """In nats."""
        ...

    @property
    def is_greedy(self) -> bool:
        """Whether greedy decoding would generate the choice."""
        ...


def make_record(
    task: Task,
    row: Any,
    item: Item,
    scores: Sequence[ScoredChoice],
    tokens: int,
    truncated: bool,
    times: Mapping[str, float],
) -> dict[str, Any]:
    """Return a question's record for the run file. `times` is its share of the cost of its batch."""
    loglikelihoods = [score.loglikelihood for score in scores]
    if not all(map(math.isfinite, loglikelihoods)):
        raise BareloopError(
            f"the model's scores of {item.subject} {item.index} are not finite ({loglikelihoods}): "
            "its weights are damaged, or too large for this dtype; try --dtype float32 or bfloat16"
        )
    first, second, *_ = sorted(loglikelihoods, reverse=True)
    result = {"gold": item.gold, "prediction": predict(loglikelihoods)}
    return {
        "subject": item.subject,
        "index": item.index,
        "prompt_sha256": sha256(item.requests[0][0]),
        **result,
        "correct": result["prediction"] in correct_choices(result),
        "metrics": task.choice_metrics(row, loglikelihoods),
        "loglikelihoods": loglikelihoods,
        "greedy": [score.is_greedy for score in scores],
        "margin": first - second,
        "tokens": tokens,
        "truncated": truncated,
        "times": dict(times),
    }
