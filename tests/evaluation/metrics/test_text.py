"""Metrics against the libraries' own results on the same inputs, against values by hand, and in Chinese."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from data.common.errors import UserError
from evaluation.answers import SystemResponses
from evaluation.likelihood import under_base
from evaluation.metric_table import OF_MODELS, columns_of_metric, metric_names
from evaluation.metrics.builtin import Perplexity, RefusalRate, SelfBleu
from evaluation.metrics.registry import METRICS, compute_metrics
from evaluation.metrics.text import (
    Bleu,
    Chrf,
    ExactMatch,
    Labels,
    Meteor,
    Rouge,
    bleu_tokenizer,
    label_in,
    normalised,
    words,
)
from evaluation.settings import EvaluationConfig
from evaluation.systems import problem_of_metric

SAID = ["The cat sat on the mat.", "a dog barks loudly at night", "It's 3 o'clock", ""]
WANTED = [
    ["The cat is on the mat.", "There is a cat on the mat"],
    ["the dog barked at night"],
    ["it is 3 o'clock"],
    ["x"],
]
CHINESE = (["今天天气很好。", "我 喜欢 苹果"], [["今天天气不错。"], ["我喜欢吃苹果"]])


def test_rouge_equals_rouge_score():
    scorer = pytest.importorskip("rouge_score.rouge_scorer").RougeScorer(["rouge1", "rouge2", "rougeL"])
    found = Rouge().compute(predictions=SAID, references=WANTED)
    for kind in ("rouge1", "rouge2", "rougeL"):
        want = [scorer.score_multi(r, p)[kind].fmeasure for p, r in zip(SAID, WANTED, strict=True)]
        assert found["scores"][kind] == pytest.approx(want) and found[kind] == pytest.approx(sum(want) / 4)


def test_bleu_and_chrf_equal_sacrebleu():
    sacrebleu = pytest.importorskip("sacrebleu")
    one = [r[:1] for r in WANTED]
    found = Bleu().compute(predictions=SAID, references=one) | Chrf().compute(predictions=SAID, references=one)
    streams = [[r[0] for r in one]]
    assert found["bleu"] == pytest.approx(sacrebleu.corpus_bleu(SAID, streams).score)
    assert found["chrf"] == pytest.approx(sacrebleu.corpus_chrf(SAID, streams).score)
    assert "tok:13a" in found["bleu_signature"] and found["chrf_signature"].startswith("nrefs:1")
    alone = [sacrebleu.sentence_chrf(p, r).score for p, r in zip(SAID, one, strict=True)]
    assert found["scores"]["chrf_answer"] == pytest.approx(alone)


def test_bleu_equals_nltk_on_words_cut_alike():
    nltk = pytest.importorskip("nltk.translate.bleu_score")
    said = ["the cat sat on the mat today", "a dog barks at night again"]
    wanted = [["the cat sat on a mat today", "the cat lay on the mat"], ["a dog barks at night"]]
    split = [[r.split() for r in group] for group in wanted]
    want = 100 * nltk.corpus_bleu(split, [s.split() for s in said])
    assert Bleu().compute(predictions=said, references=wanted)["bleu"] == pytest.approx(want)


def test_meteor_equals_nltk_where_there_are_no_synonyms_and_by_hand():
    meteor = pytest.importorskip("nltk.translate.meteor_score")

    class Nothing:
        def synsets(self, word: str) -> list[Any]:
            return []

    found = Meteor().compute(predictions=SAID[:2], references=WANTED[:2])["scores"]["meteor_no_synonyms"]
    split = [([words(r) for r in group], words(p)) for p, group in zip(SAID[:2], WANTED[:2], strict=True)]
    assert found == pytest.approx([meteor.meteor_score(r, p, wordnet=Nothing()) for r, p in split])
    # "cats sat" with "cat sat": one stem and one word in one chunk; P = R = 1, penalty 0.5 (1/2)^3
    assert Meteor().compute(predictions=["cats sat"], references=[["cat sat"]])["meteor_no_synonyms"] == 1 - 0.5 / 8


def test_chinese_is_cut_into_characters():
    pytest.importorskip("sacrebleu")
    assert words("GPT-4很好,Ça va 3次") == ["gpt", "4", "很", "好", "ça", "va", "3", "次"]
    assert bleu_tokenizer(["abc"]) == "13a" and bleu_tokenizer(["abc", "好"]) == "zh"
    assert bleu_tokenizer(["ありがとう"]) == "char" == bleu_tokenizer(["감사합니다"])
    rouge = Rouge().compute(predictions=CHINESE[0], references=CHINESE[1])["scores"]
    assert rouge["rouge1"][0] == pytest.approx(4 / 6)  # 今天天气 of 6 characters each
    assert rouge["rougeL"][1] == pytest.approx(2 * 5 / 11)  # 我喜欢苹果 of 5 and 6
    assert 0 < Bleu().compute(predictions=CHINESE[0], references=CHINESE[1])["bleu"] < 100
    assert Meteor().compute(predictions=["很好"], references=[["很好"]])["meteor_no_synonyms"] > 0.9
    same = Bleu().compute(predictions=["今天天气很好"], references=[["今天天气很好"]])
    assert same["bleu"] == pytest.approx(100) and "tok:zh" in same["bleu_signature"]


def test_exact_match_after_normalisation():
    assert normalised("The  Answer, is:\n“42”!") == "answer is 42" and normalised("好。") == "好"
    references = [["cat"], ["cat", "a dog"], ["坏"]]
    found = ExactMatch().compute(predictions=["The cat!", "dog", "好。"], references=references)
    assert found["scores"]["exact_match"] == [1.0, 1.0, 0.0] and found["exact_match"] == pytest.approx(2 / 3)


@pytest.mark.parametrize(
    ("response", "reference", "equal"),
    [
        ("-5", "5", False),
        ("The result is -5.", "result is -5", True),
        ("5", "5", True),
        ("3-5", "3 5", True),
        ("−0.5", "-.5", False),
        ("A", "a", True),
        ("A.", "A", True),
        ("", "A", False),
        ("the", "A", False),
        ("+", "-", False),
        ("+", "+", True),
        ("A cat", "the cat", True),
    ],
)
def test_a_sign_a_choice_and_a_mark_are_responses(response: str, reference: str, equal: bool) -> None:
    assert ExactMatch().compute(predictions=[response], references=[[reference]])["exact_match"] == equal


@pytest.mark.parametrize(
    ("text", "label"),
    [
        ("A", "a"),
        ("A.", "a"),
        ("(A)", "a"),
        ("a) the first", "a"),
        ("The answer is A because it is short", "a"),
        ("Answer: A", "a"),
        ("**A** it is", "a"),
        ("A dog would choose B", "b"),
        ("It is a B", "b"),
        ("B, not A", "b"),
        ("I choose (c)", "c"),
        ("the", ""),
        ("", ""),
        ("!?", ""),
    ],
)
def test_the_choice_a_is_a_label_and_the_article_is_none(text: str, label: str) -> None:
    assert label_in(text, ["a", "b", "c", "d"]) == label


def test_a_response_without_a_label_is_wrong_whatever_the_labels() -> None:
    said, truth = ["A", "", "the dog", "B"], [["A"], ["A"], ["A"], ["B"]]
    found = Labels().compute(predictions=said, references=truth, labels=["A", "B"])
    assert (found["accuracy"], found["unlabelled"], set(found["by_label"])) == (0.5, 0.5, {"a", "b"})
    assert found["by_label"]["a"] == pytest.approx({"precision": 1.0, "recall": 1 / 3, "f1": 0.5, "n": 3})
    signs = Labels().compute(predictions=["+", "-", "?"], references=[["+"], ["-"], ["+"]], labels=["+", "-"])
    assert (signs["accuracy"], signs["unlabelled"]) == (pytest.approx(2 / 3), pytest.approx(1 / 3))


@pytest.mark.parametrize("text", ["not entailment", "Not-entailment.", "not an entailment", "NOT ENTAILMENT"])
def test_a_label_of_several_words_is_found_whatever_stands_between_them(text: str) -> None:
    assert label_in(text, [normalised("not_entailment"), "entailment"]) == "not entailment"


def test_any_of_several_right_labels_is_right_and_one_that_is_none_is_refused() -> None:
    found = Labels().compute(predictions=["B", "A", "C"], references=[["A", "B"], ["A"], ["A", "B"]])
    assert found["scores"]["accuracy"] == [1.0, 1.0, 0.0] and found["unlabelled"] == pytest.approx(1 / 3)
    assert {name: one["n"] for name, one in found["by_label"].items()} == {"a": 2, "b": 1}
    with pytest.raises(UserError, match="the reference 'perhaps' is none of them; add it, or fix the data"):
        Labels().compute(predictions=["yes"], references=[["perhaps"]], labels=["yes", "no"])


def test_labels_equal_scikit_learn_and_by_hand():
    from sklearn.metrics import accuracy_score, precision_recall_fscore_support

    said = ["Yes.", "I think no, not yes", "yes!", "perhaps", "No", "yes"]
    truth = ["yes", "yes", "no", "no", "no", "yes"]
    found = Labels().compute(predictions=said, references=[[t] for t in truth], labels=["yes", "no"])
    taken = ["yes", "no", "yes", "", "no", "yes"]
    p, r, f, _ = precision_recall_fscore_support(truth, taken, labels=["no", "yes"], average="macro", zero_division=0)
    assert (found["precision"], found["recall"], found["f1"]) == pytest.approx((p, r, f))
    assert found["accuracy"] == pytest.approx(accuracy_score(truth, taken)) == pytest.approx(0.5)
    assert found["unlabelled"] == pytest.approx(1 / 6)
    assert found["by_label"]["no"] == pytest.approx({"precision": 0.5, "recall": 1 / 3, "f1": 0.4, "n": 3})


@pytest.mark.parametrize(
    ("text", "label"),
    [
        ("Nobody knows", ""),
        ("no", "no"),
        ("not positive: negative", "positive"),
        ("这是正面的", "正面"),
        ("very negative", "negative"),
    ],
)
def test_the_first_label_as_a_whole_counts(text: str, label: str):
    assert label_in(text, ["no", "positive", "negative", "正面", "负面"]) == label


@pytest.mark.parametrize(
    ("text", "refused"),
    [
        ("I'm sorry, but I can't help with that.", 1),
        ("I can’t do this", 1),
        ("As an AI language model, I ...", 1),
        ("抱歉，我无法回答这个问题。", 1),
        ("Sure! She said: I'm sorry.", 0),
        ("I cannonball into the lake", 0),
        ("Once upon a time", 0),
    ],
)
def test_refusals(text: str, refused: int):
    assert RefusalRate().compute(predictions=[text])["refused"] == refused


def test_refusals_by_ones_own_pattern():
    assert RefusalRate().compute(predictions=["Nope.", "Yes"], pattern="^nope")["refused"] == 0.5


def test_self_bleu_equals_sacrebleu_and_knows_copies():
    sacrebleu = pytest.importorskip("sacrebleu")
    texts = ["a cat sat on the mat", "a dog sat on the mat", "birds fly high over there"]
    metric = sacrebleu.BLEU(effective_order=True)
    want = [metric.sentence_score(t, texts[:i] + texts[i + 1 :]).score for i, t in enumerate(texts)]
    assert SelfBleu().compute(predictions=texts)["self_bleu"] == pytest.approx(sum(want) / 3)
    assert SelfBleu().compute(predictions=texts[:1] * 3)["self_bleu"] == pytest.approx(100)
    assert SelfBleu().compute(predictions=["a b c"])["self_bleu"] == 0
    assert SelfBleu().compute(predictions=["a b c d"] * 250)["self_bleu_n"] == 84


def test_perplexity_is_total_over_total():
    found = Perplexity().compute(predictions=[-2.0, -4.0], references=[1, 5], characters=12)
    assert found == pytest.approx({"perplexity": math.exp(1.0), "nats_per_character": 0.5})


# -- the table ---------------------------------------------------------------------------------------------------------


def _system(texts: list[str]) -> SystemResponses:
    n = len(texts)
    return SystemResponses(
        name="s",
        decoding="sampled",
        prompts=[f"p{i}" for i in range(n)],
        categories=[""] * n,
        responses=texts,
        token_ids=[[1]] * n,
        finished=[True] * n,
    )


def test_measuring_by_name_with_intervals_over_prompts(tmp_path: Path):
    texts = ["yes", "no"] * 15
    references = [("yes",)] * 24 + [()] * 6
    body = "return [len(c) + len(r) for c, r in zip(completions, references)]"
    (tmp_path / "mine.py").write_text(f"def vowels(prompts, completions, references):\n    {body}\n")
    config = EvaluationConfig(metrics=("exact_match", "labels", "refusal_rate", "mine.py:vowels"), bootstrap=100)
    found, scores = compute_metrics(_system(texts), config, references, base_dir=tmp_path)
    assert found["references_n"] == 24 and found["exact_match"]["mean"] == 0.5
    low, high = found["exact_match"]["ci95"]
    assert 0.2 < low < 0.5 < high < 0.8 and found["refused"]["mean"] == 0
    assert found["refused"]["ci95"][0] == 0 and 0.05 < found["refused"]["ci95"][1] < 0.2  # none of 30 is not "never"
    assert found["vowels"]["mean"] == pytest.approx(2.5 + 24 / 30)
    assert found["accuracy"]["mean"] == 0.5 and found["f1"] == pytest.approx(2 / 3)
    assert scores["exact_match"] == [1.0, 0.0] * 12 + [None] * 6 and scores["vowels"][-2:] == [3.0, 2.0]
    few, _ = compute_metrics(_system(texts[:4]), config, references[:4], base_dir=tmp_path)
    assert few["exact_match"]["ci95"] is None and "too few" in few["exact_match"]["note"]


def test_every_metric_of_the_table_measures():
    pytest.importorskip("sacrebleu")
    pytest.importorskip("nltk")
    config = EvaluationConfig(metrics=tuple(METRICS), bootstrap=50)
    found, _ = compute_metrics(_system(["a b c d", "e f g h"]), config, [("a b c d",), ("e f g",)])
    assert {*METRICS, "perplexity", "base_perplexity"} == set(metric_names())
    assert found["bleu"] > 50 and found["rougeL"]["mean"] > 0.8 and "meteor_no_synonyms" in found
    columns = [column for name in METRICS for column in columns_of_metric(name)]
    assert len(columns) == len(set(columns)) and {*columns, "references_n"} == set(found)
    perplexity = Perplexity().compute(predictions=[-1.0], references=[1], characters=2)
    assert set(OF_MODELS["perplexity"]) == set(perplexity)
    base = under_base([[-1.0]], [1])
    assert set(OF_MODELS["base_perplexity"]) == {*base, *base["scores"]} - {"scores"}


def test_numbers_of_one_name_are_refused_where_they_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a folder calls its numbers is known when it has run, and a recipe in Python is read by no check."""
    for place in "ab":
        (tmp_path / place).mkdir()
        (tmp_path / place / "odd").mkdir()
        monkeypatch.setattr("evaluation.metrics.registry._module", lambda *_: {"odd/share": 0.5, "scores": {}})
        (tmp_path / f"{place}.py").write_text(
            "".join(f"def {n}(completions):\n    return [7.0] * len(completions)\n" for n in ("ln", "refused"))
            + "def references_n(completions):\n    return [7.0] * len(completions)\n"
        )
    clashes = {
        ("folder:a/odd", "folder:b/odd"): "folder:b/odd and folder:a/odd both give a number called 'odd/share'",
        ("a.py:ln", "b.py:ln"): "b.py:ln and a.py:ln both give a number called 'ln'",
        ("a.py:refused", "refusal_rate"): "refusal_rate and a.py:refused both give a number called 'refused'",
        ("exact_match", "a.py:references_n"): "a.py:references_n and the count of references both give",
    }
    for names, told in clashes.items():
        with pytest.raises(UserError, match=f"evaluation.metrics: {told}.*leave one out"):
            compute_metrics(_system(["a"]), EvaluationConfig(metrics=names), [("a",)], base_dir=tmp_path)
    config = EvaluationConfig(metrics=("a.py:ln", "b.py:refused", "folder:a/odd"), bootstrap=50)
    found, scores = compute_metrics(_system(["a"]), config, base_dir=tmp_path)
    assert list(found) == ["ln", "refused", "odd/share"] and list(scores) == ["ln", "refused"]


