"""Writing for the demo task: requests, responses of any quality, and pretraining text.

Every choice is sampled from the ``random.Random`` that is passed in. Knows nothing of the gold preference, records,
seeds or splits; see ``data.demo.task``.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from data.demo import words

KINDS = ("story", "letter")
SLOTS = ("first", "object", "place")


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What is asked for: kind, mood and the three nouns; ``lead`` is the phrasing's beginning."""

    kind: str
    mood: str
    first: str
    object: str
    place: str
    lead: str

    @property
    def slots(self) -> dict[str, str]:
        return {"first": self.first, "object": self.object, "place": self.place}

    @property
    def group(self) -> str:
        return "|".join(self.slots.values())

    @property
    def category(self) -> str:
        return f"{self.kind}/{self.mood}"

    @property
    def text(self) -> str:
        return words.REQUESTS[self.kind].format(lead=self.lead, mood=self.mood, **self.slots)


@dataclass(frozen=True, slots=True, kw_only=True)
class Quality:
    """How often a response does each thing: probabilities, ``wrong_noun`` for each of the three nouns."""

    wrong_noun: float = 0.0
    right_mood: float = 1.0  # otherwise any of the kind's three moods, the right one among them
    polite: float = 1.0
    rude: float = 0.0
    filler: float = 0.3
    closing: float = 1.0
    repeat: float = 0.0
    cut: float = 0.0


PERFECT = Quality()
MIXED = Quality(wrong_noun=0.25, right_mood=0.5, polite=0.3, rude=0.3, closing=0.45, repeat=0.3, cut=0.12)
PLAIN = Quality(right_mood=0.0, polite=0.0, filler=0.4, closing=0.5)  # pretraining text: no openers, any mood
TITLED = Quality(polite=0.0, filler=0.4, closing=0.5)  # the same, of the mood that its title names


# ---- responses and requests ------------------------------------------------------------------------------------------


def write_answer(request: Request, rng: random.Random, quality: Quality = PERFECT) -> str:
    """Write a response of the given quality; every sentence of it matches a pattern of the kind."""
    kind = request.kind
    sorts = _sorts(kind)
    slots = {
        name: rng.choice([n for n in sorts[name] if n != noun]) if rng.random() < quality.wrong_noun else noun
        for name, noun in request.slots.items()
    }
    mood = request.mood if rng.random() < quality.right_mood else rng.choice(words.MOODS[kind])
    tone = rng.random()
    templates: list[str] = []
    if tone < quality.polite + quality.rude:
        templates.append(rng.choice(words.POLITE if tone < quality.polite else words.RUDE))
    templates += [rng.choice(words.OPENINGS[kind]), rng.choice(words.GOINGS[kind])]
    if rng.random() < quality.filler:
        templates.append(rng.choice(words.FILLERS[kind]))
    templates.append(rng.choice(words.MOOD_SENTENCES[mood]))
    if rng.random() < quality.closing:
        templates.append(words.CLOSINGS[kind])
    sentences = [_fill(t, rng, slots) for t in templates]
    if rng.random() < quality.repeat:  # any sentence, the closing too: so the reward model sees a doubled closing
        at = rng.randrange(len(sentences))
        sentences.insert(at, sentences[at])
    if rng.random() < quality.cut:
        sentences = sentences[: rng.randrange(2, len(sentences))]
    return " ".join(sentences)


def _sorts(kind: str) -> dict[str, tuple[str, ...]]:
    return {"first": words.FIRSTS[kind], "object": words.OBJECTS, "place": words.PLACES}


def _fill(template: str, rng: random.Random, slots: Mapping[str, str]) -> str:
    optional = {"[adjective]": words.ADJECTIVES, "[quality]": words.QUALITIES}
    tokens = [(rng.choice(optional[t]) if rng.random() < 0.4 else "") if t in optional else t for t in template.split()]
    return " ".join(t for t in tokens if t).format(**slots)


def combinations(kind: str) -> list[tuple[str, str, str]]:
    """Return every combination of nouns that a kind knows: 600 for stories, 360 for letters."""
    sorts = _sorts(kind)
    return [(f, o, p) for f in sorts["first"] for o in sorts["object"] for p in sorts["place"]]


def all_requests(rng: random.Random) -> Iterator[Request]:
    """Yield a request for every combination and mood once: two stories a letter while both last."""
    decks = {kind: [(c, m) for c in combinations(kind) for m in words.MOODS[kind]] for kind in KINDS}
    for deck in decks.values():
        rng.shuffle(deck)
    while any(decks.values()):
        for kind in ("story", "story", "letter"):
            if decks[kind]:
                (first, thing, place), mood = decks[kind].pop()
                lead = rng.choice(words.LEADS[kind])
                yield Request(kind=kind, mood=mood, first=first, object=thing, place=place, lead=lead)


