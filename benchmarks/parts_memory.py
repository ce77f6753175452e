"""Memory of a process that holds a base in parts (``runtime.sharding: fsdp2``), beside one that holds all of it.

``python benchmarks/parts_memory.py`` makes a random Llama in fp32 whose weights are the larger part of what a training
step takes, and trains it for two steps, with adapters and whole, in one process and in two on a CPU. Each counts
the bytes of its own parameters, and sees the largest part of its resident memory that is no file (``RssAnon``), less
what it had before it loaded the base. The file is in bf16, since fp32 weights of an fp32 file would stay pages of it,
which the system shares and maps as it likes. Writes ``benchmarks/results/parts_memory.json``.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
RESULT = ROOT / "benchmarks/results/parts_memory.json"
ROWS, LENGTH, STEPS = 2, 32, 2
MALLOC = {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}


class Peak:
    """The largest resident memory of this process that is no file, in bytes."""

    def __init__(self) -> None:
        self.before, self.done = anonymous(), threading.Event()
        self.largest = self.before
        self.thread = threading.Thread(target=self._follow, daemon=True)
        self.thread.start()

    def _follow(self) -> None:
        while not self.done.wait(0.002):
            self.largest = max(self.largest, anonymous())

    def stop(self) -> int:
        self.done.set()
        self.thread.join()
        return self.largest - self.before


def anonymous() -> int:
    for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
        if line.startswith("RssAnon:"):
            return 1024 * int(line.split()[1])
    raise RuntimeError("/proc/self/status has no RssAnon: this needs Linux")


def make_base(folder: Path, width: int, layers: int) -> None:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=512,
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=layers,
        num_attention_heads=8,
        max_position_embeddings=256,
        tie_word_embeddings=False,
    )
    LlamaForCausalLM(config).bfloat16().save_pretrained(folder)
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = {name: i for i, name in enumerate(["<pad>", "<bos>", "<eos>", *(f"w{i}" for i in range(509))])}
    plain = Tokenizer(models.WordLevel(words, unk_token="w0"))
    plain.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(
        tokenizer_object=plain, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>"
    ).save_pretrained(folder)


def step(folder: Path, method: str, out: Path) -> None:
    """In each process: load, train, and write what it took."""
    import torch

    from models.backbone.processes import Processes
    from models.backbone.settings import AdapterConfig
    from models.backbone.trained_shards import clip_gradients
    from models.roles.shared_base import SharedBase
    from stages.training.gradient_sums import OrderedSums

    processes = Processes("cpu", threads=1)
    divided = processes if processes.world_size > 1 else None
    peak = Peak()
    base = SharedBase.load(folder, device="cpu", dtype="float32", divided=divided)
    base.fast = False
    loaded = anonymous() - peak.before
    base.add_role("policy", AdapterConfig(method=method, rank=8, alpha=16))
    ids = torch.randint(3, 512, (ROWS, LENGTH), generator=torch.Generator().manual_seed(processes.rank))
    mask = torch.ones_like(ids, dtype=torch.bool)
    with base.training("policy") as trained, base.role("policy") as view:
        optimizer = torch.optim.AdamW(list(trained.values()), lr=1e-4)
        sums = OrderedSums(trained.values(), processes)
        for _ in range(STEPS):
            sums.begin(processes.world_size)
            states = view.states(ids, mask, torch.arange(ids.numel()))
            (-view.logprobs(states, ids.flatten())[0].mean() / processes.world_size).backward()
            sums.add()
            sums.finish()
            clip_gradients(list(trained.values()), 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        mine = sum(p.numel() * 4 for p in trained.values())
    tensors: list[Any] = list(base.base_tensors().values())
    here = sum((p.to_local() if divided else p).numel() * 4 for p in tensors)
    found = {
        "base_bytes": sum(p.numel() * 4 for p in tensors),
        "base_bytes_here": here,
        "trained_bytes_here": mine,
        "loaded": loaded,
        "peak": peak.stop(),
    }
    processes.barrier()
    (out / f"{processes.rank}.json").write_text(json.dumps(found))


def launch(folder: Path, method: str, count: int) -> list[dict[str, int]]:
    with tempfile.TemporaryDirectory() as out:
        own = [str(Path(__file__).resolve()), "--step", str(folder), method, out]
        several = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(count)]
        # so that what is freed goes back to the system, and what is counted is what is held
        environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"} | MALLOC
        subprocess.run([sys.executable, *(several if count > 1 else []), *own], check=True, env=environment, cwd=ROOT)
        return [json.loads((Path(out) / f"{rank}.json").read_text()) for rank in range(count)]


def main() -> None:
    if sys.argv[1:2] == ["--step"]:
        return step(Path(sys.argv[2]), sys.argv[3], Path(sys.argv[4]))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--layers", type=int, default=32, help="a quarter of them where the whole model is trained")
    parser.add_argument("--write", type=Path, default=RESULT)
    options = parser.parse_args()
    found: dict[str, Any] = {"width": options.width, "rows": ROWS, "tokens": LENGTH}
    for method, layers in (("lora", options.layers), ("full", options.layers // 4)):
        with tempfile.TemporaryDirectory() as made:
            make_base(Path(made), options.width, layers)
            whole, parts = launch(Path(made), method, 1)[0], launch(Path(made), method, 2)
            beside = whole["peak"] - whole["base_bytes"]  # adapters, activations, the optimizer
            peak = max(p["peak"] for p in parts)
            found[method] = {
                "layers": layers,
                "whole": whole,
                "two_processes": parts,
                "share_of_all": round(peak / whole["peak"], 3),
            }
            if method == "lora":  # of a whole model nearly all that is beside the base is divided as well
                share = round((peak - beside) / whole["base_bytes"], 3)
                found[method] |= {"beside_the_base": beside, "share_of_the_base": share}
            print(method, json.dumps(found[method]), flush=True)
    options.write.parent.mkdir(parents=True, exist_ok=True)
    options.write.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    main()