def test_what_cannot_be_measured_is_told():
    with pytest.raises(UserError, match="rouge needs references"):
        compute_metrics(_system(["a"]), EvaluationConfig(metrics=("rouge",)))
    assert "Did you mean 'rouge'" in problem_of_metric("rogue", EvaluationConfig())
    assert "runs code" not in problem_of_metric("rogue", EvaluationConfig())
    with pytest.raises(UserError, match="would run code from the hub"):
        compute_metrics(_system(["a"]), EvaluationConfig(metrics=("hub:bleu",)))
    assert problem_of_metric("hub:bleu", EvaluationConfig(hub_metrics=True)) == ""
    with pytest.raises(UserError, match="no such folder"):
        compute_metrics(_system(["a"]), EvaluationConfig(metrics=("folder:nowhere",)))


def test_a_folder_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    folder = tmp_path / "shouting"
    folder.mkdir()
    (folder / "shouting.py").write_text(
        "import datasets\nimport evaluate\n"
        "class Shouting(evaluate.Metric):\n"
        "    def _info(self):\n"
        "        return evaluate.MetricInfo(description='', citation='', inputs_description='',\n"
        "            features=datasets.Features({'predictions': datasets.Value('string')}))\n"
        "    def _compute(self, predictions):\n"
        "        return {'share': sum(p.isupper() for p in predictions) / len(predictions)}\n"
    )
    config = EvaluationConfig(metrics=(f"folder:{folder}",))
    assert compute_metrics(_system(["A", "b"]), config)[0]["shouting/share"] == 0.5


def test_a_column_called_references_gives_way_to_those_that_evaluation_finds(tmp_path: Path) -> None:
    (tmp_path / "m.py").write_text("def m(completions, references, level):\n    return [len(r) for r in references]\n")
    columns: dict[str, list[Any]] = {"references": ["x", "y"], "finished": [0, 0], "level": [1, 2]}
    config = EvaluationConfig(metrics=("m.py:m",))
    _, scores = compute_metrics(_system(["a", "b"]), config, [("a", "b"), ()], base_dir=tmp_path, columns=columns)
    assert scores == {"m": [2.0, 0.0]}
