"""`ppo.kl_coef` from the YAML of a recipe to its use: on the way down no file is left and entered again."""

from __future__ import annotations

import json
import sys
from itertools import groupby
from pathlib import Path
from shutil import copytree
from typing import Any

import pytest
import yaml

from data.common.errors import UserError
from pipelines.cli.main import main
from stages import ppo_math
from stages.settings import PPOConfig
from tests.support.recipes import RECIPE

ROOT = Path(__file__).parents[2]
FOLDERS = {"data", "models", "reward", "stages", "evaluation", "pipelines"}
COEF = 0.0703


def files_down_here() -> list[str]:
    """Files of the house on the call stack, from the command down; neighbours in one file count once."""
    out, frame = [], sys._getframe(1)
    while frame is not None:
        path = Path(frame.f_code.co_filename)
        if path.is_relative_to(ROOT) and path.relative_to(ROOT).parts[0] in FOLDERS:
            out.append(str(path.relative_to(ROOT)))
        frame = frame.f_back  # type: ignore[assignment]
    return [name for name, _ in groupby(reversed(out))]


@pytest.fixture(scope="module")
def walks(tmp_path_factory: pytest.TempPathFactory, least_run: Path) -> dict[str, list[list[str]]]:
    """The files above each place where the setting is read, and above its use in the token rewards."""
    found: dict[str, list[list[str]]] = {"read": [], "used": []}

    def read(config: PPOConfig, name: str) -> Any:
        value = object.__getattribute__(config, name)
        if name == "kl_coef" and value == COEF:
            found["read"].append(files_down_here())
        return value

    def use(*args: Any, **kwargs: Any) -> Any:
        assert any(isinstance(a, float) and a == COEF for a in (*args, *kwargs.values()))
        found["used"].append([*files_down_here(), "stages/ppo_math.py"])
        raise UserError("far enough")

    folder = tmp_path_factory.mktemp("walk")
    run = Path(copytree(least_run, folder / "run"))
    recipe = folder / "recipe.yaml"
    written: dict[str, Any] = json.loads(json.dumps(RECIPE))
    written["ppo"]["kl_coef"] = COEF
    recipe.write_text(yaml.safe_dump(written))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PPOConfig, "__getattribute__", read)
        patch.setattr(ppo_math, "token_rewards", use)
        assert main(["run", str(recipe), "--run-dir", str(run)]) == 2
    return found


def test_no_file_is_entered_twice(walks: dict[str, list[list[str]]]) -> None:
    assert len(walks["read"]) >= 2 and len(walks["used"]) == 1
    for walk in (*walks["read"], *walks["used"]):
        assert len(walk) == len(set(walk)), walk
    [used] = walks["used"]
    assert used[0] == "pipelines/cli/main.py" and used[-2:] == ["stages/ppo/update.py", "stages/ppo_math.py"]


def test_the_recipe_is_read_once(walks: dict[str, list[list[str]]]) -> None:
    loading = [
        walk for walk in walks["read"] if walk[-2:] == ["pipelines/loading/load.py", "pipelines/loading/idle.py"]
    ]
    assert len(loading) == 1, loading
