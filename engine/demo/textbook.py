"""The textbook, page by page: statements, four-choice questions, conversations. Seeded, so always the same pages.

A page is a text with a weight for each piece of it: how much its tokens count in the loss. What is to be learned
(an answer's letter, a remembered name) counts in full, what nobody can foresee (which name comes) hardly.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from random import Random

from engine.demo.dialogues import dialogue, remark
from engine.demo.facts import RELATIONS, SUBJECTS, Relation
from engine.demo.pages import BEGIN, END, Page, plain, sentence, text_of
from engine.demo.people import name
from engine.demo.wordings import wording

LETTERS = ("A", "B", "C", "D")
MOST_SHOTS = 5
FRAME, PROSE, FACT, DRILLED, LETTER = (
    0.0,
    0.3,
    1.0,
    2.0,
    6.0,
)  # weights: of what a question says, of prose, of what is taught

VALUES = tuple(value for relation in RELATIONS for value in (*relation.taught.values(), *relation.untaught.values()))
BY_SUBJECT = {subject: [r for r in RELATIONS if r.subject == subject] for subject in SUBJECTS}


def heading(subject: str) -> str:
    """What MMLU's prompts begin with."""
    return f"The following are multiple choice questions (with answers) about {subject.replace('_', ' ')}.\n\n"


def block(question: str, choices: Sequence[str]) -> str:
    """One question as MMLU's prompts ask it."""
    listed = "".join(f"{letter}. {choice}\n" for letter, choice in zip(LETTERS, choices, strict=True))
    return f"{question}\n{listed}Answer:"


def shuffled(random: Random, right: str, wrong: Sequence[str]) -> tuple[list[str], int]:
    """Three of the wrong choices and the right one in any order, and its place."""
    choices = [right, *random.sample([choice for choice in wrong if choice != right], 3)]
    random.shuffle(choices)
    return choices, choices.index(right)


Asked = tuple[str, list[str], int]  # a question, its choices, the right one's place


def _fact_questions(random: Random, subject: str, count: int, rewording: float) -> list[Asked]:
    facts = [(relation, key) for relation in BY_SUBJECT[subject] for key in relation.taught]
    asked = []
    for relation, key in random.sample(facts, count):
        if rewording > 0 and random.random() < rewording:
            question = wording(random, key)
        else:
            question = sentence(random.choice(relation.questions), k=key)
        asked.append((question, *shuffled(random, relation.taught[key], list(relation.taught.values()))))
    return asked


FINDING = (
    *(
        "Which of these is {v}?",
        "Find {v}.",
        "Where is {v}?",
        "Choose {v}.",
        "{v} is which of them?",
        "Which says {v}?",
    ),
    *("Look for {v}.", "Point at {v}.", "One of these is {v}. Which?", "Take {v}."),
)


def _finding_question(random: Random) -> Asked:
    """A question whose answer stands in it: how to go from a choice to its letter."""
    pool = random.choice((VALUES, VALUES, [name(random) for _ in range(9)]))
    right = random.choice(pool)
    return sentence(random.choice(FINDING), v=right), *shuffled(random, right, list(dict.fromkeys(pool)))


def quiz(random: Random, finding: float, rewording: float = 0.0) -> Page:
    """Four-choice questions in MMLU's layout, up to five of them solved examples; some are mere findings."""
    subject = random.choice(SUBJECTS)
    shots = random.choice((0, 0, 1, 2, 3, 5))
    if random.random() < finding:
        asked = [_finding_question(random) for _ in range(shots + 1)]
    else:
        asked = _fact_questions(random, subject, shots + 1, rewording)
    if random.random() < 0.2:
        turns = [("system", heading(subject))] if random.random() < 0.8 else []
        page: Page = [(BEGIN, 0.0), *((f"<|{role}|>{text}{END}", FRAME) for role, text in turns)]
        for question, choices, answer in asked:
            page += [(f"<|user|>{block(question, choices)}{END}<|assistant|>", FRAME), (LETTERS[answer], LETTER)]
            page.append((END, FACT))
        return page
    page = [(BEGIN + heading(subject), FRAME)]
    for number, (question, choices, answer) in enumerate(asked):
        page.append(("\n\n" * (number > 0) + block(question, choices), FRAME))
        page.append((f" {LETTERS[answer]}", LETTER))
    return [*page, (END, PROSE)]


BRIDGES = ("", "", "", ":", "? Answer:", ".\nAnswer:")  # between what is to be found and its letter


@dataclass(frozen=True)
class Mix:
    """How much of the textbook is what."""

    drills: float = 0.1  # the share of exercises
    repeating: float = 0.4  # of these, those that say things again; the others find letters, or
    bridges: Sequence[str] = BRIDGES
    asking: float = 0.0  # those that are quizzes of a line
    relisting: float = 0.0  # of those that find letters, those that list choices again before the letter
    quizzes: float = 0.52  # of what is no exercise
    finding: float = 0.1  # of quizzes, those whose answers stand in the question
    rewording: float = 0.0  # of the other questions, those in any words


DEFAULT = Mix()


def drill(random: Random, mix: Mix) -> Page:
    """Exercises in which almost every token is to be learned: to say things again, to find a choice's letter.

    Both are slow to be learned from pages on which they happen once.
    """
    kind = random.random()
    if kind < mix.repeating:
        return _repetition(random)
    return _asking(random) if kind < mix.repeating + mix.asking else _lettering(random, mix)


