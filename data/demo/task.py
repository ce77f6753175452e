"""The embedded task: procedurally written requests, responses and pretraining text with a known gold preference.

A request asks for a story or a letter in one of three moods and names three nouns; the nouns are its *combination* and
its split group, so that a held-out combination is in no record of any stage. Text is lower case and every word and mark
stands between blanks. ``gold`` judges a response by the request's and the response's words alone.

Demonstrations are of mixed quality on purpose. One that is cut short stops early but does end (``finished=True``): it
is a poorer response, not a truncated one. A wrong noun in a demonstration or a sampled response can by chance complete
a held-out combination in the response's text; it is never asked for there.

Knows nothing of tokenizers, models or files. Same rows and seed, same records.
"""

from __future__ import annotations

import random
import re
from collections.abc import Mapping, Sequence
from functools import cache, lru_cache
from itertools import islice

from data.common.errors import UserError
from data.demo import words
from data.demo.text import (
    DOCUMENTS,
    KINDS,
    LESSON,
    LESSON_ROWS,
    MIXED,
    SLOTS,
    Request,
    all_requests,
    combinations,
    write_answer,
    write_document,
)
from data.records import Demonstration, Document, Message, Prompt, group_of

SOURCE = "demo-world"  # seeds the generators and marks records: another text would be other data
NOUNS = frozenset(words.ANIMALS + words.PERSONS + words.OBJECTS + words.PLACES)


# ---- gold ------------------------------------------------------------------------------------------------------------

# Perfect is 3 x 1 + 1.5 + 1.25 + 1.5 = 7.25, and no sentence added, doubled, dropped or moved raises it.
WEIGHTS: Mapping[str, float] = {
    "nouns": 1.0,  # for each requested noun, once
    "foreign": -0.5,  # for each other noun, once, at most 4
    "mood": 1.5,  # a sentence of the requested mood, once
    "wrong_mood": -0.75,  # for each sentence of another mood of the kind
    "polite": 1.25,  # the first sentence is a polite opener
    "rude": -1.25,  # for each rude sentence
    "closing": 1.5,  # the kind's closing occurs once, comes last, and the response was finished
    "doubled": -1.0,  # for each sentence that does again what an earlier one did, word for word or not
    "misfit": -3.0,  # times the share of sentences that match no pattern of the kind
    "length": -0.1,  # for each word short of 22 or beyond 44
}
SHORTEST, LONGEST = 22, 44
MAX_FOREIGN = 4


def gold(
    prompts: Sequence[str], completions: Sequence[str], finished: Sequence[bool] | None = None, **_: object
) -> list[float]:
    """Return the gold preference of each response; perfect is 7.25, an empty response -2.2.

    Args:
        prompts: request texts of this task, one a response.
        completions: response texts without the stop token.
        finished: whether the stop token came; taken as true for all where it is not given.

    Raises:
        UserError: a prompt is no request of this task.
        ValueError: the lengths differ.
    """
    ended = [True] * len(completions) if finished is None else finished
    return [round(sum(gold_parts(p, c, f).values()), 6) for p, c, f in zip(prompts, completions, ended, strict=True)]


def gold_parts(prompt: str, completion: str, finished: bool = True) -> dict[str, float]:
    """Return the named terms of one response's gold; the names are those of ``WEIGHTS``, the sum is the gold."""
    kind, mood, asked = _parse(prompt)
    tokens = completion.split()
    sentences = split_sentences(completion)
    jobs = [job_of(s, kind) for s in sentences]
    moods = [j.removeprefix("mood/") for j in jobs if j.startswith("mood/")]
    known = [j for j in jobs if j]
    repeated_misfits = len(jobs) - len(known) - len({s for s, j in zip(sentences, jobs, strict=True) if not j})
    counts = {
        "nouns": len(asked & set(tokens)),
        "foreign": min(MAX_FOREIGN, len((NOUNS & set(tokens)) - asked)),
        "mood": mood in moods,
        "wrong_mood": sum(m != mood for m in moods),
        "polite": jobs[:1] == ["polite"],
        "rude": jobs.count("rude"),
        "closing": finished and jobs[-1:] == ["closing"] and jobs.count("closing") == 1,
        "doubled": len(known) - len(set(known)) + repeated_misfits,
        "misfit": jobs.count("") / max(1, len(jobs)),
        "length": max(0, SHORTEST - len(tokens), len(tokens) - LONGEST),
    }
    return {name: weight * counts[name] + 0.0 for name, weight in WEIGHTS.items()}  # + 0.0: never "-0.0"


def split_sentences(text: str) -> list[str]:
    """Return the sentences of a text, each with its full stop; words after the last one are a sentence of their own."""
    sentences: list[list[str]] = [[]]
    for token in text.split():
        sentences[-1].append(token)
        if token == ".":
            sentences.append([])
    return [" ".join(sentence) for sentence in sentences if sentence]


