"""The shape of results.json, what is compared with what, and every warning."""

from __future__ import annotations

import json
from typing import Any

import pytest

from evaluation.adversaries import CONSTANT
from evaluation.results import assemble, samples_rows
from tests.support.answers import responses_of


def test_the_documented_shape_as_json():
    systems = [responses_of("base", -1), responses_of("sft"), responses_of("ppo", 2)]
    systems += [responses_of("sft", decoding="greedy"), responses_of("ppo", 2, decoding="greedy")]
    results = json.loads(json.dumps(assemble(systems, judge="gold", resamples=500), allow_nan=False))
    assert results["prompts"] == 60
    assert set(results["systems"]) == {"base", "sft", "ppo"} and set(results["greedy"]) == {"sft", "ppo"}
    ppo = results["systems"]["ppo"]
    for key in ("reward", "gold", "kl", "length"):
        low, high = ppo[key]["ci95"]
        assert low <= ppo[key]["mean"] <= high
    assert 0 < ppo["distinct_2"] <= 1 and ppo["truncated"] == 0 and ppo["n"] == 60 and ppo["length"]["mean"] == 10
    first = results["comparisons"][1]
    assert (first["a"], first["b"], first["by"], first["decoding"]) == ("ppo", "sft", "gold", "sampled")
    assert first["wins"] + first["ties"] + first["losses"] == 60 and first["verdict"] == "better"
    assert {(c["a"], c["by"], c["decoding"]) for c in results["comparisons"]} == {
        ("base", "gold", "sampled"),
        ("ppo", "gold", "sampled"),
        ("base", "reward", "sampled"),
        ("ppo", "reward", "sampled"),
        ("ppo", "gold", "greedy"),
        ("ppo", "reward", "greedy"),
    }
    assert results["warnings"] == []


def test_kl_per_token_is_total_over_total():
    ids = [[1]] * 30 + [[1, 2, 3]] * 30
    d = assemble([responses_of("sft", token_ids=ids, kl=[2.0] * 60)], judge="gold", resamples=100)["systems"]["sft"]
    assert d["kl_per_token"] == pytest.approx(120 / 120) and d["kl"]["mean"] == 2


def test_samples_of_one_prompt_are_one_unit():
    prompts = [f"tell {i // 3}" for i in range(60)]
    results = assemble([responses_of("sft", prompts=prompts), responses_of("ppo", 1, prompts=prompts)], judge="gold")
    assert results["prompts"] == 20 and results["comparisons"][0]["n"] == 20
    groups = [f"g{i}" for i in range(60)]
    apart = assemble([responses_of("sft", prompts=prompts, groups=groups)], judge="gold")
    assert apart["prompts"] == 60


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"finished": [True] * 30 + [False] * 30}, "50% of the responses were cut off"),
        ({"kl": [-0.5, -0.4, -0.6] * 20}, "the KL is negative (-0.50 nats)"),
        ({"token_ids": [[1, 2] * 5] * 60}, "monotonous"),
        ({"token_ids": [list(range(17))] * 60}, "1.7 times as long"),
        ({"gold": [-5.0] * 60}, "the reward rose but gold fell"),
    ],
)
def test_warnings(changes: dict[str, Any], words: str):
    results = assemble([responses_of("sft"), responses_of("ppo", 2, **changes)], judge="gold", resamples=300)
    assert any(words in w and w.startswith("ppo") for w in results["warnings"]), results["warnings"]


@pytest.mark.parametrize(("name", "prompts", "said"), [("ppo", 60, 1), ("base", 60, 0), ("ppo", 12, 0)])
def test_over_optimisation_is_said_of_what_was_optimised_and_beyond_doubt(name: str, prompts: int, said: int) -> None:
    units = [f"tell {i % prompts}" for i in range(60)]
    system = responses_of(name, 2, gold=[-5.0] * 60, prompts=units)
    warnings = assemble([responses_of("sft", prompts=units), system], judge="gold", resamples=300)["warnings"]
    assert sum("over-optimised" in w for w in warnings) == said


