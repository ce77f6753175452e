"""Several reward adapters on one base: combined by hand, from the disk, in PPO's value, resumed, memory."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from torch.testing import assert_close

from data.common.errors import UserError
from data.template import Renderer
from models.backbone.artifacts import files_of
from reward.files import load_reward, save_reward
from reward.model import Member, RewardModel, combined, score_rows
from stages import reward_model
from stages.ppo import stage as ppo_stage
from stages.safe_points.checkpoints import Checkpoints
from stages.settings import PPOConfig, RewardConfig
from tests.conftest import ADAPTER, make_base, randomise
from tests.support.killed import Killed, Stops
from tests.support.ppo import make_context
from tests.support.training import reward_context

SMALL = RewardConfig(
    ensemble=2, combine="min", holdout=0.4, epochs=1, learning_rate=1e-2, batch=3, micro_batch=3, calibration_samples=8
)
QUERIES, ANSWERS = [[5, 6], [7]], [[20, 21, 2], [22, 2]]


def test_members_are_combined_by_hand():
    scores = torch.tensor([[1.0, 0.0], [3.0, 0.0], [2.0, 6.0]])
    assert combined(scores, "mean").tolist() == [2.0, 2.0]
    assert combined(scores, "min").tolist() == [1.0, 0.0]
    score_std = [(2 / 3) ** 0.5, 8**0.5]
    assert_close(combined(scores, "mean_minus_std", 0.5), torch.tensor([2 - score_std[0] / 2, 2 - score_std[1] / 2]))


def ensemble(base, combine="mean_minus_std") -> RewardModel:
    for i, role in enumerate(("reward", "reward_1", "reward_2")):
        base.add_role(role, ADAPTER, head=True, seed=i)
        randomise(base, role, i)
    members = tuple(Member(role=r, score_mean=c) for r, c in (("reward", 0.5), ("reward_1", -1.0), ("reward_2", 0.0)))
    renderer = Renderer(base.tokenizer, template="dialogue")
    return RewardModel(
        base=base, role="reward", renderer=renderer, members=members, combine=combine,
        uncertainty_penalty=0.7, score_mean=0.25,
        score_std=2.0,
    )  # fmt: skip


def test_scores_survive_the_disk_and_are_those_of_the_members(tmp_path):
    base = make_base()
    model = ensemble(base)
    each = [score_rows(base, m.role, QUERIES, ANSWERS, 0, 8) - m.score_mean for m in model.members]
    expected = combined(torch.stack(each), "mean_minus_std", 0.7) - 0.25
    assert_close(model.score_ids(QUERIES, ANSWERS), expected)
    save_reward(model, tmp_path / "r")
    fresh = make_base()
    again = load_reward(fresh, tmp_path / "r", model.renderer)
    assert torch.equal(again.score_ids(QUERIES, ANSWERS), model.score_ids(QUERIES, ANSWERS))
    assert fresh.roles == ("reward", "reward_1", "reward_2") and (again.score_std, again.uncertainty_penalty) == (
        2.0,
        0.7,
    )
    (tmp_path / "r/ensemble.json").write_text('{"members": 4}')
    with pytest.raises(UserError, match=r"ensemble\.json"):
        load_reward(make_base(), tmp_path / "r", model.renderer)


def test_an_ensemble_costs_its_adapters_and_nothing_of_the_base():
    base = make_base()
    model = ensemble(base)
    tensors = {t.data_ptr(): t.numel() for t in base.lm.parameters()} | {
        t.data_ptr(): t.numel() for h in base.heads.values() for t in h.parameters()
    }
    adapters = [sum(p.numel() for p in base.parameters_of(m.role).values()) for m in model.members]
    assert sum(tensors.values()) == sum(p.numel() for p in base.base_tensors().values()) + sum(adapters)


def test_the_value_starts_from_the_first_member_as_it_is_centred(tmp_path):
    base = make_base()
    model = ensemble(base)
    context = make_context(base, tmp_path)
    base.add_role("reference", context.adapter)
    ppo_stage.add_roles(context, PPOConfig(), model)
    assert_close(base.heads["value"].bias, base.heads["reward"].bias - 0.5 - 0.25)


def trained(folder, checkpoints=None):
    folder.mkdir(exist_ok=True)
    context = reward_context(folder)
    if checkpoints is not None:
        checkpoints.metrics = context.log
        context = replace(context, checkpoints=checkpoints)
    return context, reward_model.run(context, SMALL)


def test_the_stage_trains_members_apart_and_a_watcher_on_other_prompts(tmp_path):
    context, result = trained(tmp_path / "a")
    weights = [context.base.heads[r].weight for r in ("reward", "reward_1", "watcher")]
    assert all(not torch.equal(a, b) for i, a in enumerate(weights) for b in weights[:i])
    mine, apart = reward_model.split_holdout(context.corpus.rankings.train, 0.4)
    assert mine and apart and not {r.prompt.group for r in mine} & {r.prompt.group for r in apart}
    assert result.metrics["rankings"] == len(mine) and result.metrics["watcher"]["rankings"] == len(apart)
    steps = [row["step"] for row in context.log.rows()]
    assert steps == list(range(1, len(steps) + 1)) and result.metrics["steps"] == len(steps)
    loaded = load_reward(make_base(), tmp_path / "a", context.renderer)
    probe = result.metrics["probe"]
    assert loaded.score_ids([probe["query"]], [probe["response"]]).item() == pytest.approx(probe["score"], abs=1e-6)
    stored = json.loads((tmp_path / "a/ensemble.json").read_text())
    assert (stored["members"], stored["combine"]) == (2, "min")
    assert load_reward(make_base(), tmp_path / "a/watcher", context.renderer, role="watcher").members == ()


@pytest.mark.parametrize("number", [6, *(pytest.param(n, marks=pytest.mark.slow) for n in (1, 9))])
def test_a_stage_that_is_killed_in_any_member_ends_in_the_same_bytes(tmp_path, number, monkeypatch):
    trained(tmp_path / "whole")

    folder = tmp_path / "again" / "checkpoints"
    checkpoints = Stops(folder, "key")
    checkpoints.left = number
    with pytest.raises(Killed):
        trained(tmp_path / "again", checkpoints)
    trained(tmp_path / "again", Checkpoints(folder, "key"))
    found = {k: v for k, v in files_of(tmp_path / "again").items() if not k.startswith("checkpoints/")}
    assert found == files_of(tmp_path / "whole") and len(found) >= 9
