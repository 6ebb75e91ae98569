"""The textbook, page by page: statements, four-choice questions, conversations. The same seed gives the same pages.

Each piece of a page has a weight: how much its tokens count in the loss. What is to be learned (the letter of an
answer, a remembered name) counts most; what cannot be predicted (which name is next) counts little or not at all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from random import Random

from engine.demo.dialogues import dialogue, small_talk
from engine.demo.facts import RELATIONS, SUBJECTS, Relation
from engine.demo.pages import BEGIN, END, Page, fill_in, fill_in_weighted, text_of
from engine.demo.people import random_name
from engine.demo.wordings import nonsense_question

LETTERS = ("A", "B", "C", "D")
# Weights: of questions and other input, of prose, of facts, of a drill's answers, of the letters of quiz answers.
CONTEXT, PROSE, FACT, DRILL, LETTER = 0.0, 0.3, 1.0, 2.0, 6.0

VALUES = tuple(value for relation in RELATIONS for value in (*relation.taught.values(), *relation.untaught.values()))
BY_SUBJECT = {subject: [r for r in RELATIONS if r.subject == subject] for subject in SUBJECTS}


def heading(subject: str) -> str:
    """Return the first line of MMLU's prompts."""
    return f"The following are multiple choice questions (with answers) about {subject.replace('_', ' ')}.\n\n"


def question_block(question: str, choices: Sequence[str]) -> str:
    """Return one question in the layout of MMLU's prompts."""
    listed = "".join(f"{letter}. {choice}\n" for letter, choice in zip(LETTERS, choices, strict=True))
    return f"{question}\n{listed}Answer:"


def shuffle_choices(random: Random, correct: str, candidates: Sequence[str]) -> tuple[list[str], int]:
    """Return the correct choice and three other candidates in random order, and the index of the correct one."""
    choices = [correct, *random.sample([choice for choice in candidates if choice != correct], 3)]
    random.shuffle(choices)
    return choices, choices.index(correct)


Question = tuple[str, list[str], int]  # a question, its choices, the index of the correct one


def _fact_questions(random: Random, subject: str, count: int, nonsense: float) -> list[Question]:
    """Return questions on taught facts; `nonsense` is the share of nonsense questions."""
    facts = [(relation, key) for relation in BY_SUBJECT[subject] for key in relation.taught]
    questions = []
    for relation, key in random.sample(facts, count):
        if nonsense > 0 and random.random() < nonsense:
            question = nonsense_question(random, key)
        else:
            question = fill_in(random.choice(relation.questions), k=key)
        choices, answer = shuffle_choices(random, relation.taught[key], list(relation.taught.values()))
        questions.append((question, choices, answer))
    return questions


LOOKUPS = (
    *("Which of these is {v}?", "Find {v}.", "Where is {v}?", "Choose {v}.", "{v} is which of them?"),
    *("Which says {v}?", "Look for {v}.", "Point at {v}.", "One of these is {v}. Which?", "Take {v}."),
)


def _lookup_question(random: Random) -> Question:
    """Return a question that names the correct choice. It teaches how to get from a choice to its letter."""
    pool = random.choice((VALUES, VALUES, [random_name(random) for _ in range(9)]))
    correct = random.choice(pool)
    question = fill_in(random.choice(LOOKUPS), v=correct)
    return question, *shuffle_choices(random, correct, list(dict.fromkeys(pool)))


