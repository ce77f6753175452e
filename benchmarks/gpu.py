"""What one GPU makes of trivet's stages: tokens a second, decoding beside the memory's bandwidth, memory by phase.

    python benchmarks/gpu.py --write benchmarks/results/gpu.json

builds models of random weights in the shapes of 0.5B, 1.5B, 3B and 8B ones, in bf16 and then in four bits (NF4), adds
LoRA adapters of rank 16 to all linear layers, and times a step of SFT and of a reward model (8 rows of 512 tokens),
decoding (64 rows), and PPO's update (64 rollouts of 128 + 128 tokens). A size that does not fit, or for which no time
is left, is named with the reason.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from data.records import Message, Prompt
from data.splits import Corpus, Split
from data.template import Renderer
from models.backbone.architecture import linear_layers
from models.backbone.four_bits import can_quantize, quantize, scales_of
from models.backbone.logprobs import make_rows
from models.backbone.oom_retry import out_of_memory
from models.backbone.processes import Processes, peak_memory
from models.backbone.settings import AdapterConfig
from models.roles.shared_base import SharedBase
from models.sampling.fast import FastEngine
from models.sampling.generate import SamplingParams, sampling_noise
from reward.losses import ranking_loss
from reward.model import RewardModel, row_scores
from reward.terms.composition import ModelReward, WeightedSum
from stages.ppo.update import PPO
from stages.settings import PPOConfig
from stages.stage import MetricsLog, StageContext


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """Sizes of a model, and of what it is given."""

    model: dict[str, Any]
    rows: int = 8  # of SFT and reward, in pairs
    length: int = 512
    rollouts: int = 64
    prompt: int = 128
    new: int = 128
    repeat: int = 5


def shape(hidden: int, inner: int, layers: int, heads: int, key_heads: int, words: int, **more: Any) -> Shape:
    sizes = {"hidden_size": hidden, "intermediate_size": inner, "num_hidden_layers": layers, "vocab_size": words}
    return Shape(model=sizes | {"num_attention_heads": heads, "num_key_value_heads": key_heads}, **more)


SHAPES = {
    "tiny": shape(32, 64, 2, 4, 2, 64, rows=2, length=12, rollouts=8, prompt=6, new=20, repeat=1),
    "0.5B": shape(896, 4864, 24, 14, 2, 151_936),
    "1.5B": shape(1536, 8960, 28, 12, 2, 151_936),
    "3B": shape(2048, 11_008, 36, 16, 2, 151_936),
    "8B": shape(4096, 14_336, 32, 32, 8, 128_256),
}
TIED = {"tiny", "0.5B", "1.5B", "3B"}
ADAPTER = AdapterConfig(rank=16, alpha=32)


@dataclass(slots=True)
class Silent:
    """A progress bar that shows nothing."""

    said: list[str] = field(default_factory=list)

    def advance(self, *_: Any, **__: Any) -> None:
        """Nothing to show."""

    def phase(self, *_: Any) -> Callable[[int], None]:
        return lambda count: None


class Bench:
    """One model on one device; in ``nf4`` the matrices of its blocks in four bits, and all else in bf16."""

    def __init__(self, name: str, kind: str, device: torch.device) -> None:
        self.name, self.shape, self.device = name, SHAPES[name], device
        torch.manual_seed(0)
        positions = self.shape.length + self.shape.prompt + self.shape.new
        config = LlamaConfig(
            **self.shape.model, max_position_embeddings=max(4096, positions), tie_word_embeddings=name in TIED,
            pad_token_id=0, bos_token_id=1, eos_token_id=2,
        )  # fmt: skip
        before = torch.get_default_dtype()
        torch.set_default_dtype(torch.bfloat16 if kind == "nf4" else getattr(torch, kind))
        try:
            with device:
                lm: Any = LlamaForCausalLM(config)
        finally:
            torch.set_default_dtype(before)
        parameters = sum(p.numel() for p in lm.parameters())
        if kind == "nf4":
            quantize(lm, linear_layers(lm), device)
        self.base = SharedBase(lm.to(device), word_tokenizer(config.vocab_size), name=f"random {name}")
        self.base.add_role("reference", ADAPTER)
        self.base.add_role("policy", ADAPTER, copy_of="reference", trainable=True)
        for role in ("reward", "value"):
            self.base.add_role(role, ADAPTER, head=True, trainable=True)
        self.out: dict[str, Any] = {"parameters": parameters}

    def rows(self, count: int, query: int, response: int) -> Any:
        ids = torch.randint(4, self.shape.model["vocab_size"], (count, query + response)).tolist()
        return make_rows([r[:query] for r in ids], [r[query:] for r in ids], 0, self.device)

    def timed(self, work: Callable[[], Any], repeat: int) -> tuple[float, int]:
        """Median seconds after one run that warms up, and peak bytes."""
        work()
        self.settle()
        times = []
        for _ in range(repeat):
            started = time.perf_counter()
            work()
            synchronize(self.device)
            times.append(time.perf_counter() - started)
        return statistics.median(times), peak_memory(self.device)

    def settle(self) -> None:
        synchronize(self.device)
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()

    def trained(self, role: str, loss: Callable[[Any], torch.Tensor]) -> Callable[[], None]:
        """A whole step of the optimizer on one role."""
        parameters = list(self.base.parameters_of(role).values())
        optimizer = torch.optim.AdamW(parameters, lr=1e-5)

        def step() -> None:
            with self.base.training(role), self.base.role(role) as view:
                loss(view).backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

        return step

    def sft(self) -> None:
        rows = self.rows(self.shape.rows, self.shape.length // 2, self.shape.length // 2)

        def loss(view: Any) -> torch.Tensor:
            states = view.states(rows.ids, rows.mask, rows.response_positions(), rows.packing)
            return -view.logprobs(states, rows.targets())[0].mean()

        self.note("sft", self.shape.rows * self.shape.length, self.trained("policy", loss))

    def reward(self) -> None:
        rows = self.rows(self.shape.rows, self.shape.length // 2, self.shape.length // 2)
        ranks = torch.tensor([[0, 1]] * (self.shape.rows // 2), device=self.device)

        def loss(view: Any) -> torch.Tensor:
            scores = row_scores(view, rows).view(-1, 2)
            return ranking_loss(scores, ranks, "pairs")

        self.note("reward", self.shape.rows * self.shape.length, self.trained("reward", loss))

    def note(self, name: str, tokens: int, step: Callable[[], None]) -> None:
        seconds, peak = self.timed(step, self.shape.repeat)
        self.out[name] = {"tokens_per_second": tokens / seconds, "seconds": seconds, "peak_bytes": peak}

    def decode(self, bandwidth: float) -> None:
        """Seconds of one more token of all rows: of two lengths the difference, without reading prompts."""
        count, new = self.shape.rollouts, self.shape.new
        prompts = torch.randint(4, self.shape.model["vocab_size"], (count, self.shape.prompt)).tolist()
        noise = sampling_noise(count, new, torch.Generator().manual_seed(0))
        seconds = []
        for steps in (new // 2, new):
            params = SamplingParams(max_new_tokens=steps, stop_ids=())

            def run(params: SamplingParams = params) -> None:
                with self.base.role("policy") as role:
                    FastEngine()(role, prompts, params=params, noise=noise)

            seconds.append(self.timed(run, self.shape.repeat)[0])
        step = max(1e-9, (seconds[1] - seconds[0]) / (new - new // 2))
        read = self.bytes_read(self.shape.prompt + 3 * new // 4)
        self.out["decode"] = {
            "rows": count, "seconds_per_step": step, "tokens_per_second": count / step, "bytes_per_step": read,
            "share_of_bandwidth": read / step / bandwidth,
        }  # fmt: skip

    def bytes_read(self, context: int) -> int:
        """Weights once, as they are kept, and every row's keys and values: what a step must read at least."""
        lm, sizes = self.base.lm, self.shape.model
        weights = 0
        for name, p in lm.named_parameters():
            if not ("embed_tokens" in name or "lora_" in name):
                scales = scales_of(p)
                weights += p.numel() * p.element_size() + (0 if scales is None else 4 * scales.numel())
        if lm.config.tie_word_embeddings:
            table = lm.get_input_embeddings().weight
            weights += table.numel() * table.element_size()
        width = sizes["hidden_size"] // sizes["num_attention_heads"] * sizes["num_key_value_heads"]
        element = lm.get_input_embeddings().weight.element_size()
        return int(weights + 2 * width * sizes["num_hidden_layers"] * self.shape.rollouts * context * element)

    def ppo(self, folder: Path) -> None:
        g = torch.Generator().manual_seed(1)
        words = torch.randint(4, self.shape.model["vocab_size"], (self.shape.rollouts, self.shape.prompt), generator=g)
        texts = [" ".join(f"w{i}" for i in row) for row in words.tolist()]
        prompts = [Prompt(messages=(Message(role="user", content=t),), group=t) for t in texts]
        context = StageContext(
            out=folder, seed=0, open_base=lambda: (self.base, Renderer(self.base.tokenizer, template="dialogue")),
            corpus=Corpus(prompts=Split(train=tuple(prompts))), adapter=ADAPTER, inputs={},
            processes=Processes(self.device.type), log=MetricsLog(folder / "metrics.jsonl"), bar=Silent(),
            say=print, warn=print,
        )  # fmt: skip
        config = PPOConfig(
            updates=3, rollouts=self.shape.rollouts, max_new_tokens=self.shape.new,
            micro_batch=min(16, self.shape.rollouts), minibatches=min(4, self.shape.rollouts), epochs=1,
        )  # fmt: skip
        model = RewardModel(base=self.base, role="reward", renderer=context.renderer)
        ppo = PPO(context, config, prompts, WeightedSum([("model", 1.0, ModelReward(model))]))
        updates = ppo.train()
        next(updates)
        self.settle()
        found = list(updates)
        tokens = [f["tokens/response"] + self.shape.rollouts * self.shape.prompt for f in found]
        phases = {n: statistics.median(f[f"time/{n}"] for f in found) for n in ("rollout", "score", "update", "total")}
        self.out["ppo"] = {
            "tokens_per_second": statistics.median(tokens) / phases["total"],
            "seconds": phases,
            "peak_bytes": peak_memory(self.device),
        }


