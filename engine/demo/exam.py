"""python -m engine.demo.exam: measure what the demo model knows and recalls, or --write its questions."""

from __future__ import annotations

import json
from collections.abc import Iterator
from random import Random
from typing import TYPE_CHECKING, Any

from engine.checkpoints.embedded import NAME as DEMO
from engine.cli.parser import Parser, run
from engine.cli.progress import Progress

if TYPE_CHECKING:
    from engine.decoding.completion import Completion
    from engine.llm import LLM

DIALOGUES = 200  # per measurement
MAX_TURNS = 3  # turns from the message that has a name to the question for it


def parser() -> Parser:
    """The program's flags."""
    result = Parser("python -m engine.demo.exam", "Examine the demo model: greedy decoding, float32.")
    result.add_argument("--model", "-m", default=DEMO, help="folder of another trained demo model (default: demo)")
    result.add_argument("--seed", type=int, default=1, help="seed of the dialogues (default: 1)")
    result.add_argument(
        "--write", metavar="FOLDER", help="only write the questions: dev.jsonl, validation.jsonl, test.jsonl"
    )
    return result


def main(options: Any) -> None:
    """Run all measurements and print a table, or write the questions."""
    if options.write:
        write_questions(options.write)
        return
    from rich.console import Console
    from rich.table import Table

    from engine.llm import LLM

    llm = LLM.load(options.model, dtype="float32", quant="none")
    table = Table("measurement", "cases", "correct")
    with Progress("exam", 8) as progress:
        for label, correct in examine(llm, options.seed):
            table.add_row(label, str(len(correct)), f"{sum(correct) / len(correct):.1%}")
            progress.advance(1, label)
    Console().print(table)


def write_questions(folder: str) -> None:
    """Write the questions of each split as JSON lines."""
    from engine.demo.questions import rows
    from engine.runtime.files import local_path, write_atomic

    for split, split_rows in rows().items():
        lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in split_rows)
        write_atomic(local_path(folder) / f"{split}.jsonl", lines)


def examine(llm: LLM, seed: int) -> Iterator[tuple[str, list[bool]]]:
    """Yield (label, whether each question, dialogue or reply is correct) of all measurements."""
    for shots in (0, 5):
        yield from quiz(llm, shots)
    replies: list[Completion] = []
    for turns in (1, MAX_TURNS):
        names, last = recall(llm, Random(f"{seed} recall {turns}"), turns, replies)
        label = f"recalls an unseen name told {turns} turn{'s' * (turns > 1)} before"
        yield label, [f" {name}." in str(reply.text) for name, reply in zip(names, last, strict=True)]
    last = recall_nothing(llm, Random(f"{seed} admit"), replies)
    yield "says that it was told no name", ["don't know your name" in str(reply.text) for reply in last]
    yield "ends replies by itself", [reply.finish_reason == "stop" for reply in replies]


def quiz(llm: LLM, shots: int) -> Iterator[tuple[str, list[bool]]]:
    """Score the test split by MMLU's protocol: the most likely letter is the answer."""
    from engine.demo.questions import is_taught, rows
    from engine.demo.textbook import LETTERS, heading, question_block

    splits = rows()
    test = splits["test"]
    requests = []
    for row in test:
        examples = [example for example in splits["dev"] if example["subject"] == row["subject"]][:shots]
        solved = "".join(f"{question_block(e['question'], e['choices'])} {LETTERS[e['answer']]}\n\n" for e in examples)
        context = llm.encode(heading(row["subject"]) + solved + question_block(row["question"], row["choices"]))
        requests += [(context, llm.tokenizer.encode(f" {letter}", add_special_tokens=False)) for letter in LETTERS]
    scores = [score.loglikelihood for score in llm.score(requests)]
    chosen = [max(range(4), key=scores[4 * i : 4 * i + 4].__getitem__) for i in range(len(test))]
    for taught in (True, False):
        answers = [(row, choice) for row, choice in zip(test, chosen, strict=True) if is_taught(row) == taught]
        label = f"{'taught' if taught else 'untaught'} facts, {shots}-shot"
        yield label, [row["answer"] == choice for row, choice in answers]


Messages = list[dict[str, str]]  # of one dialogue


def recall(llm: LLM, random: Random, turns: int, replies: list[Completion]) -> tuple[list[str], list[Completion]]:
    """Run dialogues in which a name is stated, and asked for `turns` turns later. -> names, last replies."""
    from engine.demo.people import NAME, random_name

    names = [random_name(random, unseen=True) for _ in range(DIALOGUES)]
    dialogues: list[Messages] = [[] for _ in names]
    send(llm, dialogues, [random.choice(NAME.statements).format(v=name) for name in names], replies)
    for _ in range(turns - 1):
        send(llm, dialogues, [unrelated_message(random) for _ in names], replies)
    return names, send(llm, dialogues, [random.choice(NAME.questions) for _ in names], replies)


def recall_nothing(llm: LLM, random: Random, replies: list[Completion]) -> list[Completion]:
    """Run dialogues in which a name is asked for that was not stated. -> last replies."""
    from engine.demo.people import NAME

    dialogues: list[Messages] = [[] for _ in range(DIALOGUES)]
    half = dialogues[: DIALOGUES // 2]
    send(llm, half, [unrelated_message(random) for _ in half], replies)
    return send(llm, dialogues, [random.choice(NAME.questions) for _ in dialogues], replies)


def unrelated_message(random: Random) -> str:
    """Return small talk or a question on a fact, which has nothing to do with the user's name."""
    from engine.demo.dialogues import SMALL_TALK
    from engine.demo.facts import RELATIONS
    from engine.demo.pages import alternatives, fill_in

    if random.random() < 0.5:
        return random.choice(alternatives(random.choice(list(SMALL_TALK.values()))))
    relation = random.choice(RELATIONS)
    return fill_in(random.choice(relation.questions), k=random.choice(list(relation.taught)))


def send(llm: LLM, dialogues: list[Messages], messages: list[str], replies: list[Completion]) -> list[Completion]:
    """Add a message and the model's reply to each dialogue. Return the replies, and append them to `replies`."""
    from engine.decoding.params import SamplingParams

    for dialogue, message in zip(dialogues, messages, strict=True):
        dialogue.append({"role": "user", "content": message})
    prompts = [llm.chat_template.encode(dialogue) for dialogue in dialogues]
    new_replies = llm.generate(prompts, SamplingParams(max_new_tokens=80))
    for dialogue, reply in zip(dialogues, new_replies, strict=True):
        dialogue.append({"role": "assistant", "content": reply.text or ""})
    replies += new_replies
    return new_replies


if __name__ == "__main__":
    run(parser(), main)