def quiz(random: Random, lookups: float, nonsense: float = 0.0) -> Page:
    """Return up to six four-choice questions in MMLU's layout, all but the last of them solved examples.

    `lookups`: the share of quizzes that have lookup questions; `nonsense`: the share of nonsense questions in others.
    """
    subject = random.choice(SUBJECTS)
    shots = random.choice((0, 0, 1, 2, 3, 5))
    if random.random() < lookups:
        questions = [_lookup_question(random) for _ in range(shots + 1)]
    else:
        questions = _fact_questions(random, subject, shots + 1, nonsense)
    if random.random() < 0.2:
        turns = [("system", heading(subject))] if random.random() < 0.8 else []
        page: Page = [(BEGIN, 0.0), *((f"<|{role}|>{text}{END}", CONTEXT) for role, text in turns)]
        for question, choices, answer in questions:
            block = question_block(question, choices)
            page += [(f"<|user|>{block}{END}<|assistant|>", CONTEXT), (LETTERS[answer], LETTER), (END, FACT)]
        return page
    page = [(BEGIN + heading(subject), CONTEXT)]
    for number, (question, choices, answer) in enumerate(questions):
        page.append(("\n\n" * (number > 0) + question_block(question, choices), CONTEXT))
        page.append((f" {LETTERS[answer]}", LETTER))
    return [*page, (END, PROSE)]


SEPARATORS = ("", "", "", ":", "? Answer:", ".\nAnswer:")  # between a drill's question and the letter


@dataclass(frozen=True)
class Mix:
    """The composition of the textbook, in shares from 0 to 1."""

    drills: float = 0.1  # of all text
    repetitions: float = 0.4  # of drills: repeat a list of words
    mini_quizzes: float = 0.0  # of drills: short lookup questions. All other drills are letter drills
    separators: Sequence[str] = SEPARATORS
    relisted: float = 0.0  # of letter drills: list choices again before the letter
    quizzes: float = 0.52  # of the text that is not drills
    lookups: float = 0.1  # of quizzes: lookup questions
    nonsense: float = 0.0  # of the questions of other quizzes


DEFAULT = Mix()


def drill(random: Random, mix: Mix) -> Page:
    """Return an exercise with many answers: repeat words, or find the letter of a choice.

    Both are learned slowly from the other pages, on which they occur once per page.
    """
    kind = random.random()
    if kind < mix.repetitions:
        return _repetition(random)
    return _mini_quizzes(random) if kind < mix.repetitions + mix.mini_quizzes else _letter_drill(random, mix)


def _repetition(random: Random) -> Page:
    """Return a list of words, and the same list again."""
    words = [
        random_name(random) if random.random() < 0.7 else random.choice(VALUES) for _ in range(random.randint(1, 6))
    ]
    text, request = ", ".join(words), random.choice(("Repeat", "Say again", "Repeat after me", "Say", "Copy"))
    if random.random() < 0.5:
        return [(f"{BEGIN}{request}: {text}. ", CONTEXT), (f"{text}.", FACT), (END, PROSE)]
    return [(f"{BEGIN}<|user|>{request}: {text}.{END}<|assistant|>", CONTEXT), (f"{text}.", FACT), (END, PROSE)]


def _letter_drill(random: Random, mix: Mix) -> Page:
    """Return a list of choices, then questions after it, each with the letter of its choice.

    A model soon learns to find a letter that follows the question directly, and then to find it after `Answer:`;
    finding it after `Answer:` from the start takes much longer. Questions may recur, so that only looking up the choice
    in the list helps.
    """
    relation = random.choice(RELATIONS)
    facts = random.sample(list(relation.taught.items()), random.choice((2, 3, 4)))
    named = random.random() < 0.3
    choices = [(key, random_name(random) if named else value) for key, value in facts]
    separator = random.choice(mix.separators)
    listed = [f"{letter}. {value}\n" for letter, (_, value) in zip(LETTERS, choices, strict=False)]
    relisted = mix.relisted > 0 and random.random() < mix.relisted
    page: Page = [(BEGIN + "".join(listed), CONTEXT)]
    for _ in range(6):
        answer = random.randrange(len(choices))
        key, value = choices[answer]
        question = f"Find {value}" if named or random.random() < 0.6 else f"Solve {key}"
        if relisted:  # as in a quiz, where all choices are between the question and the letter
            separator = f".\n{''.join(listed[: random.randint(1, len(listed))])}Answer:"
        page += [(f"{question}{separator}", CONTEXT), (f" {LETTERS[answer]}", DRILL), ("\n", CONTEXT)]
    return [*page, (END, PROSE)]


