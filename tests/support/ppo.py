"""A tiny PPO: two-layer model, word tokenizer, a few prompts, any reward."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from data.records import Message, Prompt
from data.splits import Corpus, Split
from data.template import Renderer
from models.backbone.processes import Processes
from models.backbone.seeds import generator
from models.backbone.settings import AdapterConfig
from models.roles.shared_base import SharedBase
from models.sampling.generate import Generated
from reward.terms.composition import WeightedSum
from stages.ppo import state as ppo_state
from stages.ppo.update import PPO
from stages.settings import PPOConfig
from stages.stage import MetricsLog, StageContext
from tests.conftest import make_base, randomise


class Silent:
    def advance(self, *_: Any, **__: Any) -> None:
        """Nothing to show."""

    def phase(self, *_: Any) -> Any:
        """Nothing to show either."""
        return lambda count: None


def make_prompt(text: str) -> Prompt:
    return Prompt(messages=(Message(role="user", content=text),), group=text)


PROMPTS = [
    make_prompt(t) for t in ("w1", "w2 w3", "w4 w5 w6 w7", "w8 w9 w10", "w11", "w12 <eos> w13", "w14 w15", "w16")
]


def make_context(
    base: SharedBase, out: Path, corpus: Corpus | None = None, seed: int = 0, **changes: Any
) -> StageContext:
    return StageContext(
        out=out,
        seed=seed,
        open_base=lambda: (base, Renderer(base.tokenizer, template="dialogue")),
        corpus=corpus or Corpus(prompts=Split(train=tuple(PROMPTS))),
        adapter=AdapterConfig(rank=4, alpha=8),
        inputs={},
        processes=Processes("cpu"),
        log=MetricsLog(out / "metrics.jsonl"),
        bar=Silent(),
        say=lambda text: None,
        warn=lambda text: None,
        **changes,
    )


def first_word_reward(samples: Any) -> torch.Tensor:
    """Something that depends on everything sampled."""
    return torch.tensor([(sum(ids) % 7) / 3.0 - 1.0 for ids in samples.responses])


def make_ppo(
    tmp_path: Path,
    reward: Any = first_word_reward,
    family: str = "llama",
    base: SharedBase | None = None,
    gradient_checkpointing: bool = False,
    engine: Any = None,
    seed: int = 0,
    prompts: list[Prompt] | None = None,
    double: bool = False,
    adapter: AdapterConfig | None = None,
    **settings: Any,
) -> PPO:
    """A PPO whose reference is a trained-looking SFT adapter and whose value role is random."""
    base = base or make_base(family)
    config = PPOConfig(
        **({"updates": 3, "rollouts": 8, "epochs": 2, "max_new_tokens": 6, "learning_rate": 1e-3} | settings)
    )
    context = make_context(base, tmp_path, seed=seed, gradient_checkpointing=gradient_checkpointing)
    adapter = adapter or context.adapter
    base.add_role("reference", adapter)
    randomise(base, "reference", 1)
    base.add_role("policy", adapter, copy_of="reference")
    if config.value.init == "policy_trunk":
        base.add_head("value", 0)
    else:
        base.add_role("value", adapter, head=True)
        randomise(base, "value", 2)
    if double:
        base.lm.double()
        base.heads.double()
    return PPO(context, config, prompts or PROMPTS, WeightedSum([("test", 1.0, reward)]), engine)


class Injected:
    """An engine that gives prepared responses: EOS first, EOS last, no EOS, ragged."""

    def __init__(self, responses: list[list[int]]) -> None:
        self.responses = responses

    def __call__(self, role: Any, prompts: Any, **_: Any) -> Generated:
        return Generated(ids=[list(r) for r in self.responses], finished=[r[-1] == 2 for r in self.responses])


RAGGED = [
    [2],
    [5, 9, 11, 13, 15, 2],
    [7, 8, 9, 10, 11, 12],
    [20, 2],
    [21, 22, 2],
    [0, 6, 2],
    [30, 31, 32, 33],
    [9, 9, 9, 9, 2],
]
"""EOS first, EOS at the last allowed position, no EOS at all, ragged, the pad id as a sampled token."""

__all__ = ["Generated", "generator", "replace"]


def facts(rows: list[dict[str, float]]) -> list[dict[str, float]]:
    return [{k: v for k, v in row.items() if not k.startswith(("time/", "memory/"))} for row in rows]


def everything(ppo) -> dict[str, torch.Tensor]:
    """Weights of all roles, and Adam's moments."""
    weights = {n: p for role in ("policy", "value", "reference") for n, p in ppo.base.parameters_of(role).items()}
    moments = ppo_state.training_tensors(ppo.policy_parameters | ppo.value_parameters, [ppo.optimizer])
    return {n: t.detach().clone() for n, t in (weights | moments).items()}
