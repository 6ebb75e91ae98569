"""python -m chat.compare: measure what chat history is worth, with and without it, and by every strategy.

A script is a JSON list of dialogues; a dialogue is a list of messages. A question about something said earlier names
the text that a correct reply contains. How many turns ago that text was said follows from the dialogue:

    [["Hi, I'm Zorvan.", "How are you?", {"say": "What is my name?", "expect": "Zorvan"}]]
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chat.context import STRATEGIES
from engine.cli.parser import Parser, choose_model, label, model_options, run
from engine.cli.progress import Progress
from engine.runtime.errors import BareloopError, UsageError

if TYPE_CHECKING:
    from rich.table import Table

    from chat.conversation.events import Settings
    from engine.decoding.scheduling.scheduler import Scheduler
    from engine.llm import LLM

ROWS = 16  # dialogues that run at the same time


def parser() -> Parser:
    """The program's flags."""
    result = Parser("python -m chat.compare", "Run dialogues with and without history, and by every strategy.")
    result.add_argument("script", nargs="?", help="JSON list of dialogues (default: built-in ones)")
    result.add_model_options()
    result.add_argument(
        "--small-window",
        type=int,
        default=160,
        metavar="N",
        help="window in tokens for the strategies (default: 160)",
    )
    result.add_argument(
        "--max-new-tokens", "-n", type=int, default=48, metavar="N", help="the longest reply (default: 48)"
    )
    result.add_argument("--output-dir", default="results/chat", metavar="FOLDER", help="default: results/chat")
    return result


@dataclass(frozen=True)
class Line:
    """One message. `expect`: text that a correct reply contains, said `distance` turns before."""

    say: str
    expect: str = ""
    distance: int = 0


COUNTS = ("turns", "refused", "prompt_tokens", "cached_tokens", "completion_tokens", "summary_read", "evictions")


@dataclass
class StrategyResult:
    """Results of one way to keep history. The field names are those of compare.json."""

    name: str
    asked: dict[int, int] = field(default_factory=dict)  # questions by distance
    right: dict[int, int] = field(default_factory=dict)  # correct replies by distance
    turns: int = 0
    refused: int = 0  # turns that did not fit into the window (strategy `none`)
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    summary_read: int = 0  # prompt tokens computed for summary requests
    evictions: int = 0
    seconds: float = 0.0  # of all dialogues, which run together

    def add(self, other: StrategyResult) -> None:
        """Add the counts of other dialogues."""
        for distance, asked in other.asked.items():
            self.asked[distance] = self.asked.get(distance, 0) + asked
            self.right[distance] = self.right.get(distance, 0) + other.right[distance]
        for name in COUNTS:
            setattr(self, name, getattr(self, name) + getattr(other, name))

    @property
    def answered(self) -> int:
        """Number of turns with a reply, at least 1."""
        return max(self.turns - self.refused, 1)

    @property
    def read_per_turn(self) -> float:
        """Prompt tokens computed per turn."""
        return (self.prompt_tokens - self.cached_tokens + self.summary_read) / self.answered

    @property
    def cached_share(self) -> float:
        """Share of the prompt tokens that came from the cache."""
        return self.cached_tokens / max(self.prompt_tokens, 1)

    def recall(self, distance: int) -> float:
        """Share of the questions at this distance that were answered correctly."""
        return self.right.get(distance, 0) / self.asked[distance]


def main(options: Any) -> None:
    """Run every strategy, print the table, write it and its plot."""
    from rich.console import Console

    from engine.runtime.files import local_path, write_atomic

    dialogues = read_script(local_path(options.script)) if options.script else builtin_script()
    choose_model(options)
    if len(options.model) > 1:
        raise UsageError("chat.compare uses one model; run it once per model")
    if options.small_window < 1 or options.max_new_tokens < 1:
        raise UsageError("--small-window and --max-new-tokens: use 1 or more")

    from engine.llm import LLM

    llm = LLM.load(options.model[0], **model_options(options))
    results = run_all(llm, dialogues, options.small_window, options.max_new_tokens)
    Console().print(table(results))
    folder = local_path(options.output_dir)
    report = {
        "model": label(options.model[0], options.adapter),
        "small_window": options.small_window,
        "ways": [asdict(result) for result in results],
    }
    write_atomic(folder / "compare.json", json.dumps(report, indent=2) + "\n")
    draw(results, folder / "compare")
    Console(stderr=True).print(f"{folder}/compare.json, .png, .svg", style="dim", soft_wrap=True)


