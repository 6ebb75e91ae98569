"""What chat and completions share: submitting prompts, following choices, token counts and times."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Awaitable, Callable, Coroutine, Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from starlette.requests import Request as HttpRequest

from engine.decoding.params import SamplingParams
from engine.decoding.scheduling.request import Request
from engine.serve.endpoints.client import Client, Job
from engine.serve.generation import MAX_UNREAD, Generation
from engine.serve.protocol.errors import ApiError
from engine.serve.state import ServerState

if TYPE_CHECKING:
    from engine.serve.engine import Engine
    from engine.serve.request_log import Served


@dataclass(frozen=True, eq=False)
class Prompt:
    """A prompt of one or several choices."""

    ids: list[int]
    continues: bool = True  # the reply's text continues the prompt's
    cuts: Sequence[int] = ()
    logprobs: int | None = None  # alternatives to report with each token of the prompt; None: no log-probabilities
    images: Sequence[object] = ()  # of the prompt, which stay in memory as long as they are held


class Answer:
    """The head of an answer, and the requests that it consists of. Leaving it cancels what still runs.

    with Answer("chatcmpl", engine, served) as answer:
        generation = await answer.submit(prompt, params, scope)
    """

    def __init__(self, prefix: str, engine: Engine, served: Served, only_prompts: bool = False) -> None:
        """`prefix`: of its id. `only_prompts`: the token that is generated is not a part of the answer."""
        self.engine, self.served, self.only_prompts = engine, served, only_prompts
        self.head = {
            "id": f"{prefix}-{secrets.token_hex(12)}",
            "created": int(time.time()),
            "model": engine.name,
            "system_fingerprint": engine.fingerprint,
        }
        self.generations: dict[Prompt, list[Generation]] = {}

    def __enter__(self) -> Answer:
        return self

    def __exit__(self, *_: object) -> None:
        for generations in self.generations.values():
            for generation in generations:
                generation.cancel()
        self.served.note(self.requests(), sum(len(prompt.ids) for prompt in self.generations))

    async def submit(self, prompt: Prompt, params: SamplingParams, scope: Hashable) -> Generation:
        """Add a choice of a prompt. Raises `BareloopError` if it cannot be computed."""
        generation = Generation()
        self.generations.setdefault(prompt, []).append(generation)
        await generation.start(
            lambda: self.engine.scheduler.submit(
                prompt.ids,
                params,
                continues=prompt.continues,
                cuts=prompt.cuts,
                scope=scope,
                notify=generation.notify,
                max_unread=MAX_UNREAD,
                prompt_logprobs=prompt.logprobs,
            )
        )
        return generation

    def requests(self) -> list[Request]:
        """What has been submitted."""
        generations = (generation for each in self.generations.values() for generation in each)
        return [generation.request for generation in generations if generation.request is not None]

    def usage(self, reasoning_tokens: int = 0) -> dict[str, Any]:
        """Token counts so far. The tokens of a prompt with several choices count once."""
        prompt_tokens = sum(len(prompt.ids) for prompt in self.generations)
        completion_tokens = 0 if self.only_prompts else sum(each.completion_tokens for each in self.requests())
        first = [generations[0].request for generations in self.generations.values()]
        return {
            "prompt_tokens": prompt_tokens,
            "completion_tokens": completion_tokens,
            "total_tokens": prompt_tokens + completion_tokens,
            "prompt_tokens_details": {"cached_tokens": sum(each.cached_tokens for each in first if each is not None)},
            "completion_tokens_details": {"reasoning_tokens": reasoning_tokens},
        }

    def timings(self) -> dict[str, Any]:
        """Times of the first choice so far, under llama.cpp's names."""
        request = self.requests()[0]
        computed, generated = len(request.prompt.ids) - request.cached_tokens, request.completion_tokens
        return {
            "cache_n": request.cached_tokens,
            **_timing("prompt", computed, request.prefill_seconds),
            **_timing("predicted", generated, request.decode_seconds),
        }


def _timing(name: str, tokens: int, seconds: float) -> dict[str, Any]:
    per_second = tokens / seconds if seconds else 0.0
    times = {"ms": 1000 * seconds, "per_token_ms": 1000 * seconds / max(tokens, 1), "per_second": per_second}
    return {f"{name}_n": tokens} | {f"{name}_{key}": value for key, value in times.items()}


def new_tokens(engine: Engine, prompt_tokens: int, wanted: int, param: str = "messages") -> int:
    """How many tokens a reply can have: as wanted, or what is left of the window.

    Raises `ApiError` if the prompt leaves no room for a reply.
    """
    room = engine.max_length - prompt_tokens
    if room < 1:
        raise ApiError(
            400,
            f"the prompt has {prompt_tokens:,} tokens, and the window of {engine.name} is {engine.max_length:,}, "
            "prompt and reply together; shorten the prompt",
            param=param,
            code="context_length_exceeded",
            kind="exceed_context_size_error",  # llama.cpp's, with its two numbers
            extra={"n_prompt_tokens": prompt_tokens, "n_ctx": engine.max_length},
        )
    return min(wanted, room)


def check_ids(engine: Engine, ids: Sequence[int], param: str) -> None:
    """Raise `ApiError` for token ids of a client that are not in the vocabulary: images have ids beyond it."""
    size = engine.llm.config.vocab_size
    if ids and max(ids) >= size:
        raise ApiError(400, f"{param} has {max(ids)}; the model's tokens are 0 to {size - 1}", param=param)


def check_number(engine: Engine, number: int) -> None:
    """Raise `ApiError` for more choices than can be computed or wait at the same time, however often it is tried."""
    rows, queue = engine.scheduler.max_rows, engine.scheduler.max_queue
    if queue is not None and number > rows + queue:
        message = (
            f"the request has {number} choices, and the server takes {rows + queue} at a time; send several requests"
        )
        raise ApiError(400, message, param="n")


def answer_job(
    request: HttpRequest,
    model: str | None,
    work: Callable[[Client, Engine, Served], Awaitable[None]],
    generates: bool = True,
) -> Job:
    """The job of a request to a model, which is loaded first if need be. Raises `ApiError` for an unknown model.

    `generates`: the answer is generated, so an encoder is refused.
    """
    state: ServerState = request.app.state.server
    name = state.engines.resolve(model)
    served = state.observer.started(request.method, request.url.path, name)

    async def serve(client: Client) -> None:
        with served:
            async with state.engines.use(name) as engine:
                if generates and engine.llm.is_encoder:
                    message = f"{name} is an encoder: it embeds texts, at /v1/embeddings, and generates none"
                    raise ApiError(400, message, param="model")
                await work(client, engine, served)

    return Job(serve, state.limits)


async def follow_all(choices: Iterable[Coroutine[Any, Any, None]]) -> None:
    """Run all choices together. Raises the first error, after the others have been cancelled."""
    try:
        async with asyncio.TaskGroup() as group:
            for choice in choices:
                group.create_task(choice)
    except BaseExceptionGroup as errors:
        raise errors.exceptions[0] from None