@lru_cache(maxsize=1 << 16)
def job_of(sentence: str, kind: str) -> str:
    """Return what a sentence does in a text of this kind ("opening", "mood/sad", ...); "" where nothing matches."""
    return next((job for job, pattern in _patterns(kind) if pattern.fullmatch(sentence)), "")


@cache
def _patterns(kind: str) -> tuple[tuple[str, re.Pattern[str]], ...]:
    choices: dict[str, Sequence[str]] = {
        "polite": words.POLITE,
        "rude": words.RUDE,
        "opening": words.OPENINGS[kind],
        "going": words.GOINGS[kind],
        "filler": words.FILLERS[kind],
        "closing": (words.CLOSINGS[kind],),
        **{f"mood/{m}": words.MOOD_SENTENCES[m] for m in words.MOODS[kind]},
    }
    return tuple((job, _pattern(t, kind)) for job, templates in choices.items() for t in templates)


def _pattern(template: str, kind: str) -> re.Pattern[str]:
    """Compile a sentence pattern: a slot takes any noun of its sort, whether asked for or not."""
    sorts = {"{first}": words.FIRSTS[kind], "{object}": words.OBJECTS, "{place}": words.PLACES}
    optional = {"[adjective]": words.ADJECTIVES, "[quality]": words.QUALITIES}
    out = ""
    for word in template.split():
        if word in optional:
            out += f"(?:(?:{'|'.join(optional[word])}) )?"
        else:
            out += (f"(?:{'|'.join(sorts[word])})" if word in sorts else re.escape(word)) + " "
    return re.compile(out.removesuffix(" "))


@lru_cache(maxsize=1 << 14)
def _parse(prompt: str) -> tuple[str, str, frozenset[str]]:
    """Return kind, mood and nouns of a request, wherever its text stands in the prompt."""
    tokens = prompt.split()
    kind = next((t for t in tokens if t in KINDS), "")
    mood = next((t for t in tokens if t in words.MOODS.get(kind, ())), "")
    asked = frozenset(tokens) & NOUNS
    if not kind or not mood or len(asked) != len(SLOTS):
        raise UserError(
            f"gold of the demo task: {prompt[:80]!r} is no request of this task; use it with the built-in prompts "
            "('demo-task'), or name your own gold function"
        )
    return kind, mood, asked


# ---- records ---------------------------------------------------------------------------------------------------------


def _rng(part: str, seed: int) -> random.Random:
    return random.Random(f"{SOURCE}/{part}/{seed}")


def _take(rows: int, rng: random.Random) -> list[Request]:
    total = sum(len(combinations(kind)) * len(words.MOODS[kind]) for kind in KINDS)
    if not 0 <= rows <= total:
        raise UserError(f"the demo task has {total} requests, {rows} rows were asked for: ask for 0 to {total}")
    return list(islice(all_requests(rng), rows))


def _prompt(request: Request) -> Prompt:
    message = Message(role="user", content=request.text)
    return Prompt(messages=(message,), group=request.group, source=SOURCE, category=request.category)


def prompts(rows: int, seed: int) -> list[Prompt]:
    """Return unique requests (at most 2,880); ``category`` is kind and mood, ``group`` the combination of nouns."""
    return [_prompt(r) for r in _take(rows, _rng("prompts", seed))]


def demonstrations(rows: int, seed: int) -> list[Demonstration]:
    """Return unique requests with responses of mixed quality, all finished."""
    rng = _rng("answers", seed)
    requests = _take(rows, _rng("demonstrations", seed))
    return [Demonstration(prompt=_prompt(r), answer=write_answer(r, rng, MIXED)) for r in requests]


def documents(rows: int, seed: int) -> list[Document]:
    """Return pretraining text; a document that names a combination has it as its group, else a hash of its text."""
    rng = _rng("documents", seed)
    written = [write_document(rng, LESSON if i < LESSON_ROWS else DOCUMENTS) for i in range(rows)]
    return [Document(text=text, group=group or group_of((), (text,)), source=SOURCE) for text, group in written]


@cache
def vocabulary() -> tuple[str, ...]:
    """Return every word and mark that the generators can write, sorted; special tokens are not among them."""
    found: set[str] = set()

    def collect(value: object) -> None:
        if isinstance(value, str):
            found.update(t for t in value.split() if t[0] not in "{[")
        elif isinstance(value, Mapping):
            collect(tuple(value.values()))
        elif isinstance(value, tuple):
            for item in value:
                collect(item)

    for name, value in vars(words).items():
        if name.isupper():
            collect(value)
    return tuple(sorted(found))
