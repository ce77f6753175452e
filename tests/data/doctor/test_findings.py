"""Doubtful data is found: rankings that contradict, near duplicates, and leaks into what is held out."""

from __future__ import annotations

import json

from data.doctor.corpus import corpus_findings
from data.doctor.duplicates import near_duplicates
from data.doctor.rankings import preference_for_length, ranking_findings
from data.records import Message, RankedAnswers
from data.records import Prompt as Asked
from data.source_settings import DataConfig
from data.splits import load_corpus


def ranking(place: str, *answers: str, prompt: str = "q") -> RankedAnswers:
    asked = Asked(messages=(Message(role="user", content=prompt),), group=prompt, source=place)
    return RankedAnswers(prompt=asked, answers=answers, ranks=tuple(range(len(answers))))


def kinds(*rankings: RankedAnswers) -> list[tuple[str, str]]:
    return [(f.kind, f.place) for f in ranking_findings(rankings)]


def test_each_kind_of_doubtful_ranking_is_named_at_its_place():
    assert kinds(ranking("1", "a", "b"), ranking("2", "b", "c")) == []
    assert kinds(ranking("1", "a", " ")) == [("empty response", "1")]
    assert kinds(ranking("1", "a b", "a  B")) == [("equal responses", "1")]
    assert kinds(ranking("1", "a", "b"), ranking("2", "b", "a")) == [("contradiction", "2")]
    assert kinds(ranking("1", "a", "b"), ranking("2", "b", "a", prompt="other")) == []
    circle = kinds(ranking("1", "a", "b"), ranking("2", "b", "c"), ranking("3", "c", "a"))
    assert [kind for kind, _ in circle] == ["circle"]


def test_preference_for_length_is_the_share_of_pairs():
    assert preference_for_length([ranking("1", "aaa", "b"), ranking("2", "a", "bb"), ranking("3", "aa", "b")]) == 2 / 3
    assert preference_for_length([ranking("1", "a", "b")]) is None


def test_near_duplicates_differ_in_punctuation_or_a_few_characters():
    long = "the quick brown fox jumps over the lazy dog near the old river bank"
    texts = [("1", long), ("2", long + "!"), ("3", long.replace("lazy", "crazy")), ("4", "something else entirely")]
    assert list(near_duplicates(texts)) == [("2", "1"), ("3", "1")]
    assert list(near_duplicates([("a", "水是什么？")], [("b", "水是什么")])) == [("a", "b")]
    assert list(near_duplicates([("a", "x y"), ("b", "x y")], [("c", "something else")])) == []


def test_held_out_prompts_that_are_nearly_in_training_are_told(tmp_path):
    asked = [f"What is the name of the {i * 7919} th thing in the list number {i}" for i in range(40)]
    rows = [{"prompt": p + end, "completion": "a"} for p in asked for end in ("", "!")]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    found = load_corpus(DataConfig(demonstrations="a.jsonl", held_out=0.3), seed=0, base_dir=tmp_path)
    assert any("held-out prompts are nearly one of training" in text for text in corpus_findings(found))
    whole = load_corpus(DataConfig(demonstrations="a.jsonl", held_out=0.0), seed=0, base_dir=tmp_path)
    assert corpus_findings(whole) == ["no prompt is held out: raise data.held_out, or evaluation has nothing to ask"]
