"""Run by torchrun in test_base_in_parts: tiny stages of ``several_processes`` on a base that processes hold in parts.

Run by itself the base is whole. Every process but the first is short of memory in one of the cases, in the middle of
a pass.
"""

from __future__ import annotations

import gc
import json
import os
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch

from models.backbone.forward import set_gradient_checkpointing
from models.backbone.logprobs import make_rows
from models.backbone.processes import Processes
from models.backbone.settings import AdapterConfig
from models.backbone.sharding import Gathers, is_whole
from models.roles.shared_base import SharedBase
from models.roles.together import known_states
from stages.ppo.rollout import policy_pass, value_pass
from stages.ppo.update import PPO
from tests.conftest import randomise, tiny_lm, word_tokenizer
from tests.stages import full_in_parts, several_processes
from tests.stages.several_processes import ALIGNED, aligned, answered, ranked, sampled, tuned

TRAINED_BY_PPO = {
    "odd": ALIGNED["odd"] | {"self_check": True},
    "one row": {"rollouts": 1},
}
SFT = {
    "a row a step": {"batch": 1, "micro_batch": 1, "epochs": 1, "held_out_every": 6},
    "short of memory": {"batch": 6, "micro_batch": 6},
}


FAMILIES: tuple[tuple[str, str, dict[str, Any]], ...] = (
    ("llama", "llama", {"tie_word_embeddings": True, "vocab_size": 41}),
    ("gpt2", "gpt2", {"tie_word_embeddings": True}),
    ("untied", "qwen3", {}),
    ("mixture", "llama", {"model_type": "mixtral", "num_local_experts": 6}),
)


def make_folder(folder: Path, family: str = "llama", **changes: Any) -> Path:
    """A base in files; by default the one that ``several_processes`` has."""
    tiny_lm(family, **({"attention_dropout": 0.0} if family == "llama" else {}) | changes).save_pretrained(folder)
    word_tokenizer().save_pretrained(folder)
    return folder


@contextmanager
def short_of_memory(base: list[SharedBase], rank: int) -> Iterator[None]:
    """The second layer has no memory for several rows at once in any process but the first."""
    real = several_processes.BASE[0]

    def made() -> SharedBase:
        found = real()

        def fail(module: Any, given: Any) -> None:
            if rank > 0 and len(given[0]) > 1:
                raise torch.OutOfMemoryError("CUDA out of memory.")

        found.lm.get_submodule("model.layers.1.mlp").register_forward_pre_hook(fail)
        base.append(found)
        return found

    several_processes.BASE[0] = made
    try:
        yield
    finally:
        several_processes.BASE[0] = real


def opened(folder: Path, divided: Processes | None) -> SharedBase:
    """A base with an adapter that looks trained, computed by the modules."""
    base = SharedBase.load(folder, device="cpu", dtype="float32", divided=divided)
    base.fast = False
    base.add_role("policy", AdapterConfig(rank=4, alpha=8))
    randomise(base, "policy", 1)
    return base


def passed(base: SharedBase, times: int, recompute: bool) -> list[float]:
    """So many passes and one gradient after another: log-probabilities, and the sizes of the summed gradients."""
    set_gradient_checkpointing(base.lm, recompute)
    rows = torch.arange(3, 17).view(2, 7)
    mask = torch.ones_like(rows, dtype=torch.bool)
    with base.training("policy") as trained, base.role("policy") as view:
        for _ in range(times):
            states = view.states(rows, mask, torch.arange(14))
            logprobs, entropy = view.logprobs(states, rows.flatten(), entropy_gradient=True)
            (logprobs.sum() + entropy.sum()).backward()
        sizes = [float(p.grad.norm()) for p in trained.values() if p.grad is not None]
    set_gradient_checkpointing(base.lm, False)
    return [*logprobs.tolist(), *sizes]


def families(folder: Path, divided: Processes | None, times: Sequence[int]) -> dict[str, Any]:
    """Tied weights, and rows that the processes cannot share evenly: passes of other numbers in each process."""
    found: dict[str, Any] = {}
    for name, _, changes in FAMILIES:
        base = opened(folder / name, divided)
        assert base.lm.config.tie_word_embeddings == changes.get("tie_word_embeddings", False)
        found[name] = {str(n): [passed(base, n, recompute) for recompute in (False, True)] for n in times}
        found[name]["fingerprint"] = base.fingerprint
        found[name]["roles"] = three_roles(base)
    return found


