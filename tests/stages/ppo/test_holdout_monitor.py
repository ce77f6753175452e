"""A held-out reward model watches PPO: looks by hand, the parting of two scores, the best policy kept, resume."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from data.common.errors import StageError, UserError
from models.backbone.artifacts import files_of
from models.backbone.oom_retry import OOMRetry
from models.sampling.settings import RolloutServers
from stages.ppo import stage as ppo_stage
from stages.ppo.overoptimisation import HoldoutEvaluation, Onset, best_of, find_onset
from stages.safe_points.checkpoints import Checkpoints
from stages.settings import PPOConfig
from tests.conftest import make_base, randomise
from tests.support.ppo import make_context
from tests.support.vllm_double import VLLMDouble, serving_vllm


def evaluation(update: int, proxy: float, held_out: float, noise: float = 0.1) -> HoldoutEvaluation:
    wobble = [noise * (-1) ** i for i in range(16)]
    return HoldoutEvaluation(
        update=update, proxy=[proxy] * 16, held_out=[held_out + w * (update + 1) / 10 for w in wobble], kl=0.0
    )


def test_two_scores_part_where_one_rises_and_the_other_falls_for_good():
    rising = [
        evaluation(0, 0, 0),
        evaluation(5, 1, 1),
        evaluation(10, 2, 2),
        evaluation(15, 3, 1.5),
        evaluation(20, 4, 1.2),
        evaluation(25, 5, 1),
    ]
    assert find_onset(rising) == Onset(after=10, seen=20)
    assert best_of(rising) == 2 and find_onset(rising[:4]) is None
    back = [*rising[:4], evaluation(20, 4, 2.5), evaluation(25, 5, 1), evaluation(30, 6, 3)]
    assert find_onset(back) is None  # one bad look at a time
    assert (
        find_onset([evaluation(u, 3 - u / 10, 2 - u / 10) for u in (0, 5, 10, 15)]) is None
    )  # both fall: no over-optimisation
    assert find_onset([evaluation(u, u, -0.01 * u, noise=5.0) for u in (0, 5, 10, 15)]) is None  # within the noise
    assert find_onset([replace(one, proxy=[]) for one in rising]) is None


class Judge:
    """A score by ids, which stands for a reward model on this base."""

    takes_ids, score_std, members = True, 2.0, ()

    def __init__(self, sign: float = 1.0) -> None:
        self.sign, self.memory = sign, OOMRetry("rows")

    def score_ids(self, queries, responses):
        return torch.tensor([2.0 * self.sign * sum(t % 2 for t in ids) / len(ids) for ids in responses])

    def score(self, samples):
        return self.score_ids(samples.queries, samples.responses)


def run_stage(folder, holdout_model, said=None, checkpoints=None, rollouts=None, **settings):
    folder.mkdir(exist_ok=True)
    log = folder / "metrics.jsonl"
    kept = log.read_bytes() if log.is_file() else b""
    start = checkpoints.tidy(log) if checkpoints is not None else None
    base = make_base()
    context = make_context(base, folder, **({"checkpoints": checkpoints} if checkpoints is not None else {}))
    if checkpoints is not None:
        log.write_bytes(kept)
        checkpoints.metrics = type(context.log)(log, start=start or 0)
        context = replace(context, log=checkpoints.metrics)
    context = replace(context, warn=(said if said is not None else []).append)
    context = context if rollouts is None else replace(context, rollouts=rollouts)
    base.add_role("reference", context.adapter)
    randomise(base, "reference", 1)
    config = PPOConfig(**({
        "updates": 6, "rollouts": 16, "epochs": 2, "max_new_tokens": 6, "learning_rate": 5e-2, "self_check": False,
        "value": {"init": "sft", "head": "zero"}, "holdout_every": 2, "holdout_prompts": 8, "kl_coef": 0.0,
        "missing_eos_penalty": 0.0, "schedule": "constant",
    } | settings))  # fmt: skip
    return base, ppo_stage.run(context, config, Judge(), holdout_model)


def test_the_best_policy_is_kept_and_the_parting_told(tmp_path):
    """The judge likes the opposite: the policy that is kept is the one that nothing was done to."""
    said: list[str] = []
    base, result = run_stage(tmp_path, Judge(-1.0), said, keep="best")
    found = result.metrics["holdout"]
    assert [one["update"] for one in found["evaluations"]] == [0, 2, 4, 6]
    assert found["evaluations"][-1]["proxy"] > found["evaluations"][0]["proxy"] + 0.1
    assert result.metrics["kept_update"] == found["best_update"] == 0
    assert found["onset"]["after"] == 0 and any("over-optimised: since update 0" in text for text in said)
    assert [w["step"] for w in result.metrics["warnings"] if "over-optimised" in w["text"]] == [found["onset"]["seen"]]
    fresh = make_base()
    fresh.load_role("policy", tmp_path)
    reference = base.adapter_state("reference")
    assert all(torch.equal(v, reference[k]) for k, v in fresh.adapter_state("policy").items())
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if "holdout/held_out" in row] == [2, 4, 6]
    assert rows[1]["holdout/held_out"] == pytest.approx(-rows[1]["holdout/proxy"])


def test_watching_changes_nothing_of_what_is_learnt(tmp_path):
    run_stage(tmp_path / "a", Judge(), updates=3)
    run_stage(tmp_path / "b", None, updates=3)
    assert files_of(tmp_path / "a") == files_of(tmp_path / "b")


def test_the_samples_that_it_judges_come_from_the_servers(tmp_path):
    """8 prompts at updates 0, 2 and 3, beside 3 rollouts of 16; from the adapter of that update, which is compared."""
    double = VLLMDouble(make_base())
    with serving_vllm(double) as url:
        servers = RolloutServers(engine="vllm", servers=(url,), backoff=0.0, retries=0)
        _, result = run_stage(tmp_path / "a", Judge(), rollouts=servers, updates=3)
        assert len(double.asked) == 3 * 16 + 3 * 8
        assert len(double.loaded) == 4  # the policies before, and after each of three updates
        assert [body["model"] for body in double.asked[-8:]] == double.loaded[-1:] * 8
    assert [one["update"] for one in result.metrics["holdout"]["evaluations"]] == [0, 2, 3]
    stale = VLLMDouble(make_base(), stale=True)
    with serving_vllm(stale) as url:
        servers = RolloutServers(engine="vllm", servers=(url,), backoff=0.0, retries=0)
        with pytest.raises(StageError, match="does not sample from the policy"):
            run_stage(tmp_path / "b", Judge(), rollouts=servers, updates=1, holdout_every=1)
    assert len(stale.asked) == 8 + 16 + 8  # found where the first updated policy is evaluated


def test_a_watched_run_that_is_killed_keeps_the_same_policy(tmp_path):
    _, whole = run_stage(tmp_path / "whole", Judge(-1.0), keep="best")

    class Killed(BaseException):
        pass

    class Stops(Checkpoints):
        def safe_point(self, number, snapshot, step=None, good=True):
            if step == 5:
                self.save(number, snapshot())
                self.wait()
                raise Killed

    folder = tmp_path / "again" / "checkpoints"
    with pytest.raises(Killed):
        run_stage(tmp_path / "again", Judge(-1.0), checkpoints=Stops(folder, "key"), keep="best")
    _, again = run_stage(tmp_path / "again", Judge(-1.0), checkpoints=Checkpoints(folder, "key"), keep="best")
    assert again.metrics == whole.metrics
    found = {k: v for k, v in files_of(tmp_path / "again").items() if not k.startswith("checkpoints/")}
    assert found == files_of(tmp_path / "whole")


def test_the_best_needs_somebody_who_says_so(tmp_path):
    with pytest.raises(UserError, match=r"set reward\.holdout"):
        run_stage(tmp_path, None, keep="best")
