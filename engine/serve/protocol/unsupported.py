"""Fields of other servers that change a reply and are not supported: only values without an effect are accepted.

Ignoring them would give another result than the client asked for, silently.
"""

from __future__ import annotations

from engine.serve.protocol.rules.scalars import Neutral

SCHEMA = "use response_format"
LENGTH = "use max_tokens"
TEMPLATE = "use chat_template_kwargs"

# Of OpenAI, vLLM, llama.cpp and transformers, for both kinds of completions.
BOTH = {
    "best_of": Neutral((1,), "use n"),
    "use_beam_search": Neutral((False,)),
    "length_penalty": Neutral((1,)),
    "min_tokens": Neutral((0,)),
    "skip_special_tokens": Neutral((True,)),
    "include_stop_str_in_output": Neutral((False,)),
    "truncate_prompt_tokens": Neutral(hint="shorten the prompt"),
    "return_tokens_as_token_ids": Neutral((False,), "use return_token_ids"),
    "allowed_token_ids": Neutral(([],), "use logit_bias"),
    "bad_words": Neutral(([],), "use logit_bias"),
    "logits_processors": Neutral(([],)),
    **dict.fromkeys(("guided_json", "guided_regex", "guided_choice", "guided_grammar"), Neutral(hint=SCHEMA)),
    "structured_outputs": Neutral(hint=SCHEMA),
    "grammar": Neutral(("",), SCHEMA),
    "lora": Neutral(([],)),
    "n_probs": Neutral((0,), "use logprobs"),
    **dict.fromkeys(("max_new_tokens", "max_length", "max_output_tokens"), Neutral(hint=LENGTH)),
    **dict.fromkeys(("stop_sequences", "stop_strings"), Neutral(([],), "use stop")),
    "do_sample": Neutral((True,), "use temperature 0"),
    **dict.fromkeys(("typical_p", "typ_p", "tfs_z"), Neutral((1,))),
    **dict.fromkeys(("mirostat", "dry_multiplier", "xtc_probability", "dynatemp_range"), Neutral((0,))),
    "top_n_sigma": Neutral((-1, 0)),
    "samplers": Neutral(([],)),
}

CHAT = BOTH | {
    "functions": Neutral(([],), "use tools"),
    "function_call": Neutral(("none", "auto"), "use tool_choice"),
    "modalities": Neutral((["text"],)),
    **dict.fromkeys(("audio", "prediction", "web_search_options"), Neutral()),
    "chat_template": Neutral(hint="the model's own is used"),
    "documents": Neutral(([],), "put them into messages"),
    "system": Neutral(("",), "put it into messages"),
    "echo": Neutral((False,)),
    "add_special_tokens": Neutral((False,), "the chat template adds them"),
    "include_reasoning": Neutral((True,)),
    **dict.fromkeys(("thinking", "enable_thinking", "think"), Neutral(hint=TEMPLATE)),
}

COMPLETION = BOTH | {
    "suffix": Neutral(("",)),
    "add_special_tokens": Neutral((True,), "use token ids as the prompt"),
    "prompt_embeds": Neutral(),
    "prompt_logprobs": Neutral(hint="use echo and logprobs"),
}

# Accepted without an effect on the reply.
IGNORED_BY_BOTH = ("user", "store", "metadata", "service_tier", "prompt_cache_key", "safety_identifier")
IGNORED_BY_CHAT = (*IGNORED_BY_BOTH, "reasoning_effort", "verbosity")
