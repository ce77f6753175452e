"""Peak of torch's allocations on a CPU, by the allocator's own events, and small bases to measure it on."""

from __future__ import annotations

import contextlib
import gc
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from pipelines import Pipeline
from tests.conftest import tiny_lm, word_tokenizer

MEMORY = "[memory]"  # the profiler's name of an allocation, or of what is given back


@dataclass(slots=True)
class Peak:
    """Bytes above what was allocated before."""

    bytes: int = 0


@contextlib.contextmanager
def allocations() -> Iterator[Peak]:
    """Measure the peak of what torch allocates inside, temporaries of operations among it."""
    peak = Peak()
    gc.collect()  # what is given back inside was allocated inside
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        yield peak
    events = [e for e in profiler.profiler.kineto_results.events() if e.name() == MEMORY]
    held = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        held += event.nbytes()
        peak.bytes = max(peak.bytes, held)


WORDS = 400


def make_folder(folder: Path, width: int, dtype: torch.dtype = torch.float32, **changes: Any) -> Path:
    """A random Llama with grouped queries, in a folder: ``width`` and 2.75 times as much inside, four layers."""
    shape: dict[str, Any] = {
        "hidden_size": width, "intermediate_size": 11 * width // 4, "num_hidden_layers": 4,
        "num_attention_heads": width // 32, "num_key_value_heads": max(1, width // 128),
        "max_position_embeddings": 512, "vocab_size": 2048, "initializer_range": 0.02, "eos_token_id": None,
    }  # fmt: skip
    lm = tiny_lm("llama", **(shape | changes)).to(dtype)
    lm.generation_config.eos_token_id = None
    lm.save_pretrained(folder)
    words = ["<pad>", "<bos>", "<eos>", "<unk>", "user", "assistant", ":", *[f"w{i}" for i in range(WORDS)]]
    word_tokenizer(words=words).save_pretrained(folder)
    return folder


def make_data(folder: Path, rows: int = 48, prompt: int = 48, answer: int = 80) -> dict[str, str]:
    """Demonstrations, rankings and prompts of one length each."""
    folder.mkdir(parents=True, exist_ok=True)

    def text(seed: int, length: int) -> str:
        return " ".join(f"w{(seed * 31 + i * 7) % WORDS}" for i in range(length))

    asked = [text(i, prompt) for i in range(rows)]
    written = {
        "demonstrations": [{"prompt": p, "completion": text(i + 1, answer)} for i, p in enumerate(asked)],
        "rankings": [
            {"prompt": p, "chosen": text(i + 2, answer), "rejected": text(i + 3, answer)} for i, p in enumerate(asked)
        ],
        "prompts": [{"prompt": p} for p in asked],
    }
    for name, rows_of in written.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows_of))
    return {name: str(folder / f"{name}.jsonl") for name in written}


def recipe_of(base: Path, data: dict[str, str], **changes: Any) -> dict[str, Any]:
    """SFT, reward and PPO of few steps."""
    recipe: dict[str, Any] = {
        "name": "measured",
        "base": str(base),
        "template": "dialogue",
        "data": data | {"held_out": 0.0},
        "stages": ["sft", "reward", "ppo"],
        "sft": {"batch": 16, "micro_batch": 16},
        "reward": {"batch": 8, "micro_batch": 8, "gate": False, "calibration_samples": 8},
        "ppo": {"updates": 1, "rollouts": 16, "micro_batch": 8, "epochs": 2, "max_new_tokens": 64,
                "self_check": False},
        "runtime": {"device": "cpu", "threads": 1},
        "tracking": [],
    }  # fmt: skip
    for key, value in changes.items():
        before = recipe.get(key)
        recipe[key] = before | value if isinstance(value, dict) and isinstance(before, dict) else value
    return recipe


def measured(pipeline: Pipeline) -> dict[str, int]:
    """Run a pipeline: the peak of each of its stages, in bytes, the base's weights included."""
    found = {}
    base = pipeline.loaded.base()
    weights = sum(t.numel() * t.element_size() for t in base.base_tensors().values())
    for name in pipeline.recipe.stages:
        with allocations() as peak:
            pipeline.run(only=[name])
        found[name] = weights + peak.bytes
    return found
