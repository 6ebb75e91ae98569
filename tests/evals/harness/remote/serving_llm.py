"""/v1/completions as a plain loop over a model's logits: what a server must answer, without a server's code."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from engine import LLM
from tests.engine.remote.fake_server import Answer, Asked, error


def answers(llm: LLM, name: str = "demo", has_tokenizer: bool = True) -> Callable[[Asked], Answer]:
    """Answer as a server of one model, with the paths that lm-evaluation-harness reads."""
    computed: dict[tuple[int, ...], torch.Tensor] = {}

    def logprobs(ids: list[int]) -> torch.Tensor:
        key = tuple(ids)
        if key not in computed:
            computed[key] = llm.logits(ids).log_softmax(-1)
        return computed[key]

    def scored(ids: list[int]) -> dict[str, Any]:
        rows = logprobs(ids)
        whole = [*ids, int(rows[-1].argmax())]
        chosen = [None, *(float(row[token]) for row, token in zip(rows, whole[1:], strict=True))]
        tops = [None, *({str(int(row.argmax())): float(row.max())} for row in rows)]
        return {"token_logprobs": chosen, "top_logprobs": tops}

    def generated(ids: list[int], body: dict[str, Any]) -> dict[str, Any]:
        new: list[int] = []
        text, reason = "", "length"
        for _ in range(body["max_tokens"]):
            token = int(llm.logits([*ids, *new])[-1].argmax())
            new.append(token)
            if token in llm.eos_token_ids or token in body.get("stop_token_ids", ()):
                reason = "stop"
                break
            text = llm.tokenizer.decode(new)
            if found := [text.index(stop) for stop in body["stop"] if stop in text]:
                text, reason = text[: min(found)], "stop"
                break
        return {"text": text, "finish_reason": reason, "tokens": len(new)}

    def complete(body: dict[str, Any]) -> Answer:
        if body.get("model") != name:
            return error(f"no model {body.get('model')}", 404)
        prompts = body["prompt"] if isinstance(body["prompt"], list) else [body["prompt"]]
        prompts = [prompts] if isinstance(prompts[0], int) else prompts
        ids = [llm.tokenizer.encode(prompt) if isinstance(prompt, str) else prompt for prompt in prompts]
        choices, new = [], 0
        for index, prompt in enumerate(ids):
            choice = {"index": index, "text": "", "finish_reason": "length"}
            if body.get("echo"):
                choices.append(choice | {"logprobs": scored(prompt)})
            else:
                answer = generated(prompt, body)
                new += answer.pop("tokens")
                choices.append(choice | answer)
        usage = {
            "prompt_tokens": sum(map(len, ids)),
            "completion_tokens": new,
            "prompt_tokens_details": {"cached_tokens": 3},
        }
        return Answer({"choices": choices[::-1], "usage": usage})

    def answer(asked: Asked) -> Answer:
        if asked.path == "/v1/models":
            return Answer({"data": [{"id": name, "max_model_len": llm.max_length}]})
        if asked.path == "/v1/completions":
            return complete(asked.body)
        if asked.path == "/tokenize" and has_tokenizer:
            return Answer({"tokens": llm.tokenizer.encode(asked.body["prompt"], asked.body["add_special_tokens"])})
        if asked.path == "/tokenizer_info" and has_tokenizer:
            template = llm.tokenizer.settings.get("chat_template")
            return Answer({**llm.tokenizer.special_tokens, "chat_template": template})
        return error("no such path", 404)

    return answer
