"""The gate before PPO: a reward model whose report card is not good enough is not worth a PPO step.

It reads the card that the reward stage wrote; changing the gate trains nothing again.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from data.common.errors import GateStopped
from reward.settings import GateConfig

UNJUDGED = (
    "reward.gate: the accuracy of the reward model is not judged, for fewer than 20 prompts of its held-out rankings "
    "have an order"
)


def failures(card: Mapping[str, Any], gate: GateConfig) -> list[str]:
    """The gate's lines that a card fails, each with what was found. Lines without an interval are not judged."""
    out = []
    accuracy, baselines = card["accuracy"], card["baselines"]
    if accuracy["ci95"]:
        low, high = accuracy["ci95"]
        found = f"held-out pair accuracy is {accuracy['share']:.3f} [{low:.3f}, {high:.3f}]"
        if not low > gate.accuracy:  # so that what is not a number does not pass either
            out.append(f"accuracy: {found}; its interval must lie above {gate.accuracy:g}")
        for key, name, asked in (
            ("beat_longest", "longest answer", gate.beat_longest),
            ("beat_ngrams", "n-grams", gate.beat_ngrams),
        ):
            reached = baselines[name]["share"] if asked and name in baselines else None
            if reached is not None and not accuracy["share"] > reached:
                out.append(f"{key}: {found}, and '{name}' reaches {reached:.3f}")
    empty = empty_probe(card)
    if empty and empty["ci95"] and not empty["share"] >= gate.empty_response:
        out.append(
            f"empty_response: {empty['share']:.0%} of the responses beat an empty one, not {gate.empty_response:.0%}"
        )
    samples = card["samples"]
    if samples and not samples["std"] >= gate.score_std:
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
    for key in map(_line, lines):
        if key in ("beat_longest", "beat_ngrams"):
            out.append(f"--set reward.gate.{key}=false")
        elif key == "score_std":
            out.append("--set reward.gate.score_std=0")
        elif key == "empty_response":
            share = empty_probe(card)["share"]
            hundredths = round(100 * share)
            out.append(f"--set reward.gate.empty_response={(hundredths - (hundredths / 100 > share)) / 100:g}")
        elif key == "accuracy" and card["accuracy"]["ci95"][0] > 0:
            low = card["accuracy"]["ci95"][0]
            hundredths = round(100 * low)  # the interval must lie above it
            out.append(f"--set reward.gate.accuracy={(hundredths - (hundredths / 100 >= low)) / 100:g}")
    return out


def _line(failure: str) -> str:
    """The gate's key that a failure begins with."""
    return failure.partition(":")[0]


def card_failures(card: Mapping[str, Any]) -> list[str]:
    """What a card fails of the gate's default lines. The recipe's gate has no part in it: the verdict on a reward model
    is the same for every gate, and for none."""
    return failures(card, GateConfig())


def stored_card(folder: Path) -> dict[str, Any]:
    """The card in a reward stage's folder; empty where there is none."""
    from reward.card.examine import FILE  # here: it brings torch, which a report on the gate does without

    file = folder / FILE
    return dict(json.loads(file.read_text(encoding="utf-8"))) if file.is_file() else {}


LEARN = (
    "Check that the rankings are the right way round, give more of them, or train longer (reward.epochs, "
    "reward.learning_rate)."
)
TEACH = (
    'Show it responses that are bad by construction (reward.negatives: ["empty response", "cut short", '
    '"end token missing"]): rankings hold none.'
)
Warn = Callable[[str], None]


def require(folder: Path, gate: GateConfig, warn: Warn = lambda _: None) -> None:
    """Let a reward stage's folder pass, or stop. A folder without a card (made elsewhere) passes, which is reported,
    and so is an accuracy that cannot be judged.

    Raises:
        GateStopped: names every line that failed, and what to do.
    """
    if not gate.enabled:
        return
    from reward.card.examine import FILE

    card = stored_card(folder)
    if not card:
        warn(f"{folder} holds no report card: reward.gate judges nothing of this reward model")
    kept = f"The finished reward stage is kept; its card is {folder / FILE}."
    empty_alone = list(map(_line, failures(card, gate) if card else ())) == ["empty_response"]
    advice = TEACH if empty_alone and not card.get("negatives") else LEARN
    _require(card, gate, f"{kept} {advice}", warn)


def require_terms(card: Mapping[str, Any], file: Path, gate: GateConfig, warn: Warn = lambda _: None) -> None:
    """Let a reward of somebody else's pass by its card, or stop; an accuracy that cannot be judged is reported.

    Raises:
        GateStopped: names every line that failed, and what to do.
    """
    if gate.enabled:
        _require(
            card,
            gate,
            f"Its card is {file}. Check that the rankings are the right way round, that ppo.reward has the label and "
            "the sign that are meant, or take another reward.",
            warn,
        )


def _require(card: Mapping[str, Any], gate: GateConfig, advice: str, warn: Warn) -> None:
    if card and not card["accuracy"]["ci95"]:
        warn(UNJUDGED)
    if card and (failed := failures(card, gate)):
        options = " ".join(remedies(card, failed))
        lower = f"change what failed ({options}) or " if options else ""
        raise GateStopped(
            "PPO was not started: the reward model does not pass reward.gate.\n  "
            + "\n  ".join(failed)
            + f"\n{advice} To run PPO all the same, {lower}switch the gate off (--set reward.gate=off)",
            failed,
        )
