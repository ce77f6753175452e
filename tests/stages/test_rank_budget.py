"""AdaLoRA's budgets: the orthogonality term, which ranks go and when, and what a checkpoint keeps."""

from __future__ import annotations

import copy

import pytest
import torch
from peft import AdaLoraConfig, get_peft_model

from models.backbone.settings import AdapterConfig
from stages.training.rank_budget import RankBudget
from tests.conftest import make_base, tiny_lm

SETTINGS = AdapterConfig(
    method="adalora",
    rank=2,
    init_rank=4,
    alpha=8,
    targets=("q_proj", "down_proj"),
    budget=(0.2, 0.7),
    orthogonality=0.3,
)
IDS = torch.tensor([[5, 9, 11, 7, 20, 21]])
STEPS = 10


def with_roles(*roles, settings=SETTINGS):
    base = make_base()
    for role in roles:
        base.add_role(role, settings, seed=1)
    return base


def loss_of(lm):
    return torch.nn.functional.cross_entropy(lm(input_ids=IDS).logits[0, :-1], IDS[0, 1:])


def train(base, budget, role, steps, total=STEPS, rate=0.5):
    """Plain gradient descent, in which every number can be followed."""
    for step in steps:
        with base.training(role) as trained, base.role(role):
            loss_of(base.lm).backward()
            budget.add_orthogonality()
            with torch.no_grad():
                for p in trained.values():
                    p -= rate * p.grad
            budget.after_step(step, total)


def left(base, role):
    return [int((p != 0).sum()) for n, p in base.parameters_of(role).items() if ".lora_E." in n]


def test_the_orthogonality_term_is_that_of_the_paper():
    base = with_roles("sft")
    budget = RankBudget.of(base, "sft", SETTINGS)
    own = base.parameters_of("sft")
    factors = {n: p for n, p in own.items() if ".lora_E." not in n}
    with base.training("sft"):
        total = torch.zeros(())
        for name, p in factors.items():
            gram = p @ p.T if ".lora_A." in name else p.T @ p
            total = total + torch.linalg.matrix_norm(gram - torch.eye(4))
        (0.3 * total / len(factors)).backward()
        expected = {n: p.grad.clone() for n, p in factors.items()}
        for p in own.values():
            p.grad = torch.zeros_like(p)
        budget.add_orthogonality()
        for name, p in own.items():
            torch.testing.assert_close(p.grad, expected.get(name, torch.zeros_like(p)))


def test_ranks_fall_by_the_cubic_law_to_the_target_and_what_went_stays_away():
    base = with_roles("other", "sft")
    budget = RankBudget.of(base, "sft", SETTINGS)
    matrices, seen = 4, []
    for step in range(1, STEPS + 1):
        train(base, budget, "sft", [step])
        seen.append(sum(left(base, "sft")))
    # first 4 * 4, then (16 - 8) (1 - (step - 2) / 5)^3 + 8, rounded down, from step 7 on 4 * 2
    falls = [int(8 * (1 - (step - 2) / 5) ** 3 + 8) for step in range(3, 7)]
    assert seen == [16, 16, *falls, 8, 8, 8, 8] and matrices * SETTINGS.rank == 8
    assert len(set(left(base, "sft"))) > 1 or left(base, "sft") == [2, 2, 2, 2]
    assert left(base, "other") == [0, 0, 0, 0]  # Lambda begins at zero
    assert base.base_fingerprint() == base.fingerprint


def test_one_role_is_trained_as_pefts_own_model_trains_it():
    base = with_roles("sft")
    budget = RankBudget.of(base, "sft", SETTINGS)
    train(base, budget, "sft", range(1, STEPS + 1))
    config = AdaLoraConfig(
        **{
            "init_r": 4,
            "target_r": 2,
            "lora_alpha": 8,
            "target_modules": ["q_proj", "down_proj"],
            "task_type": "CAUSAL_LM",
        },
        **{"tinit": 2, "tfinal": 3, "total_step": STEPS, "orth_reg_weight": 0.3},
    )
    theirs = get_peft_model(tiny_lm().eval(), config)
    fresh = with_roles("sft").parameters_of("sft")
    with torch.no_grad():
        for name, p in theirs.named_parameters():
            if ".lora_" in name:
                p.copy_(fresh[name.removeprefix("base_model.model.").replace(".default", ".sft")])
    trained = [p for n, p in theirs.named_parameters() if ".lora_" in n]
    for step in range(1, STEPS + 1):
        theirs(input_ids=IDS, labels=IDS).loss.backward()
        with torch.no_grad():
            for p in trained:
                p -= 0.5 * p.grad
        theirs.base_model.update_and_allocate(step)
        theirs.zero_grad()
    ours = base.parameters_of("sft")
    for name, p in theirs.named_parameters():
        if ".lora_" in name:
            own = ours[name.removeprefix("base_model.model.").replace(".default", ".sft")]
            torch.testing.assert_close(own, p, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("stop", [1, 4, 8])
def test_a_budget_that_is_restored_ends_in_the_same_bits(stop):
    whole = with_roles("sft")
    train(whole, RankBudget.of(whole, "sft", SETTINGS), "sft", range(1, STEPS + 1))
    base = with_roles("sft")
    first = RankBudget.of(base, "sft", SETTINGS)
    train(base, first, "sft", range(1, stop + 1))
    saved, weights = copy.deepcopy(first.state()), {n: p.detach().clone() for n, p in base.parameters_of("sft").items()}
    again = with_roles("sft")
    with torch.no_grad():
        for name, p in again.parameters_of("sft").items():
            p.copy_(weights[name])
    second = RankBudget.of(again, "sft", SETTINGS)
    second.restore(saved)
    train(again, second, "sft", range(stop + 1, STEPS + 1))
    for name, p in whole.parameters_of("sft").items():
        assert torch.equal(again.parameters_of("sft")[name], p), name


def test_steps_without_gradients_count_and_change_nothing():
    base = with_roles("sft")
    budget = RankBudget.of(base, "sft", SETTINGS)
    before = {n: p.detach().clone() for n, p in base.parameters_of("sft").items()}
    for step in range(1, STEPS + 1):
        budget.add_orthogonality()
        budget.after_step(step, STEPS)
    assert all(torch.equal(p, before[n]) for n, p in base.parameters_of("sft").items())


def test_other_adapters_have_no_budget():
    base = make_base()
    base.add_role("sft", AdapterConfig(rank=4))
    assert RankBudget.of(base, "sft", AdapterConfig(rank=4)) is None
    assert RankBudget.of(make_base(), "sft", SETTINGS) is None
