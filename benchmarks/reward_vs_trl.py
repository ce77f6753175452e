"""trivet's reward stage on rankings of four beside TRL's RewardTrainer, 1.12 and 1.16, fed with all six pairs of each.

Prompts of 32 to 64 tokens, answers of 32 to 96; 8 rankings an update, 16 answers a forward pass on both sides; LoRA
and a trained head, no gradient checkpointing; CPU seconds of ``train()`` on one thread, peak memory above the imports.

    make bench-envs                                the two TRL environments
    python benchmarks/reward_vs_trl.py             three rounds: about five minutes
"""

from __future__ import annotations

from typing import Any

from pairs import TRIVET, Side, compared, options, paired, trl, write

COMMON: dict[str, Any] = {
    "updates": 4, "batch": 8, "micro_batch": 4, "answers": 4, "prompt": [32, 64], "answer": [32, 96]
}  # fmt: skip
CASES: dict[str, dict[str, Any]] = {
    "S": COMMON | {"size": "S"},
    "S-long-prompts": COMMON | {"size": "S", "updates": 2, "prompt": [128, 256]},
    "M": COMMON | {"size": "M", "updates": 1},
}


def main() -> None:
    chosen = options(__doc__)
    sides: dict[str, Side] = {"trivet": (TRIVET, "trivet_reward", {})}
    sides |= {f"trl-{version}": (trl(version), "trl_reward", {}) for version in ("1.12", "1.16")}
    results = []
    for name, case in CASES.items():
        if chosen.only not in name or (chosen.quick and not name.startswith("S")):
            continue
        print(name, flush=True)
        found = paired(sides, case, chosen.repeats)
        ratios = compared(found)
        print(f"  beside TRL's better: speed x{ratios['best']['speed']:.2f}, memory x{ratios['best']['memory']:.2f}",
              flush=True)  # fmt: skip
        results.append({"name": name, "case": case, **ratios, "runs": found})
        write("reward_vs_trl", chosen, results, missing=[n for n in CASES if n not in [r["name"] for r in results]])


if __name__ == "__main__":
    main()
