"""Text <-> token ids, by the `tokenizers` library. tokenizer.json is the reference for what a text's ids are."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import tokenizers

from engine.runtime.errors import BareloopError
from engine.runtime.files import read_json
from engine.text.detokenizer import ByteLevel, Detokenizer, SentencePiece, Windowed, byte_table, piece_bytes

BPE_FILES = ("vocab.json", "merges.txt")  # GPT-2's format, from before tokenizer.json
SPECIAL_TOKENS = ("bos_token", "eos_token", "pad_token", "unk_token")


class Tokenizer:
    """A checkpoint's tokenizer. Whatever truncation or padding its file carries is switched off."""

    def __init__(self, backend: tokenizers.Tokenizer, settings: Mapping[str, Any]) -> None:
        """`settings` is what tokenizer_config.json holds; it knows special tokens that tokenizer.json may not mark."""
        backend.no_truncation()
        backend.no_padding()
        named = {role: _content(settings.get(role)) for role in SPECIAL_TOKENS}
        self.special_tokens = {role: token for role, token in named.items() if token is not None}
        self.settings = settings
        marked = settings.get("added_tokens_decoder", {})
        also = [token for token in marked.values() if isinstance(token, dict) and token.get("special") is True]
        contents = [*self.special_tokens.values(), *(str(token.get("content")) for token in also)]
        added = {token.content for token in backend.get_added_tokens_decoder().values() if token.special}
        known = [content for content in dict.fromkeys(contents) if backend.token_to_id(content) is not None]
        unmarked = [content for content in known if content not in added]
        backend.add_special_tokens([tokenizers.AddedToken(content, normalized=False) for content in unmarked])
        self.backend = backend
        numbers = {content: backend.token_to_id(content) for content in (*added, *known)}
        self.control_tokens = {content: int(number) for content, number in numbers.items() if number is not None}
        self.special_ids = frozenset(self.control_tokens.values())

    @staticmethod
    def is_in(folder: Path) -> bool:
        """Whether a folder brings files that `load` reads."""
        return (folder / "tokenizer.json").exists() or all((folder / name).exists() for name in BPE_FILES)

    @staticmethod
    def load(folder: Path) -> Tokenizer:
        """Read tokenizer.json, or vocab.json and merges.txt; raises where a folder has neither."""
        if (folder / "tokenizer.json").exists():
            try:
                backend = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
            except Exception as error:  # the library raises nothing narrower
                raise BareloopError(f"cannot read {folder / 'tokenizer.json'}: {error}") from error
        elif Tokenizer.is_in(folder):
            backend = _byte_level_bpe(folder)
        elif (folder / "tokenizer.model").exists():
            raise BareloopError(
                f"{folder} has only tokenizer.model (SentencePiece), which is not read here; "
                "add the tokenizer.json of the same model"
            )
        else:
            raise BareloopError(f"{folder} has no tokenizer.json, so text has no ids here; give and take token ids")
        path = folder / "tokenizer_config.json"
        return Tokenizer(backend, read_json(path) if path.exists() else {})

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """The ids of a text, with the BOS that the tokenizer adds by default (Llama's does, Qwen's has none)."""
        try:
            return list(self.backend.encode(text, add_special_tokens=add_special_tokens).ids)
        except Exception as error:  # a lone surrogate, or a vocabulary without a token for the unknown
            raise BareloopError(f"the tokenizer cannot encode this text: {error}") from error

    def encode_all(self, texts: Sequence[str], add_special_tokens: bool = True) -> list[list[int]]:
        """`encode` for several texts, on all cores."""
        try:
            batch = self.backend.encode_batch_fast(list(texts), add_special_tokens=add_special_tokens)
        except Exception as error:  # as above
            raise BareloopError(f"the tokenizer cannot encode these texts: {error}") from error
        return [list(encoding.ids) for encoding in batch]

    def encode_plain(self, text: str) -> list[int]:
        """The ids of a text in which nothing is a control token, whatever it looks like."""
        self.backend.encode_special_tokens = True
        try:
            return self.encode(text, add_special_tokens=False)
        finally:
            self.backend.encode_special_tokens = False

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        """The text of ids; bytes that are no UTF-8 become U+FFFD."""
        kept = [number for number in ids if not (skip_special_tokens and number in self.special_ids)]
        return str(self.backend.decode(kept, skip_special_tokens=False))  # the library's own skipping misses some

    def detokenizer(self, continues: bool = False) -> Detokenizer:
        """A new streaming detokenizer, special tokens skipped; its text may continue another one's."""
        match self._stream:
            case "bytes", pieces:
                return ByteLevel(pieces)
            case "sentencepiece", pieces:
                return SentencePiece(pieces, continues)
            case "sentencepiece without strip", pieces:
                return SentencePiece(pieces, continues=True)
            case _:
                return Windowed(self.decode)

    @cached_property
    def _stream(self) -> tuple[str, Any]:
        """How this tokenizer's ids become text, and what each of them stands for."""
        vocabulary = self.backend.get_vocab(with_added_tokens=True)
        tokens = {number: token for token, number in vocabulary.items() if number not in self.special_ids}
        decoder = json.loads(self.backend.to_str())["decoder"] or {}
        if decoder.get("type") == "ByteLevel":
            table = byte_table()
            return "bytes", {number: piece_bytes(token, table) for number, token in tokens.items()}
        steps = [part.get("type") for part in decoder.get("decoders", ())]
        if steps == ["Replace", "ByteFallback", "Fuse", "Strip"]:
            return "sentencepiece", tokens
        if steps == ["Replace", "ByteFallback", "Fuse"]:
            return "sentencepiece without strip", tokens
        return "windowed", None

    def token_id(self, token: str) -> int | None:
        """The id of one token of the vocabulary, None where there is none."""
        number = self.backend.token_to_id(token)
        return None if number is None else int(number)

    @property
    def vocab_size(self) -> int:
        """Tokens, added ones included. The model's may be larger, padded for the hardware."""
        return int(self.backend.get_vocab_size())


def _byte_level_bpe(folder: Path) -> tokenizers.Tokenizer:
    from tokenizers import decoders, models, pre_tokenizers

    try:
        model = models.BPE.from_file(*(str(folder / name) for name in BPE_FILES))
    except Exception as error:  # as above
        raise BareloopError(f"cannot read vocab.json and merges.txt in {folder}: {error}") from error
    backend = tokenizers.Tokenizer(model)
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    added = folder / "added_tokens.json"
    if added.exists():
        by_id = sorted(read_json(added).items(), key=lambda item: int(item[1]) if isinstance(item[1], int) else 0)
        backend.add_tokens([tokenizers.AddedToken(token, normalized=False) for token, _ in by_id])
    if backend.token_to_id("<|endoftext|>") is not None:
        backend.add_special_tokens(["<|endoftext|>"])
    return backend


def _content(token: Any) -> str | None:
    """A special token is written as a string or as an object with its content."""
    content = token.get("content") if isinstance(token, dict) else token
    return content if isinstance(content, str) else None
