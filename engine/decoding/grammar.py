"""Constrained decoding: which tokens keep a reply within a JSON schema, a regular expression or a Lark grammar.

    Grammar (checked, hashable) -> Matcher (one reply): mask -> choose a token -> push -> mask -> …

llguidance computes the masks, from the bytes that each token adds to a text. Where a grammar leaves no choice of text
(`"name":`), only the token with which the tokenizer would begin this text is allowed.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from engine.decoding.grammar_tokens import DEAD_END, Vocabulary, reason
from engine.runtime.errors import BareloopError, UsageError, quote
from engine.text.detokenizer import SentencePiece
from engine.text.tokenizer import Tokenizer, check_text

MAX_SOURCE = 100_000  # characters of a grammar
NAMES = {"json_schema": "JSON schema", "json_object": "JSON object", "regex": "regex", "lark": "Lark grammar"}
# White space between the parts of a JSON text: one space, or a line break and indentation. Without a limit, a model
# could write white space until max_new_tokens.
JSON_OPTIONS = {"whitespace_pattern": r" |\n{1,2}[ \t]{0,20}"}


@dataclass(frozen=True)
class Grammar:
    """What a reply must match. Raises `UsageError` if it is invalid, or not supported by llguidance."""

    kind: Literal["json_schema", "json_object", "regex", "lark"]
    source: str

    def __post_init__(self) -> None:
        from llguidance import LLMatcher

        if not self.source:
            raise UsageError(f"the {NAMES[self.kind]} is empty")
        if len(self.source) > MAX_SOURCE:
            raise UsageError(f"the {NAMES[self.kind]} has {len(self.source):,} characters: use up to {MAX_SOURCE:,}")
        check_text(self.source)
        failed, messages = LLMatcher.validate_grammar_with_warnings(self.definition())
        if failed:
            raise UsageError(f"{self} cannot be used: {reason(messages[0])}")
        if any(message.startswith("no tokenizer") for message in messages):  # to look up <|im_end|> or <[3]>
            raise UsageError(f"{self} refers to tokens by <…>; a grammar describes text")

    @staticmethod
    def json_schema(schema: Mapping[str, Any] | str) -> Grammar:
        """JSON text that a schema (an object, or its text) accepts. Properties come in the order of the schema."""
        try:
            content = dict(schema) if isinstance(schema, Mapping) else json.loads(schema)
            source = json.dumps(content, separators=(",", ":"), allow_nan=False)
        except (ValueError, TypeError, RecursionError) as error:
            raise UsageError(f"the JSON schema {quote(schema)} is not valid JSON: {error}") from error
        if not source.startswith("{"):
            raise UsageError(f"a JSON schema is an object, not {quote(content)}")
        return Grammar("json_schema", source)

    @staticmethod
    def json_object() -> Grammar:
        """Any JSON object."""
        return Grammar("json_object", '{"type":"object"}')

    @staticmethod
    def regex(pattern: str) -> Grammar:
        """Text that a regular expression matches as a whole, in the syntax of Rust: without look-around."""
        return Grammar("regex", pattern)

    @staticmethod
    def lark(text: str) -> Grammar:
        """Text that a context-free grammar derives from `start`, in llguidance's dialect of Lark."""
        return Grammar("lark", text)

    def definition(self, after_space: bool = False) -> str:
        """The grammar in llguidance's format. `after_space`: a space, and then the grammar."""
        from llguidance import LLMatcher

        rules: dict[str, Any] = {"lark_grammar": self.source}
        if self.kind == "regex":
            rules = json.loads(LLMatcher.grammar_from_regex(self.source))["grammars"][0]
        elif self.kind != "lark":
            rules = {"json_schema": json.loads(self.source) | {"x-guidance": JSON_OPTIONS}}
        outer = [{"lark_grammar": 'start: " " @text'}] if after_space else []
        return json.dumps({"grammars": [*outer, rules | {"name": "text"}]})

    def __str__(self) -> str:
        return f"the {NAMES[self.kind]} {quote(self.source)}"


