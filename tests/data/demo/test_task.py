"""The demo task: hand-worked gold, no edit beats a perfect answer, closed vocabulary, and no combination leaks."""

from __future__ import annotations

import random
import statistics
from collections import Counter
from itertools import islice, pairwise

import pytest

from data.common.errors import UserError
from data.demo import words
from data.demo.task import (
    NOUNS,
    WEIGHTS,
    demonstrations,
    documents,
    gold,
    gold_parts,
    job_of,
    prompts,
    split_sentences,
    vocabulary,
)
from data.demo.text import KINDS, LESSON_ROWS, PERFECT, all_requests, combinations, write_answer

TOP = 7.25  # 3 nouns, mood 1.5, polite 1.25, closing 1.5
STORY = "please write a happy story with a fox , a drum and the cave ."
LETTER = "help me with a sorry letter to the queen about a drum and the cave ."
OPENER, OPENING, GOING = "sure , here it is .", "once a small fox had a drum .", "the fox took it to the cave ."
HAPPY, CLOSING = "they sang with joy until morning .", "and so the story ends ."
BEST = [OPENER, OPENING, GOING, HAPPY, CLOSING]  # 6 + 8 + 8 + 7 + 6 = 35 words


def value(*sentences: str, prompt: str = STORY, finished: bool = True) -> float:
    return gold([prompt], [" ".join(sentences)], finished=[finished])[0]


def test_perfect_answers() -> None:
    assert value(*BEST) == pytest.approx(TOP)
    assert value(*BEST[:3], "the wind was soft .", *BEST[3:]) == pytest.approx(TOP)
    letter = (
        "gladly , just for you .",
        "dear queen , you gave me a red drum .",
        "i took it to the cave .",
        "please forgive me for my mistake .",
        "with best wishes , your friend .",
    )
    assert value(*letter, prompt=LETTER) == pytest.approx(TOP)


@pytest.mark.parametrize(
    ("sentences", "expected"),
    [
        # opener: rude instead of polite loses 1.25 + 1.25; rude after polite 1.25; polite at the end is no opener and
        # takes the closing's place
        (["what a silly request .", *BEST[1:]], TOP - 1.25 - 1.25),
        ([OPENER, "what a silly request .", *BEST[1:]], TOP - 1.25),
        ([*BEST[1:], OPENER], TOP - 1.25 - 1.5),
        # a second opener is doubled (and 5 + 35 = 40 words are not too long)
        ([OPENER, "what a lovely request .", *BEST[1:]], TOP - 1),
        # the place never named; and another place named instead
        ([OPENER, OPENING, HAPPY, "the wind was soft .", CLOSING], TOP - 1),
        ([OPENER, OPENING, "the fox took it to the lake .", HAPPY, CLOSING], TOP - 1 - 0.5),
        # wrong mood loses 1.5 + 0.75, a second mood 0.75, the right mood twice 1
        ([OPENER, OPENING, GOING, "the fox shook with fear .", CLOSING], TOP - 1.5 - 0.75),
        ([OPENER, OPENING, GOING, HAPPY, "the fox shook with fear .", CLOSING], TOP - 0.75),
        ([OPENER, OPENING, GOING, HAPPY, "it was the best day of all .", CLOSING], TOP - 1),
        # two closings in a row lose the closing's credit and count as doubled; so does one in the middle
        ([*BEST, CLOSING], TOP - 1.5 - 1),
        ([OPENER, OPENING, GOING, CLOSING, HAPPY, CLOSING], TOP - 1.5 - 1),
        # a repeated sentence; a closing of the other kind (misfit 1 of 5 sentences)
        ([OPENER, OPENING, GOING, GOING, HAPPY, CLOSING], TOP - 1),
        ([*BEST[:4], "with best wishes , your friend ."], TOP - 1.5 - 3 / 5),
        # cut: after the second sentence (14 words, 8 short); within a sentence (24 words, 1 of 4 a misfit)
        ([OPENER, OPENING], 2.0 + 1.25 - 0.8),
        ([OPENER, OPENING, GOING, "they sang"], 3.0 + 1.25 - 3 / 4),
        # empty; four foreign nouns at most, listed in one misfit of 7 words, 15 short
        ([], -2.2),
        (["bear snake lamp lake market queen ."], -0.5 * 4 - 3 - 1.5),
        # the requested nouns alone: a misfit each, and the second list repeats the first
        (["fox drum cave .", "fox drum cave ."], 3.0 - 3 - 1 - 1.4),
    ],
)
def test_hand_worked_gold(sentences: list[str], expected: float) -> None:
    assert value(*sentences) == pytest.approx(expected)


