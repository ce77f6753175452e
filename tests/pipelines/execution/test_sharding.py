"""When processes hold a base in parts, what is refused or said of it, and the memory that it takes then."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from data.common.errors import UserError
from models.backbone.processes import Processes
from models.backbone.settings import DIVIDED, METHODS
from pipelines import Pipeline
from pipelines.execution import sharding
from pipelines.execution.loaded_models import LoadedModels
from pipelines.execution.sharding import is_divided
from pipelines.loading.load import load_recipe
from pipelines.run.plan_details import PlanDetails
from tests.support.memory_peak import make_data, make_folder, recipe_of

CPU, GPU = torch.device("cpu"), torch.device("cuda")
PLAIN: dict[str, Any] = {"base": "gpt2", "data": {"demonstrations": "demo-task?rows=60"}}
ROOM = 100.0  # bytes of a card


def recipe_with(settings: dict[str, Any], **more: Any) -> Any:
    return load_recipe(PLAIN | {"runtime": settings} | more)


@pytest.mark.parametrize(
    ("asked", "device", "processes", "weights", "divided"),
    [
        ("none", GPU, 8, 1e3, False),
        ("fsdp2", CPU, 2, 1.0, True),
        ("fsdp2", GPU, 2, None, True),
        ("fsdp2", GPU, 1, 1e3, False),
        ("auto", CPU, 2, 1e3, False),
        ("auto", GPU, 1, 1e3, False),
        ("auto", GPU, 2, None, False),
        ("auto", GPU, 2, 68.9, False),  # 0.75 of 92 % of a card of 100 bytes is 69
        ("auto", GPU, 2, 69.1, True),
    ],
)
def test_who_holds_a_base_in_parts(asked, device, processes, weights, divided, monkeypatch):
    monkeypatch.setattr(sharding, "device_memory", lambda device: ROOM)
    assert is_divided(recipe_with({"sharding": asked}), device, processes, weights) is divided


def test_auto_leaves_bases_that_cannot_be_divided_whole(monkeypatch):
    monkeypatch.setattr(sharding, "device_memory", lambda device: ROOM)
    quantised = recipe_with({}).model_copy(deep=True)
    object.__setattr__(quantised.runtime, "quantize", "nf4")
    assert not is_divided(quantised, GPU, 2, 1e3)


def test_what_cannot_be_divided_is_refused_by_the_setting():
    for method in METHODS.keys() - set(DIVIDED):
        with pytest.raises(UserError, match=rf"runtime\.sharding: .*'fsdp2' goes with .*not with '{method}'"):
            recipe_with({"sharding": "fsdp2"}, adapter={"method": method})
    with pytest.raises(UserError, match=r"runtime\.sharding: .*four bits"):
        recipe_with({"sharding": "fsdp2", "quantize": "nf4"})


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A recipe on a random Llama of four layers, 64 wide."""
    folder = tmp_path_factory.mktemp("files")
    return recipe_of(make_folder(folder / "base", 64), make_data(folder / "data", rows=8))


def details(files: dict[str, Any], processes: int, **runtime: Any) -> PlanDetails:
    pipeline = Pipeline.from_recipe(files | {"runtime": files["runtime"] | runtime})
    return PlanDetails(pipeline.recipe, pipeline.corpus, CPU, {}, (), processes)


def always(found: PlanDetails) -> dict[str, int]:
    parts = found.takes("sft").parts
    assert parts is not None
    return {part.what: part.bytes for part in parts.always}


def test_the_plan_counts_a_part_of_the_base_and_what_is_gathered(files):
    """The largest of what is gathered is the output layer, 2,048 x 64 in fp32, as it comes and as it is used."""
    whole, two, four = (always(details(files, n, sharding="fsdp2")) for n in (1, 2, 4))
    assert "gathered layer" not in whole
    assert (two["base"], four["base"]) == (whole["base"] // 2, whole["base"] // 4)
    assert two["gathered layer"] == four["gathered layer"] == 2 * 2048 * 64 * 4
    assert always(details(files, 2)) == whole  # auto, on a CPU


def test_the_plan_counts_parts_of_models_that_are_trained_whole(files):
    """Weights and two moments in fp32; a base of the same size lies beside them."""
    full = files | {"adapter": {"method": "full"}}
    whole, two = always(details(full, 2, sharding="none")), always(details(full, 2, sharding="fsdp2"))
    assert whole["sft with optimizer"] == 3 * whole["base"]
    assert two["sft with optimizer"] == pytest.approx(whole["sft with optimizer"] / 2, abs=4)
    said = details(full, 2, sharding="fsdp2").sharding
    assert said.startswith("runtime.sharding: 2 processes hold the base and all models that are trained in parts")


def test_what_is_said_before_the_first_stage(files):
    assert details(files, 1).sharding == details(files, 2).sharding == ""
    alone, two = details(files, 1, sharding="fsdp2").sharding, details(files, 2, sharding="fsdp2").sharding
    assert "'fsdp2' has no effect in one process" in alone and "torchrun" in alone and "1.0 MB gathered" in alone
    assert two.startswith("runtime.sharding: 2 processes hold the frozen base in parts")
    assert "is not divided" not in two
    further = files | {
        "stages": ["continued", *files["stages"]],
        "continued": {"steps": 2},
        "data": files["data"] | {"documents": files["data"]["prompts"]},
    }
    assert "; continued is not divided: each process" in details(further, 2, sharding="fsdp2").sharding


def test_one_process_holds_the_whole_base(files):
    """So that exports with ``--merge``, scoring and chat work on a run whose recipe divides the base."""
    recipe = Pipeline.from_recipe(files | {"runtime": files["runtime"] | {"sharding": "fsdp2"}}).recipe
    assert not LoadedModels(recipe, Processes("cpu"), {}).base().divided
