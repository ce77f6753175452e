"""Servers that a run will ask (judges, scorers, samplers): whether their keys are there and they answer."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

from data.common.errors import UserError
from data.common.redaction import printable
from pipelines.recipe.derived import choosing
from pipelines.recipe.schema import Recipe
from pipelines.stages.table import STAGES
from reward.settings import RewardPart

PATIENCE = 3.0  # seconds for a connection
PORTS = {"http": 80, "https": 443}


@dataclass(frozen=True, slots=True)
class Endpoint:
    """An address, the setting that names it, the stage that asks it, and the variable with its key."""

    stage: str
    setting: str
    url: str
    token_env: str | None


def endpoints(recipe: Recipe, stages: Sequence[str]) -> Iterator[Endpoint]:
    """Every address that these stages ask."""
    rollouts = recipe.runtime.rollouts
    for stage in (name for name, one in STAGES.items() if one.asks and name in stages):
        for url in rollouts.servers:
            yield Endpoint(stage, "runtime.rollouts", url, rollouts.token_env)
    if "ppo" in stages:
        yield from _of_parts("ppo", "ppo.reward", recipe.ppo.reward)
    if "evaluate" in stages:
        for name, parts in choosing(recipe).items():
            yield from _of_parts("evaluate", f"evaluation.systems: {name}", parts)
        for judge in recipe.evaluation.judges:
            if judge.url:
                yield Endpoint("evaluate", f"evaluation.judges: {judge.name}", judge.url, judge.token_env)


def _of_parts(stage: str, setting: str, parts: Sequence[RewardPart]) -> Iterator[Endpoint]:
    for part in parts:
        if part.kind in ("remote", "judge"):
            yield Endpoint(stage, setting, part.source, part.remote.token_env)


def check_keys(recipe: Recipe, stages: Sequence[str]) -> None:
    """Look for the environment variables that hold the keys.

    Raises:
        UserError: one is not set.
    """
    for one in endpoints(recipe, stages):
        if one.token_env and not os.environ.get(one.token_env):
            raise UserError(
                f"{one.setting}: token_env: the environment variable {one.token_env} is not set, and the "
                f"{one.stage} stage will need it; export it and run again"
            )


def unanswered(recipe: Recipe, stages: Sequence[str]) -> Iterator[str]:
    """Sentences about addresses where nothing takes a connection at the start; a server may be started later."""
    for url, one in {one.url: one for one in endpoints(recipe, stages)}.items():
        if not _listens(url):
            yield f"{one.setting}: nothing answers at {printable(url)}; the {one.stage} stage will ask there"


def _listens(url: str) -> bool:
    parts = urlsplit(url)
    with contextlib.suppress(OSError, ValueError):  # a port that is no number is told where the address is used
        port = parts.port or PORTS[parts.scheme]
        with socket.create_connection((parts.hostname or "", port), timeout=PATIENCE):
            return True
    return False