# ---- pretraining text ------------------------------------------------------------------------------------------------

# Share of documents of each sort. A document names at most one whole combination, which is then its group.
DOCUMENTS: Mapping[str, float] = {
    "titled": 0.56,
    "naming": 0.07,
    "echo": 0.07,
    "checked": 0.1,
    "matched": 0.1,
    "dialogue": 0.06,
    "scrap": 0.04,
}
# The first documents are a lesson of their own. Whether a word is one of those asked for is what so small a model
# learns last, or never, among everything else, and at once when it comes first; on a base without it no reward model
# sees whether the request was followed (docs/measurements/demo.md).
LESSON: Mapping[str, float] = {"matched": 1.0}
LESSON_ROWS = 3000
WRONG = 0.5  # share of nouns that are sampled again in checked texts


def write_document(rng: random.Random, shares: Mapping[str, float] = DOCUMENTS) -> tuple[str, str]:
    """Return a pretraining text and the combination it names, or "" where it names none; ``shares`` of its sorts.

    It teaches the sentences, copying nouns from what was asked, and yes-no checks of a text against a topic; a request
    followed by its response is never written.
    """
    writers = {
        "titled": _titled,
        "naming": _naming,
        "echo": _echo,
        "checked": _checked,
        "matched": _matched,
        "dialogue": _dialogue,
        "scrap": _scrap,
    }
    sort = rng.choices(list(shares), weights=list(shares.values()))[0]
    return writers[sort](rng)


def _exchange(user: str, assistant: str) -> str:
    """Render one exchange as the template "dialogue" does."""
    return f"user : {user}\nassistant : {assistant}"


def _any_request(rng: random.Random, kind: str) -> Request:
    chosen = {name: rng.choice(sort) for name, sort in _sorts(kind).items()}
    return Request(kind=kind, mood=rng.choice(words.MOODS[kind]), lead="", **chosen)


def _any_kind(rng: random.Random) -> str:
    return rng.choice(("story", "story", "letter"))


def _titled(rng: random.Random) -> tuple[str, str]:
    request = _any_request(rng, _any_kind(rng))
    if rng.random() < 0.7:  # the title says the mood too, and the text keeps to it
        title, quality = f"{request.mood} , {words.TITLES[request.kind]}", TITLED
    else:
        title, quality = words.TITLES[request.kind], PLAIN
    parts = [title.format(**request.slots), write_answer(request, rng, quality)]
    if rng.random() < 0.5:
        parts.append(words.RECAPS[request.kind].format(**request.slots))
    return " ".join(parts), request.group


def _naming(rng: random.Random) -> tuple[str, str]:
    request = _any_request(rng, _any_kind(rng))
    pairs = rng.sample(words.NAMINGS[request.kind], 2)
    return "\n".join(_exchange(u.format(**request.slots), a.format(**request.slots)) for u, a in pairs), request.group


@dataclass(frozen=True)
class _Scene:
    """Two of a kind's three sorts of noun: text about them cannot name a whole combination."""

    kind: str
    sorts: dict[str, tuple[str, ...]]

    @classmethod
    def draw(cls, rng: random.Random) -> _Scene:
        kind = _any_kind(rng)
        second = "object" if kind == "letter" else rng.choice(("object", "place"))
        return cls(kind, {name: sort for name, sort in _sorts(kind).items() if name in ("first", second)})

    def slots(self, rng: random.Random) -> dict[str, str]:
        return {name: rng.choice(sort) for name, sort in self.sorts.items()}

    def usable(self, templates: Sequence[str]) -> list[str]:
        missing = [f"{{{name}}}" for name in SLOTS if name not in self.sorts]
        return [t for t in templates if not any(m in t for m in missing)]

    def sentence(self, rng: random.Random, slots: Mapping[str, str]) -> str:
        """Write a sentence that names both nouns."""
        templates = (*words.OPENINGS[self.kind], *words.GOINGS[self.kind])
        both = [t for t in self.usable(templates) if all(f"{{{name}}}" in t for name in self.sorts)]
        return _fill(rng.choice(both), rng, slots)

    def topic(self, slots: Mapping[str, str]) -> str:
        return " and ".join(("the " if n == "place" else "a ") + noun for n, noun in slots.items())

    def nouns(self, rng: random.Random, count: int) -> list[str]:
        return rng.sample([n for sort in self.sorts.values() for n in sort], count)


