"""Called in test_base_in_parts by each of two processes, and by one: full fine-tuning on a base that is held in parts.

Every process but the first is short of memory in one SFT, once in a pass backward and once behind a micro-batch whose
gradients are exchanged already.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from data.records import Demonstration, RankedAnswers
from data.splits import Corpus, Split
from models.backbone.processes import Processes
from models.backbone.settings import AdapterConfig
from models.backbone.sharding import shards_of, whole_of
from models.backbone.trained_shards import trained_parameters, whole_state
from models.roles.export import save_role
from models.roles.shared_base import SharedBase
from reward.settings import RewardPart
from stages import reward_model, sft
from stages.ppo import stage as ppo_stage
from stages.safe_points.checkpoints import Checkpoints
from stages.settings import CheckpointConfig, PPOConfig, RewardConfig, SFTConfig
from stages.stage import StageContext
from tests.stages.several_processes import BASE, LENGTHS, given_logprobs
from tests.support.ppo import make_context, make_prompt

FULL = AdapterConfig(method="full")
RANK = os.environ.get("RANK", "0")
DEMONSTRATIONS = tuple(
    Demonstration(prompt=make_prompt(f"w{i} w{i + 1}"), answer=" ".join(f"w{(i * 7 + j) % 30}" for j in range(n)))
    for i, n in enumerate(LENGTHS)
)
RANKINGS = tuple(
    RankedAnswers(prompt=make_prompt(f"w{i} w3"), answers=(f"w{i} w2", f"w{i} w5 w20"), ranks=(0, 1)) for i in range(7)
)
PROMPTS = tuple(make_prompt(f"w{i} w{i + 1} " + "w4 " * (i % 3)) for i in range(7))


def context_of(folder: Path, name: str, base: SharedBase, **parts: Any) -> StageContext:
    """A stage that trains whole models and saves every step; checkpoints are all processes' own folder."""
    out = folder / f"full-{name}-{RANK}"
    out.mkdir()
    context = make_context(base, out, Corpus(**parts), recipe_folder=Path(__file__).parent)
    saved = Checkpoints(
        folder / f"checkpoints-{name}", "key", CheckpointConfig(every_steps=1, keep=9), context.processes
    )
    return replace(context, adapter=FULL, checkpoints=saved)


def ended(context: StageContext, *roles: str) -> dict[str, Any]:
    """Weights of whole models, which the first process alone has, and of heads; metrics."""
    weights: dict[str, Any] = {}
    for role in roles:
        lm = context.base.copies[role]
        state = {n: p.detach() for n, p in lm.named_parameters()} if shards_of(lm) is None else whole_state(lm)
        weights |= {f"{role}.{n}": v.flatten().tolist() for n, v in (state or {}).items()}
        if role in context.base.heads:
            weights |= {
                f"{role}.head.{n}": p.flatten().tolist() for n, p in context.base.heads[role].named_parameters()
            }
    rows = [json.loads(line) for line in (context.out / "metrics.jsonl").read_text().splitlines()]
    return {"weights": weights, "log": rows}


def break_passes(lm: Any) -> list[int]:
    """Any process but the first has no memory in its first pass backward, inside a layer, and in its third forward, of
    several rows (three processes have single ones by then).

    Returns:
        How many passes with gradients there were, in a list.
    """
    passes = [0]

    def forward(module: Any, given: Any) -> None:
        passes[0] += torch.is_grad_enabled()
        if int(RANK) > 0 and passes[0] == 3 and torch.is_grad_enabled() and len(given[0]) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory.")

    def backward(module: Any, given: Any) -> None:
        if int(RANK) > 0 and passes[0] == 1:
            raise torch.OutOfMemoryError("CUDA out of memory.")

    lm.get_submodule("model.layers.1.mlp").register_forward_pre_hook(forward)
    lm.get_submodule("model.layers.0.self_attn.o_proj").register_full_backward_pre_hook(backward)
    return passes


def tuned(folder: Path, name: str, short: bool = False) -> dict[str, Any]:
    """SFT that keeps the best weights."""
    split = Split(train=DEMONSTRATIONS, held_out=DEMONSTRATIONS[1:8])
    context = context_of(folder, name, BASE[0](), demonstrations=split)
    sizes: dict[str, int] = {"batch": 8, "micro_batch": 4} if short else {"batch": 4, "micro_batch": 2}
    config = SFTConfig(epochs=1, learning_rate=1e-3, keep="best", held_out_every=1, max_grad_norm=0.5, **sizes)
    passes, add_role = list[list[int]](), context.base.add_role

    def added(*given: Any, **more: Any) -> None:
        add_role(*given, **more)
        passes.append(break_passes(context.base.copies["sft"]))

    if short:
        context.base.add_role = added  # type: ignore[method-assign]
    sft.run(context, config)
    return ended(context, "sft") | {"passes": sum(map(sum, passes))}


