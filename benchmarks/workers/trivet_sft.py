"""trivet's SFT on the shared base: the trainer that the stage makes, fed with the very ids that TRL gets."""

from __future__ import annotations

import tempfile

import torch
from stage_world import context_of
from transformers import LlamaForCausalLM
from world import Phases, demonstrations, in_dtype, llama_config, peak_bytes, report, settings, tokenizer

from data.splits import Corpus
from data.template import Encoded
from models.backbone.settings import AdapterConfig
from models.roles.shared_base import SharedBase
from stages.settings import SFTConfig
from stages.sft import make_trainer
from stages.training import sft_trainer  # noqa: F401  (brings TRL, which the stage imports late)
from stages.training.hf_trainer import fit, training_session

imports = peak_bytes()
case = settings()
phases = Phases()
torch.manual_seed(0)
base = SharedBase(in_dtype(LlamaForCausalLM(llama_config(case["size"])), case), tokenizer(size=case["size"]))
adapter = AdapterConfig(rank=16, alpha=32)
base.add_role("sft", adapter)
rows = [
    Encoded(ids=[*prompt, *answer], labels=[-100] * len(prompt) + answer)
    for prompt, answer in demonstrations(case["batch"] * case["updates"], case["prompt"], case["answer"])
]
with tempfile.TemporaryDirectory() as folder:
    context = context_of(
        folder, base, adapter, Corpus(), gradient_checkpointing=case.get("gradient_checkpointing", False)
    )
    config = SFTConfig(batch=case["batch"], micro_batch=case["micro_batch"], learning_rate=1e-5)
    with base.training("sft"), base.role("sft"), training_session(context, base, "sft", "sft"):
        trainer = make_trainer(context, rows, config)
        with phases.phase("train"):
            updates = fit(trainer)
report(
    phases, imports, updates=updates, tokens=sum(len(r.ids) for r in rows),
    supervised=sum(x >= 0 for r in rows for x in r.labels),
)  # fmt: skip