def test_gold_needs_the_stop_token_for_the_closing_and_counts_words_beyond_44() -> None:
    assert value(*BEST, finished=False) == pytest.approx(TOP - 1.5)
    assert value(*BEST[1:], finished=False) == pytest.approx(TOP - 1.5 - 1.25)
    long = [*BEST[:4], " ".join(["and"] * 15) + " .", CLOSING]  # 51 words, one misfit of six sentences
    assert value(*long) == pytest.approx(TOP - 3 / 6 - 0.7)
    assert gold([STORY], [" ".join(BEST)]) == gold([STORY], [" ".join(BEST)], None, categories=["story/happy"])


def test_named_parts_sum_to_the_gold_and_the_rendered_prompt_judges_alike() -> None:
    text = " ".join([OPENER, OPENING, "the fox took it to the lake .", "the fox shook with fear ."])
    parts = gold_parts(STORY, text)
    assert parts == dict.fromkeys(WEIGHTS, 0.0) | {
        "nouns": 2.0,
        "foreign": -0.5,
        "wrong_mood": -0.75,
        "polite": 1.25,
    }
    assert gold([f"user : {STORY}\nassistant :"], [text]) == [pytest.approx(sum(parts.values()))]


def test_a_foreign_prompt_is_refused_by_name() -> None:
    with pytest.raises(UserError, match="what is the weather"):
        gold(["what is the weather ?"], [""])


def test_no_edit_of_a_perfect_answer_raises_gold() -> None:
    sentences = {
        s
        for kind in KINDS
        for request in islice(all_requests(random.Random(kind)), 12)
        for seed in range(4)
        for s in split_sentences(write_answer(request, random.Random(seed)))
    } | {*words.RUDE, *words.POLITE, "fox drum cave .", "user : and"}
    for n in range(len(BEST)):
        assert value(*BEST[:n], *BEST[n + 1 :]) < TOP, "dropped"
        for m in range(len(BEST)):
            rest = BEST[:n] + BEST[n + 1 :]
            assert value(*rest[:m], BEST[n], *rest[m:]) <= TOP + 1e-9, "moved"
            assert value(*BEST[:m], BEST[n], *BEST[m:]) < TOP, "doubled"
        for extra in sentences:
            assert value(*BEST[:n], extra, *BEST[n:]) <= TOP + 1e-9, f"added {extra}"
            assert value(*BEST[:n], extra, *BEST[n + 1 :]) <= TOP + 1e-9, f"replaced by {extra}"


def test_generated_perfect_answers_are_worth_the_maximum() -> None:
    rng = random.Random(0)
    requests = list(islice(all_requests(rng), 1500))
    answers = [write_answer(r, rng, PERFECT) for r in requests]
    assert set(gold([r.text for r in requests], answers)) == {TOP}
    assert max(len(a.split()) for a in answers) <= 44


def test_same_seed_same_records_other_seed_other_records() -> None:
    for make in (documents, demonstrations, prompts):
        assert make(60, 3) == make(60, 3)
        assert make(60, 3)[:20] == make(20, 3)
        assert make(60, 3) != make(60, 4)


def test_vocabulary_is_closed_small_and_wholly_known_from_pretraining() -> None:
    known = set(vocabulary())
    pretraining = {t for d in documents(LESSON_ROWS + 4000, 0) for t in d.text.split()}
    tuning = {t for d in demonstrations(1500, 0) for t in (d.prompt.text + " " + d.answer).split()}
    assert len(known) <= 260
    assert pretraining == known
    assert tuning <= known
    assert {"user", "assistant", ":"} <= known
    assert all(word[0] not in "aeiou" for word in words.ADJECTIVES + words.QUALITIES + words.ANIMALS + words.OBJECTS)


def test_demonstrations_are_grammatical_and_of_middling_quality() -> None:
    rows = demonstrations(1500, 0)
    for row in rows:
        kind = row.prompt.category.split("/")[0]
        assert all(job_of(s, kind) for s in split_sentences(row.answer)), row.answer
    assert all(row.finished for row in rows)
    scores = gold([r.prompt.text for r in rows], [r.answer for r in rows])
    assert 2.2 < statistics.mean(scores) < 3.4
    assert 1.8 < statistics.pstdev(scores) < 3.0
    assert sum(s == TOP for s in scores) < 0.04 * len(scores)


