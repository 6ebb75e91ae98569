"""Which memories stand in the prompt of a conversation, and what of it is stored. Loads without torch."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Sequence
from copy import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING

from chat.context import MEMORY_SHARE
from chat.conversation.memory_block import MAX_ENTRY, MIN_ENTRY, label, memory_block, newest_first, readable
from chat.memory.pieces import Hit, NewPiece, Piece
from engine.runtime.errors import UsageError

if TYPE_CHECKING:
    from chat.memory.store import MemoryStore

WINNERS = 3  # pieces that a message brings into the prompt, at most
CERTAIN, POSSIBLE = 0.4, 0.2  # cosines from which on a piece has, or may have, to do with a message
GUESSES = 2  # pieces that only may have to do with it, at most
# Before a message whose meaning is searched for: with MiniLM the turn that a question is about comes before all others
# in 84 % of the cases, and in 77 % without it; with names instead of the arrow of `turn_text` in 82 % and 71 %.
ASKED = "User: "
MAX_QUERY = 2000  # characters of a message that are searched for: its beginning and its end
STEP = 8  # characters: how exactly a piece is cut
SPARE = 24  # candidates more than there are turns in the prompt, which may all be found
# English words that say nothing about what a message is about. Other languages are searched with all their words.
COMMON = frozenset(
    (
        *("a", "about", "am", "an", "and", "any", "are", "as", "at", "be", "been", "but", "by", "can", "could", "did"),
        *("do", "does", "for", "from", "had", "has", "have", "he", "hello", "hey", "hi", "how", "i", "if", "in", "is"),
        *("it", "its", "let", "me", "my", "no", "not", "of", "ok", "on", "or", "our", "please", "s", "say", "she"),
        *("so", "tell", "thank", "thanks", "that", "the", "them", "then", "they", "this", "to", "us", "user", "was"),
        *("we", "were", "what", "when", "where", "which", "who", "whom", "whose", "why", "will", "with", "would"),
        *("yes", "you", "your", "assistant"),
    )
)
QUESTION_MARKS = "?\uff1f\u061f\u037e"
WORD = re.compile(r"[^\W_]+")
STEM = 5  # letters by which words are compared: dog, dogs

CountBlock = Callable[[str], int]  # tokens that a block adds to a prompt


@dataclass(frozen=True)
class Recalled:
    """The memories in a prompt, newest first, the block of text that has them, and the tokens that it adds."""

    pieces: tuple[Piece, ...] = ()
    block: str = ""
    tokens: int = 0

    @property
    def ids(self) -> list[int]:
        """Numbers of the pieces, as the block shows them."""
        return [piece.id for piece in self.pieces]


NOTHING = Recalled()


class Memory:
    """A conversation's view of a memory: what it recalls stays in the prompt until something else is wanted."""

    def __init__(self, store: MemoryStore, share: float = MEMORY_SHARE, name: str = "", keeps: bool = True) -> None:
        """`share`: of a prompt's room. `keeps`: whether finished turns are stored, and not only others recalled."""
        self.store, self.share, self.name, self.keeps = store, share, name, keeps
        self.conversation = ""  # id of the conversation
        self.recalled = NOTHING
        self._clipped: dict[int, int] = {}  # characters of pieces that are shorter in the block

    def bound(self, conversation: str) -> Memory:
        """The same memory for another conversation, with nothing recalled yet."""
        other = copy(self)
        other.conversation, other.recalled, other._clipped = conversation, NOTHING, {}
        return other

    def recall(
        self,
        text: str,
        shown: Collection[str],
        budget_tokens: int,
        count: CountBlock,
        left: Collection[str] = (),
    ) -> Recalled:
        """Find what has to do with a message, and make the block of the next prompt, which is kept in `recalled`.

        `shown`: texts of the turns in the prompt (`turn_text`), which are not recalled; `left`: of those that have left
        it. Other pieces of this conversation are of other versions of its turns, and are not recalled either. The block
        stays as it is if it has all that was found, so that a question may refer to the last one.
        Raises `BareloopError` if the memory cannot be read.
        """
        shown, left = frozenset(shown), frozenset(left)

        def fits_in(piece: Piece) -> bool:
            if piece.kind != "turn":
                return True
            return piece.text not in shown and (piece.conversation != self.conversation or piece.text in left)

        query = _query(text)
        asked = f"{ASKED}{query}" if self.store.embedder is not None else query
        unwanted = [piece.id for piece in self._own_turns() if not fits_in(piece)]
        found = self.store.search(asked, limit=len(shown) + SPARE, exclude=unwanted)
        hits = [hit for hit in found if fits_in(hit.piece)]
        winners = likely(hits, query)
        present = set(self._present(self.recalled.ids))
        kept = [piece for piece in self.recalled.pieces if piece.id in present and fits_in(piece)]
        is_whole = len(kept) == len(self.recalled.pieces)
        has_all = is_whole and {piece.id for piece in winners} <= set(self.recalled.ids)
        if has_all and (not self.recalled.block or count(self.recalled.block) <= budget_tokens):
            return self.recalled
        self.recalled = self._chosen(winners or kept, budget_tokens, count)
        return self.recalled

    def remember(self, text: str, before: str = "") -> int | None:
        """Store a finished turn, a `turn_text`. -> its number; None if turns are not stored

        `before`: the same turn, before its reply was continued.
        """
        if not self.keeps:
            return None
        number = self.store.add([NewPiece(text, "turn", self.conversation, conversation=self.conversation)])[0]
        if before and before != text:
            self.forget_turn(before)
        return number

    def forget_turn(self, text: str) -> None:
        """Delete a turn of this conversation, if it was stored. The file is compacted when it is closed."""
        if self.keeps and (ids := [piece.id for piece in self._own_turns() if piece.text == text]):
            self.store.forget(ids, compact=False)
            self._leave_out(set(ids))

    def note(self, text: str) -> int:
        """Store what the user wants to be remembered. -> its number"""
        if not text.strip():
            raise UsageError("/remember needs a text")
        return self.store.add([NewPiece(text.strip(), "note", "note", conversation=self.conversation)])[0]

    def search(self, query: str, limit: int = 5) -> list[Hit]:
        """The pieces that have most to do with a query, best first, of all conversations and documents."""
        return self.store.search(_query(query), limit=limit)

    def forget(self, ids: Sequence[int]) -> int:
        """Delete pieces, from the block at once. -> how many there were"""
        count = self.store.forget(ids)
        self._leave_out(set(ids))
        return count

    def forget_conversation(self, conversation: str) -> int:
        """Delete all turns of a conversation; notes stay. -> how many there were"""
        return self.forget([piece.id for piece in self.store.pieces(kinds={"turn"}, source=conversation)])

    def clear(self) -> int:
        """Delete everything. -> how many pieces there were"""
        count = self.store.clear()
        self.recalled = NOTHING
        return count

    def label(self, piece: Piece) -> str:
        """A piece's number, date and source, as the block and the commands show them."""
        return label(piece, self.conversation)

    def _own_turns(self) -> list[Piece]:
        """The turns of this conversation that were stored, also those that are not chosen any more."""
        return self.store.pieces(kinds={"turn"}, source=self.conversation)

    def _present(self, ids: Sequence[int]) -> list[int]:
        """Those of these pieces that nobody, here or in another program, has deleted."""
        return [piece.id for piece in self.store.get(ids)] if ids else []

    def _leave_out(self, ids: Collection[int]) -> None:
        """Take pieces out of the block. Its tokens are then an upper limit, until the next message."""
        pieces = tuple(piece for piece in self.recalled.pieces if piece.id not in ids)
        if len(pieces) < len(self.recalled.pieces):
            self.recalled = Recalled(pieces, self._block(pieces), self.recalled.tokens) if pieces else NOTHING

    def _chosen(self, pieces: Sequence[Piece], budget_tokens: int, count: CountBlock) -> Recalled:
        """As many of these pieces as fit, the first ones before others. If the first is too long, its beginning."""
        chosen: tuple[Piece, ...] = ()
        block, tokens = "", 0
        self._clipped = {}
        for piece in pieces:
            wider = newest_first((*chosen, piece))
            longer = self._block(wider)
            if (needed := count(longer)) <= budget_tokens:
                chosen, block, tokens = wider, longer, needed
        if not chosen and pieces:
            return self._beginning(pieces[0], budget_tokens, count)
        return Recalled(chosen, block, tokens)

    def _beginning(self, piece: Piece, budget_tokens: int, count: CountBlock) -> Recalled:
        """One piece, cut so that it fits; nothing if what is left would say nothing."""
        low, high = MIN_ENTRY, min(len(readable(piece)), MAX_ENTRY) + 1  # as long as fits, and too long
        best = NOTHING
        while high - low > STEP or (best is NOTHING and high > low):
            middle = low if best is NOTHING else (low + high) // 2
            self._clipped = {piece.id: middle}
            block = self._block((piece,))
            if (tokens := count(block)) <= budget_tokens:
                low, best = middle, Recalled((piece,), block, tokens)
            elif best is NOTHING:
                return NOTHING
            else:
                high = middle
        self._clipped = {piece.id: low}
        return best

    def _block(self, pieces: Sequence[Piece]) -> str:
        return memory_block(pieces, self.conversation, self._clipped)


