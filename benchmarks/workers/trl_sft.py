"""TRL's SFTTrainer with LoRA, answers only in the loss: padded, padding-free, or packed (a row holds a micro-batch)."""

from __future__ import annotations

import tempfile
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import LlamaForCausalLM
from trl import SFTConfig, SFTTrainer
from trl.data_utils import pack_dataset
from world import LORA, Phases, demonstrations, in_dtype, llama_config, peak_bytes, report, settings, tokenizer


def packed_length(rows: Dataset, bins: int) -> int:
    """The shortest rows that hold everything in this many."""
    longest = max(-(-sum(map(len, rows["input_ids"])) // bins), max(map(len, rows["input_ids"])))
    while len(pack_dataset(rows, longest, "bfd")) > bins:
        longest += 1
    return longest


imports = peak_bytes()
case = settings()
phases = Phases()
torch.manual_seed(0)
batch, micro, mode = case["batch"], case["micro_batch"], case["mode"]
pairs = demonstrations(batch * case["updates"], case["prompt"], case["answer"])
rows = Dataset.from_dict({
    "input_ids": [[*prompt, *answer] for prompt, answer in pairs],
    "labels": [[-100] * len(prompt) + answer for prompt, answer in pairs],
})  # fmt: skip
ways: dict[str, dict[str, Any]] = {
    "padded": {"max_length": None},
    "padding_free": {"max_length": None, "padding_free": True},
    "packed": {"packing": True, "packing_strategy": "bfd"},
}
way = ways[mode]
if mode == "packed":  # a packed row holds what a micro-batch holds
    way["max_length"] = packed_length(rows, case["updates"] * batch // micro)
with tempfile.TemporaryDirectory() as folder:
    trainer = SFTTrainer(
        model=in_dtype(LlamaForCausalLM(llama_config(case["size"])), case),
        args=SFTConfig(
            output_dir=folder, per_device_train_batch_size=1 if mode == "packed" else micro,
            gradient_accumulation_steps=batch // micro, num_train_epochs=1, learning_rate=1e-5, bf16=False,
            use_cpu=True, gradient_checkpointing=case.get("gradient_checkpointing", False), report_to=[],
            save_strategy="no", logging_steps=1, disable_tqdm=True, **way,
        ),
        processing_class=tokenizer(size=case["size"]), train_dataset=rows,
        peft_config=LoraConfig(task_type="CAUSAL_LM", **LORA),
    )  # fmt: skip
    with phases.phase("train"):
        trainer.train()
report(
    phases, imports, updates=trainer.state.global_step, tokens=sum(len(p) + len(a) for p, a in pairs),
    supervised=sum(len(a) for _, a in pairs), packed_length=way["max_length"],
)  # fmt: skip