@contextmanager
def asking(base: SharedBase) -> Iterator[Counter[str]]:
    """How often this process asks for each unit of a divided base itself, by name."""
    real, asked = Gathers.gather, Counter[str]()
    names = {module: name for name, module in base.lm.named_modules()}

    def gather(self: Gathers, number: int, *given: Any) -> None:
        if self.serving != number:
            asked[names[self.units[number]]] += 1
        real(self, number, *given)

    Gathers.gather = gather  # type: ignore[method-assign,assignment]
    try:
        yield asked
    finally:
        Gathers.gather = real  # type: ignore[method-assign]


@torch.no_grad()
def three_roles(base: SharedBase) -> dict[str, Any]:
    """Log-probabilities and values of the same rows by a base's policy and two more roles, one after the other and
    together, and what each way asks for."""
    base.add_role("reference", AdapterConfig(rank=4, alpha=8))
    base.add_role("value", AdapterConfig(rank=4, alpha=8), head=True)
    for seed, name in enumerate(("reference", "value")):
        randomise(base, name, 2 + seed)
    weight = base.parameters_of("value")["value.head.weight"]
    torch.nn.init.normal_(weight, generator=torch.Generator().manual_seed(0))
    rows = make_rows([[1, 5, 9], [1, 7]], [[3, 20, 7, 2], [4, 2]], 0, "cpu")
    found: dict[str, Any] = {}
    for way in ("in turn", "together"):
        known = known_states(base, ("policy", "reference", "value"), rows.ids, rows.mask)
        with asking(base) as asked, known if way == "together" else nullcontext():
            numbers = list[list[float]]()
            for name in ("policy", "reference"):
                with base.role(name) as view:
                    numbers.append(policy_pass(view, rows, 1.0)[0].tolist())
            with base.role("value") as view:
                numbers.append(value_pass(view, rows).tolist())
        found[way] = {"numbers": numbers, "asked": dict(asked)}
    return found


@contextmanager
def asking_in_ppo() -> Iterator[list[dict[str, Any]]]:
    """What each evaluation of a rollout asks for, and in how many micro-batches of this process."""
    real, seen = PPO.evaluate, list[dict[str, Any]]()

    def evaluate(self: PPO, *given: Any) -> None:
        each, micro_batches = self.micro.each, [0]

        def counted(rollout: Any, work: Any) -> None:
            def one(part: list[int]) -> None:
                micro_batches[0] += 1
                work(part)

            each(rollout, one)

        self.micro.each = counted  # type: ignore[method-assign]
        with asking(self.base) as asked:
            real(self, *given)
        seen.append({"asked": dict(asked), "micro_batches": micro_batches[0]})
        self.micro.each = each  # type: ignore[method-assign]

    PPO.evaluate = evaluate  # type: ignore[method-assign,assignment]
    try:
        yield seen
    finally:
        PPO.evaluate = real  # type: ignore[method-assign]


@contextmanager
def reading() -> Iterator[list[int]]:
    """Bytes of each part of a tensor that is read from files inside, by Transformers' own reader of parts."""
    from transformers.distributed import sharding_utils

    reader: Any = sharding_utils.DtensorShardOperation
    real, read = reader.shard_tensor, list[int]()

    def shard(self: Any, *given: Any, **more: Any) -> Any:
        part = real(self, *given, **more)
        read.append(part.numel() * part.element_size())
        return part

    reader.shard_tensor = shard
    try:
        yield read
    finally:
        reader.shard_tensor = real