def _echo(rng: random.Random) -> tuple[str, str]:
    """Four lists to say again, of two or three nouns each."""
    scene = _Scene.draw(rng)
    lists = [" ".join(scene.nouns(rng, rng.choice((2, 3, 3)))) for _ in range(4)]
    return "\n".join(f"{words.QUESTIONS['say'].format(list=names)} {names} ." for names in lists), ""


def _checked(rng: random.Random) -> tuple[str, str]:
    """Sentences on a topic, and after each noun whether it was asked for.

    Two sorts of noun in all, so that no combination is named.
    """
    scene = _Scene.draw(rng)
    slots = scene.slots(rng)
    lines = [t for t in scene.usable((*words.OPENINGS[scene.kind], *words.GOINGS[scene.kind])) if "{" in t]
    said = []
    for _ in range(3):
        used = {n: rng.choice(scene.sorts[n]) if rng.random() < WRONG else noun for n, noun in slots.items()}
        for word in _fill(rng.choice(lines), rng, used).split():
            said += [word, _verdict(word in slots.values())] if word in used.values() else [word]
    return _exchange(words.QUESTIONS["check"].format(topic=scene.topic(slots)), " ".join(said)), ""


def _matched(rng: random.Random) -> tuple[str, str]:
    """Nouns checked against a short list, one after the other: what "was it asked for?" means, at its plainest."""
    scene = _Scene.draw(rng)
    nouns = [n for sort in scene.sorts.values() for n in sort]
    asked = rng.sample(nouns, rng.choice((2, 3, 3)))
    others = [n for n in nouns if n not in asked]
    shown = [rng.choice(asked if rng.random() < 0.5 else others) for _ in range(24)]
    said = " ".join(f"{n} {_verdict(n in asked)}" for n in shown)
    return _exchange(words.QUESTIONS["match"].format(list=" ".join(asked)), said), ""


def _verdict(right: bool) -> str:
    return "yes" if right else "no"


def _dialogue(rng: random.Random) -> tuple[str, str]:
    """Two short exchanges; two sorts of noun in all, so that no combination is named."""
    scene = _Scene.draw(rng)
    return "\n".join(_exchange(*_question(scene, rng)) for _ in range(2)), ""


def _question(scene: _Scene, rng: random.Random) -> tuple[str, str]:
    sort = rng.choices(("fits", "named", "listed", "who", "line", "mood", "kind"), weights=(2, 2, 1, 2, 4, 3, 1))[0]
    slots, question = scene.slots(rng), words.QUESTIONS[sort]
    text, topic = scene.sentence(rng, slots), scene.topic(slots)
    yes = rng.random() < 0.5
    if sort == "fits":
        other = dict(slots)
        if not yes:  # one noun is another one: what a reward model must notice
            name = rng.choice(list(slots))
            other[name] = rng.choice([n for n in scene.sorts[name] if n != slots[name]])
        return question.format(topic=scene.topic(other), text=text), "yes ." if yes else "no ."
    if sort == "named":
        absent = [n for nouns in scene.sorts.values() for n in nouns if n not in slots.values()]
        noun = rng.choice(list(slots.values()) if yes else absent)
        return question.format(text=text, noun=noun), "yes ." if yes else "no ."
    if sort == "listed":
        *listed, absent_noun = scene.nouns(rng, 4)
        noun = rng.choice(listed) if yes else absent_noun
        return question.format(noun=noun, list=" ".join(listed)), "yes ." if yes else "no ."
    if sort == "mood":
        mood = rng.choice(words.MOODS[scene.kind])
        text = _fill(rng.choice(scene.usable(words.MOOD_SENTENCES[mood])), rng, slots)
        first, second, third = words.MOODS[scene.kind]
        return question.format(text=text, moods=f"{first} , {second} or {third}"), f"{mood} ."
    if sort == "kind":
        return question.format(text=text), f"a {scene.kind} ."
    if sort == "who":
        return question.format(text=text), f"a {slots['first']} ."
    return question.format(topic=topic), text


def _scrap(rng: random.Random) -> tuple[str, str]:
    """Two greetings answered in one tone, with a filler at times."""
    tone, kind = rng.choice((words.POLITE, words.RUDE)), rng.choice(KINDS)
    lines = []
    for greeting, reply in zip(rng.sample(words.GREETINGS, 2), rng.sample(tone, 2), strict=True):
        filler = f" {rng.choice(words.FILLERS[kind])}" if rng.random() < 0.5 else ""
        lines.append(_exchange(greeting, reply + filler))
    return "\n".join(lines), ""
