"""One whole PPO update against an independent float64 implementation: every gradient of every step, every weight."""

from __future__ import annotations

import pytest
from torch.testing import assert_close

from tests.conftest import in_float64, make_base, randomise, tiny_lm
from tests.support.oracle import Leaves, Oracle, Settings
from tests.support.ppo import RAGGED, Injected, make_ppo

SCALE = 2.0  # alpha 8 / rank 4
PLAIN = {"learning_rate": 3e-3, "max_grad_norm": 1e9, "missing_eos_penalty": 1.0}
EVERYTHING = {
    "learning_rate": 5e-3, "max_grad_norm": 0.7, "missing_eos_penalty": 1.5, "temperature": 0.7, "kl_coef": 0.3,
    "gamma": 0.97, "lam": 0.8, "entropy_coef": 0.02, "weight_decay": 0.1, "score_clip": 0.8, "value_clip": 0.1,
    "whiten_advantages": True, "clip": 0.1,
}  # fmt: skip
UNWHITENED = {"learning_rate": 1e-2, "whiten_advantages": False, "value_clip": None, "lam": 1.0, "kl_coef": 0.1}


def leaves_of(ppo, role: str, grad: bool = True) -> Leaves:
    """Copies of a role's adapter by the name of the weight that it stands on."""
    out: dict = {}
    for name, p in ppo.base.parameters_of(role).items():
        if ".lora_" in name:
            weight, kind = name.split(".lora_")
            place = out.setdefault(f"{weight}.weight", [None, None])
            place["AB".index(kind[0])] = p.detach().clone().double().requires_grad_(grad)
    return {name: (a, b) for name, (a, b) in out.items()}


def oracle_for(ppo, family: str) -> Oracle:
    c, head = ppo.config, ppo.base.heads["value"]
    return Oracle(
        lm=in_float64(tiny_lm(family).eval().requires_grad_(False)),
        transposed=family == "gpt2",
        scale=SCALE,
        policy=leaves_of(ppo, "policy"),
        reference=leaves_of(ppo, "reference", False),
        value=leaves_of(ppo, "value"),
        head=tuple(p.detach().clone().double().requires_grad_() for p in (head.weight, head.bias)),
        settings=Settings(
            temperature=c.temperature, beta=c.kl_coef, penalty=c.missing_eos_penalty, score_clip=c.score_clip,
            gamma=c.gamma, lam=c.lam, clip=c.clip, value_clip=c.value_clip, entropy=c.entropy_coef,
            whiten=c.whiten_advantages, rate=c.learning_rate, weight_decay=c.weight_decay, epsilon=c.adam_epsilon,
            max_norm=c.max_grad_norm,
        ),
    )  # fmt: skip


def key(name: str) -> str:
    """A trivet parameter's name in the oracle's words."""
    if ".head." in name:
        return "value/head/" + name.rsplit(".", 1)[-1]
    weight, kind = name.split(".lora_")
    return f"{kind.split('.')[1]}/{weight}.weight/{kind[0]}"


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("settings", [PLAIN, EVERYTHING, UNWHITENED], ids=["plain", "everything", "unwhitened"])
def test_a_whole_update_is_that_of_the_oracle(tmp_path, family, checkpointing, settings):
    """Sanity 7, and O1 to O4, A1 to A6, W1, W2, W9, W12, C1, C2, C4, L1, L7, R5, R9 at once: 2 epochs of 2 minibatches
    over ragged rows (EOS first, EOS last, none); gradients of all four steps and the weights after them."""
    base = make_base(family)
    ppo = make_ppo(
        tmp_path, family=family, base=base, engine=Injected(RAGGED), epochs=2, minibatches=2, micro_batch=3,
        updates=1, adam_epsilon=1e-3, double=True, gradient_checkpointing=checkpointing, **settings,
    )  # fmt: skip
    randomise(base, "policy", 7)  # away from the reference, so that the KL penalty says something
    oracle = oracle_for(ppo, family)
    seen, real, taken = [], ppo.optimizer.step, ppo.compute_rewards
    parameters = {**ppo.policy_parameters, **ppo.value_parameters}

    def step() -> None:
        seen.append({key(n): p.grad.clone() for n, p in parameters.items()})
        real()

    rollouts = []
    ppo.optimizer.step = step
    ppo.compute_rewards = lambda rollout: (rollouts.append(rollout), taken(rollout))[1]
    metrics = next(iter(ppo.train()))
    (rollout,) = rollouts
    expected = oracle.update(
        [list(q) for q in rollout.queries],
        [list(r) for r in rollout.responses],
        rollout.raw_scores.double().tolist(),
        [r[-1] == 2 for r in rollout.responses],
        [record.row_ids for record in ppo.records],
    )
    assert len(seen) == len(expected) == 4
    if settings is EVERYTHING:
        assert metrics["ppo/policy/clipfrac"] > 0 and metrics["ppo/value/clipfrac"] > 0
        assert all(r.policy_grad_norm > 0.7 and r.value_grad_norm > 0.7 for r in ppo.records)
    for ours, theirs in zip(seen, expected, strict=True):
        assert ours.keys() == theirs.keys()
        for name, g in theirs.items():
            assert_close(ours[name].double(), g, rtol=1e-4, atol=2e-5 * g.abs().max().item() + 1e-9, msg=name)
    final = {**oracle.named("policy"), **oracle.named("value")}
    for name, p in parameters.items():
        assert_close(p.detach(), final[key(name)].detach(), rtol=0, atol=2e-4 * settings["learning_rate"], msg=name)
