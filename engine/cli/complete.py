"""`python -m engine "prompt"`: stream one completion, complete a file of prompts together, or compare models."""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from engine import kernels
from engine.checkpoints.hub import locate
from engine.cli.parser import label, model_options, printable, sampling_options
from engine.cli.progress import tokens_per_second
from engine.decoding.grammar import Grammar
from engine.decoding.loop import Event
from engine.decoding.params import SamplingParams, defaults
from engine.decoding.speculation import DraftStatistics
from engine.llm import LLM
from engine.runtime.clocks import read_bandwidth
from engine.runtime.errors import BareloopError, UsageError, quote
from engine.runtime.pictures import picture_size


@dataclass
class Result:
    """One prompt, the model's completion, and the times."""

    model: str
    prompt: str
    prompt_tokens: int
    events: list[Event] = field(default_factory=list)
    first_token: float = 0.0  # seconds from the prompt to the first token
    seconds: float = 0.0  # from the first token to the last
    drafts: DraftStatistics | None = None  # with --draft: of all prompts together

    @property
    def text(self) -> str:
        return "".join(event.text for event in self.events)

    @property
    def tokens_per_second(self) -> float:
        return tokens_per_second(len(self.events), self.seconds)

    def as_json(self) -> str:
        """A line of JSON with all fields."""
        return json.dumps(
            {
                "model": self.model,
                "prompt": self.prompt,
                "text": self.text,
                "token_ids": [event.token_id for event in self.events],
                "finish_reason": self.events[-1].finish_reason,
                "prompt_tokens": self.prompt_tokens,
                "completion_tokens": len(self.events),
                "logprobs": [event.logprob for event in self.events] if self.events[0].top_logprobs else None,
                "top_logprobs": [event.top_logprobs for event in self.events] if self.events[0].top_logprobs else None,
                "ttft_seconds": round(self.first_token, 4),
                "tokens_per_second": round(self.tokens_per_second, 2),
                **({} if self.drafts is None else {"drafts": as_dict(self.drafts)}),
            },
            ensure_ascii=False,
        )


def as_dict(drafts: DraftStatistics) -> dict[str, float]:
    """The numbers of drafts as a JSON object."""
    return {
        "drafted_tokens": drafts.drafted,
        "right_tokens": drafts.right,
        "tokens_per_step": round(drafts.tokens_per_step, 3),
        "speedup": round(drafts.speedup, 3),
    }


def complete(options: Any) -> None:
    """Complete the prompts of the command line with every named model."""
    prompts, grammar = read_prompts(options), read_grammar(options)
    for file in options.image or ():  # before a model is loaded
        picture_size(Path(file))
    for name in options.model:
        locate(name, options.allow_pickle, options.adapter)
    several = len(options.model) > 1
    streams = not several and len(prompts) == 1 and not options.json
    results = []
    for name in options.model:
        llm = LLM.load(name, **model_options(options))
        of_model = answer(llm, label(name, options.adapter), prompts, options, grammar, streams)
        for result in of_model if options.json else ():
            print(result.as_json(), flush=True)
        if of_model[0].events[0].top_logprobs and not options.json:
            print_logprobs(llm, of_model)
        report(llm, of_model)
        results += of_model
    if several and not options.json:
        print_comparison(results)
    elif not streams and not options.json:
        for result in results:
            print(f"{printable(result.prompt)}\n{printable(result.text)}\n")


def read_prompts(options: Any) -> list[str]:
    """The prompts: the argument or --prompt, the lines of --file, or stdin."""
    if options.prompt is not None and options.file is not None:
        raise UsageError("give one of: a prompt, --file")
    if options.file is not None:
        prompts = [line for line in read_text(options.file, "prompts").splitlines() if line.strip()]
    elif options.prompt is not None:
        prompts = [options.prompt]
    elif sys.stdin.isatty():
        raise UsageError('give a prompt: python -m engine --model MODEL "Once upon a time"')
    else:
        prompts = [sys.stdin.buffer.read().decode("utf-8", errors="replace")]
    if not prompts or not all(prompts):
        several = len(options.model) > 1 and options.prompt is None and options.file is None
        way_out = f": {quote(options.model[-1])} was taken for a model; use --prompt" if several else ""
        raise UsageError(f"the prompt is empty{way_out}")
    return prompts


def read_grammar(options: Any) -> Grammar | None:
    """The grammar of --json-schema, --regex or --lark. Raises `UsageError` if it is invalid."""
    if options.json_schema is not None:
        return Grammar.json_schema(read_text(options.json_schema, "JSON schema"))
    if options.regex is not None:
        return Grammar.regex(options.regex)
    return None if options.lark is None else Grammar.lark(read_text(options.lark, "Lark grammar"))


