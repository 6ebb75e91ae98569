"""Matchers of the shared folder's tokenizers, and random walks with them."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
import torch

from engine.decoding.grammar import Grammar, Matcher
from engine.text.tokenizer import Tokenizer

EOS = {
    "gpt2": ["<|endoftext|>"],
    "gpt-neox-pythia": ["<|endoftext|>"],
    "phi-2": ["<|endoftext|>"],
    "llama-3.2": ["<|end_of_text|>", "<|eom_id|>", "<|eot_id|>"],
    "qwen2.5-0.5b-instruct": ["<|im_end|>", "<|endoftext|>"],
    "llama-2": ["</s>"],
    "mistral-7b-instruct-v0.2": ["</s>"],
}
PADDING = 271


@pytest.fixture(scope="session")
def load(load_tokenizer):
    """The tokenizers of the shared folder by their names."""
    return lambda name: load_tokenizer(f"tokenizers/{name}")


@pytest.fixture(scope="session")
def begin(load):
    """Create a matcher: begin(grammar, tokenizer's name, continues). The model's vocabulary is larger, by padding."""

    def create(grammar: Grammar, name: str = "gpt2", continues: bool = True) -> Matcher:
        tokenizer = load(name)
        eos = [tokenizer.token_id(token) for token in EOS[name]]
        return Matcher(grammar, tokenizer, tokenizer.vocab_size + PADDING, eos, continues)

    return create


@pytest.fixture(scope="session")
def walk() -> Callable[..., list[int]]:
    """Walk through a grammar: walk(matcher, tokenizer, seed, free)."""

    def push_random(matcher: Matcher, tokenizer: Tokenizer, seed: int, free: int = 12) -> list[int]:
        """Push tokens until the text is complete: `free` random ones, and then such as may end it. -> its tokens."""
        rng, tokens = random.Random(seed), []
        control = sorted(tokenizer.special_ids - set(matcher.eos))
        pieces = [tokenizer.token_id(piece) for piece in ('"', "}", "]", ")", "1", ",", '"}', '"]')]
        closing = [piece for piece in pieces if piece is not None]
        while not matcher.stopped:
            mask = matcher.mask().clone()
            assert mask.dtype == torch.bool and len(mask) == matcher.vocab_size
            assert not mask[control].any() and not mask[tokenizer.vocab_size :].any()
            ends = mask[matcher.eos]
            assert ends.all() or not ends.any()
            mask[matcher.eos] = False
            allowed = mask.nonzero()[:, 0]
            late = len(tokens) >= free
            if ends.any() and (late or rng.random() < 0.1):
                matcher.push(rng.choice(matcher.eos))
                break
            choices = [token for token in closing if mask[token]] if late else []
            token = rng.choice(choices) if choices else int(allowed[rng.randrange(len(allowed))])
            matcher.push(token)
            tokens.append(token)
            assert len(tokens) < 600
        assert matcher.stopped
        return tokens

    return push_random


@pytest.fixture(scope="session")
def decode() -> Callable[[Tokenizer, list[int], bool], str]:
    """The text that a reply's detokenizer makes of tokens: decode(tokenizer, tokens, continues)."""

    def stream(tokenizer: Tokenizer, tokens: list[int], continues: bool) -> str:
        detokenizer = tokenizer.detokenizer(continues)
        return "".join(map(detokenizer.push, tokens)) + detokenizer.flush()

    return stream