def test_categories_are_balanced_and_requests_unique() -> None:
    rows = prompts(1800, 1)
    counts = Counter(p.category for p in rows)
    assert {c: counts[f"story/{c}"] for c in words.MOODS["story"]}.keys() == {"happy", "sad", "scary"}
    assert all(330 < counts[f"story/{c}"] < 470 for c in words.MOODS["story"])
    assert all(150 < counts[f"letter/{c}"] < 250 for c in words.MOODS["letter"])
    assert len({(p.group, p.category) for p in rows}) == 1800
    assert all(set(p.group.split("|")) <= set(p.text.split()) for p in rows)


def test_all_requests_can_be_asked_for_and_one_more_cannot() -> None:
    assert len({p.group for p in prompts(2880, 0)}) == 960 == sum(len(combinations(k)) for k in KINDS)
    with pytest.raises(UserError, match="2880"):
        prompts(2881, 0)


def test_a_document_names_no_combination_but_its_group() -> None:
    for document in documents(8000, 0):
        tokens = set(document.text.split())
        named = {
            f"{f}|{o}|{p}"
            for f in tokens & set(words.ANIMALS + words.PERSONS)
            for o in tokens & set(words.OBJECTS)
            for p in tokens & set(words.PLACES)
        }
        assert named <= {document.group}, document.text


def test_the_first_documents_are_checks_of_words_against_a_list() -> None:
    rows = documents(LESSON_ROWS + 200, 0)
    for document in rows[:LESSON_ROWS:50]:
        asked, _, said = document.text.partition("\nassistant : ")
        words_of_it = said.split()
        assert len(words_of_it) == 48
        for noun, verdict in zip(words_of_it[::2], words_of_it[1::2], strict=True):
            assert verdict == ("yes" if noun in asked.split() else "no")
    assert sum("please check" in d.text for d in rows[LESSON_ROWS:]) < 80


def test_checked_sentences_say_after_each_noun_whether_it_was_asked_for() -> None:
    seen: Counter[str] = Counter()
    for document in documents(LESSON_ROWS + 1500, 0)[LESSON_ROWS:]:
        asked, _, said = document.text.partition("\nassistant : ")
        if asked.startswith("user : please check a text with"):
            for noun, verdict in pairwise(said.split()):
                if noun in NOUNS:
                    seen[verdict] += 1
                    assert verdict == ("yes" if noun in asked.split() else "no")
    assert min(seen["yes"], seen["no"]) > 100 and set(seen) == {"yes", "no"}


def test_documents_hold_dialogues_but_never_a_request() -> None:
    rows = documents(LESSON_ROWS + 3000, 0)[LESSON_ROWS:]
    dialogues = [d.text for d in rows if "user : " in d.text]
    assert 0.2 < len(dialogues) / len(rows) < 0.5
    assert all("\nassistant : " in text for text in dialogues)
    for kind in KINDS:
        for mood in words.MOODS[kind]:
            assert not any(f"{mood} {kind}" in d.text for d in rows)


def test_request_shows_its_nouns_and_mood_at_fixed_places_from_the_end() -> None:
    for request in islice(all_requests(random.Random(5)), 300):
        tokens = request.text.split()
        where = [tokens[::-1].index(w) for w in (request.mood, request.first, request.object, request.place)]
        assert where == [11, 7, 4, 1]


def test_a_document_that_names_a_mood_in_its_title_keeps_to_it() -> None:
    """Where the base learns what a mood asks for: requests with answers come only with the demonstrations."""
    moods = {mood: kind for kind in KINDS for mood in words.MOODS[kind]}
    told: Counter[str] = Counter()
    for document in documents(LESSON_ROWS + 2000, 0)[LESSON_ROWS:]:
        mood, comma, text = document.text.partition(" , ")
        if comma and mood in moods:
            found = {job_of(s, moods[mood]) for s in split_sentences(text)}
            told[mood] += 1
            assert {j for j in found if j.startswith("mood/")} == {f"mood/{mood}"}, document.text
    assert set(told) == set(moods)
    assert min(told.values()) > 50
