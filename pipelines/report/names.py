"""What the report calls systems, judges and scores."""

from __future__ import annotations

import re
from typing import Any

SYSTEMS = {"base": "Base", "distil": "Distilled"} | {"sft": "SFT", "ppo": "PPO"}
JUDGES = {
    "gold": "the gold preference",
    "held_out_reward": "the held-out reward model",
    "reward": "the reward model",
}
SCORES = {"reward": "reward", "held_out_reward": "held-out reward", "gold": "gold"}


def plain_name(system: Any) -> str:
    """A system's name as people write it: "PPO", "Best of 4"."""
    if best := re.fullmatch(r"best_of_(\d+)(?::(.+))?", str(system)):
        return f"Best of {best[1]}" + (f" by {best[2]}" if best[2] else "")
    return SYSTEMS.get(str(system)) or str(system)


def judge_name(judge: Any) -> str:
    """A judge's name in a sentence: "the held-out reward model"; other judges have their own."""
    return JUDGES.get(str(judge), str(judge))


def score_name(score: Any) -> str:
    """A score's name: "held-out reward"; what another judge gives is called as that judge is."""
    return SCORES.get(str(score), str(score))