def word_tokenizer(count: int) -> PreTrainedTokenizerFast:
    words = {"<pad>": 0, "<bos>": 1, "<eos>": 2, "<unk>": 3} | {f"w{i}": i for i in range(4, count)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>", unk_token="<unk>"
    )


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def copied_bytes(device: torch.device, size: int) -> float:
    """Bytes a second that a large copy reads and writes."""
    a = torch.ones(size, device=device)
    b, times = torch.empty_like(a), []
    for _ in range(6):
        synchronize(device)
        started = time.perf_counter()
        b.copy_(a)
        synchronize(device)
        times.append(time.perf_counter() - started)
    return 2 * a.numel() * a.element_size() / min(times)


def measure(name: str, kind: str, device: torch.device, bandwidth: float) -> dict[str, Any]:
    """All phases of one size; what it has found so far where memory runs out, with the reason."""
    if kind == "nf4" and not can_quantize():
        return {"left_out": "bitsandbytes is not installed"}
    out: dict[str, Any] = {}
    try:
        bench = Bench(name, kind, device)
        out = bench.out
        with tempfile.TemporaryDirectory() as folder:
            for phase in (bench.sft, bench.reward, lambda: bench.decode(bandwidth), lambda: bench.ppo(Path(folder))):
                phase()
                bench.settle()
    except Exception as error:
        if not out_of_memory(error):
            raise
        out["left_out"] = f"memory ran out: {str(error).splitlines()[0]}"
    if "ppo" in out:
        out["ppo_peak_over_sft"] = out["ppo"]["peak_bytes"] / max(1, out["sft"]["peak_bytes"])
    return out