def read_script(path: Path) -> list[list[Line]]:
    """Read the user's dialogues. Raises `BareloopError` for a file of another form."""
    from engine.runtime.files import parse_json

    content = parse_json(path)
    if not isinstance(content, list) or not content or not all(isinstance(dialogue, list) for dialogue in content):
        raise BareloopError(f"{path} is not a list of dialogues, each a list of messages")
    return [lines(dialogue, f"{path}, dialogue {number}") for number, dialogue in enumerate(content, 1)]


def lines(dialogue: Sequence[Any], where: str) -> list[Line]:
    """Messages with their distances, counted from the last earlier message that contains the expected text."""
    result: list[Line] = []
    for number, message in enumerate(dialogue, 1):
        entry = {"say": message} if isinstance(message, str) else message
        fields = {"say": str, "expect": str}
        if not isinstance(entry, dict) or not entry.get("say") or entry.keys() - fields:
            raise BareloopError(f'{where}, message {number} is neither a string nor {{"say": …, "expect": …}}')
        if not all(isinstance(value, str) for value in entry.values()):
            raise BareloopError(f"{where}, message {number}: say and expect must be strings")
        expect = entry.get("expect", "")
        sources = [index for index, line in enumerate(result) if expect and contains(line.say, expect)]
        result.append(Line(entry["say"], expect, len(result) - sources[-1] if sources else 0))
    return result


def contains(text: str, expected: str) -> bool:
    """Whether a text contains these whole words, in any case."""
    return re.search(rf"(?<!\w){re.escape(expected.lower())}(?!\w)", text.lower()) is not None


DISTANCES = (1, 2, 4, 8, 12)
FACTS = (  # a statement, the question about it later, and the values
    ("My name is {}.", "What is my name?", ("Zorvan", "Mirela", "Tobin", "Kusari", "Anna")),
    ("I live in {}.", "Where do I live?", ("Rome", "Oslo", "Boston", "Lisbon", "Cairo")),
    ("My dog is called {}.", "What is my dog called?", ("Rex", "Bonzo", "Luna", "Pip", "Nero")),
    ("My favourite colour is {}.", "What is my favourite colour?", ("green", "red", "blue", "yellow", "black")),
    ("My favourite food is {}.", "What is my favourite food?", ("soup", "pizza", "rice", "bread", "cake")),
)
FILLERS = (  # messages between the two
    *("How are you?", "What is the capital of France?", "Thank you!", "Who are you?", "What can you do?"),
    *("What is the capital of Italy?", "I see.", "Are you a human?", "What is the capital of Spain?", "Interesting."),
    *("How big are you?", "What is the capital of Norway?"),
)


def builtin_script() -> list[list[Line]]:
    """Every kind of fact, asked for at every distance, with other messages in between."""
    return [
        lines(
            [
                statement.format(values[index]),
                *(FILLERS[(index + number) % len(FILLERS)] for number in range(distance - 1)),
                {"say": question, "expect": values[index]},
            ],
            "the built-in script",
        )
        for statement, question, values in FACTS
        for index, distance in enumerate(DISTANCES)
    ]


def run_all(
    llm: LLM, dialogues: Sequence[Sequence[Line]], small_window: int, max_new_tokens: int
) -> list[StrategyResult]:
    """Run all dialogues with history, without it, and by every strategy in the small window."""
    from chat.conversation.events import Settings

    sampling = {"temperature": 0.0, "max_new_tokens": max_new_tokens}
    ways = {
        "history": Settings(sampling=sampling),
        "no history": Settings(history=False, sampling=sampling),
        **{name: Settings(strategy=name, window=small_window, sampling=sampling) for name in STRATEGIES},
    }
    with Progress("dialogues", len(ways) * len(dialogues)) as progress:
        return [run_dialogues(llm, name, settings, dialogues, progress) for name, settings in ways.items()]


