"""The held-out curve of SFT and reward training: right values, no trace in the training, the best kept, and a stop."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from data.common.errors import UserError
from data.records import Demonstration, Message, Prompt
from data.splits import Corpus, Split
from reward.model import score_rows
from stages import reward_model, sft
from stages.held_out_cost import evaluated, evaluations, every_steps
from stages.settings import RewardConfig, SFTConfig
from tests.conftest import make_base
from tests.support.ppo import make_context, make_prompt
from tests.support.training import DEMONSTRATIONS, rankings, reward_context

OTHER = tuple(
    Demonstration(prompt=make_prompt(f"w{i % 25} w3"), answer=f"w{(i + 1) % 25} w{(i + 2) % 25}" + " w7" * (i % 3))
    for i in range(24)
)


def tuned(folder, held_out=OTHER, dropout=0.0, **settings):
    folder.mkdir()
    said = []
    corpus = Corpus(demonstrations=Split(train=DEMONSTRATIONS, held_out=held_out))
    context = make_context(make_base(), folder, corpus)
    context = replace(context, say=said.append, warn=said.append)
    context = replace(context, adapter=context.adapter.model_copy(update={"dropout": dropout}))
    config = SFTConfig(**{"epochs": 5, "batch": 4, "learning_rate": 3e-2, "max_tokens": 24} | settings)
    return context, sft.run(context, config).metrics, said


def weights(context, role="sft"):
    return {n: p.detach().clone() for n, p in context.base.parameters_of(role).items()}


def rows_of(context):
    return [json.loads(line) for line in (context.out / "metrics.jsonl").read_text().splitlines()]


def nll(context, role):
    rows, _ = sft.encode(context, OTHER, SFTConfig(max_tokens=24))
    return sft.labelled_nll(context.base, role, rows, 0)


def test_sft_shows_the_bases_own_loss_and_ten_points(tmp_path):
    """Before: the bare base's, over all tokens. After: what the finished adapter has."""
    context, metrics, said = tuned(tmp_path / "run")
    curve = metrics["held_out_curves"]["sft"]
    assert curve["before"]["loss"] == pytest.approx(nll(context, "base"), rel=1e-5)
    assert curve["evaluations"][-1]["loss"] == pytest.approx(metrics["held_out_nll"], rel=1e-5)
    steps = [point["step"] for point in curve["evaluations"]]
    assert steps == [2, 4, 6, 8, 10, 12, 14, 15]  # 15 steps, every second one, and the last
    log = rows_of(context)
    assert {row["step"]: row["held_out/loss"] for row in log if "held_out/loss" in row} == {
        point["step"]: point["loss"] for point in curve["evaluations"]
    }
    assert [row["step"] for row in log if "held_out/loss_before" in row] == [1]
    assert log[0]["held_out/loss_before"] == curve["before"]["loss"]
    assert (curve["rows"], curve["of"], curve["kept_step"]) == (24, 24, 15)
    assert said[0] == f"SFT: held-out loss {curve['before']['loss']:.4g} before training, of 24 held-out rows"
    assert said[-1] == f"SFT: {curve['text']}"


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_the_curve_leaves_no_trace_in_sft(tmp_path, dropout):
    """Also where dropout samples from the global generators, and where the trainer's mode decides."""
    found = [tuned(tmp_path / str(every), dropout=dropout, held_out_every=every, epochs=2)[0] for every in (0, 1)]
    with_curve, without = (weights(context) for context in reversed(found))
    assert all(torch.equal(with_curve[n], p) for n, p in without.items())
    logs = [
        [{k: v for k, v in r.items() if not k.startswith(("time/", "held_out"))} for r in rows_of(c)] for c in found
    ]
    assert logs[0] == logs[1] and not any("held_out/loss" in row for row in rows_of(found[0]))


def test_the_curve_leaves_no_trace_in_the_reward_model(tmp_path):
    ends = []
    for every in (0, 1):
        (tmp_path / str(every)).mkdir()
        context = reward_context(tmp_path / str(every))
        reward_model.run(context, RewardConfig(batch=8, learning_rate=1e-3, held_out_every=every, ensemble=2))
        ends.append(weights(context, "reward") | weights(context, "reward_1"))
    assert all(torch.equal(ends[1][n], p) for n, p in ends[0].items())


def test_a_reward_models_points_are_its_loss_and_accuracy(tmp_path):
    """The last point is that of the finished model on the same pairs, for each of an ensemble."""
    context = reward_context(tmp_path)
    config = RewardConfig(batch=8, learning_rate=1e-2, epochs=4, ensemble=2)
    metrics = reward_model.run(context, config).metrics
    assert set(metrics["held_out_curves"]) == {"reward", "reward_1"}
    rows, _ = reward_model.encode(context, rankings(7), config)
    for role, curve in metrics["held_out_curves"].items():
        scores = role_scores(context, role, rows)
        pairs = [(i, j) for i in range(3) for j in range(i + 1, 3)]
        gaps = torch.stack([scores[:, i] - scores[:, j] for i, j in pairs])
        last = curve["evaluations"][-1]
        assert last["loss"] == pytest.approx(-torch.nn.functional.logsigmoid(gaps).mean().item(), rel=1e-4)
        assert last["accuracy"] == pytest.approx((gaps > 0).float().mean().item())
        assert curve["learnt"] is None and "too few" in curve["text"]  # seven prompts
    log = rows_of(context)
    assert [row["step"] for row in log if "held_out/loss_before" in row] == [1, 13]


