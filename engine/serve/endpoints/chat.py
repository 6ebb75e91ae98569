"""POST /v1/chat/completions: messages -> prompt -> choices, whole or streamed."""

from __future__ import annotations

import asyncio
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from datetime import date
from functools import partial
from typing import TYPE_CHECKING, Any

from starlette.requests import Request
from starlette.responses import Response

from engine.decoding.images import PromptImages
from engine.decoding.loop import Event
from engine.decoding.params import SamplingParams, defaults
from engine.serve.conversation import images, messages, tools
from engine.serve.conversation.replies import Delta, ReplyParser
from engine.serve.conversation.tool_grammar import reply_grammar
from engine.serve.endpoints.answers import Answer, Prompt, answer_job, check_number, follow_all, new_tokens
from engine.serve.endpoints.client import Client, cache_scope, prepare, read_body
from engine.serve.endpoints.logprobs import ChatLogprobs, prompt_logprobs
from engine.serve.generation import Generation
from engine.serve.protocol.requests import ChatRequest, sampling_params
from engine.text.reasoning import opens_reasoning

if TYPE_CHECKING:
    from engine.serve.engine import Engine
    from engine.serve.request_log import Served


@dataclass(frozen=True)
class ChatPlan:
    """A chat request as work for an engine."""

    request: ChatRequest
    prompt: Prompt
    params: list[SamplingParams]  # of each choice
    in_reasoning: bool  # the prompt has opened the reasoning
    call_format: tools.ToolFormat
    choice: tools.ToolChoice

    def parser(self) -> ReplyParser:
        """A parser for one choice's text. Without tools it looks for no calls."""
        return ReplyParser(
            None if self.choice.mode == "none" else self.call_format,
            self.in_reasoning,
            self.request.reasoning_format != "none",
            names=self.choice.names,
            parallel=self.choice.parallel,
        )


async def chat_completions(request: Request) -> Response:
    """Answer a conversation."""
    chat, limits = await read_body(ChatRequest, request), request.app.state.server.limits
    scope = cache_scope(request, chat.cache_salt)

    async def work(client: Client, engine: Engine, served: Served) -> None:
        make = partial(make_plan, chat, engine, limits.default_new_tokens, scope)
        plan = await prepare(request, make, has_images(chat))
        with Answer("chatcmpl", engine, served) as answer:
            await reply(plan, answer, client, scope)

    return answer_job(request, chat.model, work)


def has_images(chat: ChatRequest) -> bool:
    """Whether a message has an image."""
    return any(images.find_images(chat.messages))


def make_plan(chat: ChatRequest, engine: Engine, default_new_tokens: int, scope: Hashable) -> ChatPlan:
    """Render and encode the conversation, and set the parameters of each choice. Raises `ApiError`."""
    choice = tools.check(chat.tools, chat.tool_choice, chat.parallel_tool_calls)
    prompt, call_format = render(chat, engine, choice, scope)
    in_reasoning = opens_reasoning(engine.llm.tokenizer, engine.public_ids(prompt.ids))
    grammar = reply_grammar(call_format, choice, chat.wanted_format, in_reasoning)
    wanted = default_new_tokens if chat.max_new_tokens is None else chat.max_new_tokens
    length = new_tokens(engine, len(prompt.ids), wanted)
    model_defaults = defaults(engine.llm.default_params)
    params = [sampling_params(chat, model_defaults, length, index, grammar) for index in range(chat.n)]
    return ChatPlan(chat, prompt, params, in_reasoning, call_format, choice)


