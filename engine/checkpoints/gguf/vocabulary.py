"""The tokenizer of a GGUF file as tokenizer.json and tokenizer_config.json.

References: llama.cpp's `src/llama-vocab.cpp` for the pre-tokenizers and defaults, transformers for the merges of
SentencePiece vocabularies.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NoReturn

import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, processors

from engine.runtime.errors import BareloopError, quote

UNKNOWN, CONTROL, USER_DEFINED, BYTE = 2, 3, 4, 6  # token types; 1 is normal, 5 unused
CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
LLAMA3 = CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{%s}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
# tokenizer.ggml.pre -> the patterns by which text is split, one after the other.
SPLITS: dict[str, tuple[str, ...]] = {
    "default": (r"[\p{P}\$\+<=>\^~\|]+", GPT2, r"\p{N}+", "[0-9][0-9][0-9]"),
    **dict.fromkeys(("gpt-2", "phi-2", "olmo", "mpt", "jais"), (GPT2,)),
    **dict.fromkeys(("smollm", "starcoder", "refact", "command-r", "codeshell"), (r"\p{N}", GPT2)),
    **dict.fromkeys(("llama-bpe", "llama3", "llama-v3", "dbrx", "smaug-bpe"), (LLAMA3 % "1,3",)),
    **dict.fromkeys(("qwen2", "deepseek-r1-qwen", "stablelm2"), (LLAMA3 % "1",)),
}
NORMALIZED = ("qwen2", "deepseek-r1-qwen")  # to NFC
IGNORE_MERGES = ("llama-bpe", "llama3", "llama-v3")  # a piece that is a token is not split further
SPACE = "\u2581"  # SentencePiece's space


class Vocabulary:
    """The entries `tokenizer.ggml.*` of a file. Raises `BareloopError` for a kind that is not implemented."""

    def __init__(self, metadata: Mapping[str, Any], path: object) -> None:
        self.path = path
        self.entries = {
            key.removeprefix("tokenizer.ggml."): value
            for key, value in metadata.items()
            if key.startswith("tokenizer.ggml.")
        }
        self.template = metadata.get("tokenizer.chat_template")
        self.kind = self.entries.get("model")
        if self.kind not in ("gpt2", "llama"):
            self._refuse(f"tokenizer {quote(self.kind)} is not implemented; known: gpt2, llama")
        tokens = self._list("tokens", str)
        self.types = self._list("token_type", int, len(tokens)) or [1] * len(tokens)
        names: dict[str, int] = {}
        for index, token in enumerate(tokens):
            names.setdefault(token if token and token not in names else f"[unused token {index}]", index)
        if len(names) != len(tokens):
            self._refuse("its vocabulary has ambiguous tokens")
        self.tokens = list(names)
        self.ids = names

    def special(self, role: str) -> str | None:
        """The token of a role: bos, eos, eot, unknown, padding."""
        index = self.entries.get(f"{role}_token_id")
        if index is None:
            return None
        if type(index) is not int or not 0 <= index < len(self.tokens):
            self._refuse(f"{role}_token_id = {quote(index)} is not a token")
        return self.tokens[index]

    def tokenizer(self) -> tokenizers.Tokenizer:
        """The tokenizer."""
        try:
            backend = self._byte_level() if self.kind == "gpt2" else self._sentencepiece()
        except BareloopError:
            raise
        except Exception as error:  # the library raises no narrower class
            self._refuse(f"its tokenizer cannot be built ({error})")
        marked = {self.special(role) for role in ("bos", "eos", "eot", "padding")}
        added = [
            AddedToken(token, normalized=False, special=kind == CONTROL or token in marked)
            for token, kind in zip(self.tokens, self.types, strict=True)
            if kind in (CONTROL, USER_DEFINED) or token in marked
        ]
        backend.add_tokens(added)
        adds_bos = self.kind == "llama" or self.entries.get("pre") in IGNORE_MERGES
        pieces = [
            (self.special("bos"), self.entries.get("add_bos_token", adds_bos)),
            ("$A", True),
            (self.special("eos"), self.entries.get("add_eos_token", False)),
        ]
        template = [token for token, present in pieces if present and token]
        if len(template) > 1:
            ids = [(token, self.ids[token]) for token in template if token != "$A"]
            after = processors.TemplateProcessing(single=template, special_tokens=ids)
            backend.post_processor = after
        return backend

    def settings(self) -> dict[str, Any]:
        """The content of tokenizer_config.json, with the chat template."""
        roles = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}
        values = {key: self.special(role) for key, role in roles.items()}
        template = self.template if isinstance(self.template, str) else None
        known = {**values, "chat_template": template, "tokenizer_class": "PreTrainedTokenizerFast"}
        return {key: value for key, value in known.items() if value is not None}

    def _byte_level(self) -> tokenizers.Tokenizer:
        pre = self.entries.get("pre", "default")
        if not isinstance(pre, str) or pre not in SPLITS:
            self._refuse(f"the pre-tokenizer {quote(pre)} is not implemented; known: {', '.join(SPLITS)}")
        merges = [tuple(merge.split(" ")) for merge in self._list("merges", str)]
        if any(len(pair) != 2 for pair in merges):
            self._refuse("its merges are malformed")
        backend = tokenizers.Tokenizer(models.BPE(self.ids, merges, ignore_merges=pre in IGNORE_MERGES))
        if pre in NORMALIZED:
            backend.normalizer = normalizers.NFC()
        splits = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in SPLITS[pre]]
        backend.pre_tokenizer = pre_tokenizers.Sequence([*splits, pre_tokenizers.ByteLevel(False, use_regex=False)])
        backend.decoder = decoders.ByteLevel()
        return backend

    def _sentencepiece(self) -> tokenizers.Tokenizer:
        scores = self._list("scores", float, len(self.tokens))
        if not scores:
            self._refuse("its SentencePiece vocabulary has no scores")
        unknown = next((token for token, kind in zip(self.tokens, self.types, strict=True) if kind == UNKNOWN), None)
        backend = tokenizers.Tokenizer(
            models.BPE(self.ids, self._merges(scores), unk_token=unknown, fuse_unk=True, byte_fallback=True)
        )
        prefix = self.entries.get("add_space_prefix", True)
        steps: list[Any] = [normalizers.Prepend(SPACE)] if prefix else []
        backend.normalizer = normalizers.Sequence([*steps, normalizers.Replace(" ", SPACE)])
        parts: list[Any] = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
        backend.decoder = decoders.Sequence([*parts, decoders.Strip(" ", 1, 0)] if prefix else parts)
        return backend

    def _merges(self, scores: list[float]) -> list[tuple[str, str]]:
        """All pairs of tokens that make a token, the best first, as transformers orders them."""
        merges = []
        for token, score, kind in zip(self.tokens, scores, self.types, strict=True):
            if kind in (CONTROL, BYTE, UNKNOWN):
                continue
            pairs = [(token[:end], token[end:]) for end in range(1, len(token))]
            known = [pair for pair in pairs if pair[0] in self.ids and pair[1] in self.ids]
            merges += [(score, pair) for pair in sorted(known, key=lambda pair: (self.ids[pair[0]], self.ids[pair[1]]))]
        merges.sort(key=lambda merge: (merge[0], len(merge[1][0]), len(merge[1][1])), reverse=True)
        return [pair for _, pair in merges]

    def _list(self, key: str, kind: type, length: int | None = None) -> list[Any]:
        values = self.entries.get(key, [])
        if not isinstance(values, list) or not all(type(value) is kind for value in values):
            self._refuse(f"{key} is not a list of {kind.__name__}")
        if values and length is not None and len(values) != length:
            self._refuse(f"{key} has {len(values):,} entries for {length:,} tokens")
        return values

    def _refuse(self, problem: str) -> NoReturn:
        raise BareloopError(f"{self.path}: {problem}")
