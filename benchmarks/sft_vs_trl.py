"""trivet's SFT beside TRL's SFTTrainer, 1.12 and 1.16: same rows, answers only in the loss, same updates, LoRA.

Rows of 16 to 64 tokens of prompt and 16 to 240 of answer, 8 a batch; CPU seconds of ``train()`` on one thread, peak
memory above the imports. ``padded`` is TRL's default; in ``packed`` a row holds what a batch holds; ``padding-free``
lays the rows of a batch packed. These without gradient checkpointing, which TRL has on by default and which costs
it time. ``default`` leaves each side as it is by default; ``lean`` is packed and has it on in both, for memory.

    make bench-envs                                the two TRL environments
    python benchmarks/sft_vs_trl.py                three rounds: about ten minutes
"""

from __future__ import annotations

from typing import Any

from pairs import TRIVET, Side, compared, middle, options, paired, trl, write
from world import demonstrations, forward_flops, machine_rates

VERSIONS = ("1.12", "1.16")
COMMON: dict[str, Any] = {"updates": 4, "batch": 8, "micro_batch": 8, "prompt": [16, 64], "answer": [16, 240]}
LEAN = {"gradient_checkpointing": True}
CASES: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "S-padded": (COMMON | {"size": "S"}, ("padded",)),
    "S-default": (COMMON | {"size": "S"} | LEAN, ("padded",)),  # TRL's; trivet's is off
    "S-packed": (COMMON | {"size": "S"}, ("packed",)),
    "S-padding-free": (COMMON | {"size": "S"}, ("padding_free",)),
    "S-lean": (COMMON | {"size": "S"} | LEAN, ("packed",)),
    "M-padded": (COMMON | {"size": "M"}, ("padded",)),
}


def floor(case: dict[str, Any]) -> float:
    """FLOP of one pass with LoRA: forward, and as much again backward; logits where there is a label."""
    rows = demonstrations(case["batch"] * case["updates"], case["prompt"], case["answer"])
    return 2 * forward_flops(case["size"], [len(p) + len(a) for p, a in rows], sum(len(a) for _, a in rows))


def main() -> None:
    chosen = options(__doc__)
    rate = machine_rates()["matrix_flops"]
    results = []
    for name, (case, modes) in CASES.items():
        if chosen.only not in name or (chosen.quick and not name.startswith("S")):
            continue
        print(name, flush=True)
        ours = {"gradient_checkpointing": False} if name == "S-default" else {}
        sides: dict[str, Side] = {"trivet": (TRIVET, "trivet_sft", ours)}
        sides |= {f"trl-{v}-{mode}": (trl(v), "trl_sft", {"mode": mode}) for v in VERSIONS for mode in modes}
        found = paired(sides, case, chosen.repeats)
        share = {side: floor(case) / rate / middle(runs, "seconds") for side, runs in found.items()}
        ratios = compared(found)
        print(f"  beside TRL's best: speed x{ratios['best']['speed']:.2f}, memory x{ratios['best']['memory']:.2f}; "
              f"{share['trivet']:.0%} of the roofline", flush=True)  # fmt: skip
        results.append({"name": name, "case": case, **ratios, "roofline_share": share, "runs": found})
        write("sft_vs_trl", chosen, results, missing=[n for n in CASES if n not in [r["name"] for r in results]])


if __name__ == "__main__":
    main()
