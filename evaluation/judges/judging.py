"""Every system against the reference system before judges of pairs, with the adversaries as further systems."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from evaluation.adversaries import adversaries
from evaluation.answers import SystemResponses
from evaluation.judge_table import JUDGES, Comparing
from evaluation.results import about_judge, adjusted, compare_outcomes, distrust
from evaluation.settings import JudgeConfig
from reward.card.scored_once import Phase, silent


def judged_in_pairs(
    configs: Sequence[JudgeConfig],
    systems: Sequence[SystemResponses],
    against: str,
    *,
    folder: Path | None,
    resamples: int = 10_000,
    seed: int = 0,
    say: Callable[[str], None] = lambda text: None,
    phase: Phase = silent,
) -> dict[str, Any]:
    """``comparisons``, ``judges`` (by name) and ``warnings``, to be joined to those of ``results.assemble``.

    Sampled responses are judged, greedy ones where nothing was sampled. ``phase`` shows two questions a row; a judge
    with an attribute ``progress`` is given there what it tells of each, of another one whole systems are told.

    Raises:
        RemoteError: a judge behind an endpoint gets no usable reply; verdicts so far are kept in ``folder``.
    """
    decoding = "sampled" if any(s.decoding == "sampled" for s in systems) else "greedy"
    group = [s for s in systems if s.decoding == decoding]
    reference = next((s for s in group if s.name == against), None)
    out: dict[str, Any] = {"comparisons": [], "judges": {}, "warnings": []}
    if reference is None:
        return out
    for config in configs:
        judge: Comparing = JUDGES[config.kind].make(config, folder, say)
        n = min(config.prompts, len(reference.units))

        def compare(
            a: SystemResponses,
            rows: int,
            judge: Any = judge,
            b: SystemResponses = reference,
            name: str = config.name,
        ) -> dict[str, Any]:
            done = phase(f"judge {name} on {a.name}", 2 * rows)
            if tells := hasattr(judge, "progress"):
                judge.progress = done
            outcomes = judge.outcomes(a.units[:rows], a.responses[:rows], b.responses[:rows])
            done(0 if tells else 2 * rows)
            return compare_outcomes(a, b, outcomes, name, resamples, seed)

        out["comparisons"] += adjusted([compare(s, n) for s in group if s.name != against])
        about, warnings = judge.report()
        few = min(config.adversary_prompts, n)
        made = adversaries(reference.prompts[:few], reference.responses[:few]) if few else {}
        extra = [compare(_answering(reference, name, texts), few) for name, texts in made.items()]
        about |= {"adversary_tokens": spent} if (spent := judge.report()[0].get("tokens")) else {}
        out["judges"][config.name] = about | about_judge(extra)
        out["warnings"] += distrust(config.name, extra, main=False) + warnings
    return out


def _answering(reference: SystemResponses, name: str, texts: Sequence[str]) -> SystemResponses:
    """An adversary as a system: lengths in words, since no tokenizer wrote it."""
    rest = [""] * (len(reference.prompts) - len(texts))
    responses = [*texts, *rest]
    return replace(reference, name=name, responses=responses, token_ids=[[0] * len(t.split()) for t in responses])
