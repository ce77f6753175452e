"""What nearly fits a row that no format reads: the two nearest formats and the line that makes each fit.

Columns are matched by the names that people give them, in several languages, and otherwise by their order; a
suggestion is made only if the row can be read with it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from difflib import SequenceMatcher
from functools import lru_cache
from typing import Any

from data.formats.columns import PICTURES, is_metadata, plain
from data.formats.nested import paths_of
from data.formats.reading import read, under_our_names
from data.formats.rows import Near, Reject
from data.formats.turns import CONTENT_KEYS, SYSTEM
from data.formats.values import blank

ALSO = {
    "prompt": "inputs question query problem instruction input ask user human request post key title source_text "
    "utterance message context text source frage eingabe anweisung pregunta consulta instrucción entrada pergunta "
    "domanda istruzione instrução demande 问题 指令 提问 输入 質問 問題 질문 вопрос запрос سؤال प्रश्न",
    "completion": "targets solution answer response output reply assistant bot target value summary explanation result "
    "label gold reference ground_truth answer_text content attempt antwort ausgabe respuesta salida resposta saída "
    "risposta réponse reponse sortie 回答 答案 输出 回复 出力 답변 대답 ответ إجابة उत्तर",
    "chosen": "better preferred winner win good positive accepted best selected response_chosen chosen_answer "
    "pos_resp positive_response good_response",
    "rejected": "worse dispreferred loser lose bad negative declined worst other response_rejected rejected_answer "
    "neg_resp negative_response bad_response",
    "responses": "completions answers outputs candidates generations samples replies ranked ranking results",
    "messages": "conversations conversation dialogue dialog chat turns history thread",
    "text": "content body document article story passage raw page sentence description",
    "label": "thumb thumbs vote feedback rating approved accepted is_good helpful useful liked upvoted correct",
    "ranks": "ranking rank order",
    "scores": "ratings rewards grades judgements annotations",
    "best_index": "best best_response best_answer chosen selected preferred winner",
    "preference": "preferred winner better choice verdict vote label result answer selected best",
    "score": "rating reward quality overall grade stars likert points note bewertung puntuación 评分 分数 得分",
}
"""Names that people give to our columns, the likeliest first."""

TARGETS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("two sides", ("preference",)),
    ("prompt and completion", ("prompt", "completion")),
    ("preference", ("prompt", "chosen", "rejected")),
    ("responses and the best", ("prompt", "responses", "best_index")),
    ("ranked answers", ("prompt", "responses", "ranks")),
    ("ranked answers", ("prompt", "responses", "scores")),
    ("ranked answers", ("prompt", "responses")),
    ("messages", ("messages",)),
    ("scored completions", ("prompt", "completion", "score")),
    ("thumbs", ("prompt", "completion", "label")),
    ("prompts", ("prompt",)),
    ("text", ("text",)),
)
WIDEST = 60
"""Columns of a row that are compared."""

SHOWN = 2
FEW = 2
"""Columns of a format up to which they may be taken by their order, where the row has at most one text more."""

DISTANT = 1000
"""From here on it is an outer name of a path that is alike, and the value must look like a text."""

ALIKE = 0.8
"""How alike two names are, of 1, that are taken for one with a slip."""


def near_fits(given: Mapping[str, Any], known: Collection[str] = (), targets: Collection[str] = ()) -> tuple[Near, ...]:
    """The two formats that come nearest, with what makes each fit; fewer where nothing does.

    Args:
        given: a row by our names.
        known: columns that somebody else reads.
        targets: the formats to choose from; all where none is named.
    """
    if len(given) > WIDEST:
        return ()
    found = _near(given, given, known, targets)
    if found and not any(isinstance(given.get(name), Mapping | list) for name in found[0].ignore):
        return found
    return near_inside(given, known, targets) or found


def near_inside(
    given: Mapping[str, Any], known: Collection[str] = (), targets: Collection[str] = ()
) -> tuple[Near, ...]:
    """As ``near_fits``, with what stands inside the row's objects; only those that need it."""
    inside = paths_of(given)
    if not inside or len(inside) > WIDEST:
        return ()
    found = _near(given, {**given, **inside}, known, targets or tuple(name for name, _ in TARGETS if name != "text"))
    return tuple(one for one in found if any("." in their for their in one.columns.values()))


def _near(
    row: Mapping[str, Any], given: Mapping[str, Any], known: Collection[str], targets: Collection[str]
) -> tuple[Near, ...]:
    """The nearest formats of a row, with its columns and what is inside them by name."""
    texts = [
        k
        for k, v in given.items()
        if not blank(v) and not isinstance(v, bool | int | float) and str(k).lower() not in PICTURES
    ]
    texts = [k for k in texts if plain(str(k)) not in INSTRUCTS] or texts
    main = [k for k in texts if not is_metadata(str(k))] or texts
    ranked = []
    for order, (name, slots) in enumerate(TARGETS):
        if targets and name not in targets:
            continue
        for found, points in _mappings(given, main, slots):
            fitted = _fitted(row, name, slots, found, known)
            if fitted is not None:
                ranked.append((points - 2 * len(fitted.ignore), -order, fitted))
                break
    ranked.sort(key=lambda one: one[:2], reverse=True)
    return tuple(one for _, _, one in ranked[:SHOWN])


INSTRUCTS = frozenset({*SYSTEM, "meta_instruction", "system_instruction"})
"""Columns that are neither asked nor answered where there are others."""


