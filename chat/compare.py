"""python -m chat.compare: measure what chat history and memory are worth, with and without them, by every strategy.

A script is a JSON list of dialogues; a dialogue is a list of messages. A question about something said earlier names
the text that a correct reply contains. How many turns ago that text was said follows from the dialogue:

    [["Hi, I'm Zorvan.", "How are you?", {"say": "What is my name?", "expect": "Zorvan"}]]
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from chat.context import STRATEGIES
from chat.dialogues import Line, builtin_script, contains, read_script
from engine.cli.parser import Parser, choose_model, label, model_options, run
from engine.cli.progress import Progress
from engine.runtime.errors import UsageError

if TYPE_CHECKING:
    from rich.table import Table

    from chat.conversation.events import Settings
    from chat.conversation.recall import Memory
    from chat.memory.embedder import Embedder
    from engine.decoding.scheduling.scheduler import Scheduler
    from engine.llm import LLM

ROWS = 16  # dialogues that run at the same time
MEMORY = "memory"  # the way that recalls what has left the window
MEMORY_SHARE = 0.5  # of the room: the default share of so small a window has no room for a memory


def parser() -> Parser:
    """The program's flags."""
    result = Parser("python -m chat.compare", "Run dialogues with and without history, and by every strategy.")
    result.add_argument("script", nargs="?", help="JSON list of dialogues (default: built-in ones)")
    result.add_model_options()
    result.add_argument(
        "--small-window",
        type=int,
        default=256,
        metavar="N",
        help="window in tokens for the strategies (default: 256)",
    )
    result.add_argument(
        "--max-new-tokens", "-n", type=int, default=48, metavar="N", help="the longest reply (default: 48)"
    )
    result.add_argument(
        "--memory-model",
        metavar="NAME",
        help="embedding model of the memory; none searches by words alone (default: minilm if it is installed)",
    )
    result.add_argument("--output-dir", default="results/chat", metavar="FOLDER", help="default: results/chat")
    return result


COUNTS = (
    *("turns", "refused", "visible", "prompt_tokens", "cached_tokens", "completion_tokens", "summary_read"),
    "evictions",
)


@dataclass
class StrategyResult:
    """Results of one way to keep history. The field names are those of compare.json."""

    name: str
    asked: dict[int, int] = field(default_factory=dict)  # questions by distance
    right: dict[int, int] = field(default_factory=dict)  # correct replies by distance
    turns: int = 0
    refused: int = 0  # turns that did not fit into the window (strategy `none`)
    visible: int = 0  # questions whose answer stood in the prompt anyway, without memories: replies may repeat it
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

    @property
    def visible_share(self) -> float:
        """Share of the questions whose answer stood in the prompt, without memories."""
        return self.visible / max(sum(self.asked.values()), 1)

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

    from chat.memory.embedder import chosen_embedder
    from engine.llm import LLM

    llm = LLM.load(options.model[0], **model_options(options))
    embedder = chosen_embedder(options.memory_model, options.device)
    results = run_all(llm, dialogues, options.small_window, options.max_new_tokens, embedder)
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


def run_all(
    llm: LLM,
    dialogues: Sequence[Sequence[Line]],
    small_window: int,
    max_new_tokens: int,
    embedder: Embedder | None = None,
) -> list[StrategyResult]:
    """Run all dialogues with history, without it, and in the small window by every strategy, and with memory.

    `embedder`: of the memory, which is else searched by words alone.
    """
    from chat.conversation.events import Settings

    sampling = {"temperature": 0.0, "max_new_tokens": max_new_tokens}
    ways = {
        "history": Settings(sampling=sampling),
        "no history": Settings(history=False, sampling=sampling),
        **{name: Settings(strategy=name, window=small_window, sampling=sampling) for name in STRATEGIES},
        MEMORY: Settings(strategy="sliding", window=small_window, sampling=sampling),
    }
    with Progress("dialogues", len(ways) * len(dialogues)) as progress:
        return [run_dialogues(llm, name, settings, dialogues, progress, embedder) for name, settings in ways.items()]


def run_dialogues(
    llm: LLM,
    name: str,
    settings: Settings,
    dialogues: Sequence[Sequence[Line]],
    progress: Progress,
    embedder: Embedder | None = None,
) -> StrategyResult:
    """Run every dialogue in a new session, greedily: one thread for each, whose replies are decoded together.

    The way `MEMORY` has a new memory for each.
    """
    from concurrent.futures import ThreadPoolExecutor

    from engine.decoding.scheduling.scheduler import Scheduler
    from engine.decoding.sequence import PREFILL_CHUNK

    scheduler = Scheduler(llm, ROWS, PREFILL_CHUNK, exact=False)
    total = StrategyResult(name)
    start = time.perf_counter()

    def run_one(dialogue: Sequence[Line]) -> StrategyResult:
        with new_memory(embedder) if name == MEMORY else nullcontext() as memory:
            return run_dialogue(llm, settings, dialogue, scheduler, memory)

    with ThreadPoolExecutor(ROWS + 1) as threads:
        stepping = threads.submit(scheduler.run)
        try:
            for part in threads.map(run_one, dialogues):
                total.add(part)
                progress.advance(1, name)
        finally:
            scheduler.close()  # ends the replies that are waited for
            stepping.result()  # raises what ended the steps, which others only follow from
    total.seconds = time.perf_counter() - start
    return total


@contextmanager
def new_memory(embedder: Embedder | None) -> Iterator[Memory]:
    """An empty memory in a folder that is deleted afterwards."""
    from chat.conversation.recall import Memory
    from chat.memory.store import MemoryStore

    with TemporaryDirectory() as folder, MemoryStore.open(Path(folder) / "memory.db", embedder) as store:
        yield Memory(store, MEMORY_SHARE).bound("dialogue")


def run_dialogue(
    llm: LLM, settings: Settings, dialogue: Sequence[Line], scheduler: Scheduler, memory: Memory | None = None
) -> StrategyResult:
    """Run one dialogue."""
    from chat.context import ContextOverflowError
    from chat.conversation.events import Reply
    from chat.conversation.session import Session
    from chat.models.local import LocalModel

    result = StrategyResult("")
    session = Session(LocalModel(llm, scheduler), settings, memory=memory)
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
            shown = session.visible_messages(memories=False)[:-1]
            result.visible += bool(line.expect) and any(contains(each["content"], line.expect) for each in shown)
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
    for name in (*map(str, columns), "visible", "read", "saved", "s/turn", "drops", "refused"):
        rows.add_column(name, justify="right", no_wrap=True)
    for result in results:
        rows.add_row(
            result.name,
            *(f"{result.recall(distance):.0%}" for distance in columns),
            f"{result.visible_share:.0%}",
            f"{result.read_per_turn:.0f}",
            f"{result.cached_share:.0%}",
            f"{result.seconds / result.answered:.2f}",
            str(result.evictions),
            str(result.refused),
        )
        if result.name == "no history":
            rows.add_section()
    rows.caption = (
        "visible: share of the questions whose answer stood in the prompt, without memories; "
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
