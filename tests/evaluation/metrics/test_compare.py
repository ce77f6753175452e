"""Metrics of two systems, paired by prompt: against scipy's and sacrebleu's own tests, and what may be said."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from scipy import stats

from data.common.paired_tests import mean_comparison, mean_verdict, paired_difference
from evaluation.answers import SystemResponses
from evaluation.metrics.compare import compare_metrics
from evaluation.metrics.registry import compute_metrics
from evaluation.results import samples_rows
from evaluation.settings import EvaluationConfig
from tests.support.answers import responses_of

VERBS = ("the cat sat on the mat today", "a dog barked at the old door", "we went home by the long road")


def _answering(name: str, responses: list[str], **changes: Any) -> SystemResponses:
    return replace(responses_of(name, n=len(responses)), responses=responses, **changes)


def _worse(text: str, words: int) -> str:
    return " ".join(text.split()[:-words] + ["thing"] * words)


def _measured(references: list[tuple[str, ...]], **said: list[str]) -> list[SystemResponses]:
    config = EvaluationConfig(metrics=("rouge", "bleu", "chrf", "meteor", "exact_match"), bootstrap=200)
    out = []
    for name, responses in said.items():
        system = _answering(name, responses)
        metrics, scores = compute_metrics(system, config, references)
        out.append(replace(system, metrics=metrics, response_scores=scores))
    return out


def test_the_mean_test_is_scipys_permutation_test_of_pairs():
    rng = np.random.default_rng(3)
    a, b = rng.normal(0.5, 1, size=30), rng.normal(size=30)
    found = mean_comparison(a, b, resamples=20_000)

    def mean(d: np.ndarray, axis: int) -> np.ndarray:
        return d.mean(axis)

    theirs = stats.permutation_test((a - b,), mean, permutation_type="samples", n_resamples=20_000, rng=1)
    assert found.p_value == pytest.approx(theirs.pvalue, abs=0.01) and 0.001 < found.p_value < 0.5
    mirrored = mean_comparison(b, a, resamples=20_000)
    assert mirrored.p_value == found.p_value and mirrored.difference.estimate == -found.difference.estimate


def test_whole_prompts_are_exchanged():
    """Ten samples of a prompt that all say the same are no ten prompts."""
    rng = np.random.default_rng(0)
    prompt = rng.normal(0.4, 1, size=25)
    units = [str(i // 10) for i in range(250)]
    many = mean_comparison(np.repeat(prompt, 10), np.zeros(250), clusters=units, resamples=2_000)
    once = mean_comparison(prompt, np.zeros(25), resamples=2_000)
    assert many.p_value == once.p_value and many.difference.n == 25


def test_words_need_both_the_test_and_the_interval():
    rng = np.random.default_rng(0)
    base = rng.normal(size=100)
    up = mean_comparison(base + 1 + rng.normal(size=100), base, resamples=2_000)
    assert mean_verdict(up).word == "higher" and mean_verdict(up).text.startswith("higher by ")
    assert mean_verdict(mean_comparison(base, base + 1 + rng.normal(size=100), resamples=2_000)).word == "lower"
    assert "once all comparisons count" in mean_verdict(up, p_value=0.2).text
    few = mean_comparison(np.ones(10), np.zeros(10), resamples=2_000)
    assert few.p_value < 0.05 and mean_verdict(few).word == "not shown"
    same = mean_comparison(base, base, resamples=100)
    assert same.p_value == 1 and mean_verdict(same).text == "not shown with 100 prompts; no difference was seen at all"


def test_differences_of_outcomes_get_a_proportions_interval():
    """One prompt in forty differs: a bootstrap would often draw none of it, and no difference is not certainty."""
    one = paired_difference([1.0] + [0.0] * 39, [0.0] * 40)
    assert one.method == "wilson" and one.low is not None and one.low < 0 < 1 / 40 < one.high  # type: ignore[operator]
    none = paired_difference([1.0] * 40, [1.0] * 40)
    assert none.estimate == 0 and none.low is not None and none.high is not None
    assert none.low == pytest.approx(-none.high) and 0.02 < none.high < 0.2


def test_every_metric_of_answers_is_compared_and_corrected():
    pytest.importorskip("sacrebleu")
    wanted = [(VERBS[i % 3] + f" {i}",) for i in range(60)]
    right = [r[0] for r in wanted]
    wrong = [_worse(text, 1 + i % 4) for i, text in enumerate(right)]
    found = compare_metrics(_measured(wanted, sft=wrong, ppo=right, copy=wrong), "sft", wanted, resamples=2_000)
    of_ppo = {c["metric"]: c for c in found if c["a"] == "ppo"}
    assert set(of_ppo) == {
        "rouge1", "rouge2", "rougeL", "chrf_answer", "meteor_no_synonyms", "exact_match", "bleu"
    }  # fmt: skip
    for c in of_ppo.values():
        assert c["verdict"] == "higher" and c["p_value"] < 0.001 and c["n"] == 60
        assert c["p_value_holm"] == pytest.approx(2 * c["p_value"])  # two systems
        assert (c["difference"]["ci95"] is None) == (c["metric"] == "bleu")
    assert all(c["verdict"] == "not shown" and c["p_value"] == 1 for c in found if c["a"] == "copy")


def test_a_function_that_is_called_bleu_is_compared_by_its_own_numbers_alone() -> None:
    systems = [
        replace(_answering(n, list(VERBS)), metrics={"bleu": {"mean": x}}, response_scores={"bleu": [x] * 3})
        for n, x in (("sft", 1.0), ("ppo", 2.0))
    ]
    found = compare_metrics(systems, "sft", [(text,) for text in VERBS], resamples=50)
    assert [(c["metric"], c["difference"]["mean"]) for c in found] == [("bleu", 1.0)]


def test_bleu_is_tested_as_sacrebleu_does():
    sacrebleu = pytest.importorskip("sacrebleu")
    from sacrebleu.significance import PairedTest

    rng = np.random.default_rng(0)  # long and unlike: where differences tie, sacrebleu counts none of them, we all
    wanted = [(" ".join(f"w{w}" for w in rng.integers(0, 40, size=rng.integers(9, 25))),) for _ in range(60)]

    def said(wrong: float) -> list[str]:
        return [" ".join(w if rng.random() > wrong else "thing" for w in r[0].split()) for r in wanted]

    a, b = said(0.28), said(0.3)
    found = next(c for c in compare_metrics(_measured(wanted, sft=b, ppo=a), "sft", wanted) if c["metric"] == "bleu")
    metric = sacrebleu.BLEU()
    streams = [[r[0] for r in wanted]]
    _, theirs = PairedTest([("b", b), ("a", a)], {"BLEU": metric}, streams, test_type="ar", n_samples=5_000)()
    assert found["p_value"] == pytest.approx(theirs["BLEU"][1].p_value, abs=0.02) and 0.001 < found["p_value"] < 0.9
    gain = sacrebleu.corpus_bleu(a, streams).score - sacrebleu.corpus_bleu(b, streams).score
    assert found["difference"]["mean"] == pytest.approx(gain)


def test_rows_without_a_reference_stay_out_and_samples_show_each_score():
    scores = {"exact_match": [1.0] * 30 + [None] * 30}
    sft = replace(responses_of("sft"), response_scores={"exact_match": [0.0] * 30 + [None] * 30})
    found = compare_metrics([sft, replace(responses_of("ppo"), response_scores=scores)], "sft", resamples=500)
    assert found[0]["n"] == 30 and found[0]["difference"]["mean"] == 1 and found[0]["verdict"] == "higher"
    rows = samples_rows([sft])
    assert rows[0]["systems"]["sft"]["metrics"] == {"exact_match": 0.0}
    assert rows[59]["systems"]["sft"]["metrics"] == {"exact_match": None}
    assert compare_metrics([sft], "base") == []
