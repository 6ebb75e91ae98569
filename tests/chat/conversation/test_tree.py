"""The tree of versions: the chosen path, switching, removing, and that any tree survives its flat form."""

from __future__ import annotations

import random
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chat.conversation.tree import Node, Tree
from engine.runtime.errors import UsageError


def turn(text: object) -> list[dict[str, str]]:
    return [{"role": "user", "content": f"{text}"}, {"role": "assistant", "content": f"re {text}"}]


def content(tree: Tree) -> list[tuple[int, str, int | None]]:
    """Every node but the root with its depth, its message and its chosen child, in order."""
    rows, pending = [], [(child, 0) for child in reversed(tree.root.children)]
    while pending:
        node, depth = pending.pop()
        rows.append((depth, node.turn[0]["content"], node.chosen))
        pending += [(child, depth + 1) for child in reversed(node.children)]
    return rows


def restored(tree: Tree) -> Tree:
    """The tree after a round trip through its flat form."""

    def pairs(messages):
        return [list(messages[start : start + 2]) for start in range(0, len(messages), 2)]

    flat = [(branch["after"], branch["place"], pairs(branch["messages"])) for branch in tree.branches()]
    return Tree.restore([node.turn for node in tree.path], flat)


def grow(seed: int, steps: int) -> Tree:
    """A tree after random messages, edits, switches and removals."""
    draws, tree, turns = random.Random(seed), Tree(), []
    for step in range(steps):
        match draws.choice(("send", "send", "edit", "choose", "undo")):
            case "send":
                turns = [*turns, turn(step)]
            case "edit" if turns:
                turns = [*turns[: draws.randrange(len(turns))], turn(step)]
            case "choose" if turns:
                index = draws.randrange(len(turns))
                turns = tree.choose(index, draws.randrange(tree.version(index)[1]))
            case "undo" if turns:
                turns = tree.remove(len(turns) - 1)
        tree.record(turns)
    return tree


def test_versions_are_kept_with_what_follows_them():
    first, second, third, other = map(turn, "abcd")
    tree = Tree()
    tree.record([first, second, third])
    keys = [node.key for node in tree.path]
    tree.record([first, other])
    assert (tree.version(0), tree.version(1)) == ((0, 1), (1, 2))
    assert tree.choose(1, 0) == [first, second, third]
    assert [node.key for node in tree.path] == keys
    assert tree.choose(1, 1) == [first, other]
    with pytest.raises(UsageError, match="version 3: message 2 has 2"):
        tree.choose(1, 2)
    assert tree.remove(1) == [first, second, third] == [node.turn for node in tree.path]
    assert [node.turn for node in tree.versions(1)] == [second]
    tree.record([first, turn("e")])
    assert tree.version(1) == (1, 2)
    assert tree.node(1).key not in keys


def test_a_turn_without_a_reply_is_forgotten_wherever_a_reader_has_recorded_it():
    first, waiting = turn("a"), [{"role": "user", "content": "b"}]
    for recorded in ([first, waiting], [first]):
        tree = Tree()
        tree.record([first, waiting])
        tree.record(recorded)
        tree.discard(waiting)
        tree.record([first])
        assert content(tree) == [(0, "a", None)]
        tree.discard(waiting)  # not recorded


@given(st.integers(0, 2**32), st.integers(0, 60))
def test_any_tree_survives_its_flat_form_and_a_copy(seed, steps):
    tree = grow(seed, steps)
    for other in (restored(tree), tree.copy()):
        assert content(other) == content(tree)
        assert [node.turn for node in other.path] == [node.turn for node in tree.path]
        keys = [node.key for node in all_nodes(other)]
        other.record([*[node.turn for node in other.path], turn("new")])
        assert len({*keys, other.path[-1].key}) == len(keys) + 1
    assert [node.key for node in all_nodes(tree.copy())] == [node.key for node in all_nodes(tree)]
    copied = tree.copy()
    assert all(ours.turn is not theirs.turn for ours, theirs in zip(copied.path, tree.path, strict=True))


def all_nodes(tree: Tree) -> list[Node]:
    nodes = [tree.root]
    for node in nodes:
        nodes += node.children
    return nodes


def test_a_deep_tree_does_not_recurse():
    tree = Tree()
    turns = [turn(number) for number in range(5000)]
    tree.record(turns)
    tree.record([turn("other"), *[turn(f"{number}'") for number in range(5000)]])
    assert content(restored(tree)) == content(tree) == content(tree.copy())
    assert tree.choose(0, 0) == turns
    assert tree.remove(0)[0] == turn("other")
    assert tree.remove(0) == tree.path == []


def test_the_version_next_to_a_removed_one_is_chosen_and_only_that_one_is_gone():
    tree, versions = Tree(), [turn(text) for text in "abcd"]
    for version in versions:
        tree.record([turn("0") if not tree.path else tree.path[0].turn, version])
    tree.choose(1, 0)
    for place, left in ((0, "bcd"), (1, "bd"), (1, "b"), (0, "")):
        tree.choose(1, place)
        path = tree.remove(1)
        assert [node.turn for node in (tree.versions(1))] == [turn(text) for text in left]
        assert path[1:] == ([turn(left[max(0, place - 1)])] if left else [])


@given(st.integers(0, 2**32), st.integers(0, 60))
def test_removing_the_last_turn_never_removes_one_that_is_not_shown(seed, steps):
    tree = grow(seed, steps)
    while tree.path:
        before, last = {node.key for node in all_nodes(tree)}, tree.path[-1]
        path = tree.remove(len(tree.path) - 1)
        assert before - {node.key for node in all_nodes(tree)} == {last.key}
        assert path == [node.turn for node in tree.path]
    assert all_nodes(tree) == [tree.root]


def test_a_path_that_ends_above_other_turns_goes_on_to_the_last_of_them():
    tree = Tree.restore([turn("a")], [(0, 0, [turn("b")]), (0, 1, [turn("c")])])
    assert [node.turn for node in tree.path] == [turn("a"), turn("c")]


@pytest.mark.parametrize(("after", "place"), [(1, 0), (-2, 0), (0, 2), (0, -1)])
def test_a_branch_without_a_place_is_refused(after, place):
    with pytest.raises(ValueError, match="branch 1"):
        Tree.restore([turn("a")], [(after, place, [turn("b")])])


def test_threads_that_read_while_one_changes_lose_nothing():
    tree, turns, ended = Tree(), [turn(number) for number in range(50)], threading.Event()
    path = list(turns)

    def read():
        while not ended.is_set():
            tree.record(list(path))
            tree.branches()

    readers = [threading.Thread(target=read) for _ in range(3)]
    for reader in readers:
        reader.start()
    for number in range(200):
        tree.record(path)
        path[:] = [*path[:25], turn(f"{number}'")] if number % 2 else turns
    ended.set()
    for reader in readers:
        reader.join()
    tree.record(path)
    assert tree.version(25)[1] <= 101
    assert tree.choose(25, 0) == turns
