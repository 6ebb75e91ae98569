"""A conversation as a tree: the versions of each turn, and which of them are chosen. Pure: no model, no torch.

    root -> turn 0 -> turn 1 -> turn 2
                  \\-> turn 1' -> turn 2'     after the message of turn 1 was edited

The children of a node are the versions of the next turn. The path of chosen ones is what the user sees; it goes on as
long as there are any, so that its last turn has nothing below it.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from engine.runtime.errors import UsageError

if TYPE_CHECKING:
    from chat.conversation.events import Reply
    from chat.models.interface import Origin, TokenProbability

Turn = list[dict[str, Any]]  # a user message, then the assistant's


@dataclass(eq=False)
class Node:
    """A turn, and the versions of the turn after it."""

    turn: Turn
    key: int  # unique in its tree, never used again
    children: list[Node] = field(default_factory=list)
    chosen: int | None = None  # the child on the path; None: the path ends here
    reply: Reply | None = None  # as it was generated, without its tokens; None after loading
    tokens: list[TokenProbability] | None = None  # of the reply, if they were recorded or scored
    scored_by: Origin | None = None  # the model that has scored the tokens; None: they were recorded

    @property
    def next(self) -> Node | None:
        """The chosen child."""
        return None if self.chosen is None else self.children[self.chosen]


class Tree:
    """All versions of a conversation. One thread changes it; others may call everything that only reads, and `record`.

    What is to agree, such as a list of turns and the path, is changed and read while `lock` is held.
    """

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self._keys = 0
        self.root = self._new([])  # stands for no turn
        self._path: list[Node] = []

    def _new(self, turn: Turn) -> Node:
        self._keys += 1
        return Node(turn, self._keys - 1)

    @property
    def path(self) -> list[Node]:
        """The nodes of the chosen turns."""
        return list(self._path)

    def record(self, turns: Sequence[Turn]) -> None:
        """Make these turns the chosen path. A turn is known by its identity; others become new versions."""
        with self.lock:
            node, path = self.root, list[Node]()
            for turn in turns:
                if (chosen := node.next) is None or chosen.turn is not turn:
                    known = [index for index, child in enumerate(node.children) if child.turn is turn]
                    if not known:
                        node.children.append(self._new(turn))
                    node.chosen = known[0] if known else len(node.children) - 1
                node = node.children[node.chosen or 0]
                path.append(node)
            node.chosen = None
            self._path = path

    def node(self, index: int) -> Node:
        """The node of a chosen turn."""
        return self._path[index]

    def versions(self, index: int) -> list[Node]:
        """All versions of a chosen turn."""
        return list(self._parent(index).children)

    def version(self, index: int) -> tuple[int, int]:
        """Which version of a turn is chosen, counted from 0, and how many there are."""
        parent = self._parent(index)
        return parent.chosen or 0, len(parent.children)

    def choose(self, index: int, version: int) -> list[Turn]:
        """Switch to another version of a turn. Return the new path; below the turn, it is the one chosen last.

        Raises `UsageError` for a version that does not exist; versions are numbered from 1 in it.
        """
        with self.lock:
            parent = self._parent(index)
            if not 0 <= version < len(parent.children):
                raise UsageError(f"version {version + 1}: message {index + 1} has {len(parent.children)}")
            parent.chosen = version
            return self._follow_from(index)

    def remove(self, index: int) -> list[Turn]:
        """Remove a chosen turn, this version only, with all that follows it. Return the new path.

        In its place the version before it is chosen, or else the one after it, with what followed that last.
        """
        with self.lock:
            parent = self._parent(index)
            place = parent.children.index(self._path[index])
            del parent.children[place]
            parent.chosen = max(0, place - 1) if parent.children else None
            return self._follow_from(index)

    def discard(self, turn: Turn) -> None:
        """Forget a turn at the end of the path, or just after it, that got no reply. It may not have been recorded."""
        with self.lock:
            for parent in [self.root, *self._path][-2:]:
                for child in [child for child in parent.children if child.turn is turn]:
                    chosen = parent.next
                    parent.children.remove(child)
                    parent.chosen = None if chosen in (None, child) else parent.children.index(chosen)
                    self._path = [node for node in self._path if node is not child]

    def branches(self, added: int = 0) -> list[dict[str, Any]]:
        """The versions that are not on the path, as flat lists of messages. `added`: turns that a file has after it.

        Each is a chain of turns, in which one is the chosen version after the one before it. `after`: the number of the
        turn before it, -1 for none; `place`: its index among the versions there. Turns are numbered along the path
        first, then along the chains, in order.
        """
        with self.lock:
            chains = list[dict[str, Any]]()
            numbered = [self.root, *self._path, *(Node([], -1) for _ in range(added))]
            for number, parent in enumerate(numbered):  # which grows
                for place, child in enumerate(parent.children):
                    if place != parent.chosen:
                        chain = [child, *_after(child)]
                        messages = [message for node in chain for message in node.turn]
                        chains.append({"after": number - 1, "place": place, "messages": messages})
                        numbered += chain
            return chains

    def copy(self) -> Tree:
        """The same tree with turns of its own."""
        with self.lock:
            other = Tree()
            other._keys = self._keys
            copies = {self.root: other.root}
            pending = [self.root]
            while pending:
                node = pending.pop()
                for child in node.children:
                    copies[child] = replace(child, turn=[dict(message) for message in child.turn], children=[])
                    copies[node].children.append(copies[child])
                pending += node.children
            other.root.chosen = self.root.chosen
            other._path = [copies[node] for node in self._path]
            return other

    @staticmethod
    def restore(turns: Sequence[Turn], branches: Iterable[tuple[int, int, Sequence[Turn]]] = ()) -> Tree:
        """The tree of a path and of the chains off it: where each is, as `branches` tells, and its turns.

        Raises `ValueError` for a place that cannot be.
        """
        tree = Tree()
        tree.record(turns)
        numbered = [tree.root, *tree._path]
        following = {node: node.next for node in numbered}
        for number, (after, place, chain) in enumerate(branches, 1):
            if not -1 <= after < len(numbered) - 1:
                raise ValueError(f"branch {number} is after turn {after} of {len(numbered) - 1}")
            parent = numbered[after + 1]
            if not 0 <= place <= len(parent.children):
                raise ValueError(f"branch {number} is version {place} of {len(parent.children) + 1}")
            nodes = [tree._new(turn) for turn in chain]
            parent.children.insert(place, nodes[0])
            for node, child in zip(nodes, [*nodes[1:], None], strict=True):
                following[node] = child
                node.children += [child] if child else []
            numbered += nodes
        for node, child in following.items():
            last = len(node.children) - 1 if node.children else None
            node.chosen = next((index for index, other in enumerate(node.children) if other is child), last)
        tree._follow_from(0)
        return tree

    def _follow_from(self, index: int) -> list[Turn]:
        """Make the path, from this turn on, that of the chosen children."""
        self._path = [*self._path[:index], *_after(self._parent(index))]
        return [node.turn for node in self._path]

    def _parent(self, index: int) -> Node:
        return self._path[index - 1] if index else self.root


def _after(node: Node) -> list[Node]:
    """The chosen nodes after a node."""
    chain = list[Node]()
    while (child := node.next) is not None:
        chain.append(child)
        node = child
    return chain
