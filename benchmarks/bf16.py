"""bf16 beside fp32, and beside TRL in whichever of the two suits it better: SFT, reward and PPO of a 135M shape.

Same tokens and updates, alternating pairs, CPU seconds of one thread. Beside the ratios stand the machine's matrix
rates in both precisions at these shapes: a processor without bf16 units widens the weights instead, and should take
fp32's time. ``over_fp32_before`` is fp32's time over bf16's, ``over_trl`` TRL's PPO over trivet's,
``backward_bytes_ratio`` what a layer keeps for backward over what Transformers' modules keep.

    python benchmarks/bf16.py --no-trl --repeats 1   trivet's two precisions alone: about ten minutes
    make bench-envs                                the two TRL environments
    python benchmarks/bf16.py                      three pairs a case, TRL's too: about an hour and a half
"""

from __future__ import annotations

import statistics
import sys
import time
from typing import Any

from pairs import TRIVET, Side, low_median_high, options, paired, run, trl, write

PROMPTS: dict[str, Any] = {"prompt": [16, 64], "answer": [16, 240], "batch": 8, "micro_batch": 8, "updates": 2}
SIZE = {"size": "135M"}
CASES: dict[str, dict[str, Any]] = {
    "sft": SIZE | PROMPTS,
    "reward": SIZE | PROMPTS | {"answers": 3, "batch": 4, "micro_batch": 4, "answer": [16, 120]},
    "ppo": SIZE | {"rollouts": 16, "updates": 1, "micro_batch": 8, "rollout_batch": 16, "query": [32, 64], "new": 64,
                   "epochs": 1},
}  # fmt: skip
NARROW, WIDE = {"dtype": "bfloat16"}, {"dtype": "float32"}


def matrix_rates() -> dict[str, float]:
    """FLOP/s of the products of a 135M model's blocks, in both precisions; medians of five."""
    import torch

    torch.set_num_threads(1)
    found = {}
    for name, dtype in (("float32", torch.float32), ("bfloat16", torch.bfloat16)):
        x, into, out = (torch.randn(s).to(dtype) for s in ((512, 576), (1536, 576), (576, 1536)))
        seconds = []
        for _ in range(6):
            began = time.process_time()
            for _ in range(10):
                torch.nn.functional.linear(torch.nn.functional.linear(x, into), out)
            seconds.append(time.process_time() - began)
        found[name] = 10 * 2 * 2 * 512 * 576 * 1536 / statistics.median(seconds[1:])
    return found


def ratios_of(found: dict[str, list[Any]], ours: str, theirs: list[str]) -> list[float]:
    """Least, median and greatest of the time of theirs over ours, pair by pair; of several the fastest counts."""
    best = min(theirs, key=lambda name: statistics.median(r["seconds"] for r in found[name]))
    return low_median_high([b["seconds"] / a["seconds"] for a, b in zip(found[ours], found[best], strict=True)])


def main() -> None:
    with_trl = "--no-trl" not in sys.argv
    sys.argv = [a for a in sys.argv if a != "--no-trl"]
    chosen = options(__doc__)
    from models.backbone.bf16_units import bf16_speed, has_flag

    rates, speed = matrix_rates(), bf16_speed()
    kept = [run(TRIVET, "trivet_bytes", SIZE | NARROW)]
    results: list[dict[str, Any]] = []
    for name, case in CASES.items():
        if chosen.only not in name:
            continue
        print(name, flush=True)
        sides: dict[str, Side] = {
            "trivet-bf16": (TRIVET, f"trivet_{name}", NARROW),
            "trivet-fp32": (TRIVET, f"trivet_{name}", WIDE),
        }
        theirs = {"trl-bf16": NARROW, "trl-fp32": WIDE} if with_trl else {}
        more = {"mode": "padded"} if name == "sft" else {}
        sides |= {side: (trl("1.12"), f"trl_{name}", dtype | more) for side, dtype in theirs.items()}
        found = paired(sides, case, chosen.repeats)
        entry: dict[str, Any] = {"name": name, "case": case, "runs": found}
        entry["over_fp32"] = ratios_of(found, "trivet-bf16", ["trivet-fp32"])
        entry["over_trl"] = ratios_of(found, "trivet-bf16", list(theirs)) if theirs else None
        print(f"  bf16 over fp32: x{entry['over_fp32'][1]:.2f}", flush=True)
        results.append(entry)
        beside = [e["over_trl"][1] for e in results if e["name"] == "ppo" and e["over_trl"]]
        write(
            "bf16", chosen, results,
            bf16_units={"named": has_flag(), "speed": speed}, matrix_rates=rates,
            over_fp32_before=min(e["over_fp32"][1] for e in results),
            over_trl=min(beside, default=None),
            backward_bytes_ratio=max(k["by_fast_path"] / k["by_modules"] for k in kept), backward_bytes=kept,
            missing=[n for n in CASES if n not in [e["name"] for e in results]],
        )  # fmt: skip


if __name__ == "__main__":
    main()
