"""The page for people from other libraries names settings that are there: ours, and those of the TRL installed."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator
from importlib.util import find_spec

import pytest
import trl
from pydantic import BaseModel

from pipelines.recipe.errors import models_in
from pipelines.recipe.schema import Recipe
from tests.docs.commands import ROOT

PAGE = ROOT / "docs/how-to/coming_from.md"
HEADING = "trivet"
NOT_SETTINGS = {"margin"}
"""In TRL's column, what is no setting of a config but a name in its data."""


def rows() -> Iterator[list[str]]:
    """Cells of every row of the page's tables, the heads left out."""
    for line in PAGE.read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")] if line.startswith("|") else []
        if len(cells) == 5 and cells[0] != HEADING and not cells[0].startswith("-"):
            yield cells


def names(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


def is_setting(dotted: str) -> bool:
    """Whether a recipe has this key."""
    models: list[type[BaseModel]] = [Recipe]
    for name in dotted.split("."):
        found = [model.model_fields[name] for model in models if name in model.model_fields]
        if not found:
            return False
        models = [inner for field in found for inner in models_in(field.annotation)]
    return True


def test_every_setting_of_ours_is_there() -> None:
    ours = [name for cells in rows() for name in names(cells[0])]
    assert len(ours) > 50 and len(ours) == len({*ours})
    assert [name for name in ours if not is_setting(name)] == []
    assert not is_setting("ppo.klcoef") and not is_setting("kl_coef") and is_setting("reward.gate.enabled")


def fields(*configs: type) -> set[str]:
    return {field.name for config in configs for field in dataclasses.fields(config)}


def test_every_setting_of_trl_is_there() -> None:
    known = fields(trl.SFTConfig, trl.RewardConfig, trl.GRPOConfig, trl.ModelConfig)
    cells = [re.sub(r"\([^)]*\)", "", cells[1]) for cells in rows()]
    theirs = {name for cell in cells for name in names(cell)} - NOT_SETTINGS
    assert len(theirs) > 25 and "num_train_epochs" in theirs
    assert theirs - known == set()


@pytest.mark.skipif(find_spec("trl.experimental.ppo") is None, reason="this release of TRL has no PPO")
def test_every_setting_of_trls_ppo_is_there() -> None:
    from trl.experimental.ppo import PPOConfig

    theirs = {name for cells in rows() for part in re.findall(r"\(([^)]*)\)", cells[1]) for name in names(part)}
    assert "cliprange_value" in theirs and theirs <= fields(PPOConfig)


def test_no_row_leaves_all_others_open() -> None:
    assert [cells[0] for cells in rows() if not any(cells[1:])] == []


def test_important_settings_of_ours_are_on_the_page() -> None:
    ours = {name for cells in rows() for name in names(cells[0])}
    assert {"base", "sft.batch", "reward.max_tokens", "ppo.kl_coef", "ppo.rollouts", "data.held_out"} <= ours