def read_text(path: str, content: str) -> str:
    """The text of a file. `content`: what is in it, for the error."""
    try:
        return Path(path).expanduser().read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise BareloopError(f"cannot read the {content} in {path}: {error}") from error


def answer(
    llm: LLM, name: str, prompts: Sequence[str], options: Any, grammar: Grammar | None, streams: bool
) -> list[Result]:
    """Complete all prompts, together. With `streams` the text is printed as it comes."""
    params = SamplingParams(**(defaults(llm.default_params) | sampling_options(options)), grammar=grammar)
    ids = [encode(llm, prompt, options) for prompt in prompts]
    results = [Result(name, prompt, len(tokens)) for prompt, tokens in zip(prompts, ids, strict=True)]
    start = time.perf_counter()
    with llm.scheduler() as scheduler:
        for result in results:
            result.drafts = scheduler.drafts
        requests = [scheduler.submit(tokens, params, continues=not (options.chat or options.image)) for tokens in ids]
        of_request = dict(zip(requests, results, strict=True))
        try:
            while (work := scheduler.step()) is not None:
                now = time.perf_counter() - start
                for request in work.requests:
                    result, events = of_request[request], request.take()
                    if events and not result.events:
                        result.first_token = now
                    if events:
                        result.events += events
                        result.seconds = now - result.first_token
                    if request.error is not None:
                        raise request.error
                    if streams:
                        print(printable("".join(event.text for event in events)), end="", flush=True)
            for request in requests:
                if request.error is not None:  # one that failed before its first step
                    raise request.error
        finally:
            if streams:
                print(flush=True)
    return results


def encode(llm: LLM, prompt: str, options: Any) -> list[int]:
    """Token ids of a prompt: plain text, or with --chat or --image a message in the model's chat template."""
    if not options.chat and not options.image:
        return llm.encode(prompt)
    system = [{"role": "system", "content": options.system}] if options.system else []
    content: str | list[dict[str, Any]] = prompt
    if options.image:
        images = [{"type": "image", "image": Path(name)} for name in options.image]
        content = [*images, {"type": "text", "text": prompt}]
    return llm.chat_template.encode([*system, {"role": "user", "content": content}])


def report(llm: LLM, results: Sequence[Result]) -> None:
    """Print times on stderr; for one prompt, the share of the memory bandwidth that decoding used.

    With drafts, in its place how well they did: a token is no pass over the weights then.
    """
    tokens = sum(len(result.events) for result in results)
    line = f"{sum(result.prompt_tokens for result in results)} + {tokens} tokens, "
    first = results[0]
    if len(results) > 1:
        seconds = max(result.first_token + result.seconds for result in results)
        line += f"{len(results)} prompts in {seconds:.1f} s, {tokens / seconds:.1f} tokens/s"
    else:
        line += f"TTFT {first.first_token * 1000:.0f} ms"
        if first.seconds > 0:
            line += f", {first.tokens_per_second:.1f} tokens/s"
        if first.seconds > 0 and first.drafts is None:
            context = first.prompt_tokens + tokens // 2
            rate = llm.model.token_bytes(context) * (tokens - 1) / first.seconds
            limit = read_bandwidth(llm.device)
            line += (
                f", {rate / 1e9:.1f} GB/s ({100 * rate / limit:.0f} % of the read bandwidth, {limit / 1e9:.0f} GB/s)"
            )
    if first.drafts is not None:
        line += f", {first.drafts}"
    if llm.device.type == "cpu":
        line += f", {kernels.describe(llm.dtype)}"
    print(line, file=sys.stderr)


def print_logprobs(llm: LLM, results: Sequence[Result]) -> None:
    """Print every token with its probability and the alternatives."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    def show(token: int) -> str:
        return repr(llm.tokenizer.decode([token], skip_special_tokens=False))

    table = Table("token", "probability", "alternatives")
    for result in results:
        for event in result.events:
            others = ", ".join(f"{show(token)} {math.exp(value):.1%}" for token, value in event.top_logprobs or ())
            probability = f"{math.exp(event.logprob or 0.0):.1%}"
            table.add_row(Text(show(event.token_id)), probability, Text(others))
    Console().print(table)


def print_comparison(results: Sequence[Result]) -> None:
    """Print the models' completions side by side."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table("model", "prompt", "text", "tokens/s", show_lines=True)
    for result in results:
        text = Text(printable(result.text).strip())
        table.add_row(Text(result.model), Text(result.prompt), text, f"{result.tokens_per_second:.1f}")
    Console().print(table)
