"""trivet's decoding loop beside Transformers' ``generate()`` on the same model, adapter and prompts, in one process.

    OMP_NUM_THREADS=1 python benchmarks/generation.py [--quick] [--repeats 3] [--only S]

32 prompts of 32 to 64 tokens, 64 new tokens, sampling at T = 1 without warpers, LoRA rank 16 on all linear layers; CPU
seconds of one thread in alternating pairs. ``bare`` is ``generate()`` on the base without its adapter, which no
policy can use, as a lower bound of what it costs.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from pairs import low_median_high, options, write
from ppo_phases import make_base
from world import rows_of_tokens

from data.batching import left_pad
from models.backbone.settings import AdapterConfig
from models.sampling.fast import FastEngine
from models.sampling.generate import CachedEngine, SamplingParams, generate, sampling_noise

ROWS, NEW = 32, 64


def sides(size: str) -> dict[str, Callable[[], int]]:
    """Each side samples and says how many tokens it made."""
    base = make_base(size)
    base.add_role("policy", AdapterConfig(rank=16, alpha=32))
    prompts = rows_of_tokens(ROWS, 32, 64, seed=0)
    ids, mask = left_pad(prompts, 0)
    noise = sampling_noise(ROWS, NEW, torch.Generator().manual_seed(0))

    def ours(engine: Any) -> int:
        with base.role("policy") as role:
            made = generate(
                engine,
                role,
                prompts,
                noise=noise,
                batch=ROWS,
                params=SamplingParams(max_new_tokens=NEW, temperature=1.0, stop_ids=(2,), pad_id=0),
            )
        return sum(map(len, made.ids))

    def theirs(role: str) -> int:
        with base.role(role) as view, torch.no_grad():
            out = view.lm.generate(
                input_ids=ids, attention_mask=mask.long(), max_new_tokens=NEW, do_sample=True, top_k=0, top_p=1.0,
                temperature=1.0, pad_token_id=0, eos_token_id=2,
            )  # fmt: skip
        return int((out[:, ids.shape[1] :] != 0).sum())

    return {
        "fast": lambda: ours(FastEngine()),
        "plain": lambda: ours(CachedEngine()),
        "generate": lambda: theirs("policy"),
        "bare": lambda: theirs("base"),
    }


def main() -> None:
    chosen = options(__doc__)
    torch.set_num_threads(1)
    results = []
    for size in ("S", "M"):
        if chosen.only not in size or (chosen.quick and size != "S"):
            continue
        ways = sides(size)
        rates: dict[str, list[float]] = {name: [] for name in ways}
        for i in range(chosen.repeats + 1):  # the first warms up
            for name in list(ways) if i % 2 == 0 else list(ways)[::-1]:
                start = time.process_time()
                tokens = ways[name]()
                if i:
                    rates[name].append(tokens / (time.process_time() - start))
        ratios = {
            n: low_median_high([a / b for a, b in zip(rates["fast"], rates[n], strict=True)])
            for n in ways
            if n != "fast"
        }
        means = " ".join(f"{n} {sum(r) / len(r):.0f}" for n, r in rates.items())
        print(f"{size}: {means} tokens/s; x{ratios['generate'][1]:.2f} generate()", flush=True)
        results.append({"name": size, "tokens_per_second": rates, "ratios": ratios})
        write("generation", chosen, results)


if __name__ == "__main__":
    main()
