"""Names of systems and metrics: what may stand in a recipe's evaluation, and what each means. No torch."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from data.common.errors import nearest
from evaluation.metric_table import metric_names
from evaluation.settings import OPTIMISED, PROMPTED, EvaluationConfig

Kind = Literal["role", "checkpoint", "best_of", "path", "prompted"]
KNOWN = "base, sft, distil, ppo, ppo@N (a kept checkpoint), best_of_N, best_of_N:NAME, prompted:NAME, path:DIR"
ROLES = {"base": "base", "distil": "distilled"} | {"sft": "reference", "ppo": "policy"}
"""A stage's model -> its role on the shared base; of several the last one is what a run is about."""


@dataclass(frozen=True, slots=True)
class Named:
    """A system's name, parsed: ``value`` is the role, update, count, folder or way of asking.

    ``by`` names the reward that chooses among a best-of-n's samples: "model", or as in ``evaluation.best_of_by``.
    """

    name: str
    kind: Kind
    value: str
    by: str = "model"

    @property
    def label(self) -> str:
        """What results call it: a folder by its own name."""
        return f"path:{Path(self.value).name or self.value}" if self.kind == "path" else self.name


def parse(name: str) -> Named:
    """Parse a name.

    Raises:
        ValueError: no system has such a name; the nearest are given.
    """
    if name in ROLES:
        return Named(name, "role", name)
    if found := re.fullmatch(r"ppo@(\d{1,9})", name):
        return Named(name, "checkpoint", found[1])
    if found := re.fullmatch(r"best_of_([2-9]|[1-9]\d{1,2})(?::(.+))?", name):
        return Named(name, "best_of", found[1], found[2] or "model")
    kind, colon, value = name.partition(":")
    if colon and value and kind == "path":
        return Named(name, "path", value)
    if colon and value and kind == "prompted":
        return Named(name, "prompted", value)
    raise ValueError(f"no system '{name}'.{nearest(name, [*ROLES, 'best_of_4']) or f' Systems: {KNOWN}.'}")


def problem_of(name: str, config: EvaluationConfig) -> str:
    """Why a system cannot be, or an empty string; files are not read."""
    try:
        found = parse(name)
        if found.kind == "best_of":
            return _problem_of_chooser(found.by, config)
        if found.kind != "prompted":
            return ""
        asked = config.asked(found.value)
        if asked is None:
            known = [*config.prompted, *PROMPTED]
            hint = nearest(found.value, known) or f" There are: {', '.join(known)}."
            return f"no way of asking '{found.value}'.{hint} Declare it under evaluation.prompted"
        promptable = parse(asked.model).kind in ("role", "checkpoint", "path")
        return "" if promptable else f"'{asked.model}' cannot be prompted"
    except ValueError as error:
        return str(error)


def _problem_of_chooser(name: str, config: EvaluationConfig) -> str:
    known = [*config.best_of_by, OPTIMISED, "model"]
    if name in known:
        return ""
    hint = nearest(name, known) or f" There are: {', '.join(known)}."
    return f"no reward '{name}' to choose by.{hint} Declare it under evaluation.best_of_by"


def problem_of_metric(name: str, config: EvaluationConfig) -> str:
    """Why a metric cannot be, or an empty string; files are not read."""
    if name in metric_names() or name.startswith("folder:"):
        return ""
    if name.startswith("hub:"):
        text = f"'{name}' would run code from the hub: set evaluation.hub_metrics to true (--allow-hub-metrics) if you "
        return "" if config.hub_metrics else text + "trust it"
    if re.search(r".:[^:\s]+$", name):
        return ""
    known = metric_names()
    hint = nearest(name, known)
    return f"no metric '{name}'.{hint} There are: {', '.join(known)}, file.py:function, folder:DIR, hub:NAME"
