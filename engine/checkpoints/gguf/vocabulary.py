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
TEKKEN = (  # of Mistral Nemo and its successors
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
LLAMA3_NAMES = ("llama-bpe", "llama3", "llama-v3", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2")
# tokenizer.ggml.pre -> the patterns by which text is split, one after the other.
SPLITS: dict[str, tuple[str, ...]] = {
    "default": (r"[\p{P}\$\+<=>\^~\|]+", GPT2, r"\p{N}+", "[0-9][0-9][0-9]"),
    **dict.fromkeys(("gpt-2", "phi-2", "olmo", "mpt", "jais", "a.x-4.0", "mellum", "gigachat", "exaone4"), (GPT2,)),
    **dict.fromkeys(("smollm", "starcoder", "refact", "command-r", "codeshell"), (r"\p{N}", GPT2)),
    **dict.fromkeys((*LLAMA3_NAMES, "dbrx", "smaug-bpe"), (LLAMA3 % "1,3",)),
    **dict.fromkeys(("qwen2", "deepseek-r1-qwen", "stablelm2", "megrez", "kormo"), (LLAMA3 % "1",)),
    "tekken": (TEKKEN,),
}
NORMALIZED = ("qwen2", "deepseek-r1-qwen", "megrez", "kormo", "mpt", "olmo")  # to NFC
IGNORE_MERGES = (*LLAMA3_NAMES, "tekken")  # a piece that is a token is not split further; a text begins with bos
# Texts of tokens that end a reply, whatever the file says about them, as in llama.cpp.
ENDS = (
    *("<|eot_id|>", "<|im_end|>", "<|end|>", "<end_of_turn>", "<|endoftext|>", "<|eom_id|>", "<EOT>", "_<EOT>"),
    *("<|end_of_text|>", "<end_of_utterance>"),
)
MAX_PIECE = 512  # characters of a SentencePiece token that is made from others; real ones have at most 64
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
        self.architecture = str(metadata.get("general.architecture"))
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

    def special(self, role: str) -> int | None:
        """The id of the token of a role: bos, eos, eot, eom, unknown, padding. An id outside the vocabulary is none."""
        default = {"bos": 1, "eos": 2, "unknown": 0}.get(role) if self.kind == "llama" else None
        index = self.entries.get(f"{role}_token_id", default)
        if index is not None and type(index) is not int:
            self._refuse(f"{role}_token_id = {quote(index)} is not a token")
        return index if index is not None and 0 <= index < len(self.tokens) else None

    def special_ids(self) -> dict[str, Any]:
        """The special tokens of config.json."""
        listed = self.entries.get("eos_token_ids", [])
        ends = [self.special(role) for role in ("eos", "eot", "eom")]
        ends += [index for index in listed if type(index) is int] if isinstance(listed, list) else []
        ends += [self.ids.get(text) for text in ENDS]
        unique = [index for index in dict.fromkeys(ends) if index is not None]
        ids = {"bos_token_id": self.special("bos"), "pad_token_id": self.special("padding")}
        found = {key: index for key, index in ids.items() if index is not None}
        return {**found, "eos_token_id": unique[0] if len(unique) == 1 else unique} if unique else found

    def tokenizer(self) -> tokenizers.Tokenizer:
        """The tokenizer."""
        try:
            backend = self._byte_level() if self.kind == "gpt2" else self._sentencepiece()
            self._add_special_tokens(backend)
        except BareloopError:
            raise
        except Exception as error:  # the library raises no narrower class
            self._refuse(f"its tokenizer cannot be built ({error})")
        return backend

    def _add_special_tokens(self, backend: tokenizers.Tokenizer) -> None:
        """Add the special tokens, and those that begin and end every text."""
        marked = {self.special(role) for role in ("bos", "eos", "eot", "eom", "padding")}
        marked |= {self.ids.get(text) for text in ENDS}
        backend.add_tokens(
            [
                AddedToken(token, normalized=False, special=kind == CONTROL or index in marked)
                for index, (token, kind) in enumerate(zip(self.tokens, self.types, strict=True))
                if kind in (CONTROL, USER_DEFINED) or index in marked
            ]
        )
        adds_bos = self.kind == "llama" or self.entries.get("pre") in IGNORE_MERGES
        bos, eos = self.special("bos"), self.special("eos")
        before = [bos] if bos is not None and self.entries.get("add_bos_token", adds_bos) else []
        after = [eos] if eos is not None and self.entries.get("add_eos_token", False) else []
        if before or after:
            names = [[self.tokens[index] for index in ids] for ids in (before, after)]
            backend.post_processor = processors.TemplateProcessing(
                single=[*names[0], "$A", *names[1]],
                special_tokens=[(self.tokens[index], index) for index in (*before, *after)],
            )

    def settings(self) -> dict[str, Any]:
        """The content of tokenizer_config.json, with the chat template."""
        roles = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}
        ids = {key: self.special(role) for key, role in roles.items()}
        values = {key: self.tokens[index] for key, index in ids.items() if index is not None}
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
        prefix = self.entries.get("add_space_prefix", not self.architecture.startswith("gemma"))
        steps: list[Any] = [normalizers.Prepend(SPACE)] if prefix else []
        backend.normalizer = normalizers.Sequence([*steps, normalizers.Replace(" ", SPACE)])
        parts: list[Any] = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
        backend.decoder = decoders.Sequence([*parts, decoders.Strip(" ", 1, 0)] if prefix else parts)
        return backend

    def _merges(self, scores: list[float]) -> list[tuple[str, str]]:
        """All pairs of tokens that make a token, the best first, as transformers orders them."""
        merges = []
        for token, score, kind in zip(self.tokens, scores, self.types, strict=True):
            if kind in (CONTROL, BYTE, UNKNOWN) or len(token) > MAX_PIECE:
                continue
            pairs = ((token[:end], token[end:]) for end in range(1, len(token)))
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
