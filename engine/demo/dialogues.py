"""Conversations: somebody says things of themself and asks for them later, greets, asks for facts, for a summary."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

from engine.demo.facts import RELATIONS, Relation
from engine.demo.pages import BEGIN, END, Page, either, plain, sentence, text_of
from engine.demo.people import NAME, TRAITS, Trait, name, value

HEARD, SAID, RECALLED = 0.0, 0.5, 3.0  # weights: of what others say, of the model's words, of what it remembers
LONGEST = 2800  # characters of a conversation

WHO = "I am the demo model of bareloop: very small, and I know one little textbook."
SMALL_TALK = {  # how the model answers, and to what
    WHO: "Who are you? | What are you? | Tell me who you are. | What is this? | Introduce yourself.",
    "I am the demo model of bareloop.": (
        "What is your name? | What are you called? | Do you have a name? | Your name?"
    ),
    "I answer questions from my little textbook, remember what you tell me, and sum up what was said.": (
        "What can you do? | How can you help me? | What do you know? | Help!"
    ),
    "I am fine, thank you.": "How are you? | How do you do? | How is it going? | Are you well?",
    "Hello! How can I help you?": "Hello! | Hi! | Hey. | Good morning! | Hello there. | Good evening. | Hi there!",
    "You are welcome.": "Thank you! | Thanks. | Thanks a lot! | That was helpful. | Great, thank you.",
    "What else would you like to know?": "OK. | I see. | Good. | Fine. | Interesting.",
    "No, I am a very small language model.": "Are you a human? | Are you a person? | Are you alive?",
    "No, I am very small. I only show how the machine works.": (
        "Are you intelligent? | Are you clever? | How big are you?"
    ),
}
BYES = either("Bye! | Goodbye. | See you! | Good night. | I have to go.")
IGNORANT = "I don't know. My textbook says nothing about that."
STRANGE = either(
    "How do I get to {n}? | What is {n}? | Who was {n}? | Can you fix my {n}? | "
    "What happened in {n} last year? | Write a poem about {n}. | What is the weather in {n}? | "
    "How much does {n} cost? | Who won the game against {n}? | Translate {n} into French. | "
    "Is {n} better than {m}? | Why is {n} famous? | What do you think about {n}?"
)
SYSTEM = either(
    "You are a helpful assistant. | You are a friendly assistant. | Answer briefly. | "
    "You are a very small model. | Be polite. | You are bareloop's demo model. | Answer in one sentence. | "
    "You are a helpful assistant. Be brief."
)
EARLIER = ("Summary of the conversation so far: ", "Summary of the earlier conversation: ", "Earlier: ", "Summary: ")
NOTHING = "The user has not said much yet."


def summary_request(random: Random) -> str:
    """Somebody asks for a summary."""
    verb = random.choice(("Summarise", "Summarize", "Sum up", "Give a summary of", "Write a summary of", "Recap"))
    what = random.choice(
        ("our conversation", "this conversation", "the conversation so far", "our conversation so far")
    )
    how = random.choice(("", " in one line", " in one sentence", " briefly", " in one short line"))
    return f"{verb} {what}{how}.{random.choice(('', '', ' Keep names and facts.', ' Keep what matters.'))}"


class Dialogue:
    """A conversation as it grows, and what was said in it."""

    def __init__(self, random: Random) -> None:
        self.random = random
        self.page: Page = [(BEGIN, 0.0)]
        self.told: dict[Trait, str] = {}
        self.clauses: list[tuple[str, str]] = []  # of the summary: its words, and what was said
        self.relation: Relation | None = None  # of the last fact that was asked for
        self.length = 0

    def say(self, user: str, reply: Page) -> None:
        """One exchange. People leave out capital letters and full stops."""
        if self.random.random() < 0.15:
            user = user[:1].lower() + user[1:]
        if self.random.random() < 0.15:
            user = user.rstrip(".?!")
        self.page += [(f"<|user|>{user}{END}<|assistant|>", HEARD), *reply, (END, SAID)]
        self.length += len(user) + len(text_of(reply)) + 8

    def answer(self, wording: str, **words: str) -> Page:
        """The model's words, of which what it remembers counts most."""
        return plain(wording, SAID, RECALLED if words else SAID, **words)

    def tell(self) -> None:
        trait = NAME if NAME not in self.told and self.random.random() < 0.6 else self.random.choice(TRAITS)
        if trait in self.told:
            self.recall()
            return
        said = value(trait, self.random)
        self.told[trait] = said
        self.clauses.append((trait.clause, said))
        self.say(self.random.choice(trait.tell).format(v=said), self.answer(trait.told, v=said))

    def recall(self) -> None:
        if not self.told:
            self.admit()
            return
        trait = NAME if NAME in self.told and self.random.random() < 0.5 else self.random.choice(list(self.told))
        self.say(self.random.choice(trait.ask), self.answer(trait.reply, v=self.told[trait]))

    def admit(self) -> None:
        missing = [trait for trait in TRAITS if trait not in self.told]
        if missing:
            trait = NAME if NAME in missing and self.random.random() < 0.5 else self.random.choice(missing)
            self.say(self.random.choice(trait.ask), self.answer(trait.unknown))

    def ask(self) -> None:
        """For a fact, sometimes as a follow-up to the last one."""
        follows = self.relation is not None and self.random.random() < 0.3
        relation = self.relation if follows and self.relation is not None else self.random.choice(RELATIONS)
        key, right = self.random.choice(list(relation.taught.items()))
        wordings = ("And {k}?", "What about {k}?", "And what about {k}?") if follows else relation.questions
        self.relation = relation
        self.clauses.append(("asked about {v}", key))
        reply = self.answer(relation.statements[0], k=key, v=right)
        self.say(sentence(self.random.choice(wordings), k=key), reply)
        if self.random.random() < 0.1:
            sure = self.random.choice(("Are you sure?", "Really?", "Is that true?", "Say that again."))
            self.say(sure, [("Yes. ", SAID), *self.answer(relation.statements[0], k=key, v=right)])

    def wonder(self) -> None:
        """Ask for what no textbook holds."""
        unknown = {"n": name(self.random), "m": name(self.random)}
        if self.random.random() < 0.6:
            question = sentence(self.random.choice(self.random.choice(RELATIONS).questions), k=unknown["n"])
        else:
            question = self.random.choice(STRANGE).format(**unknown)
        self.say(question, self.answer(IGNORANT))

    def chat(self) -> None:
        reply, asked = self.random.choice(list(SMALL_TALK.items()))
        self.say(self.random.choice(either(asked)), self.answer(reply))

    def leave(self) -> None:
        known = {"v": self.told[NAME]} if NAME in self.told else {}
        self.say(self.random.choice(BYES), self.answer("Goodbye, {v}!" if known else "Goodbye!", **known))

    def summarise(self) -> None:
        self.say(summary_request(self.random), summary(self.clauses, SAID, RECALLED))

    def begin(self) -> None:
        """With a system message or none, and perhaps a summary of what was said before."""
        if self.random.random() < 0.5:
            return
        text = self.random.choice(SYSTEM) if self.random.random() < 0.7 else ""
        if self.random.random() < 0.6 or not text:
            for trait in self.random.sample(TRAITS, self.random.randint(0, 4)):
                self.told[trait] = value(trait, self.random)
                self.clauses.append((trait.clause, self.told[trait]))
            for _ in range(self.random.choice((0, 0, 1, 2))):
                self.clauses.append(("asked about {v}", self.random.choice(list(self.random.choice(RELATIONS).taught))))
            self.random.shuffle(self.clauses)
            earlier = self.random.choice(EARLIER) + text_of(summary(self.clauses, 0.0, 0.0))
            text = text + "\n\n" * bool(text) + earlier
        self.page.append((f"<|system|>{text}{END}", HEARD))
        self.length += len(text)