def ranked(folder: Path) -> dict[str, Any]:
    context = context_of(folder, "reward", BASE[0](), rankings=Split(train=RANKINGS))
    context.base.add_role("sft", AdapterConfig(rank=4, alpha=8))  # merged into the copy
    for i, p in enumerate(context.base.parameters_of("sft").values()):
        torch.nn.init.normal_(p, std=0.05, generator=torch.Generator().manual_seed(i))
    config = RewardConfig(epochs=1, learning_rate=1e-3, batch=4, micro_batch=2, calibration_samples=4)
    rows, _ = reward_model.encode(context, RANKINGS, config)
    reward_model.train_all(context, {"reward": rows}, config, rows[1:6])
    return ended(context, "reward")


def optimised(folder: Path, name: str) -> dict[str, Any]:
    context = context_of(folder, name, BASE[0](), prompts=Split(train=PROMPTS))
    context.base.add_role("reference", FULL)
    config = PPOConfig(
        updates=2,
        epochs=1,
        rollouts=6,
        minibatches=2,
        micro_batch=2,
        learning_rate=1e-3,
        max_new_tokens=5,
        self_check=name == "ppo",
        value={"init": "sft", "head": "zero"},
        reward=[RewardPart(source="length", max_length=3)],
    )
    ppo_stage.run(context, config, None)
    return ended(context, "policy", "value")


def resumed(folder: Path, name: str, step: int, train: Callable[[Path, str], dict[str, Any]]) -> dict[str, Any]:
    """The same again from a checkpoint of ``name`` in the middle."""
    there, here = folder / f"checkpoints-{name}", folder / f"checkpoints-{name}-again"
    processes = Processes("auto")
    if processes.is_main:
        shutil.copytree(there / f"step_{step}", here / f"step_{step}")
    processes.barrier()
    return train(folder, f"{name}-again")


def stored(folder: Path) -> dict[str, Any]:
    """A role that is saved, and read again."""
    base, processes = BASE[0](), Processes("auto")
    base.add_role("sft", FULL)
    out = folder / "stored"
    save_role(base, "sft", out, main=processes.is_main)
    processes.barrier()
    base.load_role("again", out)
    first, again = (list(trained_parameters(base.copies[name]).values()) for name in ("sft", "again"))
    here, whole = sum(p.numel() for p in first), sum(p.numel() for p in base.lm.parameters())
    same = all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    return {
        "same": same,
        "here": here,
        "whole": whole,
        "files": sorted(f.name for f in (out / "model").iterdir()),
        "bytes": hashlib.sha256((out / "model" / "model.safetensors").read_bytes()).hexdigest(),
    }


def in_half(folder: Path, base: SharedBase) -> dict[str, Any]:
    """SFT on a bf16 base: losses, what was added to the weights, and what the result says of given tokens."""
    context = context_of(folder, f"bf16-{base.lm.config.model_type}", base, demonstrations=Split(train=DEMONSTRATIONS))
    before = {f"sft.{n}": whole_of(p).detach().float().flatten() for n, p in base.base_tensors().items()}
    sft.run(context, SFTConfig(epochs=1, learning_rate=1e-5, batch=8, micro_batch=4))
    found = ended(context, "sft")
    after = {n: torch.tensor(v) for n, v in found["weights"].items()}
    update = torch.cat([v - before[n] for n, v in sorted(after.items())]).tolist() if after else []
    dtypes = {str(p.dtype) for p in base.parameters_of("sft").values()}
    losses = [row["loss"] for row in found["log"]]
    return {"losses": losses, "update": update, "logprobs": given_logprobs(base, "sft"), "dtypes": sorted(dtypes)}


def everything(folder: Path) -> dict[str, Any]:
    """What this process ended in."""
    found = {"sft": tuned(folder, "sft"), "reward": ranked(folder), "ppo": optimised(folder, "ppo")}
    found["sft again"] = resumed(folder, "sft", 1, tuned)
    found["ppo again"] = resumed(folder, "ppo", 3, optimised)
    found["short of memory"] = tuned(folder, "short", short=True)
    return found | {"stored": stored(folder)}
