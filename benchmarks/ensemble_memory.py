"""What members of a reward ensemble cost in memory: peak resident set above the base alone, one member and three.

python benchmarks/ensemble_memory.py                 size M, three alternating rounds: about two minutes
"""

from __future__ import annotations

import argparse
import statistics
from typing import Any

from pairs import TRIVET, run

CASE: dict[str, Any] = {
    "batch": 8, "micro_batch": 4, "answers": 4, "prompt": [32, 64], "answer": [32, 96], "updates": 2,
}  # fmt: skip
MIB = 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="M", choices=["S", "M"])
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    print("| | base | one adapter and head | above the base, 1 member | 3 members | each further one |")
    print("|---|---|---|---|---|---|")
    for what in ("training", "scoring"):
        rounds = [
            {n: run(TRIVET, "ensemble", CASE | {"size": options.size, "what": what, "members": n}) for n in (1, 3)}
            for _ in range(options.repeats)
        ]
        peak = {n: statistics.median(r[n]["peak_above_base"] for r in rounds) / MIB for n in (1, 3)}
        each = statistics.median((r[3]["peak_above_base"] - r[1]["peak_above_base"]) / 2 for r in rounds) / MIB
        base, own = (rounds[0][3][k] / MIB for k in ("base", "adapter"))
        print(f"| {what} | {base:.0f} MiB | {own:.1f} MiB | {peak[1]:.0f} MiB | {peak[3]:.0f} MiB | {each:.1f} MiB |",
              flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
