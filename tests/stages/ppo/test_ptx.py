"""PTX: the gradient of equation 2 is the sum of both parts', each computed by itself; nothing changes without it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.testing import assert_close

from data.common.errors import UserError
from data.records import Demonstration, Document
from data.splits import Corpus, Split
from pipelines.loading.load import load_recipe
from pipelines.report.page import write_report
from pipelines.run.pipeline import Pipeline
from pipelines.stages.table import STAGES
from stages.ppo import state as ppo_state
from stages.ppo.ptx import PTX, learnt, ptx_rows
from stages.ppo.update import PPO
from stages.settings import PPOConfig
from tests.conftest import make_base
from tests.support.ppo import facts, make_context, make_ppo, make_prompt
from tests.support.recipes import RECIPE

ROWS = [
    ([1, 7, 8, 9, 2], [-100, -100, 8, 9, 2]),
    ([1, 10, 11, 12, 13, 14, 2], [1, 10, 11, 12, 13, 14, 2]),
    ([1, 9], [1, 9]),
]
NATS = 27.8


def with_ptx(tmp_path: Path, rows: Any = ROWS, **settings: Any) -> PPO:
    tmp_path.mkdir(exist_ok=True)
    ppo = make_ppo(tmp_path, **{"ptx_coef": NATS, "ptx_batch": 2} | settings)
    assert ppo.ptx is not None
    ppo.ptx.rows = rows
    return ppo


def naive(ppo: PPO, rows: list[Any]) -> tuple[torch.Tensor, int]:
    """Summed -log p of labelled tokens by Transformers' logits, row by row, and how many there are."""
    total, count = torch.zeros((), dtype=torch.float64), 0
    with ppo.base.role("policy") as policy:
        for ids, labels in rows:
            logprobs = policy.lm(torch.tensor([ids])).logits[0].log_softmax(-1)
            for i, label in enumerate(labels[1:]):
                if label >= 0:
                    total, count = total - logprobs[i, label].double(), count + 1
    return total, count


def gradients(ppo: PPO) -> dict[str, torch.Tensor]:
    return {n: p.grad.clone() for n, p in ppo.policy_parameters.items() if p.grad is not None}


@pytest.mark.parametrize("micro_batch", [16, 1])
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_the_gradient_is_the_sum_of_both_parts(tmp_path: Path, family: str, micro_batch: int) -> None:
    """d(PPO) + 27.8 d(mean nll): the one without PTX, the other by Transformers' logits, in one process' float64."""
    kinds: dict[str, Any] = {"family": family, "double": family == "gpt2", "micro_batch": micro_batch}
    found: dict[str, dict[str, torch.Tensor]] = {}
    off: dict[str, Any] = {"ptx_coef": 0.0, "ptx_batch": None}
    for name, settings in (("both", dict[str, Any]()), ("ppo", off)):
        (tmp_path / name).mkdir()
        ppo = make_ppo(tmp_path / name, **kinds, **{"ptx_coef": NATS, "ptx_batch": 2} | settings)
        if ppo.ptx is not None:
            ppo.ptx.rows = ROWS
        kept: list[dict[str, torch.Tensor]] = []
        step = ppo.optimizer.step

        def noted(*args: Any, kept: Any = kept, ppo: PPO = ppo, step: Any = step, **more: Any) -> Any:
            kept.append(gradients(ppo))
            return step(*args, **more)

        ppo.optimizer.step = noted  # type: ignore[method-assign]
        ppo.config.__dict__["max_grad_norm"] = 1e9
        with ppo.base.training("policy", "value"):
            ppo.step()
        found[name] = kept[0]
    fresh = make_ppo(tmp_path, **kinds)
    wanted = PTX(fresh.context, PPOConfig(ptx_coef=NATS, ptx_batch=2), ROWS, list(fresh.policy_parameters.values()))
    rows = [ROWS[i] for i in wanted.chosen(0)]
    with fresh.base.training("policy"):
        total, count = naive(fresh, rows)
        (NATS * total / count).backward()
        own = gradients(fresh)
    assert own.keys() == found["both"].keys() == found["ppo"].keys()
    near = 2e-4 if kinds["double"] else 1e-3  # sums in fp32, of products that a processor rounds in its own order
    for name, grad in own.items():
        expected = grad.double() + found["ppo"][name].double()
        assert_close(found["both"][name].double(), expected, atol=near, rtol=1e-3)
        assert grad.abs().max() > 10 * near or "lora_A" in name


def test_the_loss_is_a_metric_of_its_own_in_nats_a_token(tmp_path: Path) -> None:
    """One update of two steps at rate 0: the mean of the losses of the rows that each step takes."""
    ppo = with_ptx(tmp_path, learning_rate=0.0, epochs=2)
    assert ppo.ptx is not None
    expected = []
    for step in range(2):
        with torch.no_grad():
            total, count = naive(ppo, [ROWS[i] for i in ppo.ptx.chosen(step)])
        expected.append(float(total) / count)
    metrics = next(ppo.train())
    assert metrics["ppo/loss/ptx"] == pytest.approx(sum(expected) / 2, rel=1e-5)


def test_each_row_comes_once_before_any_comes_again(tmp_path: Path) -> None:
    ppo = with_ptx(tmp_path, rows=[([1, i], [1, i]) for i in range(5)])
    assert ppo.ptx is not None
    numbers = [n for step in range(5) for n in ppo.ptx.chosen(step)]
    assert sorted(numbers[:5]) == sorted(numbers[5:]) == [0, 1, 2, 3, 4] and numbers[:5] != numbers[5:]


