"""Resident memory of an ensemble of LoRA reward members on one base, above the base itself: training or scoring."""

from __future__ import annotations

import json
import tempfile

import psutil
import torch
from stage_world import context_of
from transformers import LlamaForCausalLM
from world import llama_config, peak_bytes, rankings, settings, tokenizer

from data.splits import Corpus
from models.backbone.settings import AdapterConfig
from models.roles.shared_base import SharedBase
from reward.files import member_role
from reward.model import Member, RewardModel
from stages.reward_model import EncodedRanking, train_all
from stages.settings import RewardConfig

case = settings()
torch.manual_seed(0)
base = SharedBase(LlamaForCausalLM(llama_config(case["size"])), tokenizer(size=case["size"]))
before, adapter, members = psutil.Process().memory_info().rss, AdapterConfig(rank=16, alpha=32), case["members"]
found = rankings(case["batch"] * case["updates"], case["answers"], case["prompt"], case["answer"])
roles = [member_role("reward", i) for i in range(members)]
with tempfile.TemporaryDirectory() as folder:
    context = context_of(folder, base, adapter, Corpus())
    if case["what"] == "training":
        ranks = list(range(case["answers"]))
        rows = [EncodedRanking(queries=[p] * len(a), responses=a, ranks=ranks, scores=None) for p, a in found]
        config = RewardConfig(batch=case["batch"], micro_batch=case["micro_batch"], ensemble=members)
        train_all(context, dict.fromkeys(roles, rows), config)
    else:
        for i, role in enumerate(roles):
            base.add_role(role, adapter, head=True, seed=i)
        several = tuple(Member(role=r) for r in roles) if members > 1 else ()
        model = RewardModel(base=base, role="reward", renderer=context.renderer, members=several, batch=case["batch"])
        model.score_ids([p for p, answers in found for _ in answers], [a for _, answers in found for a in answers])
own = sum(p.numel() * p.element_size() for p in base.parameters_of("reward").values())
weights = sum(t.nbytes for t in base.base_tensors().values())
print(json.dumps({"base": weights, "adapter": own, "peak_above_base": peak_bytes() - before}))