def test_a_held_out_reward_model_is_a_judge_of_its_own() -> None:
    """First where it is the judge, after gold where gold is; its fall under a rising reward is over-optimisation."""
    sft = responses_of("sft", gold=None, held_out_reward=[0.0] * 60)
    ppo = responses_of("ppo", 2, gold=None, held_out_reward=[1.0] * 40 + [-0.5] * 20)
    found = assemble([sft, ppo], judge="held_out_reward", resamples=300)
    assert [c["by"] for c in found["comparisons"]] == ["held_out_reward", "reward"]
    first = found["comparisons"][0]
    assert (first["wins"], first["ties"], first["losses"], first["verdict"]) == (40, 0, 20, "better")
    assert first["difference"]["mean"] == pytest.approx(0.5)
    assert found["systems"]["ppo"]["held_out_reward"]["mean"] == pytest.approx(0.5)
    assert not any("over-optimis" in w for w in found["warnings"])  # that is said of PPO's own reward as a judge alone
    assert samples_rows([sft, ppo])[0]["systems"]["ppo"]["held_out_reward"] == 1.0
    fallen = responses_of("ppo", 2, gold=None, held_out_reward=[-1.0] * 55 + [0.5] * 5)
    warnings = assemble([sft, fallen], judge="held_out_reward", resamples=300)["warnings"]
    assert any("the held-out reward model's score fell against sft: the reward is over-opt" in w for w in warnings)
    both = assemble([responses_of("sft", held_out_reward=[0.0] * 60), responses_of("ppo", held_out_reward=[1.0] * 60)],
                    judge="gold", resamples=300)  # fmt: skip
    assert [c["by"] for c in both["comparisons"]] == ["gold", "held_out_reward", "reward"]


@pytest.mark.parametrize("optimised", [True, False])
def test_that_ppo_was_trained_on_the_judge_is_said_where_it_was(optimised: bool) -> None:
    systems = [responses_of("sft", gold=None, reward=[0.0] * 60)]
    found = assemble(systems, judge="reward", optimised=optimised, resamples=300)
    assert any("reward that PPO was trained on" in w for w in found["warnings"]) is optimised


def test_a_held_out_judge_is_tested_with_trivial_responses_too() -> None:
    systems = [responses_of("sft", gold=None, held_out_reward=[0.0] * 60)]
    likes_empty = lambda texts: [1.0 if not text else -1.0 for text in texts]  # noqa: E731
    plain = lambda texts: [-1.0 for _ in texts]  # noqa: E731
    found = assemble(systems, judge="held_out_reward", score=likes_empty, others={"reward": plain}, resamples=300)
    assert found["judges"]["held_out_reward"]["reliable"] is False and found["baselines"]["empty_answer"] == 1.0
    assert "The judge is unreliable: it prefers the empty response, whatever the prompt, to sft's." in found["warnings"]


def test_a_judge_that_prefers_trivial_answers_is_called_unreliable():
    systems = [responses_of("sft"), responses_of("ppo", 2)]

    def by_length(completions: list[str]) -> list[float]:
        longest = {max(systems[0].responses, key=len)}
        assert set(completions) in ({""}, longest, {CONSTANT}, set(systems[0].prompts))
        return [len(c) / 10 for c in completions]

    results = assemble(systems, judge="gold", score=by_length, resamples=200)
    assert results["baselines"]["empty_answer"] == 0 < results["baselines"]["longest_answer"]
    assert any("prefers the longest response" in w for w in results["warnings"])
    assert not any("prefers the empty" in w for w in results["warnings"])
    names = ["longest_answer", "empty_answer", "constant_answer", "repeated_prompt"]
    assert [c["a"] for c in results["baseline_comparisons"]] == names == list(results["baselines"])
    judge = results["judges"]["gold"]
    assert judge["reliable"] is False and judge["adversaries"]["empty_answer"]["verdict"] != "better"


@pytest.mark.parametrize(
    ("ci", "reliable"), [([0.5, 0.7], False), ([0.4, 0.49], False), ([0.501, 0.7], True), (None, None)]
)
def test_a_judge_that_orders_held_out_pairs_as_a_coin_does_is_unreliable(
    ci: list[float] | None, reliable: bool | None
) -> None:
    """Though no adversary deceives it; with too few pairs for an interval nothing is known."""
    systems = [responses_of("sft", gold=None, held_out_reward=[0.0] * 60)]
    known = {"held_out_reward": {"share": 0.6, "ci95": ci, "n": 1404}}
    plain = lambda texts: [-9.0] * len(texts)  # noqa: E731
    found = assemble(
        systems, judge="held_out_reward", score=plain, others={"reward": plain}, accuracy=known, resamples=300
    )
    judges = found["judges"]
    assert judges["held_out_reward"]["reliable"] is reliable and judges["reward"]["reliable"] is True
    assert judges["held_out_reward"]["accuracy"] == known["held_out_reward"] and "accuracy" not in judges["reward"]
    told = [w for w in found["warnings"] if "of 1,404 held-out pairs right, which a coin may do as well" in w]
    assert [w.startswith("The judge is unreliable: it orders 60 % [") for w in told] == [True] * (reliable is False)