class Matcher:
    """The progress of one reply through a grammar."""

    def __init__(
        self,
        grammar: Grammar,
        tokenizer: Tokenizer,
        vocab_size: int,
        eos_token_ids: Iterable[int],
        continues: bool = True,
    ) -> None:
        """`vocab_size`: of the model. `continues`: as for the reply's detokenizer, which may drop its first space.

        Raises `BareloopError` if no token can begin a reply. The first matcher of a tokenizer takes about a second.
        """
        self.grammar = grammar
        self.vocab_size = vocab_size
        self.eos = sorted({token for token in eos_token_ids if 0 <= token < vocab_size})
        self.vocabulary = Vocabulary.cached(tokenizer, vocab_size, frozenset(self.eos))
        detokenizer = tokenizer.detokenizer(continues)
        self._drops_space = isinstance(detokenizer, SentencePiece) and detokenizer.at_start
        self._restart()
        self.mask()

    def _restart(self) -> None:
        self._tokens: list[int] = []
        self._next: tuple[Tensor, bool, bool] | None = None
        # If a first space is dropped, a reply is a text that begins without one, or a space and any text. The first
        # token decides which.
        definitions = [self.grammar.definition(after_space) for after_space in [False, True][: 1 + self._drops_space]]
        self._matchers = [self.vocabulary.matcher(definition) for definition in definitions]

    def mask(self) -> Tensor:
        """Which tokens may come next: bool [vocab_size], on the CPU. It is cached: do not change it.

        EOS tokens may come where the text may end. Other control tokens and padded entries never may. Raises
        `BareloopError` if no token may come, or if the grammar exceeds a limit of llguidance.
        """
        mask, may_end, goes_on = self._following()
        if not (goes_on or (may_end and self.eos)):
            raise self._error(DEAD_END)
        return mask

    def push(self, token: int) -> None:
        """Append a token to the reply. Raises `BareloopError` if its text may not come next, and changes nothing.

        Where the mask has only the tokenizer's own choice for a text, other tokens of the text are accepted, too.
        """
        matchers = self._matchers
        if token in self.eos:
            allowed = self._following()[1]
        elif allowed := self.vocabulary.is_text(token) and not self._ended:
            if len(matchers) == 2:
                matchers = [matchers[self.vocabulary.pieces[token].startswith(b" ")]]
            allowed = matchers[0].try_consume_tokens([token]) == 1
        if not allowed:
            failure = matchers[0].get_error()
            raise self._error(reason(failure) if failure else f"token {token} cannot follow")
        self._matchers = matchers
        self._tokens.append(token)
        self._next = None

    def rewind(self, count: int) -> None:
        """Take back the last `count` tokens. Raises `BareloopError` if there are fewer."""
        length = len(self._tokens) - count
        if not 0 <= length <= len(self._tokens):
            raise self._error(f"cannot take back {count}")
        kept, dropped = self._tokens[:length], self._tokens[length:]
        if kept and self._matchers[0].rollback(sum(token not in self.eos for token in dropped)):
            self._tokens, self._next = kept, None
            return
        self._restart()  # llguidance cannot rewind a rule with max_tokens
        for token in kept:
            self.push(token)

    @property
    def stopped(self) -> bool:
        """Whether the text is complete: an EOS token has come, or nothing else can."""
        _, may_end, goes_on = self._following()
        return may_end and not goes_on

    @property
    def _ended(self) -> bool:
        return bool(self._tokens) and self._tokens[-1] in self.eos

    def _following(self) -> tuple[Tensor, bool, bool]:
        """The mask, whether the text may end here, and whether it can go on."""
        if self._next is None:
            text, may_end = np.zeros_like(self.vocabulary.text), True
            if not self._ended:
                try:
                    (text, may_end), *after_space = [self.vocabulary.read(matcher) for matcher in self._matchers]
                except BareloopError as error:
                    raise self._error(str(error)) from None
                for others, _ in after_space if may_end or text.any() else ():
                    text = text & ~self.vocabulary.after_space | others
            mask = np.unpackbits(text, count=self.vocab_size, bitorder="little").view(bool)
            mask[self.eos] = may_end
            self._next = torch.from_numpy(mask), may_end, bool(text.any())
        return self._next

    def _error(self, what: str) -> BareloopError:
        return BareloopError(f"{self.grammar}, after {len(self._tokens)} tokens of a reply: {what}")