@contextlib.contextmanager
def released(device: torch.device) -> Iterator[None]:
    """Memory of what was measured within is given back."""
    yield
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def table(found: dict[str, Any]) -> str:
    """The figures as Markdown."""
    lines = [
        "| model | dtype | SFT tokens/s | reward tokens/s | PPO tokens/s | decode tokens/s | bandwidth | peak |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in found["models"]:
        cells = [row["model"], row["dtype"]]
        for name in ("sft", "reward", "ppo", "decode"):
            cells.append(f"{row[name]['tokens_per_second']:,.0f}" if name in row else "-")
        cells.append(f"{row['decode']['share_of_bandwidth']:.0%}" if "decode" in row else "-")
        peaks = [f"{row[n]['peak_bytes'] / 2**30:.1f}" for n in ("sft", "ppo") if n in row]
        cells.append(row.get("left_out") or f"{', '.join(peaks)} GiB")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([f"{found['device']}, torch {found['torch']}, copy {found['copy_gb_s']:,.0f} GB/s", "", *lines])


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", choices=SHAPES, default=[n for n in SHAPES if n != "tiny"])
    parser.add_argument("--dtypes", nargs="+", choices=["bfloat16", "nf4", "float32"], default=["bfloat16", "nf4"])
    parser.add_argument("--minutes", type=float, default=25, help="no size is begun after three quarters of this")
    parser.add_argument("--write", type=Path, help="write the figures here as JSON")
    options = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        raise SystemExit(f"torch {torch.__version__} sees no CUDA device: nothing to measure")
    device, started = torch.device("cuda:0"), time.perf_counter()
    bandwidth = copied_bytes(device, 2**14 if options.sizes == ["tiny"] else 2**28)
    found: dict[str, Any] = {
        "device": torch.cuda.get_device_name(0), "torch": torch.__version__, "copy_gb_s": bandwidth / 1e9, "models": []
    }  # fmt: skip
    for dtype in options.dtypes:
        for name in options.sizes:
            row: dict[str, Any] = {"model": name, "dtype": dtype}
            minutes = (time.perf_counter() - started) / 60
            with released(device):
                if minutes > 0.75 * options.minutes:
                    row["left_out"] = f"no time left after {minutes:.0f} minutes"
                else:
                    row |= measure(name, dtype, device, bandwidth)
            found["models"].append(row)
            if options.write:  # after each: what was measured is not lost
                options.write.write_text(json.dumps(found, indent=1) + "\n")
            print(table(found), flush=True)
    return found


if __name__ == "__main__":
    main()
