"""Names, and what people say of themselves. Names are made from syllables, so there are always unseen ones."""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from random import Random

from engine.demo.pages import either

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
UNSEEN_SHARE = 10  # one name in so many is never used in training


def name(random: Random, unseen: bool = False) -> str:
    """A person's name; the `unseen` ones and the others have no name in common."""
    while True:
        if not unseen and random.random() < 0.25:
            made = random.choice(GIVEN)
        else:
            parts = [random.choice(ONSETS) + random.choice(NUCLEI) for _ in range(random.choice((1, 2, 2, 2, 3)))]
            made = ("".join(parts) + random.choice(CODAS)).capitalize()
        if not unseen and random.random() < 0.06:
            made = f"{made} {random.choice(FAMILY)}"
        if len(made) > 2 and (zlib.crc32(made.encode()) % UNSEEN_SHARE == 0) == unseen:
            return made


@dataclass(frozen=True)
class Trait:
    """Something that users say of themselves (`{v}`), ask for, and find in a summary."""

    tell: tuple[str, ...]
    ask: tuple[str, ...]
    reply: str
    unknown: str
    clause: str  # in a summary, after "The user"
    greeting: str = ""  # the reply when it is told, if it is more than having heard
    values: tuple[str, ...] = ()  # none: a name

    @property
    def told(self) -> str:
        """The reply when it is told."""
        return self.greeting or f"I see, {self.reply[:1].lower()}{self.reply[1:]}"


NAME = Trait(
    tell=either(
        "My name is {v}. | I'm {v}. | I am {v}. | Call me {v}. | Hi, I'm {v}. | Hello, my name is {v}. | "
        "You can call me {v}. | My name's {v}. | Hi! My name is {v}. | People call me {v}. | {v} is my name. | "
        "Hey, it's {v} here. | I am called {v}. | Hello! I am {v}. | This is {v} speaking. | Name: {v}."
    ),
    ask=either(
        "What is my name? | What's my name? | Do you remember my name? | Who am I? | Tell me my name. | "
        "What am I called? | Can you tell me my name? | Do you know my name? | Say my name. | And my name? | "
        "What did I say my name was? | Do you still know who I am? | My name is what? | Remind me of my name."
    ),
    reply="Your name is {v}.",
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
        tell=either("I live in {v}. | My home is in {v}. | I come from {v}. | I'm from {v}. | My city is {v}."),
        ask=either(
            "Where do I live? | Which city do I live in? | Where am I from? | What is my city? | Where is my home?"
        ),
        reply="You live in {v}.",
        unknown="I don't know where you live. You haven't told me.",
        clause="lives in {v}",
        values=CITIES,
    ),
    *(
        Trait(
            tell=(f"I have a {pet} called {{v}}.", f"My {pet} is called {{v}}.", f"My {pet}'s name is {{v}}."),
            ask=(f"What is my {pet} called?", f"What is my {pet}'s name?", f"Do you remember the name of my {pet}?"),
            reply=f"Your {pet} is called {{v}}.",
            unknown=f"I don't know what your {pet} is called. You haven't told me.",
            clause=f"has a {pet} called {{v}}",
        )
        for pet in PETS
    ),
    Trait(
        tell=either("My favourite colour is {v}. | The colour I like best is {v}. | I love the colour {v}."),
        ask=either("What is my favourite colour? | Which colour do I like? | Do you remember my favourite colour?"),
        reply="Your favourite colour is {v}.",
        unknown="I don't know your favourite colour. You haven't told me.",
        clause="likes the colour {v}",
        values=either("red | blue | green | yellow | orange | purple | black | white | brown | pink | grey | gold"),
    ),
    Trait(
        tell=either("My favourite food is {v}. | I like to eat {v}. | The food I love is {v}."),
        ask=either("What is my favourite food? | What do I like to eat? | Which food do I love?"),
        reply="You like to eat {v}.",
        unknown="I don't know what you like to eat. You haven't told me.",
        clause="likes to eat {v}",
        values=either("pizza | soup | rice | pasta | salad | cake | curry | bread | cheese | noodles | tacos | fish"),
    ),
    Trait(
        tell=either("I work as a {v}. | My job is {v}. | I am a {v} by profession. | I earn my money as a {v}."),
        ask=either("What is my job? | What do I work as? | What is my profession? | Do you remember my job?"),
        reply="You work as a {v}.",
        unknown="I don't know your job. You haven't told me.",
        clause="works as a {v}",
        values=either("nurse | teacher | pilot | baker | farmer | lawyer | writer | doctor | painter | student | cook"),
    ),
    Trait(
        tell=either("I am {v} years old. | I'm {v} years old. | My age is {v}. | I turned {v} this year."),
        ask=either("How old am I? | What is my age? | Do you remember my age?"),
        reply="You are {v} years old.",
        unknown="I don't know how old you are. You haven't told me.",
        clause="is {v} years old",
        values=tuple(str(age) for age in range(8, 99)),
    ),
    Trait(
        tell=either("My hobby is {v}. | I enjoy {v}. | In my free time I do {v}."),
        ask=either("What is my hobby? | What do I enjoy? | What do I do in my free time?"),
        reply="You enjoy {v}.",
        unknown="I don't know your hobby. You haven't told me.",
        clause="enjoys {v}",
        values=either(
            "chess | swimming | reading | football | music | hiking | dancing | painting | cycling | sailing"
        ),
    ),
)


def value(trait: Trait, random: Random) -> str:
    """What somebody may say of this trait; people come from cities that nobody has heard of, too."""
    invented = not trait.values or (trait.values is CITIES and random.random() < 0.3)
    return name(random) if invented else random.choice(trait.values)