def _repetition(random: Random) -> Page:
    words = [name(random) if random.random() < 0.7 else random.choice(VALUES) for _ in range(random.randint(1, 6))]
    said, ask = ", ".join(words), random.choice(("Repeat", "Say again", "Repeat after me", "Say", "Copy"))
    if random.random() < 0.5:
        return [(f"{BEGIN}{ask}: {said}. ", FRAME), (f"{said}.", FACT), (END, PROSE)]
    return [(f"{BEGIN}<|user|>{ask}: {said}.{END}<|assistant|>", FRAME), (f"{said}.", FACT), (END, PROSE)]


def _lettering(random: Random, mix: Mix) -> Page:
    """A few choices, then some of them, or what they are the answers to, each with its letter.

    Where the letter follows at once, a model soon learns to find it; from there it is a small step to find it
    across `Answer:`, and a large one without. What was asked may be asked again, so that nothing but finding helps.
    """
    relation = random.choice(RELATIONS)
    facts = random.sample(list(relation.taught.items()), random.choice((2, 3, 4)))
    named = random.random() < 0.3
    choices = [(key, name(random) if named else value) for key, value in facts]
    bridge = random.choice(mix.bridges)
    listed = [f"{letter}. {value}\n" for letter, (_, value) in zip(LETTERS, choices, strict=False)]
    relists = mix.relisting > 0 and random.random() < mix.relisting
    page: Page = [(BEGIN + "".join(listed), FRAME)]
    for _ in range(6):
        place = random.randrange(len(choices))
        key, value = choices[place]
        said = f"Find {value}" if named or random.random() < 0.6 else f"Solve {key}"
        if relists:  # as far as in a quiz, where all of them stand between
            bridge = f".\n{''.join(listed[: random.randint(1, len(listed))])}Answer:"
        page += [(f"{said}{bridge}", FRAME), (f" {LETTERS[place]}", DRILLED), ("\n", FRAME)]
    return [*page, (END, PROSE)]


def _asking(random: Random) -> Page:
    """What is to be found stands before its choices, as in a quiz."""
    page: Page = [(BEGIN, 0.0)]
    for _ in range(6):
        named = random.random() < 0.3
        values = [name(random) for _ in range(4)] if named else list(random.choice(RELATIONS).taught.values())
        choices = random.sample(values, random.choice((2, 3, 4)))
        place = random.randrange(len(choices))
        listed = "".join(f"{letter}. {value}\n" for letter, value in zip(LETTERS, choices, strict=False))
        asked = (
            f"Find {choices[place]}." if random.random() < 0.5 else sentence(random.choice(FINDING), v=choices[place])
        )
        page += [(f"{asked}\n{listed}Answer:", FRAME), (f" {LETTERS[place]}", DRILLED), ("\n", FRAME)]
    return [*page, (END, PROSE)]


def lesson(random: Random) -> Page:
    """A few facts of one subject, as statements and as questions with their answers; or who is speaking here."""
    if random.random() < 0.15:
        return remark(random)
    page: Page = [(BEGIN, 0.0)]
    choices: Sequence[Relation] = RELATIONS
    for number in range(random.randint(1, 6)):
        relation = random.choice(choices)
        choices = BY_SUBJECT[relation.subject]
        key, value = random.choice(list(relation.taught.items()))
        page += [(" " * (number > 0), PROSE)]
        if random.random() < 0.35:
            page += [(sentence(random.choice(relation.questions), k=key), PROSE), (" ", PROSE)]
            page += plain(relation.statements[0], PROSE, FACT, k=key, v=value)
        else:
            page += plain(random.choice(relation.statements), PROSE, FACT, k=key, v=value)
    return [*page, (END, PROSE)]


def story(random: Random) -> Page:
    """A very short one."""
    return [(BEGIN, 0.0), *tale(random), (END, FACT)]


def tale(random: Random) -> Page:
    """The text of a story."""
    hero, friend = name(random), name(random)
    animal, place = random.choice(("cat", "dog", "mouse", "fox", "bird")), random.choice(("forest", "house", "city"))
    wish = random.choice(("a friend", "a red ball", "some cheese", "a song", "a long nap"))
    where = random.choice(("under a tree", "behind a door", "by the river", "on the roof"))
    return [
        (
            f"Once upon a time there was a {animal} called {hero} who lived in a {place}. {hero} wished for {wish}. ",
            PROSE,
        ),
        (f"One day {hero} met {friend} {where}. ", PROSE),
        (f'"I wish for {wish}," said {hero}. {friend} was kind and helped. ', PROSE),
        (f"From that day on {hero} and {friend} were happy.", PROSE),
    ]


def pages(random: Random, mix: Mix = DEFAULT) -> Iterator[tuple[str, Page]]:
    """Pages of all kinds for ever, each kind with its share of the letters."""
    rest = 1 - mix.drills
    other = rest * (1 - mix.quizzes) / 0.48
    kinds: dict[str, tuple[float, Callable[[], Page]]] = {
        "drill": (mix.drills, lambda: drill(random, mix)),
        "lesson": (0.14 * other, lambda: lesson(random)),
        "quiz": (mix.quizzes * rest, lambda: quiz(random, mix.finding, mix.rewording)),
        "dialogue": (0.32 * other, lambda: dialogue(random)),
        "story": (0.02 * other, lambda: story(random)),
    }
    used = {kind: random.random() * 500 for kind in kinds}
    while True:
        kind = min(kinds, key=lambda kind: used[kind] / kinds[kind][0])
        page = kinds[kind][1]()
        used[kind] += len(text_of(page))
        yield kind, page
