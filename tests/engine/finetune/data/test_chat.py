"""Conversations: learned are the assistant's replies with the token that ends them, and nothing else."""

from __future__ import annotations

from itertools import groupby

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.finetune.data.chat import encode_conversation
from engine.finetune.data.rows import parse_row
from engine.text.chat_template import ChatTemplate

CHAT = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Who are you?"},
    {"role": "assistant", "content": "A bird: 鳥 🐦."},
    {"role": "user", "content": "Since when?"},
    {"role": "assistant", "content": "Since\n\nMonday"},
    {"role": "user", "content": "Bye!"},
]
# Tokenizer, template, and what ends a reply.
TEMPLATES = (
    ("llama-3.2", "meta-llama-Llama-3.2-3B-Instruct", "<|eot_id|>"),
    ("llama-3.2", "meta-llama-Llama-3.1-8B-Instruct", "<|eot_id|>"),
    ("qwen2.5-0.5b-instruct", "Qwen-Qwen2.5-7B-Instruct", "<|im_end|>"),
    ("llama-2", "chujiezheng-llama-2-chat", "</s>"),
    ("mistral-7b-instruct-v0.2", "chujiezheng-mistral-instruct", "</s>"),
    ("olmo-2", "olmo-2-instruct.RECONSTRUCTED", "<|endoftext|>"),
)
GENERATION = (  # ChatML with the marks that transformers masks by
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' }}{% if message['role'] == 'assistant' %}"
    "{% generation %}{{ message['content'] + '<|im_end|>' }}{% endgeneration %}{{ '\\n' }}{% else %}"
    "{{ message['content'] + '<|im_end|>\\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


def encode(llm, messages, mask_prompt=True):
    eos = llm.eos_token_ids[0]
    row = parse_row({"messages": messages}, "here")
    return encode_conversation(row, llm.chat_template, eos, frozenset(llm.eos_token_ids), mask_prompt)[0]


def learned_runs(example):
    """The places (first, last + 1) of learned tokens that follow each other."""
    groups = [(flag, len(list(group))) for flag, group in groupby(example.learned)]
    ends = [sum(length for _, length in groups[: i + 1]) for i in range(len(groups))]
    return [(end - length, end) for (flag, length), end in zip(groups, ends, strict=True) if flag]


def texts_of_runs(llm, example):
    runs = learned_runs(example)
    pieces = [b"".join(map(llm.tokenizer.token_bytes, example.ids[first:end])).decode() for first, end in runs]
    return [piece.strip() for piece in pieces]


@pytest.mark.parametrize(("name", "template", "ending"), TEMPLATES)
def test_learned_tokens_are_the_replies_and_what_ends_them(load_checkpoint, name, template, ending):
    llm = load_checkpoint(name, template)
    (example,) = encode(llm, CHAT)
    replies = [text.removesuffix("<|end_of_text|>") for text in texts_of_runs(llm, example)]  # Llama 3's EOS, appended
    assert [reply.replace(f" {ending}", ending) for reply in replies] == [
        f"A bird: 鳥 🐦.{ending}",
        f"Since\n\nMonday{ending}",
    ]
    assert example.ids[-1] == llm.eos_token_ids[0] and example.learned[-1]


@pytest.mark.parametrize(("name", "template", "ending"), TEMPLATES)
def test_what_is_before_a_reply_is_its_prompt_at_inference(load_checkpoint, name, template, ending):
    llm = load_checkpoint(name, template)
    (example,) = encode(llm, CHAT)
    for (first, _), place in zip(learned_runs(example), (2, 4), strict=True):
        assert example.ids[:first] == llm.chat_template.encode(CHAT[:place])


@pytest.mark.parametrize(("name", "template", "ending"), TEMPLATES)
def test_bos_is_there_as_often_as_at_inference_and_at_most_once(load_checkpoint, name, template, ending):
    llm = load_checkpoint(name, template)
    bos = llm.tokenizer.token_id(llm.tokenizer.special_tokens.get("bos_token", ""))
    (example,) = encode(llm, CHAT[1:3])
    count = llm.chat_template.encode(CHAT[1:2]).count(bos)
    assert count <= 1
    if bos not in llm.eos_token_ids:
        assert example.ids.count(bos) == count


def test_the_mask_equals_transformers_assistant_mask(load_checkpoint, shared):
    from transformers import AutoTokenizer

    reference = AutoTokenizer.from_pretrained(shared / "tokenizers/qwen2.5-0.5b-instruct")
    expected = reference.apply_chat_template(
        CHAT, chat_template=GENERATION, return_dict=True, return_assistant_tokens_mask=True
    )
    llm = load_checkpoint("qwen2.5-0.5b-instruct")
    llm.chat_template = ChatTemplate(GENERATION, llm.tokenizer)
    (example,) = encode(llm, CHAT)
    length = len(example.ids)
    assert example.ids == expected["input_ids"][:length]
    assert [int(flag) for flag in example.learned] == expected["assistant_masks"][:length]
    assert not any(expected["assistant_masks"][length:])


REPLIES = st.lists(
    st.tuples(
        st.sampled_from(["", "\n", "\n\n", " "]),
        st.text(st.characters(exclude_categories=["Cs", "Zs", "Cc"]) | st.sampled_from(" \n"), min_size=1).filter(
            str.strip
        ),
    ).map("".join),
    min_size=1,
    max_size=4,
)
# Tokenizers of which some join a prompt's last line break with the reply's first one.
JOINING = (
    ("qwen2.5-0.5b-instruct", "Qwen-Qwen2.5-7B-Instruct"),
    ("olmo-2", "olmo-2-instruct.RECONSTRUCTED"),
    ("gpt2", "Qwen-Qwen2.5-7B-Instruct"),
    ("phi-2", "Qwen-Qwen2.5-7B-Instruct"),
    ("llama-2", "Qwen-Qwen2.5-7B-Instruct"),
)


@pytest.mark.parametrize(("name", "template"), JOINING)
@settings(max_examples=10)
@given(REPLIES)
def test_any_replies_are_learned_to_the_letter_after_their_prompts_at_inference(
    load_checkpoint, name, template, replies
):
    llm = load_checkpoint(name, template)
    chat = [m for r in replies for m in ({"role": "user", "content": r}, {"role": "assistant", "content": r})]
    prompts = [llm.chat_template.encode(chat[: 2 * number + 1]) for number in range(len(replies))]
    texts, found = [], []
    for example in encode(llm, chat):
        for first, end in learned_runs(example):
            found.append(prompts.index(example.ids[:first]))
            ids = [token for token in example.ids[first:end] if token not in llm.eos_token_ids]
            texts.append(b"".join(map(llm.tokenizer.token_bytes, ids)).decode())
    assert sorted(found) == list(range(len(replies)))
    for number, text in zip(found, texts, strict=True):
        assert text.removesuffix("<|im_end|>").rstrip() == _as_tokenized(llm, replies[number]).rstrip()


def _as_tokenized(llm, text):
    """The text after the tokenizer's normalization (NFC)."""
    ids = llm.tokenizer.encode(f"a\n{text}", add_special_tokens=False)
    return b"".join(map(llm.tokenizer.token_bytes, ids)).decode().split("\n", 1)[1]


def test_a_line_break_that_begins_a_reply_is_not_joined_with_that_of_the_prompt(load_checkpoint):
    llm = load_checkpoint("qwen2.5-0.5b-instruct", "Qwen-Qwen2.5-7B-Instruct")
    chat = [CHAT[1], {"role": "assistant", "content": "\nHello"}, *CHAT[3:5]]
    first, second = encode(llm, chat)
    for example, length in ((first, 1), (second, 3)):
        ((start, _),) = learned_runs(example)
        assert example.ids[:start] == llm.chat_template.encode(chat[:length])
    assert texts_of_runs(llm, first) == ["Hello<|im_end|>"]
    assert first.ids[first.learned.index(True)] == llm.tokenizer.encode("\n")[0]


def test_a_reply_that_is_encoded_apart_from_its_prompt_has_no_space_in_front(load_checkpoint):
    """SentencePiece begins a text with a space; this prompt ends with one that a reply's first word would take."""
    llm = load_checkpoint("llama-2")
    source = (
        "{% for message in messages %}{{ message['role'] + ': ' + message['content'] + '</s>' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
    )
    llm.chat_template = ChatTemplate(source, llm.tokenizer)
    (example,) = encode(llm, CHAT[1:3])
    ((first, _),) = learned_runs(example)
    assert example.ids[:first] == llm.chat_template.encode(CHAT[1:2])
    learned = b"".join(map(llm.tokenizer.token_bytes, example.ids[first:])).decode()
    assert learned == "A bird: 鳥 🐦.</s>"


def test_what_looks_like_a_control_token_is_learned_as_plain_text(load_checkpoint):
    llm = load_checkpoint("qwen2.5-0.5b-instruct", "Qwen-Qwen2.5-7B-Instruct")
    chat = [
        {"role": "user", "content": "Say <|im_end|> é <|im_start|>assistant"},
        {"role": "assistant", "content": "It is <|im_end|>, of course."},
    ]
    (example,) = encode(llm, chat)
    assert example.ids == llm.chat_template.encode(chat, add_generation_prompt=False)[: len(example.ids)]
    assert texts_of_runs(llm, example) == ["It is <|im_end|>, of course.<|im_end|>"]
    assert example.ids.count(llm.tokenizer.token_id("<|im_end|>")) == 3  # the system's, the user's, the reply's


def test_replies_that_the_template_renders_anew_are_learned_each_after_its_own_prompt(load_checkpoint):
    """Qwen3's template removes the reasoning of earlier replies."""
    llm = load_checkpoint("qwen2.5-0.5b-instruct", "Qwen-Qwen3-0.6B")
    chat = [dict(message) for message in CHAT]
    chat[2]["content"] = "<think>\nHm.\n</think>\n\nA bird"
    first, second = encode(llm, chat)
    assert texts_of_runs(llm, first) == ["<think>\nHm.\n</think>\n\nA bird<|im_end|>"]
    assert texts_of_runs(llm, second) == ["<think>\n\n</think>\n\nSince\n\nMonday<|im_end|>"]
    assert second.ids[: learned_runs(second)[0][0]] == llm.chat_template.encode(chat[:4])


def test_a_reply_that_does_not_follow_the_templates_prompt_is_not_learned(load_checkpoint):
    """Mistral-Nemo's template writes the system's message only if the last message is the user's."""
    llm = load_checkpoint("llama-2", "mistralai-Mistral-Nemo-Instruct-2407")
    assert encode(llm, CHAT) == []
    (example,) = encode(llm, CHAT[1:])
    assert texts_of_runs(llm, example) == ["A bird: 鳥 🐦.</s>", "Since\n\nMonday</s>"]


def test_a_first_message_of_the_assistant_is_context(load_checkpoint):
    llm = load_checkpoint("qwen2.5-0.5b-instruct", "Qwen-Qwen2.5-7B-Instruct")
    (example,) = encode(llm, [{"role": "assistant", "content": "Welcome!"}, *CHAT[1:3]])
    assert texts_of_runs(llm, example) == ["A bird: 鳥 🐦.<|im_end|>"]


def test_a_message_of_weight_0_is_context(load_checkpoint):
    llm = load_checkpoint("llama-3.2", "meta-llama-Llama-3.2-3B-Instruct")
    chat = [dict(message) for message in CHAT]
    chat[2]["weight"] = 0
    (example,) = encode(llm, chat)
    assert [text.removesuffix("<|end_of_text|>") for text in texts_of_runs(llm, example)] == [
        "Since\n\nMonday<|eot_id|>"
    ]


def test_eos_is_appended_to_a_template_without_one_and_never_doubled(load_checkpoint):
    llm = load_checkpoint("llama-2", "llama-cpp-rwkv-world")
    (example,) = encode(llm, CHAT)
    assert texts_of_runs(llm, example) == ["A bird: 鳥 🐦.", "Since\n\nMonday</s>"]
    llm = load_checkpoint("llama-2", "chujiezheng-llama-2-chat")
    (example,) = encode(llm, CHAT)
    assert example.ids[-2:].count(llm.eos_token_ids[0]) == 1


def test_white_space_after_the_prompt_alone_and_eos_after_the_last_reply_alone_change_nothing(load_checkpoint):
    """As in templates of Zephyr and Phi-3.5: one example with all replies."""
    for template, ending in (("chujiezheng-zephyr", "</s>"), ("microsoft-Phi-3.5-mini-instruct", "<|end|>")):
        llm = load_checkpoint("llama-2", template)
        (example,) = encode(llm, CHAT)
        first, second = texts_of_runs(llm, example)
        assert first == f"A bird: 鳥 🐦.{ending}"
        assert second.startswith(f"Since\n\nMonday{ending}")
        assert example.ids[-1] == llm.eos_token_ids[0]


def test_prompts_are_learned_too_if_they_are_not_masked(load_checkpoint):
    llm = load_checkpoint("qwen2.5-0.5b-instruct", "Qwen-Qwen2.5-7B-Instruct")
    (example,) = encode(llm, CHAT, mask_prompt=False)
    assert example.learned == [False] + [True] * (len(example.ids) - 1)
    assert example.ids == encode(llm, CHAT)[0].ids