def run_dialogues(
    llm: LLM, name: str, settings: Settings, dialogues: Sequence[Sequence[Line]], progress: Progress
) -> StrategyResult:
    """Run every dialogue in a new session, greedily: one thread for each, whose replies are decoded together."""
    from concurrent.futures import ThreadPoolExecutor

    from engine.decoding.scheduling.scheduler import Scheduler
    from engine.decoding.sequence import PREFILL_CHUNK

    scheduler = Scheduler(llm, ROWS, PREFILL_CHUNK, exact=False)
    total = StrategyResult(name)
    start = time.perf_counter()
    with ThreadPoolExecutor(ROWS + 1) as threads:
        stepping = threads.submit(scheduler.run)
        try:
            for part in threads.map(lambda dialogue: run_dialogue(llm, settings, dialogue, scheduler), dialogues):
                total.add(part)
                progress.advance(1, name)
        finally:
            scheduler.close()  # ends the replies that are waited for
            stepping.result()  # raises what ended the steps, which others only follow from
    total.seconds = time.perf_counter() - start
    return total


def run_dialogue(llm: LLM, settings: Settings, dialogue: Sequence[Line], scheduler: Scheduler) -> StrategyResult:
    """Run one dialogue."""
    from chat.context import ContextOverflowError
    from chat.conversation.events import Reply
    from chat.conversation.session import Session
    from chat.models.local import LocalModel

    result = StrategyResult("")
    session = Session(LocalModel(llm, scheduler), settings)
    for line in dialogue:
        result.turns += 1
        text = ""
        try:
            replies = [event for event in session.send(line.say) if isinstance(event, Reply)]
        except ContextOverflowError:
            result.refused += 1
        else:
            reply = replies[-1]
            text = reply.text
            result.prompt_tokens += reply.prompt_tokens
            result.cached_tokens += reply.cached_tokens
            result.completion_tokens += reply.completion_tokens
        if line.expect:
            result.asked[line.distance] = result.asked.get(line.distance, 0) + 1
            result.right[line.distance] = result.right.get(line.distance, 0) + contains(text, line.expect)
    result.evictions = session.statistics.evictions
    result.summary_read = session.statistics.summary_read
    return result


def distances(results: Sequence[StrategyResult]) -> list[int]:
    """All distances at which there was a question."""
    return sorted({distance for result in results for distance in result.asked})


def table(results: Sequence[StrategyResult]) -> Table:
    """One row per way to keep history."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    title = "recall by distance in turns; cost per turn"
    rows = Table(title=title, title_justify="left", box=SIMPLE_HEAD, collapse_padding=True, pad_edge=False)
    rows.add_column("way", no_wrap=True)
    columns = distances(results)
    for name in (*map(str, columns), "read", "saved", "s/turn", "drops", "refused"):
        rows.add_column(name, justify="right", no_wrap=True)
    for result in results:
        rows.add_row(
            result.name,
            *(f"{result.recall(distance):.0%}" for distance in columns),
            f"{result.read_per_turn:.0f}",
            f"{result.cached_share:.0%}",
            f"{result.seconds / result.answered:.2f}",
            str(result.evictions),
            str(result.refused),
        )
        if result.name == "no history":
            rows.add_section()
    rows.caption = (
        "read: prompt tokens computed per turn; saved: share of the prompts that was cached; "
        f"s/turn: with {ROWS} dialogues at a time"
    )
    return rows


def draw(results: Sequence[StrategyResult], path: Path) -> None:
    """Plot recall by distance, and the cost of a turn."""
    from engine.cli.figures import PALETTE, plot_file

    columns, names = distances(results), [result.name for result in results]
    with plot_file(path, 10.0, 0.9 + 0.45 * len(results), panels=2) as (_, (left, right)):
        shares = [[result.recall(distance) for distance in columns] for result in results]
        left.imshow(shares, cmap="Blues", vmin=0, vmax=1.7, aspect="auto")
        left.set(title="Recall", xlabel="turns since it was said")
        left.set_xticks(range(len(columns)), [str(d) for d in columns])
        left.set_yticks(range(len(names)), names)
        for row, listed in enumerate(shares):
            for column, share in enumerate(listed):
                left.text(column, row, f"{share:.0%}", ha="center", va="center")
        bars = right.barh(names, [result.read_per_turn for result in results], color=PALETTE[0])
        right.bar_label(bars, [f"{result.cached_share:.0%} cached" for result in results], padding=4)
        right.set(title="Prompt tokens computed per turn")
        right.invert_yaxis()
        right.margins(x=0.5)
        for axes in (left, right):
            axes.grid(axis="y", visible=False)
        left.grid(visible=False)


if __name__ == "__main__":
    run(parser(), main)