@contextmanager
def gathering(base: SharedBase) -> Iterator[list[int]]:
    """What is gathered at each instant of a block: units that are whole, what comes from the processes, its copies.

    Counted, since gloo's own threads give memory back some time later, unseen by torch's profiler.
    """
    real, coming, seen = Gathers.gather, list[int](), list[int]()

    def gather(self: Gathers, number: int, output: torch.Tensor, own: torch.Tensor, group: Any) -> None:
        whole = [u for u in self.units if u is not None and u is not base.lm and is_whole(u)]
        coming.append(output.numel() * 4)
        seen.append(sum(coming) + coming[-1] + sum(p.numel() * 4 for u in whole for p in u.parameters()))
        real(self, number, output, own, group)
        coming.pop()

    Gathers.gather = gather  # type: ignore[method-assign]
    try:
        yield seen
    finally:
        Gathers.gather = real  # type: ignore[method-assign]


def memory(folder: Path, divided: Processes | None) -> dict[str, float]:
    """Bytes of a base of many layers: its weights here and in all, what a training step gathers at most, and what was
    read of its file."""
    with reading() as read:
        base = opened(folder / "deep", divided)
    parts: list[Any] = list(base.base_tensors().values())
    whole = sum(p.numel() * 4 for p in parts)
    with gathering(base) as seen:
        passed(base, 1, recompute=False)
    here = sum(p.to_local().numel() * 4 if divided else p.numel() * 4 for p in parts)
    return {"here": here, "whole": whole, "gathered": max(seen, default=0), "read": sum(read)}


def in_bf16(folder: Path, divided: Processes | None) -> dict[str, Any]:
    """What ``several_processes`` and ``full_in_parts`` do on a bf16 base."""

    def half(name: str = "base") -> SharedBase:
        base = SharedBase.load(folder / name, device="cpu", dtype="bfloat16", divided=divided)
        base.fast = False  # the fast path rounds otherwise than the modules
        return base

    before, several_processes.half_base = several_processes.half_base, half
    try:
        found = several_processes.in_half(folder, micro_batch=2)  # the same in two processes
    finally:
        several_processes.half_base = before
    found["full"] = full_in_parts.in_half(folder / "full", half("usual"))
    found["full with biases"] = full_in_parts.in_half(folder / "full", half("biases"))
    return found


def make_folders(folder: Path) -> None:
    """All bases."""
    make_folder(folder / "base")
    make_folder(folder / "usual", initializer_range=0.1)  # of usual sizes: bf16 rounds the base's by more than 1e-3
    make_folder(folder / "biases", "gpt2", initializer_range=0.1)
    for name, family, changes in FAMILIES:
        make_folder(folder / name, family, **changes)
    make_folder(folder / "deep", hidden_size=192, intermediate_size=528, num_hidden_layers=32, initializer_range=0.02)


def everything(folder: Path) -> dict[str, Any]:
    """What this process ended in."""
    processes = Processes("auto")
    divided = processes if processes.world_size > 1 else None
    found: dict[str, Any] = {
        "world": processes.world_size,
        "families": families(folder, divided, (1 + 2 * processes.rank,) if divided else (1, 3)),
        "memory": memory(folder, divided),
        "sft": {"a row a step": tuned(folder, "a row a step", SFT["a row a step"])},
        "reward": ranked(folder, 1, epochs=1),
        "rankings": sampled(folder),
        "evaluation": answered(folder),
    }
    with asking_in_ppo() as found["evaluated"]:
        found["ppo"] = {name: aligned(folder, name, settings) for name, settings in TRAINED_BY_PPO.items()}
    (folder / "full").mkdir(exist_ok=True)
    found["full"] = full_in_parts.everything(folder / "full")
    bases: list[SharedBase] = []
    with short_of_memory(bases, processes.rank):
        found["sft"]["short of memory"] = tuned(folder, "short of memory", SFT["short of memory"])
    processes.barrier()  # as behind every stage of a run: the other may still need layers
    found["bf16"] = in_bf16(folder, divided)
    found["divided"], found["fingerprint"] = bases[0].divided, bases[0].fingerprint
    return found


def main(folder: Path) -> None:
    gc.freeze()  # as in conftest
    processes = Processes("auto")
    if processes.is_main:
        make_folders(folder)
    processes.barrier()
    several_processes.BASE[0] = lambda: SharedBase.load(
        folder / "base", device="cpu", dtype="float32", divided=processes
    )
    (folder / f"rank{os.environ['RANK']}.json").write_text(json.dumps(everything(folder)))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