def role_scores(context, role, rows):
    queries, responses = [q for r in rows for q in r.queries], [a for r in rows for a in r.responses]
    return score_rows(context.base, role, queries, responses, 0, batch=8).reshape(len(rows), 3)


def test_the_best_weights_are_kept(tmp_path):
    context, metrics, _ = tuned(tmp_path / "run", keep="best", epochs=30, held_out_every=5)
    curve = metrics["held_out_curves"]["sft"]
    losses = {point["step"]: point["loss"] for point in curve["evaluations"]}
    assert curve["kept_step"] == curve["best_step"] == min(losses, key=losses.get) < 90  # else the test shows nothing
    assert nll(context, "sft") == pytest.approx(min(losses.values()), rel=1e-5) == metrics["held_out_nll"]


def test_patience_stops_and_the_result_is_that_of_the_same_steps(tmp_path):
    context, metrics, said = tuned(tmp_path / "run", epochs=30, held_out_every=5, patience=2, schedule="constant")
    curve = metrics["held_out_curves"]["sft"]
    assert curve["stopped_early"] and metrics["steps"] == curve["best_step"] + 10 == curve["kept_step"] < 90
    assert any(text.startswith(f"SFT: stopped after step {metrics['steps']}: 2 evaluations") for text in said)
    assert len(rows_of(context)) == metrics["steps"]


@pytest.mark.parametrize("setting", [{"keep": "best"}, {"patience": 2}])
def test_nothing_is_decided_by_rows_that_are_not_there(tmp_path, setting):
    with pytest.raises(UserError, match=rf"sft\.{next(iter(setting))}: .* held-out demonstrations.* set data.held_out"):
        tuned(tmp_path / "run", held_out=(), **setting)


def test_what_learns_nothing_says_so(tmp_path):
    _, metrics, said = tuned(tmp_path / "run", learning_rate=0.0, epochs=1)
    (warning,) = metrics["warnings"]
    assert "nothing was learnt; try sft.learning_rate above 0" in warning["text"] and warning["text"] == said[-1]


def test_rows_are_capped_and_evenly_spaced(tmp_path):
    context, metrics, said = tuned(tmp_path / "run", held_out_rows=6, epochs=1)
    curve = metrics["held_out_curves"]["sft"]
    assert (curve["rows"], curve["of"]) == (6, 24)
    rows, _ = sft.encode(context, OTHER[::4], SFTConfig(max_tokens=24))
    assert curve["before"]["loss"] == pytest.approx(sft.labelled_nll(context.base, "base", rows, 0), rel=1e-5)
    assert said[0].endswith("before training, of 6 of 24 held-out rows, evenly spaced")


@pytest.mark.parametrize(("steps", "every", "count"), [(7, 1, 8), (10, 1, 11), (11, 2, 7), (100, 10, 11), (1, 1, 2)])
def test_about_ten_points(steps, every, count):
    config = SFTConfig()
    assert every_steps(config, steps) == every and evaluations(config, steps) == count


def test_rows_in_proportion_to_training():
    """Eleven evaluations of a third of the work of a row each: a tenth of the training, within 32 and 512 rows."""
    counts = [evaluated(SFTConfig(), 10_000, rows) for rows in (10, 3_000, 10**6)]
    assert counts == [32, 82, 512]
    assert pytest.approx(0.1 * 3_000, rel=0.01) == 11 * 82 / 3
    assert evaluated(SFTConfig(held_out_every=0), 10_000, 3_000) == 0
    assert evaluated(SFTConfig(held_out_rows=700), 600, 10) == 600


def test_prompts_that_the_tokenizer_writes_alike_are_different_ones(tmp_path):
    """None of their words is known, so that all have the same ids; two of the nine rows share their prompt."""
    asked = [*(f"unknown{i}" for i in range(8)), "unknown7"]
    held_out = tuple(Demonstration(prompt=make_prompt(text), answer="w1 w2") for text in asked)
    curve = tuned(tmp_path / "run", held_out=held_out)[1]["held_out_curves"]["sft"]
    assert "8 held-out prompts are too few to tell" in curve["text"]


def test_turns_before_the_first_supervised_one_are_a_rows_prompt():
    def said(*texts: str) -> Prompt:
        turns = [Message(role=("user", "assistant")[i % 2], content=text) for i, text in enumerate(texts)]
        return Prompt(messages=tuple(turns), group="")

    prompts = [said("a"), said("a", "b", "c"), said("a", "d", "c"), said(), said()]
    rows = [Demonstration(prompt=prompt, answer="w1") for prompt in prompts]
    every, last = ([sft.number_of_prompt(r, how, i) for i, r in enumerate(rows)] for how in ("all", "last"))
    assert every[0] == every[1] == every[2] and len(set(every)) == 3 and len(set(last)) == 5
