"""Names, and what users say about themselves. Names are made of syllables, so that there are always unseen ones."""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from random import Random

from engine.demo.pages import alternatives

GIVEN = (
    *("Anna", "Ben", "Clara", "David", "Emma", "Felix", "Grace", "Henry", "Ivan", "Julia", "Karim", "Laura", "Maria"),
    *("Noah", "Olivia", "Peter", "Quinn", "Rosa", "Samir", "Tara", "Umar", "Vera", "Wei", "Xenia", "Yusuf", "Zoe"),
    *("Alice", "Bob", "Carol", "Dan", "Eve", "Frank", "George", "Hannah", "Ines", "Jack", "Kate", "Liam", "Mike"),
    *("Nina", "Oscar", "Paul", "Rita", "Sara", "Tom", "Victor", "Wendy", "John", "Mary", "James", "Linda", "Ahmed"),
    *("Yuki", "Priya", "Chen", "Fatima", "Lars", "Sofia", "Mateo", "Chloe", "Hugo", "Lucia", "Ravi", "Amina", "Leo"),
)
FAMILY = ("Smith", "Novak", "Garcia", "Khan", "Rossi", "Kim", "Meyer", "Silva", "Brown", "Ito", "Okafor", "Larsen")
ONSETS = (
    *("b", "c", "d", "f", "g", "h", "j", "k", "l", "m", "n", "p", "r", "s", "t", "v", "w", "z"),
    *("br", "ch", "cl", "dr", "fr", "gr", "kr", "pr", "sh", "st", "th", "tr", ""),
)
NUCLEI = ("a", "e", "i", "o", "u", "a", "e", "i", "o", "u", "ai", "ea", "ia", "ie", "oo", "y")
CODAS = ("", "", "", "", "n", "r", "l", "s", "m", "k", "d", "t", "nd", "rt", "x", "ck")
UNSEEN_ONE_IN = 10  # one name in ten is never used in training


def random_name(random: Random, unseen: bool = False) -> str:
    """Return a person's name. A name is either always `unseen` or never."""
    while True:
        if not unseen and random.random() < 0.25:
            candidate = random.choice(GIVEN)
        else:
            syllables = [random.choice(ONSETS) + random.choice(NUCLEI) for _ in range(random.choice((1, 2, 2, 2, 3)))]
            candidate = ("".join(syllables) + random.choice(CODAS)).capitalize()
        if not unseen and random.random() < 0.06:
            candidate = f"{candidate} {random.choice(FAMILY)}"
        if len(candidate) > 2 and (zlib.crc32(candidate.encode()) % UNSEEN_ONE_IN == 0) == unseen:
            return candidate


@dataclass(frozen=True)
class Trait:
    """A fact about a user, with the value `{v}`: stated, asked for, and summarised."""

    statements: tuple[str, ...]
    questions: tuple[str, ...]
    answer: str
    unknown: str  # the answer if the value was not stated
    clause: str  # in a summary, after "The user"
    greeting: str = ""  # the reply to a statement, instead of "I see, …"
    values: tuple[str, ...] = ()  # empty: any name

    @property
    def acknowledgement(self) -> str:
        """The reply to a statement."""
        return self.greeting or f"I see, {self.answer[:1].lower()}{self.answer[1:]}"


