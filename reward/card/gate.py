"""The gate before PPO: a reward model whose report card is not good enough is not worth a PPO step.

It reads the card that the reward stage wrote; changing the gate trains nothing again.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from data.common.errors import GateStopped
from reward.settings import GateConfig


def failures(card: Mapping[str, Any], gate: GateConfig) -> list[str]:
    """The gate's lines that a card fails, each with what was found. Lines without an interval are not judged."""
    out = []
    accuracy, baselines = card["accuracy"], card["baselines"]
    if accuracy["ci95"]:
        low, high = accuracy["ci95"]
        found = f"held-out pair accuracy is {accuracy['share']:.3f} [{low:.3f}, {high:.3f}]"
        if low <= gate.accuracy:
            out.append(f"accuracy: {found}; its interval must lie above {gate.accuracy:g}")
        for key, name, asked in (
            ("beat_longest", "longest answer", gate.beat_longest),
            ("beat_ngrams", "n-grams", gate.beat_ngrams),
        ):
            reached = baselines[name]["share"] if asked and name in baselines else None
            if reached is not None and accuracy["share"] <= reached:
                out.append(f"{key}: {found}, and '{name}' reaches {reached:.3f}")
    empty = empty_probe(card)
    if empty and empty["ci95"] and empty["share"] < gate.empty_response:
        out.append(
            f"empty_response: {empty['share']:.0%} of the responses beat an empty one, not {gate.empty_response:.0%}"
        )
    samples = card["samples"]
    if samples and samples["std"] < gate.score_std:
        out.append(
            f"score_std: scores of {samples['of']} differ by {samples['std']:.2g} only (minimum {gate.score_std:g})"
        )
    return out


def empty_probe(card: Mapping[str, Any]) -> Any:
    """What the card says of empty responses, also where it was written under the probe's old name; None: nothing."""
    return card["probes"].get("empty response") or card["probes"].get("emptied")


def remedies(card: Mapping[str, Any], lines: Sequence[str]) -> list[str]:
    """What lets a card pass the lines that it failed, as options of the command; none for a line that nothing passes.

    Args:
        lines: as ``failures`` gives them.
    """
    out = []
    for key in (line.partition(":")[0] for line in lines):
        if key in ("beat_longest", "beat_ngrams"):
            out.append(f"--set reward.gate.{key}=false")
        elif key == "score_std":
            out.append("--set reward.gate.score_std=0")
        elif key == "empty_response":
            out.append(f"--set reward.gate.empty_response={math.floor(100 * empty_probe(card)['share']) / 100:g}")
        elif key == "accuracy" and card["accuracy"]["ci95"][0] > 0:
            below = math.ceil(100 * card["accuracy"]["ci95"][0]) - 1  # the interval must lie above it
            out.append(f"--set reward.gate.accuracy={below / 100:g}")
    return out


def card_failures(card: Mapping[str, Any], gate: GateConfig) -> list[str]:
    """What a card fails of the gate's default lines and of the recipe's, whether the gate is on or off."""
    return list(dict.fromkeys([*failures(card, gate), *failures(card, GateConfig())]))


def require(folder: Path, gate: GateConfig) -> None:
    """Let a reward stage's folder pass, or stop. A folder without a card (made elsewhere) passes.

    Raises:
        GateStopped: names every line that failed, and what to do.
    """
    from reward.card.examine import FILE  # here: it brings torch, which a report on the gate does without

    if not gate.enabled or not (folder / FILE).is_file():
        return
    card = json.loads((folder / FILE).read_text(encoding="utf-8"))
    kept = f"The finished reward stage is kept; its card is {folder / FILE}."
    _require(
        card,
        gate,
        f"{kept} Check that the rankings are the right way round, give more of them, or train longer (reward.epochs, "
        "reward.learning_rate).",
    )


def require_terms(card: Mapping[str, Any], file: Path, gate: GateConfig) -> None:
    """Let a reward of somebody else's pass by its card, or stop.

    Raises:
        GateStopped: names every line that failed, and what to do.
    """
    if gate.enabled:
        _require(
            card,
            gate,
            f"Its card is {file}. Check that the rankings are the right way round, that ppo.reward has the label and "
            "the sign that are meant, or take another reward.",
        )


def _require(card: Mapping[str, Any], gate: GateConfig, advice: str) -> None:
    if card and (failed := failures(card, gate)):
        options = " ".join(remedies(card, failed))
        lower = f"change what failed ({options}) or " if options else ""
        raise GateStopped(
            "PPO was not started: the reward model does not pass reward.gate.\n  "
            + "\n  ".join(failed)
            + f"\n{advice} To run PPO all the same, {lower}switch the gate off (--set reward.gate=off)",
            failed,
        )
