"""bf16 beside the fp32 of before, and PPO beside TRL in whichever of the two suits it better: SmolLM2-135M's shape.

Same tokens and updates, random weights, pairs in alternating order, CPU seconds of one thread (other work on the
machine makes wall time longer, and these hardly). Beside the ratios stand the machine's matrix rates in both
precisions at these shapes: a processor without bf16 units widens the weights instead, and should take fp32's time.

``over_fp32_before``: time of fp32 by the commit ``BEFORE``, with which work on bf16 began, over that of bf16 now; where
the checkout has no such commit, of fp32 now. ``over_trl``: TRL 1.12's PPO, in its faster precision, over trivet's in
bf16. ``backward_bytes_ratio``: what a layer keeps for backward in bf16 by the fast path over what Transformers' modules
keep. Each is the least favourable of its cases, the ratios medians of pairs.

    make bench-envs                                  TRL's environments
    python benchmarks/bf16.py --repeats 2            two pairs a case: about half an hour of a thread to itself
    python benchmarks/bf16.py --no-trl --repeats 1   trivet alone
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from io import BytesIO
from pathlib import Path
from typing import Any

from pairs import ROOT, TRIVET, Side, low_median_high, options, paired, run, trl, write

BEFORE = "64870f28ddb03eaed1df19e82dd95f39a12057a9"
PROMPTS: dict[str, Any] = {"prompt": [16, 64], "answer": [16, 240], "batch": 8, "micro_batch": 8, "updates": 1}
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


def unpacked(commit: str, folder: str) -> Path | None:
    """The project as it was at a commit, written into a folder; None where this is no checkout that has it."""
    made = subprocess.run(["git", "-C", str(ROOT), "archive", commit], capture_output=True)
    if made.returncode:
        return None
    with tarfile.open(fileobj=BytesIO(made.stdout)) as files:
        files.extractall(folder, filter="data")
    return Path(folder)


def ratios_of(found: dict[str, list[Any]], ours: str, theirs: list[str]) -> list[float]:
    """Least, median and greatest of the time of theirs over ours, pair by pair; of several the fastest counts."""
    best = min(theirs, key=lambda name: statistics.median(r["seconds"] for r in found[name]))
    return low_median_high([b["seconds"] / a["seconds"] for a, b in zip(found[ours], found[best], strict=True)])


def main() -> None:
    with_trl = "--no-trl" not in sys.argv
    sys.argv = [a for a in sys.argv if a != "--no-trl"]
    chosen = options(__doc__)
    with tempfile.TemporaryDirectory() as folder:
        compare(chosen, with_trl, unpacked(BEFORE, folder))


def compare(chosen: Any, with_trl: bool, before: Path | None) -> None:
    from models.backbone.bf16_units import bf16_speed, has_flag

    rates, speed = matrix_rates(), bf16_speed()
    kept = [run(TRIVET, "trivet_bytes", SIZE | NARROW)]
    results: list[dict[str, Any]] = []
    for name, case in CASES.items():
        if chosen.only not in name:
            continue
        print(name, flush=True)
        worker = f"trivet_{name}" if before is None else str(before / "benchmarks" / "workers" / f"trivet_{name}")
        sides: dict[str, Side] = {
            "trivet-bf16": (TRIVET, f"trivet_{name}", NARROW),
            "trivet-fp32-before": (TRIVET, worker, WIDE),
        }
        theirs = {"trl-bf16": NARROW, "trl-fp32": WIDE} if with_trl and name == "ppo" else {}
        sides |= {side: (trl("1.12"), f"trl_{name}", dtype) for side, dtype in theirs.items()}
        found = paired(sides, case, chosen.repeats)
        entry: dict[str, Any] = {"name": name, "case": case, "runs": found}
        entry["over_fp32"] = ratios_of(found, "trivet-bf16", ["trivet-fp32-before"])
        entry["over_trl"] = ratios_of(found, "trivet-bf16", list(theirs)) if theirs else None
        print(f"  bf16 over fp32: x{entry['over_fp32'][1]:.2f}", flush=True)
        results.append(entry)
        write(
            "bf16", chosen, results,
            bf16_units={"named": has_flag(), "speed": speed}, matrix_rates=rates,
            fp32_before=None if before is None else BEFORE[:7],
            over_fp32_before=min(e["over_fp32"][1] for e in results),
            over_trl=min((e["over_trl"][1] for e in results if e["over_trl"]), default=None),
            backward_bytes_ratio=max(k["by_fast_path"] / k["by_modules"] for k in kept), backward_bytes=kept,
            missing=[n for n in CASES if n not in [e["name"] for e in results]],
        )  # fmt: skip


if __name__ == "__main__":
    main()
