"""Words and sentence patterns of the demo task: plain lists.

Slots in braces are filled by ``data.demo.task``: ``first`` (animal of a story, person of a letter), ``object`` and
``place``; ``[adjective]`` and ``[quality]`` may stay empty. Every word stands between blanks, punctuation too, and
every noun and adjective begins with a consonant, so that "a" is always right. No pattern contains a listed noun, and
the longest perfect response has 44 words.
"""

from __future__ import annotations


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


ANIMALS = _words("fox bear mouse horse cat dog duck lion rabbit snake")
PERSONS = _words("queen king baker teacher doctor farmer")
OBJECTS = _words("drum kite lamp ball book cup hat key bell ring")
PLACES = _words("cave lake forest castle river market")
ADJECTIVES = _words("small big brave gray young quick shy clever")
QUALITIES = _words("red blue shiny wooden tiny golden")

FIRSTS = {"story": ANIMALS, "letter": PERSONS}
MOODS = {"story": ("happy", "sad", "scary"), "letter": ("thankful", "sorry", "excited")}

# The nouns and the mood of every request stand at the same distance from its end and in the order of the response:
# that makes "was the request followed?" learnable for a very small reward model.
LEADS = {
    "story": ("please write a", "tell me a", "i would like a"),
    "letter": ("please write a", "help me with a", "i would like a"),
}
REQUESTS = {
    "story": "{lead} {mood} story with a {first} , a {object} and the {place} .",
    "letter": "{lead} {mood} letter to the {first} about a {object} and the {place} .",
}

POLITE = (
    "sure , here it is .",
    "gladly , just for you .",
    "with pleasure , my friend .",
    "what a lovely request .",
)
RUDE = (
    "ugh , not this again .",
    "fine , if i must .",
    "what a silly request .",
    "do it yourself next time .",
)

OPENINGS = {
    "story": (
        "once a [adjective] {first} had a {object} .",
        "long ago a {first} had a [quality] {object} .",
        "one day a {first} found a [quality] {object} .",
        "a [adjective] {first} once got a {object} .",
    ),
    "letter": (
        "dear {first} , you gave me a [quality] {object} .",
        "dear {first} , this is about a {object} .",
        "hello {first} , i found a [quality] {object} .",
        "hello {first} , remember a [quality] {object} .",
    ),
}
GOINGS = {
    "story": (
        "the {first} took it to the {place} .",
        "together they went to the {place} .",
        "the way led to the {place} .",
        "the {first} hid it near the {place} .",
    ),
    "letter": (
        "i have it here at the {place} .",
        "now it is near the {place} .",
        "we saw it at the {place} .",
        "i took it to the {place} .",
    ),
}
FILLERS = {
    "story": (
        "the wind was soft .",
        "it was cold outside .",
        "nobody else was near .",
        "the day was long .",
    ),
    "letter": (
        "the weather is fine .",
        "all is well here .",
        "so much has changed .",
        "please write back soon .",
    ),
}
MOOD_SENTENCES = {
    "happy": (
        "everyone laughed and danced all night .",
        "they sang with joy until morning .",
        "it was the best day of all .",
        "the {first} smiled and felt great .",
    ),
    "sad": (
        "everyone cried and went home alone .",
        "the {first} lost the {object} and wept .",
        "then it broke and tears fell .",
        "it was the most lonely day .",
    ),
    "scary": (
        "something growled in the dark .",
        "the {first} shook with fear .",
        "a pale ghost followed them home .",
        "then a black shadow screamed .",
    ),
    "thankful": (
        "thank you so much for it .",
        "i am so grateful to you .",
        "your gift made my week .",
        "i owe you many thanks .",
    ),
    "sorry": (
        "please forgive me for my mistake .",
        "it was all my fault .",
        "i feel so bad now .",
        "i will never do that again .",
    ),
    "excited": (
        "i can not wait for it .",
        "hurray , my dream came true .",
        "this is the biggest news ever .",
        "my heart jumps for the {object} .",
    ),
}
CLOSINGS = {"story": "and so the story ends .", "letter": "with best wishes , your friend ."}

# Only in pretraining text: titles, recaps, echo lines, short dialogues.
TITLES = {
    "story": "a {first} , a {object} and the {place} :",
    "letter": "to the {first} about a {object} and the {place} :",
}
RECAPS = {
    "story": "it had a {first} , a {object} and the {place} .",
    "letter": "it was to the {first} about a {object} and the {place} .",
}
# (user's line, assistant's line) that name one whole combination; never a request with its response.
NAMINGS = {
    "story": (
        ("please name a {first} , a {object} and the {place} .", "a {first} , a {object} and the {place} ."),
        ("please say {first} {object} {place} .", "{first} {object} {place} ."),
    ),
    "letter": (
        (
            "please name the {first} about a {object} and the {place} .",
            "the {first} about a {object} and the {place} .",
        ),
        ("please say {first} {object} {place} .", "{first} {object} {place} ."),
    ),
}
GREETINGS = (
    "good morning .",
    "can you help me ?",
    "i have a request .",
    "tell me what you think .",
    "please write to me .",
    "i would like your help .",
)
QUESTIONS = {
    "named": "{text} is there a {noun} in it ?",
    "listed": "is there a {noun} in {list} ?",
    "fits": "about {topic} : {text} does it fit ?",
    "who": "{text} tell me who .",
    "mood": "{text} is it {moods} ?",
    "kind": "{text} is it a story or a letter ?",
    "line": "please write one line about {topic} .",
    "check": "please check a text with {topic} .",
    "match": "please check {list} .",
    "say": "please say {list} .",
}
MARKS = "yes no or and , . : ? user assistant"  # what code writes around these; `vocabulary` reads it here
