"""The demo model's tokenizer: byte-level BPE, trained on the textbook, with a chat template."""

from __future__ import annotations

import json
from itertools import islice
from random import Random

import tokenizers
from tokenizers import decoders, models, pre_tokenizers, processors, trainers

from engine.demo.pages import BEGIN, CONTROL, END, text_of
from engine.demo.textbook import pages

SIZE = 2048  # tokens
CORPUS_PAGES = 6000
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] not in ['system', 'user', 'assistant'] %}"
    "{{ raise_exception('roles are system, user and assistant') }}{% endif %}"
    "{{ '<|' + message['role'] + '|>' + message['content'] + eos_token }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


def build(seed: int) -> tokenizers.Tokenizer:
    """Train the tokenizer. The same seed gives the same vocabulary."""
    corpus = (text_of(page) for _, page in islice(pages(Random(seed)), CORPUS_PAGES))
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=SIZE,
        special_tokens=list(CONTROL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BEGIN} $A", pair=f"{BEGIN} $A $B", special_tokens=[(BEGIN, CONTROL.index(BEGIN))]
    )
    return tokenizer


def files(tokenizer: tokenizers.Tokenizer, window: int) -> dict[str, bytes]:
    """Return tokenizer.json and tokenizer_config.json, as transformers reads them. `window`: tokens."""
    settings = {
        "bos_token": BEGIN,
        "chat_template": CHAT_TEMPLATE,
        "clean_up_tokenization_spaces": False,
        "eos_token": END,
        "model_max_length": window,
        "pad_token": END,
        "tokenizer_class": "PreTrainedTokenizerFast",
    }
    return {
        "tokenizer.json": tokenizer.to_str(pretty=False).encode(),
        "tokenizer_config.json": (json.dumps(settings, indent=2) + "\n").encode(),
    }