def summary(clauses: list[tuple[str, str]], weight: float, key_weight: float) -> Page:
    """One line, in the order in which things were said."""
    clauses = list(dict.fromkeys(clauses))
    if not clauses:
        return [(NOTHING, weight)]
    page: Page = [("The user ", weight)]
    for number, (clause, said) in enumerate(clauses):
        last = number == len(clauses) - 1
        page.append(("" if not number else " and " if last else ", ", weight))
        before, after = clause.split("{v}")
        page += [(before, weight), (said, key_weight), (after, weight)]
    return [*page, (".", weight)]


def remark(random: Random) -> Page:
    """One exchange of small talk as plain text, without roles."""
    reply, asked = random.choice(list(SMALL_TALK.items()))
    return [(f"{BEGIN}{random.choice(either(asked))} ", HEARD), (reply, SAID), (END, SAID)]


def dialogue(random: Random) -> Page:
    """A conversation of one to many exchanges."""
    talk = Dialogue(random)
    talk.begin()
    acts: dict[Callable[[], None], float] = {
        talk.tell: 0.26,
        talk.recall: 0.26,
        talk.admit: 0.09,
        talk.ask: 0.15,
        talk.wonder: 0.05,
        talk.chat: 0.1,
        talk.summarise: 0.06,
        talk.leave: 0.03,
    }
    turns = random.choice((1, 2, 2, 3, 3, 4, 4, 5, 6, 8, 12, 40))
    for _ in range(turns):
        random.choices(list(acts), list(acts.values()))[0]()
        if talk.length > LONGEST:
            break
    return talk.page