def _mini_quizzes(random: Random) -> Page:
    """Return short lookup questions, each followed by its choices, as in a quiz."""
    page: Page = [(BEGIN, 0.0)]
    for _ in range(6):
        named = random.random() < 0.3
        values = [random_name(random) for _ in range(4)] if named else list(random.choice(RELATIONS).taught.values())
        choices = random.sample(values, random.choice((2, 3, 4)))
        answer = random.randrange(len(choices))
        listed = "".join(f"{letter}. {value}\n" for letter, value in zip(LETTERS, choices, strict=False))
        template = "Find {v}." if random.random() < 0.5 else random.choice(LOOKUPS)
        question = fill_in(template, v=choices[answer])
        page += [(f"{question}\n{listed}Answer:", CONTEXT), (f" {LETTERS[answer]}", DRILL), ("\n", CONTEXT)]
    return [*page, (END, PROSE)]


def lesson(random: Random) -> Page:
    """Return a few facts of one subject, as statements and as questions with answers, or one exchange of small talk."""
    if random.random() < 0.15:
        return small_talk(random)
    page: Page = [(BEGIN, 0.0)]
    choices: Sequence[Relation] = RELATIONS
    for number in range(random.randint(1, 6)):
        relation = random.choice(choices)
        choices = BY_SUBJECT[relation.subject]
        key, value = random.choice(list(relation.taught.items()))
        page += [(" " * (number > 0), PROSE)]
        if random.random() < 0.35:
            page += [(fill_in(random.choice(relation.questions), k=key), PROSE), (" ", PROSE)]
            page += fill_in_weighted(relation.statements[0], PROSE, FACT, k=key, v=value)
        else:
            page += fill_in_weighted(random.choice(relation.statements), PROSE, FACT, k=key, v=value)
    return [*page, (END, PROSE)]


def story(random: Random) -> Page:
    """Return a very short story."""
    hero, friend = random_name(random), random_name(random)
    animal, place = random.choice(("cat", "dog", "mouse", "fox", "bird")), random.choice(("forest", "house", "city"))
    wish = random.choice(("a friend", "a red ball", "some cheese", "a song", "a long nap"))
    where = random.choice(("under a tree", "behind a door", "by the river", "on the roof"))
    sentences = (
        f"Once upon a time there was a {animal} called {hero} who lived in a {place}. {hero} wished for {wish}. ",
        f"One day {hero} met {friend} {where}. ",
        f'"I wish for {wish}," said {hero}. {friend} was kind and helped. ',
        f"From that day on {hero} and {friend} were happy.",
    )
    return [(BEGIN, 0.0), *((sentence, PROSE) for sentence in sentences), (END, FACT)]


def pages(random: Random, mix: Mix = DEFAULT) -> Iterator[tuple[str, Page]]:
    """Yield (kind, page) without end. The kinds' shares of the characters approach those of the mix."""
    rest = 1 - mix.drills
    other = rest * (1 - mix.quizzes) / 0.48
    kinds: dict[str, tuple[float, Callable[[], Page]]] = {
        "drill": (mix.drills, lambda: drill(random, mix)),
        "lesson": (0.14 * other, lambda: lesson(random)),
        "quiz": (mix.quizzes * rest, lambda: quiz(random, mix.lookups, mix.nonsense)),
        "dialogue": (0.32 * other, lambda: dialogue(random)),
        "story": (0.02 * other, lambda: story(random)),
    }
    lengths = {kind: random.random() * 500 for kind in kinds}
    while True:
        kind = min(kinds, key=lambda kind: lengths[kind] / kinds[kind][0])
        page = kinds[kind][1]()
        lengths[kind] += len(text_of(page))
        yield kind, page
