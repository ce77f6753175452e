"""trivet's PPO beside TRL 1.12.0's: same shapes, tokens and updates, CPU seconds of one thread, peak memory.

TRL: LoRA policy, value model trained in full (it has no other way), reference by switching the adapter off.
trivet: LoRA on both roles. ``S-64-1-frozen-value`` gives TRL a value model that is not trained at all, which bounds
from below what it would cost with a LoRA value role.

    make bench-envs                                the two TRL environments
    python benchmarks/ppo_vs_trl.py --quick        size S, one pair a case: about seven minutes
    python benchmarks/ppo_vs_trl.py                every case, three pairs: about an hour and a half
    python benchmarks/ppo_vs_trl.py --repeats 1 --cases S-64-1 M-64-4-upper-half    these alone, one pair each
"""

from __future__ import annotations

import statistics
from typing import Any

from pairs import TRIVET, Side, compare, middle, options, paired, selected, trl, write
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


def entry(name: str, case: dict[str, Any], found: dict[str, list[Any]], rate: float) -> dict[str, Any]:
    """What the pairs so far say of a case."""
    lengths = [len(q) for q in rows_of_tokens(case["rollouts"], *case["query"], seed=0)]
    ratios = compare(found, "trivet", "trl")
    work = {side: ppo_flops(case["size"], lengths, case["new"], case["epochs"], side == "trl") for side in found}
    each = case["updates"] / rate
    share = {side: sum(work[side].values()) * each / middle(found[side], "seconds") for side in found}

    def of_phase(side: str, phase: str) -> float:
        return work[side][phase] * each / statistics.median(r["phases"][phase] for r in found[side])

    phases = {side: {phase: of_phase(side, phase) for phase in work[side]} for side in found}
    return {
        "name": name, "case": case, "ratios": ratios, "roofline_share": share, "roofline_share_of_phases": phases,
        "runs": found,
    }  # fmt: skip


def main() -> None:
    chosen = options(__doc__)
    sides: dict[str, Side] = {"trivet": (TRIVET, "trivet_ppo", {}), "trl": (trl("1.12"), "trl_ppo", {})}
    cases, rate = all_cases(), machine_rates()["matrix_flops"]
    done: dict[str, dict[str, Any]] = {}

    def keep(found: dict[str, list[Any]]) -> None:
        """After each pair, so that a run that is cut short leaves what it found, and says so."""
        done[name] = entry(name, cases[name], found, rate)
        plain = [r for r in done.values() if r["name"] in PLAIN]
        least = {k: min((r["ratios"][k][1] for r in plain), default=None) for k in ("speed", "memory")}
        write(
            "ppo_vs_trl", chosen, list(done.values()), speed_ratio=least["speed"], memory_ratio=least["memory"],
            missing=[n for n in cases if n not in done],
        )  # fmt: skip

    for name in selected(cases, chosen):
        print(name, flush=True)
        paired(sides, cases[name], chosen.repeats, keep)
        ratios, share = done[name]["ratios"], done[name]["roofline_share"]
        print(f"  speed x{ratios['speed'][1]:.2f}, memory x{ratios['memory'][1]:.2f}, share of the roofline "
              f"{share['trivet']:.0%} (TRL {share['trl']:.0%})", flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
