"""A reward model on disk: one role, or an ensemble of roles on one base, with what its scores need to mean something.

adapter/, head.safetensors        the first (or only) member, its score mean and standard deviation with its head
members/1/, members/2/, ...       the others, in the same shape
ensemble.json                     how members are combined; mean and standard deviation of the combined score
watcher/                          another reward model, in the same shape, which PPO never sees
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from data.common.errors import UserError
from data.template import Renderer
from models.backbone.artifacts import write_json
from models.roles.export import save_role
from models.roles.shared_base import SharedBase
from reward.model import Member, RewardModel, pooling_numbers, pooling_of

ENSEMBLE, MEMBERS, HOLDOUT = "ensemble.json", "members", "watcher"

MOMENTS = ("score_mean", "score_std")
OLD_NAMES = {
    "centre": "score_mean",
    "spread": "score_std",
    "caution": "uncertainty_penalty",
    "worst": "min",
    "mean_minus_spread": "mean_minus_std",
}
"""What files called these before; they are read as well."""


def _moments(numbers: Mapping[str, float]) -> dict[str, float]:
    """The score's mean and standard deviation among the numbers stored with a head, whatever they are called there."""
    named = {OLD_NAMES.get(k, k): v for k, v in numbers.items()}
    return {k: named[k] for k in MOMENTS if k in named}


def member_role(role: str, number: int) -> str:
    """The name of an ensemble's member; the first one's is the ensemble's own."""
    return role if number == 0 else f"{role}_{number}"


def save_reward(model: RewardModel, folder: Path, main: bool = True) -> None:
    """Write a reward model; of several processes, all of which call it, the ``main`` one."""
    pooling = pooling_numbers(model.pooling)
    if not model.members:
        numbers = {"score_mean": model.score_mean, "score_std": model.score_std}
        save_role(model.base, model.role, folder, numbers | pooling, main)
        return
    for number, member in enumerate(model.members):
        place = folder if number == 0 else folder / MEMBERS / str(number)
        numbers = {"score_mean": member.score_mean, "score_std": member.score_std}
        save_role(model.base, member.role, place, numbers | pooling, main)
    if not main:
        return
    write_json(
        folder / ENSEMBLE,
        {
            "members": len(model.members),
            "combine": model.combine,
            "uncertainty_penalty": model.uncertainty_penalty,
            "score_mean": model.score_mean,
            "score_std": model.score_std,
        },
    )


def load_reward(
    base: SharedBase,
    folder: Path,
    renderer: Renderer,
    *,
    role: str = "reward",
    takes_ids: bool = True,
    max_tokens: int = 1024,
) -> RewardModel:
    """Add a stored reward model's roles to a base.

    Args:
        folder: as ``save_reward`` writes it; also any PEFT or Transformers folder with a head next to it.
        role: the name of its first role; the others are ``ROLE_1``, ``ROLE_2``, ...
        max_tokens: longest prompt and response given as text; a base with a table of positions takes no more than that.

    Raises:
        UserError: nothing loadable there, or a member that is missing.
    """
    if base.limits.table and base.limits.positions is not None:  # beyond which there is no state to score
        max_tokens = min(max_tokens, base.limits.positions)
    settings: dict[str, Any] = {"renderer": renderer, "takes_ids": takes_ids, "max_tokens": max_tokens}
    numbers = base.load_role(role, folder, head=True)
    pooling = pooling_of(numbers, base.heads[role])
    own: dict[str, Any] = _moments(numbers)
    if not (folder / ENSEMBLE).is_file():
        return RewardModel(base=base, role=role, pooling=pooling, **settings, **own)
    try:
        found = json.loads((folder / ENSEMBLE).read_text(encoding="utf-8"))
        found = {OLD_NAMES.get(k, k): v for k, v in found.items()}
        combined: dict[str, Any] = {k: float(found[k]) for k in ("uncertainty_penalty", *MOMENTS)}
        count, combine = int(found["members"]), str(found["combine"])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{folder / ENSEMBLE}: not a readable ensemble ({error!r})") from error
    members = [Member(role=role, **own)]
    for number in range(1, count):
        name = member_role(role, number)
        numbers = base.load_role(name, folder / MEMBERS / str(number), head=True)
        members.append(Member(role=name, **_moments(numbers)))
    return RewardModel(
        base=base,
        role=role,
        pooling=pooling,
        members=tuple(members),
        combine=OLD_NAMES.get(combine, combine),
        **settings,
        **combined,
    )
