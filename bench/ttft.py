"""python -m bench.ttft: time to the first token of each turn of a chat, beside transformers without cache reuse."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random
from statistics import median
from typing import TYPE_CHECKING, Any

from engine.cli.parser import Parser, require_at_least, run
from engine.cli.progress import Progress
from engine.runtime.errors import UsageError

if TYPE_CHECKING:
    from rich.table import Table

    from chat.conversation.session import Session
    from engine.llm import LLM

EARLY, LATE = 2, 30  # the compared turns: the first with a history, and one with 3,000 tokens of history
PEER_TURNS = (2, 5, 10, 15, 20, 25, 30)


def parser() -> Parser:
    """The program's flags."""
    result = Parser("python -m bench.ttft", "Measure the time to the first token of each turn of a conversation.")
    result.add_argument(
        "--model", "-m", default="qwen2.5-0.5b", help="a shape, smollm2, or a model's path (default: qwen2.5-0.5b)"
    )
    result.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:N or mps (default: auto)")
    result.add_argument("--turns", type=int, default=LATE, help=f"default: {LATE}")
    result.add_argument("--message-tokens", type=int, default=80, metavar="N", help="tokens per message (default: 80)")
    result.add_argument("--reply-tokens", type=int, default=16, metavar="N", help="tokens per reply (default: 16)")
    result.add_argument("--rounds", type=int, default=3, help="conversations; medians are shown (default: 3)")
    result.add_argument("--no-peer", dest="peer", action="store_false", help="without transformers")
    result.add_argument("--output-dir", default="results/ttft", metavar="FOLDER", help="default: results/ttft")
    return result


@dataclass
class Turn:
    """One turn: prompt tokens, cached tokens, and seconds to the first token, also with transformers."""

    turn: int
    prompt_tokens: int
    cached_tokens: int
    seconds: float
    peer_seconds: float | None = None


def main(options: Any) -> None:
    """Measure, print the table, write it and its plot."""
    from rich.console import Console

    from bench.shapes import checkpoint
    from engine.runtime.files import local_path, write_atomic

    require_at_least(1, options, "turns", "message_tokens", "reply_tokens", "rounds")
    turns = measure(checkpoint(options.model), options)
    folder = local_path(options.output_dir)
    Console().print(table(turns))
    write_atomic(folder / "ttft.json", json.dumps([asdict(turn) for turn in turns], indent=2) + "\n")
    draw(turns, folder / "ttft")
    Console(stderr=True).print(f"{folder}/ttft.json, .png, .svg", style="dim", soft_wrap=True)


def measure(folder: Path, options: Any) -> list[Turn]:
    """Medians over several conversations, and transformers' time for the same prompts."""
    from chat.conversation.events import Settings
    from chat.conversation.session import Session
    from chat.models.local import LocalModel
    from engine import LLM

    llm = LLM.load(folder, device=options.device)
    sampling = {"temperature": 0.0, "max_new_tokens": options.reply_tokens, "ignore_eos": True}
    rounds: list[list[Turn]] = []
    prompts: dict[int, list[int]] = {}
    peer_turns = [turn for turn in PEER_TURNS if options.peer and turn <= options.turns]
    with Progress("turns", options.turns * options.rounds + len(peer_turns)) as progress:
        for number in range(options.rounds):
            model = LocalModel(llm)
            session = Session(model, Settings(strategy="none", sampling=sampling))
            rounds.append([])
            for turn in talk(session, llm, options.turns, options.message_tokens, number):
                rounds[-1].append(turn)
                prompts[turn.turn] = model.template.encode(session.visible_messages()[:-1])
                progress.advance(1, f"turn {turn.turn}: {turn.seconds:.2f} s")
            model.scheduler.close()
        result = [
            Turn(turn.turn, turn.prompt_tokens, turn.cached_tokens, median(r[turn.turn - 1].seconds for r in rounds))
            for turn in rounds[-1]
        ]
        if peer_turns:
            first_token = transformers_model(folder, llm.device)
            first_token(prompts[peer_turns[0]])  # warm-up
            for number in peer_turns:
                start = time.perf_counter()
                first_token(prompts[number])
                result[number - 1].peer_seconds = time.perf_counter() - start
                progress.advance(1, "transformers")
    return result


def talk(session: Session, llm: LLM, turns: int, tokens: int, seed: int) -> Iterator[Turn]:
    """Run a conversation with messages of equal length."""
    from chat.conversation.events import Reply

    random = Random(seed)
    for number in range(1, turns + 1):
        for event in session.send(message(llm, tokens, random)):
            if isinstance(event, Reply):
                yield Turn(number, event.prompt_tokens, event.cached_tokens, event.ttft)


def message(llm: LLM, tokens: int, random: Random) -> str:
    """A random text of at least this many tokens."""
    words: list[str] = []
    while len(llm.tokenizer.encode(" ".join(words), add_special_tokens=False)) < tokens:
        words.append(random.choice(("what", "is", "the", "capital", "of", "and", "my", "name", "one", "dog")))
    return " ".join(words)


def transformers_model(folder: Path, device: Any) -> Any:
    """Return first_token(ids), which runs transformers without the cache of the previous turn, as its chat does."""
    try:
        import torch
        from transformers import AutoModelForCausalLM
    except ImportError:
        raise UsageError("transformers is not installed; add --no-peer") from None
    model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto").to(device).eval()

    def first_token(ids: list[int]) -> None:
        model.generate(torch.tensor([ids], device=device), max_new_tokens=1, do_sample=False, pad_token_id=0).cpu()

    return first_token


def table(turns: list[Turn]) -> Table:
    """Selected turns, and the ratio of the late turn to the early one."""
    from rich.table import Table

    result = Table(title="time to the first token", title_justify="left")
    for name in ("turn", "prompt tokens", "cached", "bareloop", "transformers", "ratio"):
        result.add_column(name, justify="right")
    for turn in turns:
        if turn.turn in (1, *PEER_TURNS, len(turns)):
            peer = turn.peer_seconds
            result.add_row(
                str(turn.turn),
                f"{turn.prompt_tokens:,}",
                f"{turn.cached_tokens:,}",
                f"{turn.seconds:.3f} s",
                f"{peer:.3f} s" if peer else "",
                f"{peer / turn.seconds:.1f}" if peer else "",
            )
    if len(turns) >= EARLY:
        early, late = turns[EARLY - 1], turns[-1]
        result.caption = f"turn {late.turn} takes {late.seconds / early.seconds:.2f} times as long as turn {EARLY}"
    return result


def draw(turns: list[Turn], path: Path) -> None:
    """Plot seconds by turn."""
    from engine.cli.figures import PALETTE, plot_file

    with plot_file(path) as (_, (axes,)):
        axes.plot([turn.turn for turn in turns], [turn.seconds for turn in turns], marker="o", label="bareloop")
        peers = [(turn.turn, turn.peer_seconds) for turn in turns if turn.peer_seconds]
        if peers:
            axes.plot(*zip(*peers, strict=True), marker="s", color=PALETTE[1], label="transformers, without reuse")
            axes.legend()
        axes.set(title="Time to the first token", xlabel="turn", ylabel="seconds")
        axes.set_ylim(bottom=0)


if __name__ == "__main__":
    run(parser(), main)