def _query(text: str) -> str:
    """What of a message is searched for: a question stands at the beginning or at the end."""
    return text if len(text) <= MAX_QUERY else f"{text[: MAX_QUERY // 2]} {text[-MAX_QUERY // 2 :]}"


def _words(text: str) -> frozenset[str]:
    """The beginnings of the words that tell what a text is about."""
    return frozenset(word[:STEM] for word in WORD.findall(text.casefold()) if word not in COMMON)


def likely(hits: Sequence[Hit], query: str) -> list[Piece]:
    """The pieces, best first, that have to do with a query: by their meaning, or by a word that is not in any message.

    If there are none, those that may. A small model is misled by what has nothing to do with the question.
    """
    words = _words(query)
    is_other_language = not all(word.isascii() for word in words)

    def is_certain(hit: Hit) -> bool:
        if hit.similarity is not None and hit.similarity >= CERTAIN:
            return True
        return hit.bm25_rank is not None and (is_other_language or bool(words & _words(hit.piece.text)))

    certain = [hit.piece for hit in hits if is_certain(hit)][:WINNERS]
    says_something = bool(words) or any(mark in query for mark in QUESTION_MARKS)  # not: Thank you!
    if certain or not says_something:
        return certain
    nearest = sorted(hits, key=lambda hit: -(hit.similarity or 0.0))[:GUESSES]
    return [hit.piece for hit in nearest if (hit.similarity or 0.0) >= POSSIBLE]