def test_rows_a_step_follow_the_minibatch() -> None:
    context = make_context(make_base(), Path("/dev"))
    assert PTX(context, PPOConfig(ptx_coef=1, rollouts=8, minibatches=2), ROWS, []).batch == 4
    assert PTX(context, PPOConfig(ptx_coef=1, rollouts=8, ptx_batch=3), ROWS, []).batch == 3


def test_it_keeps_what_the_policy_knew(tmp_path: Path) -> None:
    """After PPO for a reward of its own, the loss on the rows is lower with PTX than without."""
    after = {}
    for name, coef in (("with", NATS), ("without", 0.0)):
        (tmp_path / name).mkdir()
        more: dict[str, Any] = {"ptx_coef": coef, "ptx_batch": 2 if coef else None}
        ppo = make_ppo(tmp_path / name, updates=4, learning_rate=1e-2, **more)
        if ppo.ptx is not None:
            ppo.ptx.rows = ROWS
        list(ppo.train())
        with torch.no_grad():
            after[name] = float(naive(ppo, ROWS)[0])
    assert after["with"] < 0.8 * after["without"]


def test_it_resumes_in_the_middle_of_an_update(tmp_path: Path) -> None:
    """There is no state of its own: what is left follows from the number of steps done."""
    whole = with_ptx(tmp_path / "whole", updates=2, minibatches=2)
    states: list[Any] = []

    def note() -> None:
        state = ppo_state.snapshot(whole)
        states.append(replace(state, tensors={n: t.detach().clone() for n, t in state.tensors.items()}))

    whole.safe_point = note
    rows = facts(list(whole.train()))
    resumed = with_ptx(tmp_path / "resumed", updates=2, minibatches=2)
    ppo_state.restore(resumed, states[2])
    assert facts(list(resumed.train())) == rows
    pairs = zip(whole.policy_parameters.values(), resumed.policy_parameters.values(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def test_a_critics_warm_up_takes_no_rows(tmp_path: Path) -> None:
    ppo = with_ptx(tmp_path, critic_warmup=1, updates=2)
    before = [p.detach().clone() for p in ppo.policy_parameters.values()]
    metrics = ppo.train()
    assert "ppo/loss/ptx" not in next(metrics)
    assert all(torch.equal(a, b) for a, b in zip(before, ppo.policy_parameters.values(), strict=True))
    assert "ppo/loss/ptx" in next(metrics)


# -- rows ------------------------------------------------------------------------------------------------------------


def corpus() -> Corpus:
    documents = (Document(text="w1 w2 w3", group="a"), Document(text=" ".join(["w4"] * 12), group="b"))
    shown = (Demonstration(prompt=make_prompt("w5"), answer="w6 w7"),)
    return Corpus(documents=Split(train=documents), demonstrations=Split(train=shown))


def test_documents_come_in_chunks_and_demonstrations_with_their_responses(tmp_path: Path) -> None:
    context = make_context(make_base(), tmp_path, corpus())
    rows = ptx_rows(context, PPOConfig(ptx_coef=1, ptx_max_tokens=8))
    assert [len(ids) for ids, _ in rows] == [5, 8, 7] and sum(map(learnt, rows)) == 4 + 13
    assert all(list(ids) == list(labels) for ids, labels in rows)
    [(ids, labels)] = ptx_rows(context, PPOConfig(ptx_coef=1, ptx_data="demonstrations"))
    response = context.renderer.answer_ids(make_prompt("w5").messages, "w6 w7", True)
    assert [label for label in labels if label >= 0] == list(response) == list(ids)[-len(response) :]


def test_what_is_not_there_is_refused(tmp_path: Path) -> None:
    context = make_context(make_base(), tmp_path, Corpus())
    with pytest.raises(UserError, match=r"ppo\.ptx_data: there are no documents to train on: give data\.documents"):
        ptx_rows(context, PPOConfig(ptx_coef=1))
    with pytest.raises(UserError, match=r"ppo\.ptx_data: there are no data\.documents"):
        load_recipe({**RECIPE, "base": "gpt2", "data": {"demonstrations": "demo-task?rows=60"}}, ["ppo.ptx_coef=1"])


# -- a run -----------------------------------------------------------------------------------------------------------


def test_keys_know_it_only_where_it_is_switched_on() -> None:
    off, on = load_recipe(RECIPE), load_recipe(RECIPE, ["ppo.ptx_coef=2"])
    assert not any(name.startswith("ptx_") for name in STAGES["ppo"].settings(off)["ppo"])
    assert STAGES["ppo"].settings(on)["ppo"]["ptx_data"] == "documents"
    assert STAGES["ppo"].parts(off) == ("prompts",) and STAGES["ppo"].parts(on) == ("prompts", "documents")


@pytest.mark.slow
@pytest.mark.parametrize("data", ["documents", "demonstrations"])
def test_a_run_mixes_it_in_and_says_so(tmp_path: Path, data: str) -> None:
    run = tmp_path / "run"
    changes = ["ppo.ptx_coef=1", f"ppo.ptx_data={data}", "stages=[pretrain,sft,rankings,reward,ppo]"]
    Pipeline.from_recipe({k: v for k, v in RECIPE.items() if k != "evaluation"}, changes, run_dir=run).run()
    rows = [json.loads(line) for line in (run / "ppo/metrics.jsonl").read_text().splitlines()]
    assert len(rows) == 2 and all(0 < row["ppo/loss/ptx"] < 20 for row in rows)
    manifest = json.loads((run / "ppo/manifest.json").read_text())
    assert manifest["metrics"]["ptx_rows"] > 0 and manifest["described"]["data"].keys() == {"prompts", data}
    assert "Pretraining loss (PTX)" in write_report(run).read_text()
