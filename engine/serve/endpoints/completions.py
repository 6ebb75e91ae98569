"""POST /v1/completions: prompts, as text or token ids -> choices, with their log-probabilities, whole or streamed."""

from __future__ import annotations

import asyncio
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from starlette.requests import Request
from starlette.responses import Response

from engine.decoding.loop import Event
from engine.decoding.params import SamplingParams, defaults
from engine.decoding.scheduling.prefix_cache import MIN_SHARED
from engine.decoding.scheduling.request import Request as ModelRequest
from engine.decoding.sequence import common_prefix
from engine.serve.conversation.tool_grammar import response_grammar
from engine.serve.endpoints.answers import Answer, Prompt, answer_job, check_ids, check_number, follow_all, new_tokens
from engine.serve.endpoints.client import Client, cache_scope, prepare, read_body
from engine.serve.endpoints.logprobs import CompletionLogprobs, TokenStrings
from engine.serve.generation import Generation
from engine.serve.protocol.requests import CompletionRequest, sampling_params

if TYPE_CHECKING:
    from engine.serve.engine import Engine
    from engine.serve.request_log import Served


@dataclass(frozen=True)
class CompletionPlan:
    """One choice of a completion request as work for an engine."""

    index: int
    prompt: Prompt
    text: str  # the prompt's, if it is echoed
    params: SamplingParams


async def completions(request: Request) -> Response:
    """Continue prompts."""
    body = await read_body(CompletionRequest, request)
    scope = cache_scope(request, body.cache_salt)

    async def work(client: Client, engine: Engine, served: Served) -> None:
        plans = await prepare(request, lambda: make_plans(body, engine))
        with Answer("cmpl", engine, served, only_prompts=body.max_new_tokens == 0) as answer:
            await reply(body, plans, answer, client, scope)

    return answer_job(request, body.model, work)


def make_plans(body: CompletionRequest, engine: Engine) -> list[CompletionPlan]:
    """Encode the prompts, and set the parameters of each choice: choice k of prompt j has the index j·n + k.

    Text gets the tokenizer's BOS, ids are taken as they are. Raises `ApiError` or `BareloopError`.
    """
    model_defaults, tokenizer = defaults(engine.llm.default_params), engine.llm.tokenizer
    grammar = response_grammar(body.wanted_format)
    plans: list[CompletionPlan] = []
    all_ids = [tokenizer.encode(prompt) if isinstance(prompt, str) else list(prompt) for prompt in body.prompts]
    for prompt, ids in zip(body.prompts, all_ids, strict=True):
        if not isinstance(prompt, str):
            check_ids(engine, ids, "prompt")
        length = new_tokens(engine, len(ids), max(body.max_new_tokens, 1), "prompt")
        text = "" if not body.echo else prompt if isinstance(prompt, str) else tokenizer.decode(ids)
        shared = Prompt(ids, cuts=common_beginning(all_ids), logprobs=body.logprobs if body.echo else None)
        for index in range(body.n):
            params = sampling_params(body, model_defaults, length, index, grammar)
            plans.append(CompletionPlan(len(plans), shared, text, params))
    return plans


def common_beginning(prompts: Sequence[list[int]]) -> list[int]:
    """Where prompts of one request begin to differ, such as choices after a question: up to there they are shared."""
    length = common_prefix(min(prompts), max(prompts))  # in lexicographic order all others are in between
    return [length] if len(prompts) > 1 and length >= MIN_SHARED else []


class CompletionChoice:
    """One choice: its text and log-probabilities that have not been sent."""

    def __init__(self, plan: CompletionPlan, body: CompletionRequest, engine: Engine) -> None:
        self.plan, self.body = plan, body
        self.finish_reason: str | None = None
        self.has_begun = False  # whether a part has been sent
        self.text = ""
        self.token_ids: list[int] = []
        self.logprobs: CompletionLogprobs | None = None
        if body.logprobs is not None:
            strings = TokenStrings(engine.llm.tokenizer, continues=not body.echo)
            self.logprobs = CompletionLogprobs(strings, body.logprobs)

    def begin(self, request: ModelRequest) -> None:
        """Echo the prompt, once it has been computed."""
        self.text = self.plan.text
        if self.logprobs is not None:
            for token, scored in zip(self.plan.prompt.ids, request.prompt_logprobs or (), strict=True):
                self.logprobs.add(token, *(scored or (None, ())))

    def push(self, events: Sequence[Event]) -> None:
        """Add events. With max_tokens 0 the token that the engine needs to generate is left out."""
        for event in events:
            if self.body.max_new_tokens == 0:
                self.finish_reason = "length"
                return
            self.text += event.text
            self.token_ids.append(event.token_id)
            if self.logprobs is not None:
                self.logprobs.add(event.token_id, event.logprob, event.top_logprobs or ())
            self.finish_reason = event.finish_reason

    def take(self) -> dict[str, Any]:
        """What has not been sent."""
        content: dict[str, Any] = {
            "index": self.plan.index,
            "text": self.text,
            "logprobs": None if self.logprobs is None else self.logprobs.columns,
            "finish_reason": self.finish_reason,
        }
        if self.body.return_token_ids:
            content |= {"token_ids": self.token_ids} | (
                {} if self.has_begun else {"prompt_token_ids": self.plan.prompt.ids}
            )
        self.text, self.token_ids, self.has_begun = "", [], True
        if self.logprobs is not None:
            self.logprobs.clear()
        return content


async def reply(
    body: CompletionRequest, plans: Sequence[CompletionPlan], answer: Answer, client: Client, scope: Hashable
) -> None:
    """Generate all choices, and send them: whole, or each piece as it comes."""
    head = {**answer.head, "object": "text_completion"}
    options = body.stream_options
    check_number(answer.engine, len(plans))
    generations = [await answer.submit(plan.prompt, plan.params, scope) for plan in plans]
    choices = [CompletionChoice(plan, body, answer.engine) for plan in plans]

    def timings() -> dict[str, Any]:
        return {"timings": answer.timings()} if body.timings_per_token else {}

    async def follow(choice: CompletionChoice, generation: Generation) -> None:
        is_first = True
        async for events in generation:
            if is_first and body.echo:
                await asyncio.to_thread(choice.begin, generation.submitted)  # it may have thousands of tokens
            choice.push(events)
            if body.stream and (choice.text or choice.finish_reason):
                content: dict[str, Any] = {**head, "choices": [choice.take()], **timings()}
                if options.include_usage:
                    content["usage"] = answer.usage() if options.continuous_usage_stats else None
                await client.event(content, is_large=is_first and body.echo)
            is_first = False

    if body.stream:
        await client.start()
    await follow_all(follow(*pair) for pair in zip(choices, generations, strict=True))
    answer.served.finish_reasons = [str(choice.finish_reason) for choice in choices]
    if not body.stream:
        await client.send(
            {**head, "choices": [choice.take() for choice in choices], "usage": answer.usage(), **timings()}
        )
        return
    if options.include_usage:
        await client.event({**head, "choices": [], "usage": answer.usage(), **timings()})
    await client.end()
