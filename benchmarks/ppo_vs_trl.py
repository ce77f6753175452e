"""trivet's PPO beside TRL 1.12.0's: same shapes, tokens and updates, CPU seconds of one thread, peak memory.

TRL: LoRA policy, value model trained in full (it has no other way), reference by switching the adapter off.
trivet: LoRA on both roles. ``S-64-1-frozen-value`` gives TRL a value model that is not trained at all, which bounds
from below what it would cost with a LoRA value role.

    make bench-envs                                the two TRL environments
    python benchmarks/ppo_vs_trl.py --quick        size S, one pair a case: about seven minutes
    python benchmarks/ppo_vs_trl.py                every case, three pairs: about an hour and a half
"""

from __future__ import annotations

from typing import Any

from pairs import TRIVET, compare, middle, options, paired, trl, write
from world import machine_rates, ppo_flops, rows_of_tokens

COMMON: dict[str, Any] = {"rollouts": 32, "updates": 1, "micro_batch": 8, "rollout_batch": 32, "query": [32, 64]}


PLAIN = ("S-64-1", "S-64-4", "S-128-1", "S-128-4")  # the ratios of the file's head are the least of these


def all_cases() -> dict[str, dict[str, Any]]:
    cases = {
        f"{size}-{new}-{epochs}": COMMON | {"size": size, "new": new, "epochs": epochs}
        for size in "SM"
        for new in (64, 128)
        for epochs in (1, 4)
    }
    cases["S-64-1-frozen-value"] = cases["S-64-1"] | {"freeze_value": True}
    cases["M-64-4-upper-half"] = cases["M-64-4"] | {"layers": "upper_half"}
    return cases


def main() -> None:
    chosen = options(__doc__)
    sides = {"trivet": (TRIVET, "trivet_ppo", {}), "trl": (trl("1.12"), "trl_ppo", {})}
    rate = machine_rates()["matrix_flops"]
    results = []
    for name, case in all_cases().items():
        if chosen.only not in name or (chosen.quick and not name.startswith("S")):
            continue
        print(name, flush=True)
        found = paired(sides, case, chosen.repeats)
        lengths = [len(q) for q in rows_of_tokens(case["rollouts"], *case["query"], seed=0)]
        ratios = compare(found, "trivet", "trl")
        floor = {
            side: ppo_flops(case["size"], lengths, case["new"], case["epochs"], side == "trl") / rate for side in sides
        }
        share = {side: floor[side] * case["updates"] / middle(found[side], "seconds") for side in sides}
        print(f"  speed x{ratios['speed'][1]:.2f}, memory x{ratios['memory'][1]:.2f}, share of the roofline "
              f"{share['trivet']:.0%} (TRL {share['trl']:.0%})", flush=True)  # fmt: skip
        results.append({"name": name, "case": case, "ratios": ratios, "roofline_share": share, "runs": found})
        plain = [r for r in results if r["name"] in PLAIN]
        least = {k: min((r["ratios"][k][1] for r in plain), default=None) for k in ("speed", "memory")}
        missing = [n for n in all_cases() if n not in [r["name"] for r in results]]
        # after each case, so that a run that is cut short leaves what it found, and says so
        write("ppo_vs_trl", chosen, results, speed_ratio=least["speed"], memory_ratio=least["memory"], missing=missing)


if __name__ == "__main__":
    main()
