"""Text to token ids and back, by the `tokenizers` library. tokenizer.json defines the ids."""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import tokenizers

from engine.runtime.errors import BareloopError
from engine.runtime.files import read_json
from engine.text.detokenizer import (
    ByteLevel,
    Detokenizer,
    SentencePiece,
    Windowed,
    byte_table,
    piece_bytes,
    sentencepiece_bytes,
)
from engine.text.surrogates import SURROGATE

BPE_FILES = ("vocab.json", "merges.txt")  # GPT-2's format, older than tokenizer.json
SPECIAL_TOKENS = ("bos_token", "eos_token", "pad_token", "unk_token")
LAST_WORD = 40  # characters of a text that decide how what follows is encoded
CHARACTERS_PER_TOKEN = 16  # of the beginning of a text that is encoded first to be cut; English has 4 to 5
SPACES = (" ", "\n")
LONG = 2_000  # characters of a text from which the library's function for several texts takes less time for one


class Tokenizer:
    """A checkpoint's tokenizer, for any number of threads, of which one at a time is in the library.

    Truncation and padding that its file may enable are switched off.
    """

    def __init__(self, backend: tokenizers.Tokenizer, settings: Mapping[str, Any]) -> None:
        """`settings`: the content of tokenizer_config.json, which may have special tokens that tokenizer.json lacks."""
        backend.no_truncation()
        backend.no_padding()
        named = {role: _content(settings.get(role)) for role in SPECIAL_TOKENS}
        self.special_tokens = {role: token for role, token in named.items() if token is not None}
        self.settings = settings
        declared = settings.get("added_tokens_decoder")
        entries = list(declared.values()) if isinstance(declared, dict) else []
        special = [entry for entry in entries if isinstance(entry, dict) and entry.get("special") is True]
        contents = [*self.special_tokens.values(), *filter(None, map(_content, special))]
        marked = {token.content for token in backend.get_added_tokens_decoder().values() if token.special}
        known = [content for content in dict.fromkeys(contents) if backend.token_to_id(content) is not None]
        unmarked = [content for content in known if content not in marked]
        backend.add_special_tokens([tokenizers.AddedToken(content, normalized=False) for content in unmarked])
        self.backend = backend
        self._copying = threading.Lock()
        self._truncating: dict[int, tokenizers.Tokenizer] = {}  # copies by the length to which they cut
        ids = {content: backend.token_to_id(content) for content in (*marked, *known)}
        self.control_tokens = {content: int(token) for content, token in ids.items() if token is not None}
        self.special_ids = frozenset(self.control_tokens.values())

    @staticmethod
    def is_in(folder: Path) -> bool:
        """Whether a folder has files that `load` reads."""
        return (folder / "tokenizer.json").exists() or all((folder / name).exists() for name in BPE_FILES)

    @staticmethod
    def load(folder: Path) -> Tokenizer:
        """Read tokenizer.json, or vocab.json and merges.txt. Raises `BareloopError` if the folder has neither."""
        if (folder / "tokenizer.json").exists():
            try:
                backend = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
            except Exception as error:  # the library raises no narrower class
                raise BareloopError(f"cannot read {folder / 'tokenizer.json'}: {error}") from error
        elif Tokenizer.is_in(folder):
            backend = _byte_level_bpe(folder)
        elif (folder / "tokenizer.model").exists():
            raise BareloopError(
                f"{folder} has only tokenizer.model (SentencePiece), which is not supported; "
                "add the tokenizer.json of the same model"
            )
        else:
            raise BareloopError(f"{folder} has no tokenizer.json, so text cannot be encoded; use token ids")
        path = folder / "tokenizer_config.json"
        return Tokenizer(backend, read_json(path) if path.exists() else {})

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Token ids of a text, with the BOS token that the tokenizer adds by default (Llama's; Qwen has none)."""
        return self._encode(self.backend, text, add_special_tokens)

    def _encode(self, backend: tokenizers.Tokenizer, text: str, add_special_tokens: bool) -> list[int]:
        if len(text) >= LONG:  # other threads of Python go on meanwhile, which the function for one text stops
            return self._encode_all(backend, [text], add_special_tokens)[0]
        check_text(text)
        try:
            return list(backend.encode(text, add_special_tokens=add_special_tokens).ids)
        except Exception as error:  # a vocabulary without a token for unknown characters
            raise BareloopError(f"the tokenizer cannot encode this text: {error}") from error

    def encode_all(self, texts: Sequence[str], add_special_tokens: bool = True) -> list[list[int]]:
        """`encode` for several texts, on all cores."""
        return self._encode_all(self.backend, texts, add_special_tokens)

    @classmethod
    def _encode_all(
        cls, backend: tokenizers.Tokenizer, texts: Sequence[str], add_special_tokens: bool
    ) -> list[list[int]]:
        return [list(encoding.ids) for encoding in cls._encode_batch(backend, texts, add_special_tokens)]

    @staticmethod
    def _encode_batch(backend: tokenizers.Tokenizer, texts: Sequence[str], add_special_tokens: bool) -> list[Any]:
        for text in texts:
            check_text(text)
        try:
            return list(backend.encode_batch_fast(list(texts), add_special_tokens=add_special_tokens))
        except Exception as error:  # as in `encode`
            raise BareloopError(f"the tokenizer cannot encode these texts: {error}") from error

    def encode_truncated(self, texts: Sequence[str], max_length: int) -> tuple[list[list[int]], int]:
        """`encode_all` for texts that are cut to `max_length` tokens: -> ids, and how many texts were cut.

        The library cuts before it adds special tokens, so that those after the text are kept. It cuts after it has
        encoded all of a text; so of a long one only a beginning is encoded, where that gives the same tokens.
        """
        with self._copying:
            if max_length not in self._truncating:
                backend = tokenizers.Tokenizer.from_str(self.backend.to_str())
                backend.enable_truncation(max_length)
                self._truncating[max_length] = backend
            backend = self._truncating[max_length]
        for text in texts:
            check_text(text)
        encodings: list[Any] = [None] * len(texts)
        pending = [(index, max_length * CHARACTERS_PER_TOKEN) for index in range(len(texts))]
        while pending:
            starts = [self._start_of(texts[index], size) for index, size in pending]
            longer = []
            for (index, size), start, each in zip(
                pending, starts, self._encode_batch(backend, starts, True), strict=True
            ):
                encodings[index] = each
                if not each.overflowing and len(start) < len(texts[index]):
                    longer.append((index, 4 * max(size, len(start))))
            pending = longer
        return [list(each.ids) for each in encodings], sum(bool(each.overflowing) for each in encodings)

    def _start_of(self, text: str, size: int) -> str:
        """A beginning of some `size` characters, whose tokens are the first ones of the text; else the text."""
        if len(text) <= size or not self._splits_at_spaces:
            return text
        end = max(text.rfind(space, 0, size) for space in SPACES)
        if end < 0:
            end = min((place for space in SPACES if (place := text.find(space, size)) >= 0), default=len(text))
        return text[:end]

    @cached_property
    def _splits_at_spaces(self) -> bool:
        """Whether the tokens before a space depend on nothing after it. BERT's tokenizer splits there, before it looks
        at words; that of a byte-level BPE also looks at what follows a space.
        """
        content = json.loads(self.backend.to_str())
        kinds = [(content[part] or {}).get("type") for part in ("normalizer", "pre_tokenizer", "model")]
        added = [token.content for token in self.backend.get_added_tokens_decoder().values()]
        return kinds == ["BertNormalizer", "BertPreTokenizer", "WordPiece"] and all(
            token.split() == [token] for token in added
        )

    def encode_plain(self, text: str) -> list[int]:
        """Token ids of a text in which nothing is a control token, even if it looks like one."""
        with self._copying:
            backend = self._plain_backend
        return self._encode(backend, text, False)

    def encode_with_offsets(self, text: str, is_plain: bool = False) -> tuple[list[int], list[tuple[int, int]]]:
        """Token ids of a text, without the tokenizer's own BOS, and the characters (first, last + 1) of each.

        `is_plain`: nothing is a control token, as in `encode_plain`.
        """
        check_text(text)
        with self._copying:
            backend = self._plain_backend if is_plain else self.backend
        try:
            encoding = backend.encode(text, add_special_tokens=False)
        except Exception as error:  # as in `encode`
            raise BareloopError(f"the tokenizer cannot encode this text: {error}") from error
        return list(encoding.ids), list(encoding.offsets)

    def encode_continuations(self, pairs: Sequence[tuple[str, str]]) -> list[list[int]]:
        """Token ids of each second text as it follows the first, without special tokens.

        The last word of the first text is encoded with the second one, which has the ids that come after that word's.
        If a token would have characters of both, a line break is in the word's place, and at last nothing.
        """
        result: list[list[int]] = [[] for _ in pairs]
        pending = list(range(len(pairs)))
        words = [_last_word(text) for text, _ in pairs]
        for contexts in (words, ["\n"] * len(pairs), [""] * len(pairs)):
            before = self.encode_all([contexts[i] for i in pending], add_special_tokens=False)
            both = self.encode_all([contexts[i] + pairs[i][1] for i in pending], add_special_tokens=False)
            across = []
            for index, context, whole in zip(pending, before, both, strict=True):
                if whole[: len(context)] == context:
                    result[index] = whole[len(context) :]
                else:
                    across.append(index)
            pending = across
        return result

    @cached_property
    def _plain_backend(self) -> tokenizers.Tokenizer:
        """A copy with another flag: setting it back and forth would make all threads wait for each other's texts."""
        backend = tokenizers.Tokenizer.from_str(self.backend.to_str())
        backend.encode_special_tokens = True
        return backend

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        """The text of token ids; bytes that are not UTF-8 become U+FFFD, ids without a token (an image's) nothing."""
        kept = [token for token in ids if not (skip_special_tokens and token in self.special_ids)]
        if kept and max(kept) >= 2**32:  # more than the library takes
            kept = [token for token in kept if token < 2**32]
        return str(self.backend.decode(kept, skip_special_tokens=False))  # the library does not skip all of them

    def token_bytes(self, token: int) -> bytes:
        """The bytes of one id inside a text, which may be a part of a character: those of several ids add up.

        Of a control token those of its name, of an id without a token none. A tokenizer that is neither byte-level nor
        SentencePiece decodes the id alone.
        """
        if token in self._control_names:
            return self._control_names[token].encode()
        match self._stream:
            case "bytes", pieces:
                return bytes(pieces.get(token, b""))
            case (("sentencepiece" | "sentencepiece without strip"), pieces):
                return sentencepiece_bytes(pieces.get(token, ""))
            case _:
                return self.decode([token]).encode() if 0 <= token < 2**32 else b""  # as the library takes

    @cached_property
    def _control_names(self) -> dict[int, str]:
        return {token: name for name, token in self.control_tokens.items()}

    def detokenizer(self, continues: bool = False) -> Detokenizer:
        """A streaming detokenizer that skips special tokens. `continues`: its text follows another text."""
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
        """The kind of streaming detokenizer, and the piece of text or bytes of each token."""
        vocabulary = self.backend.get_vocab(with_added_tokens=True)
        tokens = {index: token for token, index in vocabulary.items() if index not in self.special_ids}
        decoder = json.loads(self.backend.to_str())["decoder"] or {}
        if decoder.get("type") == "ByteLevel":
            table = byte_table()
            return "bytes", {index: piece_bytes(token, table) for index, token in tokens.items()}
        steps = [part.get("type") for part in decoder.get("decoders", ())]
        if steps == ["Replace", "ByteFallback", "Fuse", "Strip"]:
            return "sentencepiece", tokens
        if steps == ["Replace", "ByteFallback", "Fuse"]:
            return "sentencepiece without strip", tokens
        return "windowed", None

    def token_id(self, token: str) -> int | None:
        """The id of a token, or None if it is not in the vocabulary."""
        index = self.backend.token_to_id(token)
        return None if index is None else int(index)

    @property
    def vocab_size(self) -> int:
        """Number of tokens, with added ones. The model's vocabulary may be larger (padding)."""
        return int(self.backend.get_vocab_size())


def check_text(text: str) -> None:
    """Raise `BareloopError` for a text that is not valid Unicode: one with half of a surrogate pair."""
    if (match := SURROGATE.search(text)) is not None:
        raise BareloopError(
            f"the text is not valid Unicode: character {match.start()} is a lone surrogate (U+{ord(match[0]):04X}); "
            "remove it, or decode the text's bytes as UTF-8"
        )


def _last_word(text: str) -> str:
    """The end of a text from its last word on, at most `LAST_WORD` characters."""
    end = text[-LAST_WORD:]
    words = end.split()
    return end[end.rfind(words[-1]) :] if words else end


def _byte_level_bpe(folder: Path) -> tokenizers.Tokenizer:
    """GPT-2's byte-level BPE from vocab.json and merges.txt."""
    from tokenizers import decoders, models, pre_tokenizers

    try:
        model = models.BPE.from_file(*(str(folder / name) for name in BPE_FILES))
    except Exception as error:  # the library raises no narrower class
        raise BareloopError(f"cannot read vocab.json and merges.txt in {folder}: {error}") from error
    backend = tokenizers.Tokenizer(model)
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    added = folder / "added_tokens.json"
    if added.exists():
        by_id = sorted(read_json(added).items(), key=lambda item: item[1] if isinstance(item[1], int) else 0)
        tokens = [token for token, _ in by_id if _content(token) is not None]
        backend.add_tokens([tokenizers.AddedToken(token, normalized=False) for token in tokens])
    if backend.token_to_id("<|endoftext|>") is not None:
        backend.add_special_tokens(["<|endoftext|>"])
    return backend


def _content(token: Any) -> str | None:
    """The text of a special token, given as a string or an object with `content`; None if it is not valid text."""
    content = token.get("content") if isinstance(token, dict) else token
    return content if isinstance(content, str) and content and not SURROGATE.search(content) else None
