"""python -m chat.compare: what a history is worth. The same dialogues with it, without it, and in a small window.

A script is a JSON list of dialogues; a dialogue is a list of messages. A message that asks for something names the
text that a right reply holds; how far back it was said follows from the dialogue itself:

    [["Hi, I'm Zorvan.", "How are you?", {"say": "What is my name?", "expect": "Zorvan"}]]
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chat.context import STRATEGIES
from engine.cli.parser import Parser, choose_model, model_options, run
from engine.cli.progress import Progress
from engine.runtime.errors import BareloopError, UsageError

if TYPE_CHECKING:
    from rich.table import Table

    from chat.events import Settings
    from engine.llm import LLM


def parser() -> Parser:
    """The program's flags."""
    result = Parser("python -m chat.compare", "Play dialogues with and without history, and by every strategy.")
    result.add_argument("script", nargs="?", help="a JSON list of dialogues (default: our own)")
    result.add_model_options()
    result.add_argument(
        "--small-window",
        type=int,
        default=160,
        metavar="N",
        help="tokens of the window of the strategies (default: 160)",
    )
    result.add_argument(
        "--max-new-tokens", "-n", type=int, default=48, metavar="N", help="the longest reply (default: 48)"
    )
    result.add_argument("--output-dir", default="results/chat", metavar="FOLDER", help="default: results/chat")
    return result


@dataclass(frozen=True)
class Line:
    """One message; `expect` is what a right reply to it holds, said `distance` turns before."""

    say: str
    expect: str = ""
    distance: int = 0


@dataclass
class Played:
    """One way of playing, and what came of it."""

    name: str
    asked: dict[int, int] = field(default_factory=dict)  # by distance
    right: dict[int, int] = field(default_factory=dict)
    turns: int = 0
    refused: int = 0  # turns for which `none` had no room
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    summary_read: int = 0  # prompt tokens that asking for summaries took
    evictions: int = 0
    seconds: float = 0.0  # from each message to the last token of its reply

    @property
    def answered(self) -> int:
        """Turns that had a reply."""
        return max(self.turns - self.refused, 1)

    @property
    def read_per_turn(self) -> float:
        """Prompt tokens that the model had to compute."""
        return (self.prompt_tokens - self.cached_tokens + self.summary_read) / self.answered

    @property
    def saved(self) -> float:
        """The share of the prompts that was remembered."""
        return self.cached_tokens / max(self.prompt_tokens, 1)

    def recall(self, distance: int) -> float:
        return self.right.get(distance, 0) / self.asked[distance]


def main(options: Any) -> None:
    """Play everything, print the table, write it and its picture."""
    from rich.console import Console

    from engine.runtime.files import local_path, write_atomic

    dialogues = read_script(local_path(options.script)) if options.script else own_script()
    choose_model(options)
    if len(options.model) > 1:
        raise UsageError("chat.compare plays with one model; run it once for each")
    if options.small_window < 1 or options.max_new_tokens < 1:
        raise UsageError("--small-window and --max-new-tokens are 1 or more")

    from engine.llm import LLM

    llm = LLM.load(options.model[0], **model_options(options))
    played = play_all(llm, dialogues, options.small_window, options.max_new_tokens)
    Console().print(table(played))
    folder = local_path(options.output_dir)
    report = {"model": options.model[0], "small_window": options.small_window, "ways": [asdict(one) for one in played]}
    write_atomic(folder / "compare.json", json.dumps(report, indent=2) + "\n")
    draw(played, folder / "compare")
    Console(stderr=True).print(f"{folder}/compare.json, .png, .svg", style="dim", soft_wrap=True)


def read_script(path: Path) -> list[list[Line]]:
    """The user's dialogues; one line says what is wrong with a file."""
    from engine.runtime.files import parse_json

    found = parse_json(path)
    if not isinstance(found, list) or not found or not all(isinstance(dialogue, list) for dialogue in found):
        raise BareloopError(f"{path} is not a list of dialogues, which are lists of messages")
    return [lines(dialogue, f"{path}, dialogue {number}") for number, dialogue in enumerate(found, 1)]


def lines(dialogue: Sequence[Any], where: str) -> list[Line]:
    """Messages with their distances: an expected text was said by the last earlier message that holds it."""
    result: list[Line] = []
    for number, message in enumerate(dialogue, 1):
        given = {"say": message} if isinstance(message, str) else message
        fields = {"say": str, "expect": str}
        if not isinstance(given, dict) or not given.get("say") or given.keys() - fields:
            raise BareloopError(f'{where}, message {number} is neither a text nor {{"say": …, "expect": …}}')
        if not all(isinstance(value, str) for value in given.values()):
            raise BareloopError(f"{where}, message {number}: say and expect are texts")
        expect = given.get("expect", "")
        told = [place for place, line in enumerate(result) if expect and holds(line.say, expect)]
        result.append(Line(given["say"], expect, len(result) - told[-1] if told else 0))
    return result


def holds(text: str, expected: str) -> bool:
    """Whether a text has these words, in capital letters or not."""
    return re.search(rf"(?<!\w){re.escape(expected.lower())}(?!\w)", text.lower()) is not None