@pytest.mark.parametrize(
    ("known", "few"),
    [
        ({"share": None, "ci95": None, "n": 0}, "no held-out pairs tested it"),
        ({"share": 0.9, "ci95": None, "n": 1009}, "1,009 held-out pairs are too few for an interval"),
    ],
)
def test_a_reward_model_without_an_interval_is_untested_and_a_warning_says_so(known: dict[str, Any], few: str) -> None:
    """As the judge and beside gold; one that an adversary deceives is unreliable, and gold is the user's own word."""
    sft, ppo = responses_of("sft"), responses_of("ppo", 2)
    plain = lambda texts: [-9.0] * len(texts)  # noqa: E731
    fooled = lambda texts: [9.0 if not text else -9.0 for text in texts]  # noqa: E731
    told = f"untested: {few}, so that nothing shows it to be better than a coin."

    def judged(judge: Any, score: Any, **others: Any) -> tuple[Any, list[str]]:
        found = assemble([sft, ppo], judge=judge, score=score, others=others, accuracy={"reward": known}, resamples=200)
        return found["judges"], [w for w in found["warnings"] if "untested" in w or "unreliable" in w]

    judges, warnings = judged("reward", plain)
    assert (judges["reward"]["reliable"], judges["reward"]["accuracy"]) == (None, known)
    assert warnings == [f"The judge is {told}"]
    judges, warnings = judged("gold", plain, reward=plain)
    assert (judges["gold"]["reliable"], judges["reward"]["reliable"]) == (True, None)
    assert warnings == [f"As a judge the reward model is {told}"]
    judges, warnings = judged("reward", fooled)
    assert judges["reward"]["reliable"] is False and len(warnings) == 1 and "prefers the empty response" in warnings[0]


def test_the_reward_model_is_tested_beside_gold():
    systems = [responses_of("sft"), responses_of("ppo", 2)]
    others = {"reward": lambda texts: [5.0 if t in systems[0].prompts else -9.0 for t in texts]}
    results = assemble(systems, judge="gold", score=lambda t: [-9.0] * len(t), others=others, resamples=200)
    assert results["judges"]["gold"]["reliable"] is True and results["judges"]["reward"]["reliable"] is False
    told = "As a judge the reward model is unreliable: it prefers the prompt repeated, whatever the prompt, to sft's."
    assert told in results["warnings"]
    assert results["baselines"]["repeated_prompt"] == -9


def test_without_gold_the_reward_judges_and_that_is_said():
    systems = [responses_of("sft", gold=None), responses_of("ppo", 2, gold=None)]
    results = assemble(systems, judge="reward", resamples=200)
    assert [c["by"] for c in results["comparisons"]] == ["reward"]
    assert any("trained on" in w for w in results["warnings"])


def test_few_prompts_and_missing_reference_are_said():
    results = assemble([responses_of("ppo", n=8)], judge="gold")
    assert results["systems"]["ppo"]["gold"]["ci95"] is None and "too few" in results["systems"]["ppo"]["gold"]["note"]
    assert any("too few prompts" in w for w in results["warnings"]) and any(
        "no sampled" in w for w in results["warnings"]
    )
    assert results["comparisons"] == []


def test_unlike_prompts_are_refused():
    shuffled = responses_of("ppo", prompts=[f"tell {59 - i}" for i in range(60)])
    with pytest.raises(ValueError, match="same prompts in the same order"):
        assemble([responses_of("sft"), shuffled], judge="gold")
    with pytest.raises(ValueError, match="twice"):
        assemble([responses_of("sft"), responses_of("sft")], judge="gold")
    with pytest.raises(ValueError, match="59 reward"):
        responses_of("sft", reward=[0.0] * 59)


def test_samples_rows():
    rows = samples_rows([responses_of("sft", kl=None), responses_of("ppo"), responses_of("ppo", decoding="greedy")])
    assert len(rows) == 120 and [r["decoding"] for r in rows[59:61]] == ["sampled", "greedy"]
    assert set(rows[0]["systems"]) == {"sft", "ppo"} and set(rows[60]["systems"]) == {"ppo"}
    assert "kl" not in rows[0]["systems"]["sft"] and set(rows[0]) == {"prompt", "category", "decoding", "systems"}
    json.dumps(rows, allow_nan=False)


def test_one_response_scored_twice_does_not_beat_itself():
    """Among other rows a reward model's fp32 scores end in other last places; a function's scores are as given."""
    score = [0.5 + i / 7 for i in range(60)]
    again = [s * (1 + 3e-7 * (-1) ** i) for i, s in enumerate(score)]
    systems = [responses_of("sft", reward=score, gold=score), responses_of("ppo", reward=again, gold=again)]
    found = {c["by"]: c for c in assemble(systems, judge="gold", resamples=100)["comparisons"]}
    assert (found["reward"]["ties"], found["reward"]["win_rate"]) == (60, 0.5)
    assert (found["gold"]["wins"], found["gold"]["losses"]) == (30, 30)
    better = [responses_of("sft", reward=score), responses_of("ppo", reward=[s + 1e-3 for s in score])]
    by_reward = [c for c in assemble(better, judge="reward", resamples=100)["comparisons"] if c["by"] == "reward"]
    assert by_reward[0]["wins"] == 60
