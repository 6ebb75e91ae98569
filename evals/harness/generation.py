"""Questions that a model answers in its own words: greedy decoding, many rows side by side."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from evals.harness.likelihood import shares
from evals.harness.prompts import encoder
from evals.harness.task import Item, Task, Writing
from evals.runs.run_file import Key, sha256

if TYPE_CHECKING:
    from engine import LLM
    from engine.decoding.loop import Event
    from engine.decoding.loop import Sequence as TokenSequence
    from engine.runtime.clocks import Stopwatch
    from engine.text.tokenizer import Tokenizer

LEAST_SHARED = 32  # tokens at the beginning of all prompts that are worth keeping from batch to batch


def write(
    task: Task,
    llm: LLM,
    batch: tuple[int, int],
    blocks: Iterable[Sequence[tuple[Any, Item]]],
    missing: set[Key],
    watch: Stopwatch,
) -> Iterator[list[dict[str, Any]]]:
    """Blocks of rows and items -> the records of each batch that holds a missing question, but only of the missing.

    `batch`: the tokens that are computed at once, and the questions that are answered side by side. What all prompts
    of a block begin with is computed once, and what some of a batch share once more.
    """
    from engine.decoding.batch import prefill_batch
    from engine.runtime.memory import peak_memory

    assert task.writing is not None
    encode_all = encoder(llm.tokenizer)
    room = llm.max_length - task.writing.max_new_tokens
    root = llm.sequence()
    for block in blocks:
        whole = encode_all([item.requests[0][0] for _, item in block])
        prompts = [ids[-room:] for ids in whole]
        begin = beginning(prompts)
        for start in range(0, len(block), batch[1]):
            owners = block[start : start + batch[1]]
            if missing.isdisjoint(item.key for _, item in owners):
                continue
            computed = 0
            if root.ids != begin:
                root.close()
                root, computed = llm.sequence(), len(begin)
                if begin:
                    root.feed(begin)
            fed = prefill_batch(root, prompts[start : start + batch[1]], batch[0])
            prefill = asdict(watch.lap())
            answers = respond(fed.rows, task.writing, llm.tokenizer)
            decode = asdict(watch.lap())
            spent = {kind: None if prefill[kind] is None else prefill[kind] + decode[kind] for kind in prefill}
            spent |= {"computed": computed + fed.computed, "prefill": prefill["real"], "decode": decode["real"]}
            times = shares(spent, len(owners)) | {"peak_memory": peak_memory(llm.device)}
            yield [
                record(task.writing, row, item, events, times, len(prompts[place]), len(whole[place]) > room)
                for place, ((row, item), events) in enumerate(zip(owners, answers, strict=True), start)
                if item.key in missing
            ]
    root.close()


def beginning(prompts: Sequence[list[int]]) -> list[int]:
    """What all of them begin with, where it is worth keeping; at least one token of each is left."""
    from engine.decoding.loop import common_prefix

    shared = common_prefix(min(prompts), max(prompts))  # in this order all others lie between
    shared = min(shared, min(map(len, prompts)) - 1)
    return prompts[0][:shared] if shared >= LEAST_SHARED and len(prompts) > 1 else []


def ends(tokenizer: Tokenizer) -> list[str]:
    """The text of EOS, which ends an answer also where a model spells it out."""
    text = tokenizer.special_tokens.get("eos_token")
    return [text] if text else []


def respond(rows: list[TokenSequence], writing: Writing, tokenizer: Tokenizer) -> list[list[Event]]:
    """What is written after each row, all side by side; the rows are closed."""
    from engine.decoding.loop import decode
    from engine.decoding.sampling import SamplingParams

    answers: list[list[Event]] = [[] for _ in rows]
    special = tokenizer.control_tokens  # which are no part of the text
    params = SamplingParams(
        max_new_tokens=writing.max_new_tokens,
        stop=(*writing.until, *ends(tokenizer)),
        stop_token_ids=[special[text] for text in writing.until if text in special],
    )
    for event in decode(rows, params):
        answers[event.sequence].append(event)
    for row in rows:
        row.close()
    return answers


def record(
    writing: Writing,
    row: Any,
    item: Item,
    events: Sequence[Event],
    times: Mapping[str, float],
    tokens: int,
    truncated: bool,
) -> dict[str, Any]:
    """One line of the run file. `times` is the question's share of what its batch took, and no part of the result."""
    response = "".join(event.text for event in events)
    answers, metrics = writing.judge(row, response)
    return {
        "subject": item.subject,
        "index": item.index,
        "prompt_sha256": sha256(item.requests[0][0]),
        "gold": item.gold,
        "prediction": next(iter(answers.values())),
        "correct": next(iter(metrics.values())) == 1,
        "metrics": metrics,
        "response": response,
        "answers": answers,
        "finish_reason": str(events[-1].finish_reason),
        "new_tokens": len(events),
        "tokens": tokens,
        "truncated": truncated,
        "times": dict(times),
    }
