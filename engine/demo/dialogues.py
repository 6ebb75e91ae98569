"""Conversations: users say things about themselves and ask for them later, ask for facts, make small talk."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

from engine.demo.facts import RELATIONS, Relation
from engine.demo.pages import BEGIN, END, Page, alternatives, fill_in, fill_in_weighted, text_of
from engine.demo.people import NAME, TRAITS, Trait, random_name, random_value

USER, REPLY, RECALLED = 0.0, 0.5, 3.0  # weights: of messages to the model, of its replies, of values that it recalls
MAX_LENGTH = 2800  # characters of a conversation, after which it ends

IDENTITY = "I am the demo model of bareloop: very small, and I know one little textbook."
SMALL_TALK = {  # replies, and the messages that they answer
    IDENTITY: "Who are you? | What are you? | Tell me who you are. | What is this? | Introduce yourself.",
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
GOODBYES = alternatives("Bye! | Goodbye. | See you! | Good night. | I have to go.")
UNKNOWN_FACT = "I don't know. My textbook says nothing about that."
OUT_OF_SCOPE = alternatives(
    "How do I get to {n}? | What is {n}? | Who was {n}? | Can you fix my {n}? | "
    "What happened in {n} last year? | Write a poem about {n}. | What is the weather in {n}? | "
    "How much does {n} cost? | Who won the game against {n}? | Translate {n} into French. | "
    "Is {n} better than {m}? | Why is {n} famous? | What do you think about {n}?"
)
SYSTEM_MESSAGES = alternatives(
    "You are a helpful assistant. | You are a friendly assistant. | Answer briefly. | "
    "You are a very small model. | Be polite. | You are bareloop's demo model. | Answer in one sentence. | "
    "You are a helpful assistant. Be brief."
)
SUMMARY_LABELS = (
    "Summary of the conversation so far: ",
    "Summary of the earlier conversation: ",
    "Earlier: ",
    "Summary: ",
)
EMPTY_SUMMARY = "The user has not said much yet."


def summary_request(random: Random) -> str:
    """Return a user's request for a summary."""
    verb = random.choice(("Summarise", "Summarize", "Sum up", "Give a summary of", "Write a summary of", "Recap"))
    what = random.choice(
        ("our conversation", "this conversation", "the conversation so far", "our conversation so far")
    )
    how = random.choice(("", " in one line", " in one sentence", " briefly", " in one short line"))
    return f"{verb} {what}{how}.{random.choice(('', '', ' Keep names and facts.', ' Keep what matters.'))}"


