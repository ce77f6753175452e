"""trivet's reward stage on rankings: each answer once, the prompt of a ranking once, all pairs in the loss."""

from __future__ import annotations

import tempfile

import torch
from stage_world import context_of
from transformers import LlamaForCausalLM
from world import Phases, in_dtype, llama_config, peak_bytes, rankings, report, settings, tokenizer

from data.splits import Corpus
from models.backbone.settings import AdapterConfig
from models.roles.shared_base import SharedBase
from stages.reward_model import EncodedRanking, fit
from stages.settings import RewardConfig

imports = peak_bytes()
case = settings()
phases = Phases()
torch.manual_seed(0)
base = SharedBase(in_dtype(LlamaForCausalLM(llama_config(case["size"])), case), tokenizer(size=case["size"]))
adapter = AdapterConfig(rank=16, alpha=32)
base.add_role("reward", adapter, head=True)
found = rankings(case["batch"] * case["updates"], case["answers"], case["prompt"], case["answer"])
rows = [
    EncodedRanking(queries=[prompt] * len(answers), responses=answers, ranks=list(range(len(answers))), scores=None)
    for prompt, answers in found
]
with tempfile.TemporaryDirectory() as folder:
    context = context_of(folder, base, adapter, Corpus())
    config = RewardConfig(batch=case["batch"], micro_batch=case["micro_batch"], learning_rate=1e-5)
    with phases.phase("train"):
        updates = fit(context, rows, config).steps
report(
    phases, imports, updates=updates, pairs=len(rows) * case["answers"] * (case["answers"] - 1) // 2,
    tokens=sum(len(p) + sum(map(len, a)) for p, a in found),
)  # fmt: skip
