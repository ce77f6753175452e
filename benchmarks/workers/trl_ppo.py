"""TRL's PPOTrainer: LoRA policy, its own base as reference, full value model, full reward model; one update."""

from __future__ import annotations

import tempfile

import torch
import trl.experimental.ppo.ppo_trainer as module
from datasets import Dataset
from peft import LoraConfig
from transformers import LlamaForCausalLM, LlamaForSequenceClassification
from trl.experimental.ppo import PPOConfig, PPOTrainer
from world import LORA, Phases, in_dtype, llama_config, peak_bytes, report, rows_of_tokens, settings, tokenizer

imports = peak_bytes()
case = settings()
phases = Phases()
torch.manual_seed(0)
rows, micro = case["rollouts"], case["micro_batch"]
policy = in_dtype(LlamaForCausalLM(llama_config(case["size"])), case)
reward = in_dtype(LlamaForSequenceClassification(llama_config(case["size"], num_labels=1)), case)
value = in_dtype(LlamaForSequenceClassification(llama_config(case["size"], num_labels=1)), case)
queries = rows_of_tokens(rows * case["updates"], *case["query"], seed=0)
with tempfile.TemporaryDirectory() as folder:
    trainer = PPOTrainer(
        args=PPOConfig(
            output_dir=folder, per_device_train_batch_size=micro, gradient_accumulation_steps=rows // micro,
            total_episodes=rows * case["updates"], num_ppo_epochs=case["epochs"], response_length=case["new"],
            local_rollout_forward_batch_size=case["rollout_batch"], temperature=1.0, stop_token="eos",
            missing_eos_penalty=1.0, num_sample_generations=0, learning_rate=1e-5, bf16=False, use_cpu=True,
            gradient_checkpointing=False, report_to=[], save_strategy="no", disable_tqdm=True,
        ),
        processing_class=tokenizer("left", case["size"]), model=policy, ref_model=None, reward_model=reward,
        value_model=value,
        train_dataset=Dataset.from_dict({"input_ids": queries}),
        eval_dataset=Dataset.from_dict({"input_ids": queries[:1]}),
        peft_config=LoraConfig(task_type="CAUSAL_LM", **LORA),
    )  # fmt: skip
    if case.get("freeze_value"):  # what a LoRA value role saves is told apart from what trivet saves otherwise
        value.requires_grad_(False)
        value.score.requires_grad_(True)
    plain = module.forward

    def forward(*args, **kwargs):
        with phases.phase("train" if torch.is_grad_enabled() else "score"):
            return plain(*args, **kwargs)

    module.forward = forward
    phases.wrap(module, "get_reward", "score")
    phases.wrap(module, "batch_generation", "generate")
    with phases.phase("train"):
        trainer.train()
report(phases, imports, episodes=rows * case["updates"])
