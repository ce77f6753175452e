"""The report card: by hand, against known accuracies, and the answers that are damaged."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.special import expit
from scipy.stats import norm

from reward.card import report_card as card
from reward.card.probes import ProbedAnswer, damage
from reward.card.report_card import Judged


def judged(scores, ranks=(0, 1, 2), lengths=(3, 2, 1), prompt="p", **rest):
    return Judged(prompt=prompt, ranks=ranks, scores=scores, lengths=lengths, **rest)


def made(rankings, **rest):
    return card.make_card(rankings, baselines=rest.pop("baselines", {}), probes=rest.pop("probes", {}), **rest)


def test_a_card_by_hand():
    rankings = [
        judged([2.0, 1.0, 1.0]),
        judged([0.0, 1.0], (0, 1), (5, 5), prompt="q"),
        judged([0.0, 0.0], (1, 1), (1, 2)),
    ]
    found = made(
        rankings,
        baselines={"longest answer": [r.lengths for r in rankings]},
        probes={"empty response": ([1.0, 0.0, 2.0], [0.0, 0.0, 3.0], ["a", "b", "c"])},
        samples=[1.0, 3.0],
        sampled_from="SFT samples",
    )
    assert found["accuracy"] == {"share": pytest.approx(2.5 / 4), "ci95": None, "n": 4, "prompts": 2}
    assert found["baselines"]["longest answer"]["share"] == pytest.approx(3.5 / 4)
    assert found["probes"]["empty response"]["share"] == pytest.approx(0.5)  # right, equal, wrong
    assert found["top1"]["share"] == pytest.approx((1 + 0 + 1) / 3)
    assert found["top1"]["chance"] == pytest.approx((1 / 3 + 1 / 2 + 1) / 3)
    assert found["length"]["longer_is_better"]["share"] == 1.0  # three pairs of the first ranking differ in length
    assert found["length"]["longer_wins"]["share"] == pytest.approx(2.5 / 3)
    # centred lengths 1, 0, -1 and scores 2/3, -1/3, -1/3; the others add nothing but spread
    assert found["length"]["score_per_token"] == pytest.approx(1.0 / 2.5)
    assert found["samples"]["std"] == pytest.approx(math.sqrt(2)) and found["samples"]["mean"] == 2.0
    assert found["ceiling"] is None


def test_the_ceiling_is_what_noisy_labels_allow():
    """Three labels of four agree with the annotator's scores; the model has two of them right and the wrong one too."""
    rankings = [judged([1.0, 0.0], (0, 1), (1, 1), labels=(2.0, 1.0)) for _ in range(2)]
    rankings += [
        judged([0.0, 1.0], (0, 1), (1, 1), labels=(2.0, 1.0)),
        judged([1.0, 0.0], (0, 1), (1, 1), labels=(0.0, 1.0)),
    ]
    assert made(rankings)["ceiling"] == {"share": 0.75, "n": 4, "reached": pytest.approx(1.0)}


def test_slices_name_what_they_hold():
    rankings = [
        judged(
            [1.0, 0.0], (0, 1), (10, 5) if i % 2 else (5, 10), prompt=str(i), category="ab"[i % 2], source=f"f{i % 2}"
        )
        for i in range(40)
    ]
    rankings += [judged([0.0, 1.0], (0, 3), (5, 5), prompt=f"x{i}", category="a", source="f0") for i in range(12)]
    found = made(rankings)["slices"]
    assert found["category"]["a"]["share"] == pytest.approx(20 / 32) and found["category"]["b"]["share"] == 1.0
    assert found["rank gap"]["1"]["share"] == 1.0 and found["rank gap"]["3"]["share"] == 0.0
    assert found["length"]["better is longer"]["n"] == 20 and found["length"]["about equal"]["n"] == 12
    assert set(found["source"]) == {"f0", "f1"} and "score gap" not in found


def test_calibration_finds_the_temperature_and_the_error():
    """Pairs drawn with probability sigmoid(margin / 3): the temperature is 3, before it the error is large."""
    rng = np.random.default_rng(0)
    margins = rng.normal(0, 4, 20_000)
    wins = rng.random(len(margins)) < expit(margins / 3)
    rankings = [
        judged([m, 0.0], (0, 1) if w else (1, 0), (1, 1), prompt=str(i))
        for i, (m, w) in enumerate(zip(margins, wins, strict=True))
    ]
    found = made(rankings)["calibration"]
    assert found["temperature"] == pytest.approx(3.0, rel=0.05)
    assert found["before"]["error"] > 0.1 > 0.02 > found["after"]["error"]
    assert found["after"]["nll"] < found["before"]["nll"]
    assert sum(b["n"] for b in found["before"]["bins"]) == len(rankings)
    one = card.reliability(np.array([math.log(3), math.log(3), -math.log(3), math.log(3)]))  # said 0.75, right 0.75
    assert one["error"] == pytest.approx(0.0) and one["bins"][0]["confidence"] == pytest.approx(0.75)


def test_intervals_cover_the_accuracy_of_1000_simulated_reward_models():
    """Rankings of four with score = slope x quality + noise, slopes that differ from prompt to prompt."""
    rng, rankings = np.random.default_rng(1), 60
    slopes = np.array([0.1, 1.6])  # hard and easy prompts: pairs of one prompt go together
    gaps = np.array([j - i for i in range(4) for j in range(i + 1, 4)])
    truth = norm.cdf(slopes[:, None] * gaps / math.sqrt(2)).mean()
    covered = below = 0
    clusters = np.repeat(np.arange(rankings), len(gaps))
    first, second = np.triu_indices(4, 1)
    for _ in range(1000):
        slope = rng.choice(slopes, size=(rankings, 1))
        scores = -slope * np.arange(4) + rng.normal(size=(rankings, 4))
        hits = card.right((scores[:, first] - scores[:, second]).ravel())
        low, high = card.share(hits, clusters)["ci95"]
        covered += low <= truth <= high
        below += high < truth
    assert 930 <= covered <= 970, (covered, below)


def test_warnings_say_what_is_wrong():
    rng = np.random.default_rng(0)
    rankings = [judged(rng.normal(size=3).tolist(), lengths=(1, 2, 3), prompt=str(i)) for i in range(60)]
    good = [[3.0, 2.0, 1.0]] * 60
    probes = {"empty response": ([0.0] * 60, [1.0] * 60, [str(i) for i in range(60)])}
    said = " ".join(made(rankings, baselines={"longest answer": good, "n-grams": good}, probes=probes)["warnings"])
    for part in ("above chance", "longest response", "n-grams", "empty response"):
        assert part in said
    fine = [judged([1.5, 1.0, 0.2], lengths=(2, 2, 2), prompt=str(i)) for i in range(60)]
    assert not [w for w in made(fine)["warnings"] if "chance" in w]


def test_damage():
    answers = [ProbedAnswer("p", "one two . three four ."), ProbedAnswer("q", "yes !"), ProbedAnswer("", "一二三四。")]
    found = {name: dict(rows) for name, rows in damage(answers).items()}
    assert found["cut short"][0] == ("one two .", True) and found["cut short"][2] == ("一二", True)
    assert found["sentences repeated"][0][0] == "one two . one two . three four . three four ."
    assert found["sentences repeated"][2][0] == "一二三四。一二三四。"
    assert found["answer to another prompt"][0] == ("yes !", True) and 2 not in found["answer to another prompt"]
    assert found["end token missing"][1] == ("yes !", False) and found["empty response"][1] == ("", True)
    assert damage([]) == {}
