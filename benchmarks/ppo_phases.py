"""Where one PPO update's time and memory go, trivet alone: CPU seconds of each phase beside the machine's limits.

    OMP_NUM_THREADS=1 python benchmarks/ppo_phases.py --size S --new 64 --epochs 4 --repeat 3

A random model in fp32 on one thread, 32 episodes, queries of 32 to 64 tokens, LoRA rank 16 on all linear layers of
policy and value. The roofline is the phase's arithmetic (padding, adapters and recomputation not counted) at the
matrix rate measured in the same call; what decoding must read from memory is not counted.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from data.records import Message, Prompt
from data.splits import Corpus, Split
from data.template import Renderer
from models.backbone.processes import Processes
from models.backbone.settings import AdapterConfig
from models.roles.shared_base import SharedBase
from reward.model import RewardModel
from reward.terms.composition import ModelReward, WeightedSum
from stages.ppo.update import PPO
from stages.settings import PPOConfig
from stages.stage import MetricsLog, StageContext

SIZES: dict[str, dict[str, Any]] = {
    "S": {"hidden_size": 288, "intermediate_size": 768, "num_hidden_layers": 6, "num_attention_heads": 6},
    "M": {"hidden_size": 512, "intermediate_size": 1376, "num_hidden_layers": 8, "num_attention_heads": 8},
    "tiny": {"hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4},
}
VOCABULARY = 32_000


class Silent:
    def advance(self, *_: Any, **__: Any) -> None:
        """Nothing to show."""

    def phase(self, *_: Any) -> Any:
        """Nothing to show either."""
        return lambda count: None


def make_base(size: str, **settings: Any) -> SharedBase:
    """A random Llama with tied embeddings and a tokenizer with one word an id."""
    torch.manual_seed(0)
    vocabulary = 512 if size == "tiny" else VOCABULARY
    lm = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=vocabulary, max_position_embeddings=1024, tie_word_embeddings=True, pad_token_id=0,
            bos_token_id=1, eos_token_id=2, **SIZES[size],
        )
    )  # fmt: skip
    words = {"<pad>": 0, "<bos>": 1, "<eos>": 2, "<unk>": 3} | {f"w{i}": i for i in range(4, vocabulary)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>", unk_token="<unk>"
    )
    return SharedBase(lm, fast, name=f"random {size}", **settings)


def make_prompts(count: int, shortest: int, longest: int, vocabulary: int) -> list[Prompt]:
    g = torch.Generator().manual_seed(1)
    prompts = []
    for _ in range(count):
        length = int(torch.randint(shortest, longest + 1, (), generator=g)) - 6  # what the template adds
        ids = torch.randint(4, vocabulary, (max(1, length),), generator=g).tolist()
        text = " ".join(f"w{i}" for i in ids)
        prompts.append(Prompt(messages=(Message(role="user", content=text),), group=text))
    return prompts


def make_ppo(options: argparse.Namespace) -> PPO:
    base = make_base(options.size)
    adapter = AdapterConfig(rank=16, alpha=32, layers=options.layers)
    prompts = make_prompts(options.rows, 32, 64, base.lm.config.vocab_size)
    out = Path("/dev/null")
    context = StageContext(
        out=out, seed=0, open_base=lambda: (base, Renderer(base.tokenizer, template="dialogue")),
        corpus=Corpus(prompts=Split(train=tuple(prompts))), adapter=adapter, inputs={},
        processes=Processes("cpu", threads=1), log=MetricsLog(out), bar=Silent(), say=print, warn=print,
    )  # fmt: skip
    base.add_role("reference", adapter)
    base.add_role("reward", adapter, head=True)
    base.add_role("policy", adapter, copy_of="reference")
    base.add_role("value", adapter, head=True)
    config = PPOConfig(
        updates=1000, rollouts=options.rows, epochs=options.epochs, max_new_tokens=options.new,
        **dict(pair.split("=") for pair in options.set),
    )  # fmt: skip
    model = RewardModel(base=base, role="reward", renderer=context.renderer)
    return PPO(context, config, prompts, WeightedSum([("model", 1.0, ModelReward(model))]))


# -- what the machine allows -----------------------------------------------------------------------------------------


def rate(m: int, k: int, n: int, repeat: int = 5) -> float:
    """FLOP/s of an (m, k) x (k, n) product, best of a few."""
    a, b = torch.randn(m, k), torch.randn(n, k)
    times = []
    for _ in range(repeat):
        start = time.process_time()
        loops = max(1, int(2e9 / (2 * m * k * n)))
        for _ in range(loops):
            torch.nn.functional.linear(a, b)
        times.append((time.process_time() - start) / loops)
    return 2 * m * k * n / min(times)


def bandwidth() -> float:
    """Bytes/s read and written by a copy of 64 MB."""
    a = torch.randn(2**24)
    b = torch.empty_like(a)
    times = []
    for _ in range(5):
        start = time.process_time()
        b.copy_(a)
        times.append(time.process_time() - start)
    return 2 * a.numel() * 4 / min(times)


def arithmetic(config: Any, queries: int, responses: int, rows: int) -> dict[str, float]:
    """FLOP of the phases: forward = 2 [tokens n + L D T^2 + positions D V]; LoRA's backward about the same again."""
    d, layers, inner, v = config.hidden_size, config.num_hidden_layers, config.intermediate_size, config.vocab_size
    n, tokens = layers * (4 * d * d + 3 * d * inner), queries + responses
    body = 2 * (tokens * n + layers * d * tokens**2 / rows)
    head = 2 * responses * d * v
    return {
        "rollout": body + head,
        "score": (body + head) + 2 * body,  # reference; value, reward (old log-probabilities are the sampler's)
        "update": 2 * (body + head) + 2 * body,  # an epoch: policy and value, forward and backward
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="S")
    parser.add_argument("--new", type=int, default=64, help="new tokens")
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--rows", type=int, default=32, help="episodes")
    parser.add_argument("--layers", default="all", help="adapter.layers: all or upper_half")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="PPO settings")
    parser.add_argument("--json", type=Path, help="also write here")
    options = parser.parse_args()
    torch.set_num_threads(1)
    bare = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    ppo = make_ppo(options)
    config = ppo.base.lm.config
    peak_rate, speed = rate(1024, config.hidden_size, config.hidden_size * 3), bandwidth()
    times: dict[str, list[float]] = {"rollout": [], "score": [], "update": []}
    with ppo.base.training("policy", "value"):
        for _ in range(options.repeat + 1):  # the first warms up
            for name, seconds in one_update(ppo).items():
                times[name].append(seconds)
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    queries = sum(map(len, ppo.stream.queries))
    flop = arithmetic(config, queries, options.rows * options.new, options.rows)
    flop["update"] *= options.epochs
    found: dict[str, Any] = {"matrix_gflops": peak_rate / 1e9, "copy_gb_s": speed / 1e9}
    print(f"matrix {peak_rate / 1e9:.0f} GFLOP/s, copy {speed / 1e9:.1f} GB/s, one thread")
    total = 0.0
    for name, measured in times.items():
        middle = statistics.median(measured[1:])
        share = flop[name] / peak_rate / middle
        total += middle
        found[name] = {"seconds": middle, "all": measured[1:], "share": share}
        print(f"{name:8s} {middle:7.2f} s   {share:4.0%} of the roofline   {[round(m, 2) for m in measured[1:]]}")
    found |= {"total": total, "episodes_per_second": options.rows / total, "peak_mb": memory, "bare_mb": bare}
    print(f"total    {total:7.2f} s   {options.rows / total:.2f} episodes/s")
    print(f"peak {memory:.0f} MB, {memory - bare:.0f} MB above the bare imports")
    if options.json:
        options.json.write_text(json.dumps(found, indent=1))


def one_update(ppo: PPO) -> dict[str, float]:
    """CPU seconds of each phase of one cycle."""
    sampled: list[float] = []
    engine = ppo.engine

    def timed(*args: Any, **kwargs: Any) -> Any:
        start = time.process_time()
        made = engine(*args, **kwargs)
        sampled.append(time.process_time() - start)
        return made

    ppo.engine = timed
    start = time.process_time()
    rollout, _ = ppo.rollout()
    ppo.engine = engine
    ppo.compute_rewards(rollout)
    ppo.compute_advantages(rollout)
    middle = time.process_time()
    ppo.update(rollout)
    end = time.process_time()
    ppo.update_index += 1
    return {"rollout": sum(sampled), "score": middle - start - sum(sampled), "update": end - middle}


if __name__ == "__main__":
    main()
