"""Prompts of a load: seeded random words of a given number of tokens, or the lines of a file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from random import Random
from typing import Protocol

from bench.load.client import Client, Prompt
from engine.runtime.errors import BareloopError, UsageError, quote

# Common words, which most vocabularies have as one token.
TEXT = """time year people way day man thing woman life child world school state family group country hand part place
case week company system program question work government number night point home water room mother area money story
fact month lot right study book eye job word business issue side kind head house service friend father power hour game
line end member law car city name team minute idea body information back parent face level office door health person art
war history party result change morning reason research girl guy moment air teacher force education"""
WORDS = tuple(TEXT.split())
CHARACTERS_PER_TOKEN = 4.0  # where the server cannot count


class Prompts(Protocol):
    """Something that has a prompt for every number."""

    def prompt(self, number: int) -> Prompt:
        """The prompt of a request."""
        ...


class RandomWords:
    """Texts of `tokens` tokens, each different except for the first `shared` tokens.

    `costs`: tokens of each word between others. The server's own count of a first prompt corrects them (`calibrate`).
    """

    def __init__(self, tokens: int, shared: int = 0, seed: int = 0, costs: Mapping[str, float] | None = None) -> None:
        self.tokens, self.shared, self.seed = tokens, shared, seed
        self.is_exact = costs is not None
        self.costs = dict(costs or {word: (len(word) + 1) / CHARACTERS_PER_TOKEN for word in WORDS})
        self.added = 0.0  # tokens that the server adds: BOS, the chat template

    def prompt(self, number: int) -> str:
        """The text of a request: the same for the same number and seed."""
        first = next(iter(self.costs))  # always the same, as it has no space before it and may cost more
        shared = [first, *self._fill(Random(f"{self.seed} prefix"), self.shared - self.costs[first])]
        rest = self.tokens - self.added - sum(self.costs[word] for word in shared)
        return " ".join([*shared, *self._fill(Random(f"{self.seed} {number}"), rest)])

    def calibrate(self, counted: int) -> None:
        """Correct the lengths by the number of tokens that the server counted in a prompt made before."""
        if self.is_exact:
            self.added += counted - self.tokens
        elif counted > 0:
            self.costs = {word: cost * counted / self.tokens for word, cost in self.costs.items()}

    def _fill(self, random: Random, budget: float) -> list[str]:
        """Random words that together have this number of tokens, or a little less."""
        words, chosen = list(self.costs), []
        budget += 1e-6
        while words:
            word = random.choice(words)
            if self.costs[word] <= budget:
                budget -= self.costs[word]
                chosen.append(word)
            else:
                words = [other for other in words if self.costs[other] <= budget]
        return chosen


async def measure_words(client: Client) -> dict[str, float] | None:
    """Tokens of each word in the middle of a text, by the server. None: it cannot tell."""
    context = WORDS[0]
    alone = await client.count_tokens(context)
    costs: dict[str, float] = {}
    for word in WORDS:
        together = await client.count_tokens(f"{context} {word}")
        if alone is None or together is None:
            return None
        costs[word] = together - alone
    return {word: cost for word, cost in costs.items() if cost > 0} or None


class FilePrompts:
    """The lines of a file in turn."""

    def __init__(self, path: Path, endpoint: str) -> None:
        """Read JSON lines with `prompt` or `messages`. Raises `BareloopError` for any other line."""
        self.prompts: list[Prompt] = []
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise BareloopError(f"cannot read {path}: {error}") from error
        for number, line in enumerate(lines, 1):
            if line.strip():
                self.prompts.append(_prompt(line, f"{path}, line {number}", endpoint))
        if not self.prompts:
            raise BareloopError(f"{path} has no prompts")

    def prompt(self, number: int) -> Prompt:
        """The prompt of a request; after the last line comes the first."""
        return self.prompts[number % len(self.prompts)]


def _prompt(line: str, place: str, endpoint: str) -> Prompt:
    try:
        entry = json.loads(line)
    except ValueError:
        raise BareloopError(f"{place} is not JSON: {quote(line)}") from None
    if isinstance(entry, dict):
        if isinstance(entry.get("prompt"), str):
            return str(entry["prompt"])
        if isinstance(entry.get("messages"), list):
            if endpoint != "chat":
                raise UsageError(f"{place} has messages; add --endpoint chat")
            return list(entry["messages"])
    raise BareloopError(f'{place} has neither "prompt" (a text) nor "messages" (a list): {quote(line)}')
