"""How PPO grows with episodes and new tokens: CPU seconds, memory above the imports, share of the roofline.

python benchmarks/growth.py [--quick] [--repeats 1] [--only new]
"""

from __future__ import annotations

from pairs import TRIVET, middle, options, run, write
from ppo_vs_trl import COMMON
from world import machine_rates, ppo_flops, rows_of_tokens

CASES = {
    **{f"episodes-{n}": {"rollouts": n, "new": 64} for n in (32, 64, 128, 256)},
    **{f"new-{n}": {"rollouts": 32, "new": n} for n in (128, 256, 512)},
}
SHORT = ("episodes-32", "episodes-64", "episodes-128", "new-128", "new-256")


def main() -> None:
    chosen = options(__doc__)
    results = []
    for name, more in CASES.items():
        if chosen.only not in name or (chosen.quick and name not in SHORT):
            continue
        case = COMMON | {"size": "S", "epochs": 1} | more
        runs = [run(TRIVET, "trivet_ppo", case) for _ in range(chosen.repeats)]
        lengths = [len(q) for q in rows_of_tokens(case["rollouts"], *case["query"], seed=0)]
        flops = sum(ppo_flops("S", lengths, case["new"], 1, full_value=False).values())
        floor = flops / machine_rates()["matrix_flops"]
        seconds, memory = middle(runs, "seconds"), middle(runs, "peak_above_imports")
        print(f"{name}: {seconds:.1f} CPU s, {memory / 1e9:.2f} GB, {floor / seconds:.0%} of the roofline", flush=True)
        results.append({"name": name, "case": case, "roofline_share": floor / seconds, "runs": runs})
        write("growth", chosen, results)


if __name__ == "__main__":
    main()
