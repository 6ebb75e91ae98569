"""Questions with generated answers: greedy decoding of many questions, which join and leave between steps."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, NamedTuple

from evals.harness.likelihood import per_question
from evals.harness.prompts import TextEncoder, encoder
from evals.harness.task import BatchLimits, Generation, Item, Task
from evals.runs.run_file import Key, sha256

if TYPE_CHECKING:
    from engine import LLM, SamplingParams
    from engine.decoding.loop import Event
    from engine.decoding.scheduling.request import Request
    from engine.decoding.scheduling.scheduler import Scheduler
    from engine.runtime.clocks import Stopwatch
    from engine.text.tokenizer import Tokenizer

GROUP = 8  # prompts that are computed together
WHOLE_GROUP = 32  # prompts and answers, where the bits of an answer depend on what is decoded with it
MIN_SHARED_PREFIX = 32  # tokens; a shorter common prefix of a block is not worth its own forward pass


def generate_answers(
    task: Task,
    llm: LLM,
    limits: BatchLimits,
    blocks: Iterable[Sequence[tuple[Any, Item]]],
    missing: set[Key],
    watch: Stopwatch,
) -> Iterator[list[dict[str, Any]]]:
    """Answer blocks of (row, item). Yield the records of missing questions, as soon as their answers end.

    The common prefix of all prompts of a block is computed once. Prompts are computed in groups, which depend only on
    the block, so that their bits do not depend on what is missing; the scheduler decodes `limits.answers` at a time,
    and a new group begins as soon as there is room for it. Without the C++ kernels an answer's bits depend on what is
    decoded with it, so a group with a missing question is decoded whole and alone.
    """
    from engine import kernels
    from engine.decoding.batch import prefill_batch
    from engine.decoding.scheduling.scheduler import Scheduler

    assert task.generation is not None
    encode_all = encoder(llm.tokenizer)
    max_prompt = llm.max_length - task.generation.max_new_tokens
    params = sampling_params(task.generation, llm.tokenizer)
    independent = kernels.rows_are_independent(llm.dtype, llm.device)
    rows, size = (limits.answers, GROUP) if independent else (WHOLE_GROUP, WHOLE_GROUP)
    with Scheduler(llm, rows, limits.tokens) as scheduler:
        root = llm.sequence(scheduler.state)
        answers = Answers(task.generation, scheduler, watch)
        for block in blocks:
            full_prompts = encode_all([item.requests[0][0] for _, item in block])
            prompts = [ids[-max_prompt:] for ids in full_prompts]
            prefix = shared_prefix(prompts)
            for start in range(0, len(block), size):
                group = range(start, min(start + size, len(block)))
                wanted = [index for index in group if block[index][1].key in missing]
                if not wanted:
                    continue
                decoded = wanted if independent else group
                yield from answers.until(max(rows - len(decoded), 0) if independent else 0)
                lengths = [len(prompts[index]) + params.max_new_tokens for index in group]
                yield from answers.until_free(sum(map(scheduler.state.row_bytes, lengths)))
                computed = 0
                if root.ids != prefix:
                    root.close()
                    root, computed = llm.sequence(scheduler.state), len(prefix)
                    if prefix:
                        root.feed(prefix)
                prefilled = prefill_batch(root, [prompts[index] for index in group], limits.tokens)
                cost = asdict(watch.lap()) | {"computed": computed + prefilled.computed}
                cost |= {"prefill": cost["real"], "decode": 0.0}
                for index, sequence in zip(group, prefilled.rows, strict=True):
                    if index not in decoded:
                        sequence.close()
                        continue
                    request = scheduler.submit_sequence(sequence, params)
                    truncated = len(full_prompts[index]) > max_prompt
                    costs = per_question(cost, len(decoded))
                    answers.add(request, Answer(*block[index], index in wanted, truncated, costs))
        yield from answers.until(0)
        root.close()


class Answer(NamedTuple):
    """A question whose answer is being generated, and its share of the costs so far."""

    row: Any
    item: Item
    is_wanted: bool
    truncated: bool
    costs: dict[str, float]


class Answers:
    """The answers that are being generated."""

    def __init__(self, generation: Generation, scheduler: Scheduler, watch: Stopwatch) -> None:
        self.generation, self.scheduler, self.watch = generation, scheduler, watch
        self.running: dict[Request, Answer] = {}

    def add(self, request: Request, answer: Answer) -> None:
        """Add a question."""
        self.running[request] = answer

    def until(self, count: int) -> Iterator[list[dict[str, Any]]]:
        """Generate until at most `count` answers are unfinished. Yield the records of those that have ended."""
        from engine.runtime.memory import peak_memory

        while len(self.running) > count:
            work = self.scheduler.step()
            requests = work.requests if work is not None else [*self.running]  # None: all ended with their first token
            spent = asdict(self.watch.lap())
            share = per_question(spent | {"decode": spent["real"]}, len(requests))
            for request in requests:
                costs = self.running[request].costs
                costs.update({name: costs[name] + value for name, value in share.items()})
            ended = {request: self.running.pop(request) for request in [*self.running] if request.is_finished}
            peak = {"peak_memory": peak_memory(self.scheduler.state.device)} if ended else {}
            records = [self._record(request, answer, peak) for request, answer in ended.items() if answer.is_wanted]
            if records:
                yield records

    def until_free(self, nbytes: int) -> Iterator[list[dict[str, Any]]]:
        """Generate until so many bytes are free for other rows, or nothing is left to generate."""
        while self.running and self.scheduler.state.nbytes + nbytes > self.scheduler.cache_bytes:
            yield from self.until(len(self.running) - 1)

    def _record(self, request: Request, answer: Answer, peak: dict[str, int]) -> dict[str, Any]:
        times = {name: round(value, 6) for name, value in answer.costs.items()} | peak
        return make_record(
            self.generation, answer.row, answer.item, list(request), times, len(request.prompt.ids), answer.truncated
        )


def shared_prefix(prompts: Sequence[list[int]]) -> list[int]:
    """Return the common prefix of all prompts if it is worth sharing. At least one token of each prompt is left."""
    from engine.decoding.sequence import common_prefix

    length = common_prefix(min(prompts), max(prompts))  # in lexicographic order all others are in between
    length = min(length, min(map(len, prompts)) - 1)
    return prompts[0][:length] if length >= MIN_SHARED_PREFIX and len(prompts) > 1 else []


def eos_texts(tokenizer: TextEncoder) -> list[str]:
    """Return the text of EOS as a stop string: some models spell it out in ordinary tokens."""
    text = tokenizer.special_tokens.get("eos_token")
    return [text] if text else []


def sampling_params(generation: Generation, tokenizer: Tokenizer) -> SamplingParams:
    """Return the parameters of greedy decoding until one of the task's stop strings."""
    from engine import SamplingParams

    special = tokenizer.control_tokens  # their text is not part of the output
    return SamplingParams(
        max_new_tokens=generation.max_new_tokens,
        stop=(*generation.until, *eos_texts(tokenizer)),
        stop_token_ids=[special[text] for text in generation.until if text in special],
    )


def make_record(
    generation: Generation,
    row: Any,
    item: Item,
    events: Sequence[Event],
    times: Mapping[str, float],
    tokens: int,
    truncated: bool,
) -> dict[str, Any]:
    """Return the record of an answer that was generated here."""
    response, reason = "".join(event.text for event in events), str(events[-1].finish_reason)
    return answer_record(generation, row, item, response, reason, len(events), times, tokens, truncated)


def answer_record(
    generation: Generation,
    row: Any,
    item: Item,
    response: str,
    finish_reason: str,
    new_tokens: int,
    times: Mapping[str, float],
    tokens: int,
    truncated: bool,
) -> dict[str, Any]:
    """Return a question's record for the run file. `times` is its share of the cost of its batch."""
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
        "finish_reason": finish_reason,
        "new_tokens": new_tokens,
        "tokens": tokens,
        "truncated": truncated,
        "times": dict(times),
    }