DISTANCES = (1, 2, 4, 8, 12)
TOLD = (  # what somebody says, and asks for later
    ("My name is {}.", "What is my name?", ("Zorvan", "Mirela", "Tobin", "Kusari", "Anna")),
    ("I live in {}.", "Where do I live?", ("Rome", "Oslo", "Boston", "Lisbon", "Cairo")),
    ("My dog is called {}.", "What is my dog called?", ("Rex", "Bonzo", "Luna", "Pip", "Nero")),
    ("My favourite colour is {}.", "What is my favourite colour?", ("green", "red", "blue", "yellow", "black")),
    ("My favourite food is {}.", "What is my favourite food?", ("soup", "pizza", "rice", "bread", "cake")),
)
BETWEEN = (
    *("How are you?", "What is the capital of France?", "Thank you!", "Who are you?", "What can you do?"),
    *("What is the capital of Italy?", "I see.", "Are you a human?", "What is the capital of Spain?", "Interesting."),
    *("How big are you?", "What is the capital of Norway?"),
)


def own_script() -> list[list[Line]]:
    """Each kind of thing, told and asked for at each distance, with other talk between."""
    return [
        lines(
            [
                tell.format(values[place]),
                *(BETWEEN[(place + number) % len(BETWEEN)] for number in range(distance - 1)),
                {"say": ask, "expect": values[place]},
            ],
            "our own script",
        )
        for tell, ask, values in TOLD
        for place, distance in enumerate(DISTANCES)
    ]


def play_all(llm: LLM, dialogues: Sequence[Sequence[Line]], small: int, max_new_tokens: int) -> list[Played]:
    """With history, without it, and by every strategy in the small window."""
    from chat.events import Settings

    sampling = {"temperature": 0.0, "max_new_tokens": max_new_tokens}
    ways = {
        "history": Settings(sampling=sampling),
        "no history": Settings(history=False, sampling=sampling),
        **{name: Settings(strategy=name, window=small, sampling=sampling) for name in STRATEGIES},
    }
    with Progress("dialogues", len(ways) * len(dialogues)) as progress:
        return [play(llm, name, settings, dialogues, progress) for name, settings in ways.items()]


def play(llm: LLM, name: str, settings: Settings, dialogues: Sequence[Sequence[Line]], progress: Progress) -> Played:
    """Every dialogue from its beginning, greedy."""
    from chat.context import ContextOverflowError
    from chat.events import Reply
    from chat.session import Session

    played = Played(name)
    for dialogue in dialogues:
        session = Session(llm, settings)
        for line in dialogue:
            played.turns += 1
            text = ""
            try:
                replies = [event for event in session.send(line.say) if isinstance(event, Reply)]
            except ContextOverflowError:
                played.refused += 1
            else:
                reply = replies[-1]
                text = reply.text
                played.prompt_tokens += reply.prompt_tokens
                played.cached_tokens += reply.cached_tokens
                played.completion_tokens += reply.completion_tokens
                played.seconds += reply.ttft + reply.seconds
            if line.expect:
                played.asked[line.distance] = played.asked.get(line.distance, 0) + 1
                played.right[line.distance] = played.right.get(line.distance, 0) + holds(text, line.expect)
        played.evictions += session.statistics.evictions
        played.summary_read += session.statistics.summary_read
        session.sequence.close()
        progress.advance(1, name)
    return played


def distances(played: Sequence[Played]) -> list[int]:
    """All at which something was asked."""
    return sorted({distance for one in played for distance in one.asked})


def table(played: Sequence[Played]) -> Table:
    """One row a way of playing."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    title = "recall by distance in turns; cost of a turn"
    result = Table(title=title, title_justify="left", box=SIMPLE_HEAD, collapse_padding=True, pad_edge=False)
    result.add_column("way", no_wrap=True)
    columns = distances(played)
    for name in (*map(str, columns), "read", "saved", "s/turn", "drops", "refused"):
        result.add_column(name, justify="right", no_wrap=True)
    for one in played:
        result.add_row(
            one.name,
            *(f"{one.recall(distance):.0%}" for distance in columns),
            f"{one.read_per_turn:.0f}",
            f"{one.saved:.0%}",
            f"{one.seconds / one.answered:.2f}",
            str(one.evictions),
            str(one.refused),
        )
        if one.name == "no history":
            result.add_section()
    result.caption = "read: prompt tokens computed a turn; saved: the share remembered"
    return result


def draw(played: Sequence[Played], path: Path) -> None:
    """Recall by distance, and what a turn costs."""
    from engine.cli.figures import PALETTE, picture

    columns, names = distances(played), [one.name for one in played]
    with picture(path, 10.0, 0.9 + 0.45 * len(played), panels=2) as (_, (left, right)):
        shares = [[one.recall(distance) for distance in columns] for one in played]
        left.imshow(shares, cmap="Blues", vmin=0, vmax=1.7, aspect="auto")
        left.set(title="Recall", xlabel="turns since it was said")
        left.set_xticks(range(len(columns)), [str(d) for d in columns])
        left.set_yticks(range(len(names)), names)
        for row, listed in enumerate(shares):
            for column, share in enumerate(listed):
                left.text(column, row, f"{share:.0%}", ha="center", va="center")
        bars = right.barh(names, [one.read_per_turn for one in played], color=PALETTE[0])
        right.bar_label(bars, [f"{one.saved:.0%} remembered" for one in played], padding=4)
        right.set(title="Prompt tokens computed a turn")
        right.invert_yaxis()
        right.margins(x=0.5)
        for axes in (left, right):
            axes.grid(axis="y", visible=False)
        left.grid(visible=False)


if __name__ == "__main__":
    run(parser(), main)
