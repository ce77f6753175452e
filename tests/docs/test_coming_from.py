"""The page for people from other libraries names settings that are there: ours, and those of the TRL installed."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import trl
from pydantic import BaseModel

from pipelines.recipe.errors import models_in
from pipelines.recipe.schema import Recipe
from tests.docs.commands import ROOT

PAGE = ROOT / "docs/how-to/coming_from.md"
HEADING = "trivet"
SECTIONS = ("base", "data", "adapter", "sft", "reward", "ppo", "evaluation", "runtime")
NOT_SETTINGS = {"margin"}
"""In TRL's column, what is no setting of a config but a name in its data."""
IN_THE_CODE = {"kl_ctl", "cliprange", "cliprange_value", "gamma", "lam", "clip_reward_value"}
"""In DeepSpeed-Chat's column, what no option sets."""


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
    for name in dotted.replace("[]", "").split("."):
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


def test_settings_of_ours_in_the_text_are_there() -> None:
    text = "\n".join(line for line in PAGE.read_text(encoding="utf-8").splitlines() if not line.startswith("|"))
    ours = {name.split(":")[0] for name in names(text) if re.match(rf"(?:{'|'.join(SECTIONS)})\.[a-z]", name)}
    assert {"reward.base", "ppo.reward", "ppo.micro_batch"} <= ours
    assert [name for name in ours if not is_setting(name)] == []


def cell(setting: str, column: int) -> list[str]:
    """Their names in a column (1: TRL, 4: DeepSpeed-Chat) beside a setting of ours."""
    return next(names(cells[column]) for cells in rows() if setting in names(cells[0]))


def test_finished_reward_models_are_the_reward_of_ppo_and_no_base_to_train() -> None:
    finished = {"reward_model_path", "reward_model", "--reward_pretrain", "--critic_model_name_or_path"}
    assert finished <= {name for column in range(1, 5) for name in cell("ppo.reward", column)}
    trained = [cell("reward.base", column) for column in range(1, 5)]
    assert all(trained) and not finished & {name for found in trained for name in found}


def test_trl_takes_one_optimizer_step_a_generation_unless_told(tmp_path: Path) -> None:
    def steps(**settings: Any) -> float:
        config = trl.GRPOConfig(
            output_dir=str(tmp_path), use_cpu=True, bf16=False, per_device_train_batch_size=8,
            gradient_accumulation_steps=4, **settings,
        )  # fmt: skip
        per_generation, accumulated = (getattr(config, name) for name in cell("ppo.minibatches", 1)[:2])
        return float(per_generation / accumulated)

    assert steps() == 1 and steps(steps_per_generation=8) == 2
    assert steps(generation_batch_size=8 * 4 * 3) == 3


def test_names_of_older_scripts_of_deepspeed_chat_are_told_apart() -> None:
    older = {"--per_device_mini_train_batch_size", "--generation_batch_numbers"}
    theirs = {name for cells in rows() for name in names(cells[4])}
    assert all(name.startswith("--") for name in theirs if "_" in name and name not in IN_THE_CODE)
    assert not older & theirs and "--generation_batches" in theirs
    assert older <= set(names(PAGE.read_text(encoding="utf-8").split("## Where their names are from")[1]))
    assert cell("ppo.micro_batch", 4) == []  # their training batch is part of an optimizer step, ours is memory alone


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