NAME = Trait(
    statements=alternatives(
        "My name is {v}. | I'm {v}. | I am {v}. | Call me {v}. | Hi, I'm {v}. | Hello, my name is {v}. | "
        "You can call me {v}. | My name's {v}. | Hi! My name is {v}. | People call me {v}. | {v} is my name. | "
        "Hey, it's {v} here. | I am called {v}. | Hello! I am {v}. | This is {v} speaking. | Name: {v}."
    ),
    questions=alternatives(
        "What is my name? | What's my name? | Do you remember my name? | Who am I? | Tell me my name. | "
        "What am I called? | Can you tell me my name? | Do you know my name? | Say my name. | And my name? | "
        "What did I say my name was? | Do you still know who I am? | My name is what? | Remind me of my name."
    ),
    answer="Your name is {v}.",
    unknown="I don't know your name. You haven't told me.",
    clause="is called {v}",
    greeting="Nice to meet you, {v}!",
)
CITIES = (
    *("Paris", "Rome", "Madrid", "Berlin", "Athens", "Cairo", "Oslo", "Vienna", "Lisbon", "London", "Tokyo", "Boston"),
    *("Chicago", "Toronto", "Sydney", "Mumbai", "Lagos", "Prague", "Dublin", "Seoul", "Geneva", "Krakow", "Munich"),
)
PETS = ("dog", "cat", "parrot", "rabbit", "horse", "hamster")
TRAITS = (
    NAME,
    Trait(
        statements=alternatives(
            "I live in {v}. | My home is in {v}. | I come from {v}. | I'm from {v}. | My city is {v}."
        ),
        questions=alternatives(
            "Where do I live? | Which city do I live in? | Where am I from? | What is my city? | Where is my home?"
        ),
        answer="You live in {v}.",
        unknown="I don't know where you live. You haven't told me.",
        clause="lives in {v}",
        values=CITIES,
    ),
    *(
        Trait(
            statements=(f"I have a {pet} called {{v}}.", f"My {pet} is called {{v}}.", f"My {pet}'s name is {{v}}."),
            questions=(
                f"What is my {pet} called?",
                f"What is my {pet}'s name?",
                f"Do you remember the name of my {pet}?",
            ),
            answer=f"Your {pet} is called {{v}}.",
            unknown=f"I don't know what your {pet} is called. You haven't told me.",
            clause=f"has a {pet} called {{v}}",
        )
        for pet in PETS
    ),
    Trait(
        statements=alternatives(
            "My favourite colour is {v}. | The colour I like best is {v}. | I love the colour {v}."
        ),
        questions=alternatives(
            "What is my favourite colour? | Which colour do I like? | Do you remember my favourite colour?"
        ),
        answer="Your favourite colour is {v}.",
        unknown="I don't know your favourite colour. You haven't told me.",
        clause="likes the colour {v}",
        values=alternatives(
            "red | blue | green | yellow | orange | purple | black | white | brown | pink | grey | gold"
        ),
    ),
    Trait(
        statements=alternatives("My favourite food is {v}. | I like to eat {v}. | The food I love is {v}."),
        questions=alternatives("What is my favourite food? | What do I like to eat? | Which food do I love?"),
        answer="You like to eat {v}.",
        unknown="I don't know what you like to eat. You haven't told me.",
        clause="likes to eat {v}",
        values=alternatives(
            "pizza | soup | rice | pasta | salad | cake | curry | bread | cheese | noodles | tacos | fish"
        ),
    ),
    Trait(
        statements=alternatives(
            "I work as a {v}. | My job is {v}. | I am a {v} by profession. | I earn my money as a {v}."
        ),
        questions=alternatives(
            "What is my job? | What do I work as? | What is my profession? | Do you remember my job?"
        ),
        answer="You work as a {v}.",
        unknown="I don't know your job. You haven't told me.",
        clause="works as a {v}",
        values=alternatives(
            "nurse | teacher | pilot | baker | farmer | lawyer | writer | doctor | painter | student | cook"
        ),
    ),
    Trait(
        statements=alternatives("I am {v} years old. | I'm {v} years old. | My age is {v}. | I turned {v} this year."),
        questions=alternatives("How old am I? | What is my age? | Do you remember my age?"),
        answer="You are {v} years old.",
        unknown="I don't know how old you are. You haven't told me.",
        clause="is {v} years old",
        values=tuple(str(age) for age in range(8, 99)),
    ),
    Trait(
        statements=alternatives("My hobby is {v}. | I enjoy {v}. | In my free time I do {v}."),
        questions=alternatives("What is my hobby? | What do I enjoy? | What do I do in my free time?"),
        answer="You enjoy {v}.",
        unknown="I don't know your hobby. You haven't told me.",
        clause="enjoys {v}",
        values=alternatives(
            "chess | swimming | reading | football | music | hiking | dancing | painting | cycling | sailing"
        ),
    ),
)


def random_value(trait: Trait, random: Random) -> str:
    """Return a value of a trait. Some cities have invented names."""
    invented = not trait.values or (trait.values is CITIES and random.random() < 0.3)
    return random_name(random) if invented else random.choice(trait.values)