def render(
    chat: ChatRequest, engine: Engine, choice: tools.ToolChoice, scope: Hashable
) -> tuple[Prompt, tools.ToolFormat]:
    """The prompt of a conversation, and how its model writes tool calls. `scope`: who shares what is cached.

    Raises `ApiError` or `BareloopError` for messages that the chat template cannot render.
    """
    template = engine.chat_template(date.today())
    pictures = request_images(chat, engine, scope)
    if pictures is not None:
        template = template.with_images(pictures)
    call_format = tools.ToolFormat.of(template.source)
    conversation = messages.prepare(chat.messages)
    shown = [] if choice.mode == "none" else choice.tools
    conversation = call_format.messages(conversation, shown)
    last = conversation[-1]
    is_continued = last["role"] == "assistant" and not last.get("tool_calls") and chat.add_generation_prompt is None
    continues = chat.continue_final_message or (chat.continue_final_message is None and is_continued)
    if continues and [message["role"] for message in conversation[-2:]] == ["assistant"] * 2:
        raise messages.invalid(
            "messages", "the last two messages are the assistant's, and the last one is to be continued: join them"
        )
    ids = template.encode(
        conversation,
        not continues and chat.add_generation_prompt is not False,
        tools=shown if shown and call_format.native else None,
        continues=continues,
        variables=chat.chat_template_kwargs,
    )
    pinned = () if pictures is None else pictures.pinned
    return Prompt(ids, continues, template.reply_starts(ids), chat.prompt_logprobs, pinned), call_format


def request_images(chat: ChatRequest, engine: Engine, scope: Hashable) -> images.RequestImages | None:
    """The images of a conversation, None if it has none. Raises `ApiError` if the model takes none."""
    places = [place for place, _ in images.find_images(chat.messages)]
    if not places:
        return None
    if engine.llm.images is None:
        message = f"{places[0]}: {engine.name} takes no images; use a vision-language model, such as SmolVLM"
        raise messages.invalid(places[0], message)
    return images.RequestImages(PromptImages(engine.llm.images, scope), places, engine.max_length)


class ChatChoice:
    """One choice: its parser and log-probabilities, and what it looks like in an answer."""

    def __init__(self, index: int, plan: ChatPlan, engine: Engine) -> None:
        self.index, self.plan = index, plan
        self.parser = plan.parser()
        request = plan.request
        self.logprobs = ChatLogprobs(engine.llm.tokenizer, request.top_logprobs or 0, plan.prompt.continues)
        self.stop_ids = frozenset(plan.params[index].stop_token_ids) | frozenset(engine.llm.eos_token_ids)
        self.entries: list[dict[str, Any]] = []  # log-probabilities that have not been sent
        self._unassigned = 0  # of them, those of tokens that nothing of the message has come from yet
        self.token_ids: list[int] = []
        self.reasoning_tokens = 0
        self.finish_reason: str | None = None

    def push(self, events: Sequence[Event]) -> list[tuple[Delta, int]]:
        """Add events. -> what they add to the message, each part with the number of its log-probabilities"""
        parts: list[tuple[Delta, int]] = []
        for event in events:
            self.token_ids.append(event.token_id)
            new = self.parser.push(event.text)
            if event.finish_reason is not None:
                new += self.parser.flush()
                self.finish_reason = event.finish_reason
            self.reasoning_tokens += any(delta.kind == "reasoning_content" for delta in new)
            is_end = event.finish_reason == "stop" and event.token_id in self.stop_ids
            if self.plan.request.logprobs and not is_end:
                self.entries += self.logprobs.entries([event])
                self._unassigned += 1
            parts += self._assigned(new)
        if self.parser.has_calls and self.finish_reason == "stop":
            self.finish_reason = "tool_calls"
        return parts

    def _assigned(self, deltas: Sequence[Delta]) -> list[tuple[Delta, int]]:
        """Parts of the message; the first is that of the tokens that have come since the last one."""
        counts = [self._unassigned] + [0] * len(deltas)
        self._unassigned = 0 if deltas else self._unassigned
        return list(zip(deltas, counts, strict=False))

    @property
    def is_complete(self) -> bool:
        """Whether the one call that is allowed has been made."""
        return not self.plan.choice.parallel and self.parser.is_complete_call

    def complete(self) -> list[tuple[Delta, int]]:
        """End a reply after its call. -> as `push`"""
        self.finish_reason = "tool_calls"
        return self._assigned(self.parser.flush())

    def take_logprobs(self, count: int | None = None) -> dict[str, Any] | None:
        """The first log-probabilities that have not been sent, by default all."""
        if not self.plan.request.logprobs:
            return None
        entries, self.entries = self.entries[:count], [] if count is None else self.entries[count:]
        return {"content": entries, "refusal": None}

    def as_dict(self) -> dict[str, Any]:
        """The whole choice."""
        token_ids = {"token_ids": self.token_ids} if self.plan.request.return_token_ids else {}
        return {
            "index": self.index,
            "message": self.parser.message() | {"refusal": None},
            "logprobs": self.take_logprobs(),
            "finish_reason": self.finish_reason,
            **token_ids,
        }


