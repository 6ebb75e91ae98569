"""Questions with generated answers: greedy decoding of many questions in parallel."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from evals.harness.likelihood import per_question
from evals.harness.prompts import encoder
from evals.harness.task import BatchLimits, Generation, Item, Task
from evals.runs.run_file import Key, sha256

if TYPE_CHECKING:
    from engine import LLM
    from engine.decoding.loop import Event
    from engine.decoding.loop import Sequence as TokenSequence
    from engine.runtime.clocks import Stopwatch
    from engine.text.tokenizer import Tokenizer

MIN_SHARED_PREFIX = 32  # tokens; a shorter common prefix of a block is not worth its own forward pass


def generate_answers(
    task: Task,
    llm: LLM,
    limits: BatchLimits,
    blocks: Iterable[Sequence[tuple[Any, Item]]],
    missing: set[Key],
    watch: Stopwatch,
) -> Iterator[list[dict[str, Any]]]:
    """Answer blocks of (row, item). Yield the records of missing questions, batch by batch.

    Batches without a missing question are skipped. The common prefix of all prompts of a block is computed once;
    `prefill_batch` shares what some prompts of a batch have in common.
    """
    from engine.decoding.batch import prefill_batch
    from engine.runtime.memory import peak_memory

    assert task.generation is not None
    encode_all = encoder(llm.tokenizer)
    max_prompt = llm.max_length - task.generation.max_new_tokens
    root = llm.sequence()
    for block in blocks:
        full_prompts = encode_all([item.requests[0][0] for _, item in block])
        prompts = [ids[-max_prompt:] for ids in full_prompts]
        prefix = shared_prefix(prompts)
        for start in range(0, len(block), limits.answers):
            members = block[start : start + limits.answers]
            if missing.isdisjoint(item.key for _, item in members):
                continue
            computed = 0
            if root.ids != prefix:
                root.close()
                root, computed = llm.sequence(), len(prefix)
                if prefix:
                    root.feed(prefix)
            prefilled = prefill_batch(root, prompts[start : start + limits.answers], limits.tokens)
            prefill = asdict(watch.lap())
            answers = decode_answers(prefilled.rows, task.generation, llm.tokenizer)
            decode = asdict(watch.lap())
            cost = {name: None if prefill[name] is None else prefill[name] + decode[name] for name in prefill}
            cost |= {"computed": computed + prefilled.computed, "prefill": prefill["real"], "decode": decode["real"]}
            times = per_question(cost, len(members)) | {"peak_memory": peak_memory(llm.device)}
            yield [
                make_record(
                    task.generation,
                    row,
                    item,
                    events,
                    times,
                    len(prompts[index]),
                    len(full_prompts[index]) > max_prompt,
                )
                for index, ((row, item), events) in enumerate(zip(members, answers, strict=True), start)
                if item.key in missing
            ]
    root.close()


def shared_prefix(prompts: Sequence[list[int]]) -> list[int]:
    """Return the common prefix of all prompts if it is worth sharing. At least one token of each prompt is left."""
    from engine.decoding.loop import common_prefix

    length = common_prefix(min(prompts), max(prompts))  # in lexicographic order all others are in between
    length = min(length, min(map(len, prompts)) - 1)
    return prompts[0][:length] if length >= MIN_SHARED_PREFIX and len(prompts) > 1 else []


def eos_texts(tokenizer: Tokenizer) -> list[str]:
    """Return the text of EOS as a stop string: some models spell it out in ordinary tokens."""
    text = tokenizer.special_tokens.get("eos_token")
    return [text] if text else []


def decode_answers(rows: list[TokenSequence], generation: Generation, tokenizer: Tokenizer) -> list[list[Event]]:
    """Decode all rows in parallel and close them. Return the events of each."""
    from engine.decoding.loop import decode
    from engine.decoding.sampling import SamplingParams

    answers: list[list[Event]] = [[] for _ in rows]
    special = tokenizer.control_tokens  # their text is not part of the output
    params = SamplingParams(
        max_new_tokens=generation.max_new_tokens,
        stop=(*generation.until, *eos_texts(tokenizer)),
        stop_token_ids=[special[text] for text in generation.until if text in special],
    )
    for event in decode(rows, params):
        answers[event.sequence].append(event)
    for row in rows:
        row.close()
    return answers


def make_record(
    generation: Generation,
    row: Any,
    item: Item,
    events: Sequence[Event],
    times: Mapping[str, float],
    tokens: int,
    truncated: bool,
) -> dict[str, Any]:
    """Return a question's record for the run file. `times` is its share of the cost of its batch."""
    response = "".join(event.text for event in events)
    answers, metrics = generation.judge(row, response)
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
