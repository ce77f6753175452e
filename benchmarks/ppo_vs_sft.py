"""If you can LoRA-SFT it, can you PPO it? trivet's PPO beside trivet's own LoRA SFT: peak memory above the imports.

The same model, rows of the same lengths (queries of 32 to 64 tokens, answers of 64 or 128), 32 rows an update in
micro-batches of 8. PPO has four roles, samples all 32 rows at once and keeps their keys and values; SFT has one role.

    python benchmarks/ppo_vs_sft.py [--quick] [--repeats 3] [--only S]
"""

from __future__ import annotations

from typing import Any

from pairs import TRIVET, Side, middle, options, paired, selected, write
from ppo_vs_trl import COMMON

CASES: dict[str, dict[str, Any]] = {
    f"{size}-{new}-{epochs}": {"size": size, "new": new, "epochs": epochs}
    for size, new, epochs in (("S", 64, 1), ("S", 64, 4), ("S", 128, 1), ("M", 64, 1))
}


def main() -> None:
    chosen = options(__doc__)
    results = []
    for name in selected(CASES, chosen):
        case = CASES[name]
        print(name, flush=True)
        tokens = {"prompt": COMMON["query"], "answer": [case["new"], case["new"]], "batch": COMMON["rollouts"]}
        sides: dict[str, Side] = {
            "ppo": (TRIVET, "trivet_ppo", COMMON),
            "sft": (TRIVET, "trivet_sft", tokens | {"micro_batch": COMMON["micro_batch"], "updates": 1}),
        }
        found = paired(sides, case, chosen.repeats)
        memory = middle(found["ppo"], "peak_above_imports") / middle(found["sft"], "peak_above_imports")
        print(f"  PPO needs x{memory:.2f} of SFT's memory (goal: 1.25)", flush=True)
        results.append({"name": name, "case": case, "memory_ratio": memory, "runs": found})
        write(
            "ppo_vs_sft", chosen, results, memory_ratio=max(r["memory_ratio"] for r in results),
            missing=[n for n in CASES if n not in [r["name"] for r in results]],
        )  # fmt: skip


if __name__ == "__main__":
    main()