async def reply(plan: ChatPlan, answer: Answer, client: Client, scope: Hashable) -> None:
    """Generate all choices, and send them."""
    request = plan.request
    check_number(answer.engine, request.n)
    generations = [await answer.submit(plan.prompt, params, scope) for params in plan.params]
    choices = [ChatChoice(index, plan, answer.engine) for index in range(request.n)]
    if request.stream:
        await stream(choices, generations, answer, client)
        return
    await follow_all(collect(*pair) for pair in zip(choices, generations, strict=True))
    answer.served.finish_reasons = [str(choice.finish_reason) for choice in choices]
    content = {
        **answer.head,
        "object": "chat.completion",
        "choices": [choice.as_dict() for choice in choices],
        "usage": answer.usage(sum(choice.reasoning_tokens for choice in choices)),
    }
    if request.return_token_ids:
        content["prompt_token_ids"] = answer.engine.public_ids(plan.prompt.ids)
    if request.prompt_logprobs is not None:
        submitted, tokenizer = generations[0].submitted, answer.engine.llm.tokenizer
        content["prompt_logprobs"] = await asyncio.to_thread(prompt_logprobs, submitted, tokenizer)
    if request.timings_per_token:
        content["timings"] = answer.timings()
    await client.send(content)


async def collect(choice: ChatChoice, generation: Generation) -> None:
    """Follow a choice to its end."""
    async for events in generation:
        choice.push(events)
        if choice.is_complete and choice.finish_reason is None:
            choice.complete()
            generation.cancel()
            return


async def stream(
    choices: Sequence[ChatChoice], generations: Sequence[Generation], answer: Answer, client: Client
) -> None:
    """Send all choices as they come: first the role, then what is added to the message, then the finish reason."""
    plan = choices[0].plan
    request, options = plan.request, plan.request.stream_options
    head = {**answer.head, "object": "chat.completion.chunk"}

    def usage() -> dict[str, Any]:
        return answer.usage(sum(choice.reasoning_tokens for choice in choices))

    async def chunk(choice: ChatChoice, delta: dict[str, Any], **further: Any) -> None:
        part = {"index": choice.index, "delta": delta, "logprobs": None, "finish_reason": None} | further
        content: dict[str, Any] = {**head, "choices": [part]}
        if options.include_usage:
            content["usage"] = usage() if options.continuous_usage_stats else None
        if request.timings_per_token and "role" not in delta:  # nothing has been measured before the first token
            content["timings"] = answer.timings()
        await client.event(content)

    async def follow(choice: ChatChoice, generation: Generation) -> None:
        is_first, sent = True, 0
        async for events in generation:
            if is_first:
                shown = request.return_token_ids
                prompt_ids = {"prompt_token_ids": answer.engine.public_ids(plan.prompt.ids)} if shown else {}
                await chunk(choice, {"role": "assistant", "content": None}, **prompt_ids)
                is_first = False
            parts = choice.push(events)
            if choice.is_complete and choice.finish_reason is None:
                parts += choice.complete()
                generation.cancel()
            for number, (delta, tokens) in enumerate(parts):
                further: dict[str, Any] = {"logprobs": choice.take_logprobs(tokens)} if tokens else {}
                if request.return_token_ids and number == 0:
                    further["token_ids"], sent = choice.token_ids[sent:], len(choice.token_ids)
                await chunk(choice, delta.as_dict(), **further)
            if choice.finish_reason is not None:
                break
        rest = {"token_ids": choice.token_ids[sent:]} if request.return_token_ids else {}
        logprobs = choice.take_logprobs() if choice.entries else None
        await chunk(choice, {}, finish_reason=choice.finish_reason, logprobs=logprobs, **rest)

    await client.start()
    await follow_all(follow(*pair) for pair in zip(choices, generations, strict=True))
    answer.served.finish_reasons = [str(choice.finish_reason) for choice in choices]
    if options.include_usage:
        timings = {"timings": answer.timings()} if request.timings_per_token else {}
        await client.event({**head, "choices": [], "usage": usage(), **timings})
    await client.end()
