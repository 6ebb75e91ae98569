"""Nonsense questions: random words around a key, so that only the key and the choices determine the answer.

A model that sees a question in five wordings learns these five. One that also sees the key among random words learns to
look for the key, and so can answer wordings that are not in the textbook.
"""

from __future__ import annotations

from random import Random

from engine.demo.pages import fill_in
from engine.demo.people import random_name


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


# {t} and {u} in the templates; a word that is listed twice is drawn twice as often
NOUNS = _words(
    "letter book museum newspaper kitchen train garden window bridge picture school friend teacher doctor child crowd "
    "market river mountain story song game table door ship island forest king queen soldier farmer worker judge "
    "journey summer winter morning night party wedding hotel lesson report poster film magazine library island shelf "
    "box bag coat hat ticket map prize speech question answer rule law price cost shop factory machine tool wheel road "
    "street corner village town country border neighbour visitor guest expert writer painter singer player team club "
    "stone tree leaf flower bird horse animal plant seed fruit bread water fire wind rain snow light sound colour "
    "number line page word name sign mark list row piece part half whole reason result idea plan wish dream"
)
# {d}; {e} is a verb without its "s"
VERBS = _words(
    "shows needs makes finds keeps loses buys sells builds breaks opens closes carries brings takes gives gets holds "
    "reads writes draws paints studies explains mentions describes names praises follows meets visits leaves reaches "
    "begins ends changes stops helps moves turns touches covers fills uses wants likes knows remembers forgets "
    "expects promises offers asks answers sees hears"
)
# {j}
ADJECTIVES = _words(
    "old new small large young famous quiet strange simple careful honest modern ancient public secret common rare "
    "heavy light dark bright cold warm long short early late first last certain whole broken empty full poor rich"
)
# {a} in the clauses; {k} is the key
KEY_PHRASES = (
    *("{k}", "the {k}", "a {k}", "this {k}", "{k}", "its {k}", "some {k}", "every {k}", "plenty of {k}", "one {k}"),
    *("{k} alone", "{k} itself", "the word {k}", "old {k}", "{k} today", "the {t} of {k}", "the {t} called {k}"),
)
CLAUSES = (
    *("The {t} {d} {a}", "{n} {d} {a} for the {t}", "In the {t} stands {a}", "A {t} about {a} {d} the {u}"),
    *("Somebody {d} {a}", "Without {a} the {t} would be {j}", "{a} {d} the {t}", "{a} has a place in the {t}"),
    *("If {a} were gone, the {t} {d} nothing", "When the {t} {d}, we think of {a}", "The {j} {t} of {a} {d}"),
    *("{n} writes a {t} on {a}", "On the {t} one reads {a}", "The {j} {t} {d} {a}", "To {a} belongs a {t}"),
    *("Take {a} as an example", "We speak of {a}", "It concerns {a}", "The {t} with {a} is {j}", "{a} is meant"),
)
OPENINGS = ("", "", "", "The {j} {t} {d} the {u}. ", "{n} {d} a {t}. ", "At the {t} it is {j}. ", "The {t} is {j}. ")
CLOSINGS = (
    *(". Which is it?", ". What is it?", ". Which one?", ". What fits?", ". Choose.", ". And then?", ": which?", "?"),
    *(". Which of them?", " and what?", " by what?", " under which {t}?", ", but which {t}?", ". With which {t}?"),
    *(". Where?", ". When?", ". Who?", ". How many?", ". What for?", ". What does the {t} {e}?", ". Whose {t} is it?"),
)
SHORT_QUESTIONS = (
    *("{k}?", "{k}:", "And {k}?", "What about {k}?", "{k} goes with what?", "What goes with {k}?", "{k} means what?"),
    *("Which fits {k}?", "For {k}, choose.", "{k} leads to which {t}?", "What would {n} say of {k}?"),
)


def nonsense_question(random: Random, key: str) -> str:
    """Return a question of random words about a key."""
    words = {
        "t": random.choice(NOUNS),
        "u": random.choice(NOUNS),
        "d": random.choice(VERBS),
        "e": random.choice(VERBS)[:-1],
        "j": random.choice(ADJECTIVES),
        "n": random_name(random),
    }
    if random.random() < 0.2:
        return fill_in(random.choice(SHORT_QUESTIONS), k=key, **words)
    phrase = random.choice(KEY_PHRASES).format(k=key, **words)
    template = random.choice(OPENINGS) + random.choice(CLAUSES) + random.choice(CLOSINGS)
    if random.random() < 0.25:  # a question before the clause
        template = random.choice(("Which {t} is it? ", "What does the {t} {e}? ", "What is the {t}? ")) + template
    sentences = template.format(a=phrase, **words).split(". ")
    return ". ".join(sentence[:1].upper() + sentence[1:] for sentence in sentences)