class Dialogue:
    """A conversation under construction, and what was said in it."""

    def __init__(self, random: Random) -> None:
        self.random = random
        self.page: Page = [(BEGIN, 0.0)]
        self.traits: dict[Trait, str] = {}  # the values that the user stated
        self.clauses: list[tuple[str, str]] = []  # of the summary: (template, value)
        self.last_relation: Relation | None = None  # of the last fact that the user asked for
        self.length = 0  # characters

    def add_exchange(self, message: str, reply: Page) -> None:
        """Add a message and its reply. Users sometimes omit the capital letter or the full stop."""
        if self.random.random() < 0.15:
            message = message[:1].lower() + message[1:]
        if self.random.random() < 0.15:
            message = message.rstrip(".?!")
        self.page += [(f"<|user|>{message}{END}<|assistant|>", USER), *reply, (END, REPLY)]
        self.length += len(message) + len(text_of(reply)) + 8

    def reply(self, template: str, **words: str) -> Page:
        """Return a reply, in which the value that the model recalls has the largest weight."""
        return fill_in_weighted(template, REPLY, RECALLED if words else REPLY, **words)

    def state_trait(self) -> None:
        """The user states a trait, or asks for it if it was stated before."""
        trait = NAME if NAME not in self.traits and self.random.random() < 0.6 else self.random.choice(TRAITS)
        if trait in self.traits:
            self.ask_for_trait()
            return
        value = random_value(trait, self.random)
        self.traits[trait] = value
        self.clauses.append((trait.clause, value))
        message = self.random.choice(trait.statements).format(v=value)
        self.add_exchange(message, self.reply(trait.acknowledgement, v=value))

    def ask_for_trait(self) -> None:
        """The user asks for a trait that was stated before, if there is one."""
        if not self.traits:
            self.ask_for_unknown_trait()
            return
        trait = NAME if NAME in self.traits and self.random.random() < 0.5 else self.random.choice(list(self.traits))
        self.add_exchange(self.random.choice(trait.questions), self.reply(trait.answer, v=self.traits[trait]))

    def ask_for_unknown_trait(self) -> None:
        """The user asks for a trait that was not stated."""
        missing = [trait for trait in TRAITS if trait not in self.traits]
        if missing:
            trait = NAME if NAME in missing and self.random.random() < 0.5 else self.random.choice(missing)
            self.add_exchange(self.random.choice(trait.questions), self.reply(trait.unknown))

    def ask_for_fact(self) -> None:
        """The user asks for a fact, sometimes as a follow-up to the last one."""
        follows = self.last_relation is not None and self.random.random() < 0.3
        relation = self.last_relation if follows and self.last_relation is not None else self.random.choice(RELATIONS)
        key, value = self.random.choice(list(relation.taught.items()))
        templates = ("And {k}?", "What about {k}?", "And what about {k}?") if follows else relation.questions
        self.last_relation = relation
        self.clauses.append(("asked about {v}", key))
        reply = self.reply(relation.statements[0], k=key, v=value)
        self.add_exchange(fill_in(self.random.choice(templates), k=key), reply)
        if self.random.random() < 0.1:
            doubt = self.random.choice(("Are you sure?", "Really?", "Is that true?", "Say that again."))
            self.add_exchange(doubt, [("Yes. ", REPLY), *reply])

    def ask_out_of_scope(self) -> None:
        """The user asks for something that the textbook does not have."""
        unknown = {"n": random_name(self.random), "m": random_name(self.random)}
        if self.random.random() < 0.6:
            question = fill_in(self.random.choice(self.random.choice(RELATIONS).questions), k=unknown["n"])
        else:
            question = self.random.choice(OUT_OF_SCOPE).format(**unknown)
        self.add_exchange(question, self.reply(UNKNOWN_FACT))

    def make_small_talk(self) -> None:
        """The user greets, thanks, or asks about the model."""
        reply, messages = self.random.choice(list(SMALL_TALK.items()))
        self.add_exchange(self.random.choice(alternatives(messages)), self.reply(reply))

    def say_goodbye(self) -> None:
        """The user says goodbye. The model repeats the user's name if it was stated."""
        known = {"v": self.traits[NAME]} if NAME in self.traits else {}
        reply = self.reply("Goodbye, {v}!" if known else "Goodbye!", **known)
        self.add_exchange(self.random.choice(GOODBYES), reply)

    def ask_for_summary(self) -> None:
        """The user asks for a summary of the conversation."""
        self.add_exchange(summary_request(self.random), summary(self.clauses, REPLY, RECALLED))

    def begin(self) -> None:
        """Add a system message or none, which may have a summary of an earlier conversation."""
        if self.random.random() < 0.5:
            return
        text = self.random.choice(SYSTEM_MESSAGES) if self.random.random() < 0.7 else ""
        if self.random.random() < 0.6 or not text:
            for trait in self.random.sample(TRAITS, self.random.randint(0, 4)):
                self.traits[trait] = random_value(trait, self.random)
                self.clauses.append((trait.clause, self.traits[trait]))
            for _ in range(self.random.choice((0, 0, 1, 2))):
                self.clauses.append(("asked about {v}", self.random.choice(list(self.random.choice(RELATIONS).taught))))
            self.random.shuffle(self.clauses)
            earlier = self.random.choice(SUMMARY_LABELS) + text_of(summary(self.clauses, 0.0, 0.0))
            text = text + "\n\n" * bool(text) + earlier
        self.page.append((f"<|system|>{text}{END}", USER))
        self.length += len(text)


def summary(clauses: list[tuple[str, str]], weight: float, key_weight: float) -> Page:
    """Return a summary in one line, in the order of the conversation."""
    clauses = list(dict.fromkeys(clauses))
    if not clauses:
        return [(EMPTY_SUMMARY, weight)]
    page: Page = [("The user ", weight)]
    for number, (clause, value) in enumerate(clauses):
        last = number == len(clauses) - 1
        page.append(("" if not number else " and " if last else ", ", weight))
        before, after = clause.split("{v}")
        page += [(before, weight), (value, key_weight), (after, weight)]
    return [*page, (".", weight)]


def small_talk(random: Random) -> Page:
    """Return one exchange of small talk as plain text, without roles."""
    reply, messages = random.choice(list(SMALL_TALK.items()))
    return [(f"{BEGIN}{random.choice(alternatives(messages))} ", USER), (reply, REPLY), (END, REPLY)]


def dialogue(random: Random) -> Page:
    """Return a conversation of one or more exchanges."""
    result = Dialogue(random)
    result.begin()
    actions: dict[Callable[[], None], float] = {
        result.state_trait: 0.26,
        result.ask_for_trait: 0.26,
        result.ask_for_unknown_trait: 0.09,
        result.ask_for_fact: 0.15,
        result.ask_out_of_scope: 0.05,
        result.make_small_talk: 0.1,
        result.ask_for_summary: 0.06,
        result.say_goodbye: 0.03,
    }
    turns = random.choice((1, 2, 2, 3, 3, 4, 4, 5, 6, 8, 12, 40))
    for _ in range(turns):
        random.choices(list(actions), list(actions.values()))[0]()
        if result.length > MAX_LENGTH:
            break
    return result.page
