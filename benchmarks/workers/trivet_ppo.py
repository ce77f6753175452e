"""trivet's PPO on one shared base: policy, reference, value and reward as roles; the same tokens, one update."""

from __future__ import annotations

import tempfile

import torch
from stage_world import context_of
from transformers import LlamaForCausalLM
from world import Phases, in_dtype, llama_config, peak_bytes, report, rows_of_tokens, settings, tokenizer

from data.records import Message, Prompt
from data.splits import Corpus, Split
from models.backbone.settings import AdapterConfig
from models.roles.shared_base import SharedBase
from reward.model import RewardModel
from reward.terms.composition import WeightedSum
from stages.ppo.update import PPO
from stages.settings import PPOConfig

imports = peak_bytes()
case = settings()
phases = Phases()
torch.manual_seed(0)
base = SharedBase(in_dtype(LlamaForCausalLM(llama_config(case["size"])), case), tokenizer(size=case["size"]))
adapter = AdapterConfig(rank=16, alpha=32, layers=case.get("layers", "all"))
base.add_role("reference", adapter)
base.add_role("policy", adapter, copy_of="reference")
base.add_role("reward", adapter, head=True)
base.add_role("value", adapter, copy_of="reward", head=True)
queries = rows_of_tokens(case["rollouts"] * case["updates"], *case["query"], seed=0)
prompts = [Prompt(messages=(Message(role="user", content=f"w{i + 4}"),), group=str(i)) for i in range(len(queries))]
with tempfile.TemporaryDirectory() as folder:
    context = context_of(folder, base, adapter, Corpus(prompts=Split(train=tuple(prompts))))
    model = RewardModel(base=base, role="reward", renderer=context.renderer, batch=case["micro_batch"])
    config = PPOConfig(
        updates=case["updates"], rollouts=case["rollouts"], epochs=case["epochs"], micro_batch=case["micro_batch"],
        max_new_tokens=case["new"], learning_rate=1e-5,
    )  # fmt: skip
    ppo = PPO(context, config, prompts, WeightedSum([("model", 1.0, model.score)]))
    ppo.stream.queries = queries  # the very ids that TRL gets
    phases.wrap(ppo, "engine", "generate")
    phases.wrap(ppo, "rollout", "score")
    phases.wrap(ppo, "update", "train")
    tokens = 0.0
    with phases.phase("other"):
        for metrics in ppo.train():
            tokens += metrics["tokens/response"]
report(phases, imports, episodes=case["rollouts"] * case["updates"], response_tokens=tokens)
