"""The cache across turns changes no reply: twenty turns with evictions, edits, and history off and on."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from tokenizers import Tokenizer

from chat.context import STRATEGIES, ContextOverflowError
from chat.conversation.events import Reply, Settings
from chat.conversation.session import Session
from chat.models.local import LocalModel
from engine import LLM
from engine.checkpoints.saving import save_model
from engine.demo import vocabulary

MESSAGES = (
    *("Hi, I'm Zorvan.", "How are you?", "What is the capital of France?", "And of Italy?", "My dog is called Rex."),
    *("What is my name?", "Thanks!", "What is the unit of power?", "I live in Rome.", "What is my dog called?"),
)
NEAR = 1e-4  # difference of log-probabilities (natural log) below which either token may win
SAMPLING = {"temperature": 0.0, "max_new_tokens": 8, "logprobs": 2}


RANDOM = {  # configurations of small random models with other kinds of state
    "windowed": {
        "model_type": "mistral",
        "intermediate_size": 96,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "sliding_window": 40,
        "initializer_range": 0.15,
        "max_position_embeddings": 2048,
    },
    "mamba": {"model_type": "mamba", "initializer_range": 0.15},
    "rwkv": {"model_type": "rwkv", "initializer_range": 0.15, "context_length": 2048},
}


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return vocabulary.build(0)


@pytest.fixture(scope="module", params=["full", *RANDOM])
def llm(request, shared, tokenizer, tmp_path_factory) -> LLM:
    """A trained story model; random models with a window of 40 tokens or a recurrent state, with a chat template."""
    if request.param == "full":
        return LLM.load(shared / "checkpoints" / "llama-tinystories-656k", dtype="float32")
    size = {"vocab_size": tokenizer.get_vocab_size(), "hidden_size": 48, "num_hidden_layers": 3}
    config = {**size, **RANDOM[request.param], "bos_token_id": 0, "eos_token_id": 1}
    random = LLM.from_config(config, seed=0)
    folder = tmp_path_factory.mktemp(request.param) / "model"
    save_model(random.model, random.family, config, folder, vocabulary.files(tokenizer, 2048))
    return LLM.load(folder, dtype="float32")


def turns(session: Session) -> Iterator[Reply]:
    """Replies of twenty turns: two messages are edited, three turns have history off."""
    for number, text in enumerate(MESSAGES * 2):
        session.configure(history=number not in (8, 9, 15))
        try:
            streams = [session.send(text)]
            if number in (6, 12):
                streams.append(session.edit(f"{text} I mean it."))
            for stream in streams:
                yield [event for event in stream if isinstance(event, Reply)][-1]
        except ContextOverflowError:
            assert session.settings.strategy == "none"
            session.clear()


def cold(session: Session) -> Reply:
    """The last reply again, from a session with an empty cache."""
    other = Session(LocalModel(session.model.llm), session.settings)
    other.turns = [[dict(message) for message in turn] for turn in session.turns]
    other.start, other.summary = session.start, session.summary
    reply = [event for event in other.retry() if isinstance(event, Reply)][-1]
    assert reply.cached_tokens == 0 or other.statistics.summaries  # a summary request fills the cache first
    return reply


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_cached_and_cold_replies_are_the_same(llm, strategy):
    window = 150 if llm.config.model_type == "llama" else 190
    session = Session(LocalModel(llm), Settings(strategy=strategy, window=window, sampling=SAMPLING))
    cached = compared = 0
    for reply in turns(session):
        again = cold(session)
        assert reply.prompt_tokens == again.prompt_tokens
        for ours, theirs in zip(reply.tokens, again.tokens, strict=False):
            if ours.id != theirs.id:
                (_, first), (_, second) = ours.alternatives
                assert first - second < NEAR
                break
            compared += 1
        cached += reply.cached_tokens
    assert cached > 0
    assert compared > 100
    assert strategy == "none" or session.statistics.dropped_turns > 0
