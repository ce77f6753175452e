"""TRL's RewardTrainer with LoRA and a trained head, fed with all pairs of the rankings."""

from __future__ import annotations

import tempfile
from itertools import combinations

import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import LlamaForSequenceClassification
from trl import RewardConfig, RewardTrainer
from world import LORA, Phases, in_dtype, llama_config, peak_bytes, rankings, report, settings, tokenizer

imports = peak_bytes()
case = settings()
phases = Phases()
torch.manual_seed(0)
found = rankings(case["batch"] * case["updates"], case["answers"], case["prompt"], case["answer"])
chosen, rejected = [], []
for prompt, answers in found:
    for better, worse in combinations(answers, 2):
        chosen.append([*prompt, *better])
        rejected.append([*prompt, *worse])
# as many rows a forward pass as trivet's, and one optimizer step for the pairs of as many rankings
pairs = len(chosen) // len(found)
each = case["micro_batch"] * case["answers"] // 2
with tempfile.TemporaryDirectory() as folder:
    trainer = RewardTrainer(
        model=in_dtype(LlamaForSequenceClassification(llama_config(case["size"], num_labels=1)), case),
        args=RewardConfig(
            output_dir=folder, per_device_train_batch_size=each,
            gradient_accumulation_steps=case["batch"] * pairs // each, num_train_epochs=1, learning_rate=1e-5,
            max_length=None, bf16=False, use_cpu=True,
            gradient_checkpointing=case.get("gradient_checkpointing", False), report_to=[], save_strategy="no",
            logging_steps=1, disable_tqdm=True,
        ),
        processing_class=tokenizer(size=case["size"]),
        train_dataset=Dataset.from_dict({"chosen_ids": chosen, "rejected_ids": rejected}),
        peft_config=LoraConfig(task_type="SEQ_CLS", modules_to_save=["score"], **LORA),
    )  # fmt: skip
    with phases.phase("train"):
        trainer.train()
report(
    phases, imports, updates=trainer.state.global_step, pairs=len(chosen),
    tokens=sum(map(len, chosen)) + sum(map(len, rejected)),
)  # fmt: skip
