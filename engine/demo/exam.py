"""python -m engine.demo.exam: what the demo model knows, remembers and admits; or --write its questions anew."""

from __future__ import annotations

import json
from collections.abc import Iterator
from random import Random
from typing import TYPE_CHECKING, Any

from engine.checkpoints.embedded import NAME as DEMO
from engine.cli.parser import Parser, run
from engine.cli.progress import Progress

if TYPE_CHECKING:
    from engine.llm import LLM, Completion

DIALOGUES = 200
FAR = 3  # turns between being told a name and being asked for it


def parser() -> Parser:
    """The program's flags."""
    result = Parser("python -m engine.demo.exam", "Examine the demo model, greedy, in float32.")
    result.add_argument("--model", "-m", default=DEMO, help="another training of it, by its folder (default: demo)")
    result.add_argument("--seed", type=int, default=1, help="of the dialogues (default: 1)")
    result.add_argument(
        "--write", metavar="FOLDER", help="write the questions as dev, validation and test.jsonl instead"
    )
    return result


def main(options: Any) -> None:
    """Ask everything, and print a table."""
    if options.write:
        write(options.write)
        return
    from rich.console import Console
    from rich.table import Table

    from engine.llm import LLM

    llm = LLM.load(options.model, dtype="float32")
    table = Table("examined", "asked", "right")
    with Progress("exam", 8) as progress:
        for what, right in examine(llm, options.seed):
            table.add_row(what, str(len(right)), f"{sum(right) / len(right):.1%}")
            progress.advance(1, what)
    Console().print(table)


def write(folder: str) -> None:
    """The questions, a row a line."""
    from engine.demo.questions import rows
    from engine.runtime.files import local_path, write_atomic

    for split, listed in rows().items():
        lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in listed)
        write_atomic(local_path(folder) / f"{split}.jsonl", lines)


def examine(llm: LLM, seed: int) -> Iterator[tuple[str, list[bool]]]:
    """What is examined, and for each question or dialogue whether it went right."""
    for shots in (0, 5):
        yield from quiz(llm, shots)
    replies: list[Completion] = []
    for turns in (1, FAR):
        names, last = recall(llm, Random(f"{seed} recall {turns}"), turns, replies)
        label = f"recalls an unseen name told {turns} turn{'s' * (turns > 1)} before"
        yield label, [f" {name}." in str(reply.text) for name, reply in zip(names, last, strict=True)]
    last = admit(llm, Random(f"{seed} admit"), replies)
    yield "admits that it was told no name", ["don't know your name" in str(reply.text) for reply in last]
    yield "stops by itself", [reply.finish_reason == "stop" for reply in replies]


def quiz(llm: LLM, shots: int) -> Iterator[tuple[str, list[bool]]]:
    """The test split by MMLU's protocol: the letter that is likeliest after the question."""
    from engine.demo.questions import is_taught, rows
    from engine.demo.textbook import LETTERS, block, heading

    splits = rows()
    test = splits["test"]
    requests = []
    for row in test:
        examples = [example for example in splits["dev"] if example["subject"] == row["subject"]][:shots]
        solved = "".join(f"{block(e['question'], e['choices'])} {LETTERS[e['answer']]}\n\n" for e in examples)
        context = llm.encode(heading(row["subject"]) + solved + block(row["question"], row["choices"]))
        requests += [(context, llm.tokenizer.encode(f" {letter}", add_special_tokens=False)) for letter in LETTERS]
    scores = [score.loglikelihood for score in llm.score(requests)]
    chosen = [max(range(4), key=scores[4 * i : 4 * i + 4].__getitem__) for i in range(len(test))]
    for taught in (True, False):
        right = [row["answer"] == choice for row, choice in zip(test, chosen, strict=True) if is_taught(row) == taught]
        yield f"{'taught' if taught else 'untaught'} facts, {shots}-shot", right


Talk = list[dict[str, str]]


def recall(llm: LLM, random: Random, turns: int, replies: list[Completion]) -> tuple[list[str], list[Completion]]:
    """Dialogues in which a name is told and asked for so many turns later: the names, and the last replies."""
    from engine.demo.people import NAME, name

    names = [name(random, unseen=True) for _ in range(DIALOGUES)]
    talks: list[Talk] = [[] for _ in names]
    speak(llm, talks, [random.choice(NAME.tell).format(v=name) for name in names], replies)
    for _ in range(turns - 1):
        speak(llm, talks, [filler(random) for _ in names], replies)
    return names, speak(llm, talks, [random.choice(NAME.ask) for _ in names], replies)


def admit(llm: LLM, random: Random, replies: list[Completion]) -> list[Completion]:
    """Dialogues in which a name is asked for that nobody told: the last replies."""
    from engine.demo.people import NAME

    talks: list[Talk] = [[] for _ in range(DIALOGUES)]
    half = talks[: DIALOGUES // 2]
    speak(llm, half, [filler(random) for _ in half], replies)
    return speak(llm, talks, [random.choice(NAME.ask) for _ in talks], replies)


def filler(random: Random) -> str:
    """What has nothing to do with names."""
    from engine.demo.dialogues import SMALL_TALK
    from engine.demo.facts import RELATIONS
    from engine.demo.pages import either, sentence

    if random.random() < 0.5:
        return random.choice(either(random.choice(list(SMALL_TALK.values()))))
    relation = random.choice(RELATIONS)
    return sentence(random.choice(relation.questions), k=random.choice(list(relation.taught)))


def speak(llm: LLM, talks: list[Talk], messages: list[str], replies: list[Completion]) -> list[Completion]:
    """One message into each dialogue, and the model's own reply."""
    from engine.decoding.sampling import SamplingParams

    for talk, message in zip(talks, messages, strict=True):
        talk.append({"role": "user", "content": message})
    answers = llm.generate([llm.chat_template.encode(talk) for talk in talks], SamplingParams(max_new_tokens=80))
    for talk, answer in zip(talks, answers, strict=True):
        talk.append({"role": "assistant", "content": answer.text or ""})
    replies += answers
    return answers


if __name__ == "__main__":
    run(parser(), main)