def _mappings(
    given: Mapping[str, Any], texts: list[str], slots: tuple[str, ...]
) -> Iterable[tuple[dict[str, str], float]]:
    """Ways to fill a format's columns, the likeliest first, with how likely each is."""
    inside = [text for text in texts if "." in str(text)]
    nested = bool(inside) and (len(inside) != FEW or any(isinstance(given[t], str) for t in texts if t not in inside))
    for by_order in (False, True) if len(slots) <= FEW and len(texts) <= FEW + 1 and not nested else (False,):
        found: dict[str, str] = {}
        points = 0.0
        for slot in slots:
            if slot in given and not blank(given[slot]):
                points += 3
                continue
            taken = {*found.values(), *slots}
            free = [t for t in _candidates(given, texts, slot) if t not in taken and _may_be(slot, given[t])]
            named = sorted((place, t) for t in free if (place := _likeness(slot, str(t))) is not None)
            named = [(place, t) for place, t in named if place < DISTANT or _wordy(given[t]) or _is_content(t)]
            if slot == "preference" and free:
                first = [t for _, t in named] + [t for t in free if t not in {t for _, t in named}]
                yield from (({slot: t}, 5.0) for t in first)  # two columns of responses stand there, or none of it fits
                return
            if named:
                found[slot] = named[0][1]
                points += 2
            elif by_order and slot in _BY_ORDER and (free := [t for t in free if _BY_ORDER[slot] or _wordy(given[t])]):
                found[slot] = free[0]
            else:
                break
        else:
            if found:
                yield found, points


_BY_ORDER = {"prompt": False, "completion": True, "text": False, "messages": True}
"""Columns that may be found by their order alone, and whether their value may be a single word."""


def _candidates(given: Mapping[str, Any], texts: list[str], slot: str) -> Iterator[str]:
    """Columns that may stand for ours: texts, and numbers where ours is a judgement."""
    yield from texts
    if slot in ("label", "preference", "score", "best_index"):
        yield from (k for k in given if k not in texts and not is_metadata(str(k)))


def _is_content(path: str) -> bool:
    """Whether a path ends where texts stand."""
    return path.rpartition(".")[2] in CONTENT_KEYS


def _wordy(value: Any) -> bool:
    """Whether a value says something: words, or letters that are not written apart."""
    return not isinstance(value, str) or " " in value.strip() or not value.isascii()


@lru_cache(maxsize=4096)
def _likeness(slot: str, name: str) -> int | None:
    """How early a name stands among the slot's other names; those that hold one come behind, and last a slip."""
    names = [slot, *ALSO[slot].split()]
    if "." in name and " " not in name:
        return _path_likeness(slot, name.split("."))
    low = plain(name)
    if low in names:
        return names.index(low)
    inside = next((100 + i for i, n in enumerate(names) if len(n) > 3 and n in low), None)
    if inside is not None:
        return inside
    return next((200 + i for i, n in enumerate(names[:2]) if SequenceMatcher(None, n, low).ratio() >= ALIKE), None)


def _path_likeness(slot: str, steps: list[str]) -> int | None:
    """By the last name in a path, or one before; None where one says that it is the other side's."""
    other = {"prompt": "completion", "completion": "prompt"}.get(slot)
    steps = [step for step in steps if not step.isdigit()]
    if other and any(step in ALSO[other].split() for step in steps[:-1]):
        return None
    places = [(_likeness(slot, step), DISTANT * back) for back, step in enumerate(reversed(steps))]
    return min((place + back for place, back in places if place is not None), default=None)


def _may_be(slot: str, value: Any) -> bool:
    if slot == "messages":
        return isinstance(value, list) and bool(value) and isinstance(value[0], Mapping)
    if slot in ("ranks", "scores"):
        return isinstance(value, list) and all(isinstance(one, int | float | str) for one in value)
    if slot == "responses":
        return isinstance(value, list) and len(value) > 1
    if slot == "label":
        return isinstance(value, bool | int | str)
    if slot == "score":
        return isinstance(value, int | float | str) and not isinstance(value, bool)
    if slot == "best_index":
        return isinstance(value, int) and not isinstance(value, bool)
    if slot == "preference":
        return isinstance(value, int | str) and len(str(value)) <= LONGEST_VERDICT
    turns = isinstance(value, list) and bool(value) and isinstance(value[0], Mapping)
    turns = turns or (isinstance(value, Mapping) and "role" in value)
    return isinstance(value, str) or (turns and slot != "text")


LONGEST_VERDICT = 40


def _needed(
    given: Mapping[str, Any], name: str, columns: Mapping[str, str], ignore: tuple[str, ...], known: Collection[str]
) -> Mapping[str, str]:
    """Those of the columns without which the row is read otherwise."""
    for our in list(columns):
        fewer = {key: their for key, their in columns.items() if key != our}
        try:
            found, rows, lost = read(under_our_names(given, fewer, ignore), known=known)
        except Reject:
            continue
        if fewer and found == name and rows and not lost:
            columns = fewer
    return columns


def _fitted(
    given: Mapping[str, Any], name: str, slots: tuple[str, ...], columns: Mapping[str, str], known: Collection[str]
) -> Near | None:
    """The suggestion if the row can be read with it, other columns ignored where they must be."""
    ignore: tuple[str, ...] = ()
    for _ in range(2):
        try:
            found, rows, lost = read(under_our_names(given, columns, ignore), known=known)
        except Reject:
            return None
        if not rows or (found != name and not (name == "thumbs" and rows[0].judged == "label")):
            return None
        if not lost:
            columns = _needed(given, found, columns, ignore, known)
            extra = tuple(str(k) for k in given if k not in slots and not is_metadata(str(k)))
            missing = tuple(slot for slot in slots if slot in columns)
            return Near(format=name, missing=missing, extra=extra, columns=columns, ignore=ignore)
        ignore = tuple(map(str, lost))
    return None
