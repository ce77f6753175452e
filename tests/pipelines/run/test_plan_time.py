"""The probe of this machine, and the time that ``trivet plan`` says."""

from __future__ import annotations

import json
import math
import re
from contextlib import nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from data.common.number_format import duration
from pipelines.cli import main as cli
from pipelines.run import probing, speed
from pipelines.run.pipeline import Pipeline
from pipelines.run.plan_time import PlanTime, _smaller
from pipelines.run.probing import Crowd, Probe, crowd, in_the_way
from pipelines.run.speed import can_probe, layer_size, rates_of, reduced, run_probe
from pipelines.stages.duration import Line, Rates
from pipelines.stages.memory import Numbers
from pipelines.stages.shapes import Shape
from stages.settings import PretrainConfig
from tests.support.memory_peak import make_data, make_folder, recipe_of
from tests.support.recipes import RECIPE

SHAPE = Shape(parameters=0, linear=0, adapter=0, layers=2, trained_layers=2, width=64, inner=128, heads=4, key_heads=2,
              head_size=16, vocabulary=300)  # fmt: skip
KINDS = {"train": 16, "read": 16, "branches": 32}
PROBE = Probe(shape=SHAPE, numbers=Numbers(), device=torch.device("cpu"), rank=4, lengths=KINDS,
              tokens=dict.fromkeys(KINDS, 512), rows=16, behind=32)  # fmt: skip


def lines(rates: Rates) -> dict[str, Line]:
    return {name: line for name in asdict(rates) if isinstance(line := getattr(rates, name), Line)}


@pytest.mark.parametrize("kind", ["fp32", "bf16", "nf4"])
def test_every_pass_is_measured_in_every_precision(kind: str) -> None:
    numbers = Numbers() if kind == "fp32" else Numbers(weight=2, product=4, nf4=kind == "nf4")
    found = run_probe(replace(PROBE, numbers=numbers))
    for name, line in lines(found).items():
        if name != "pretraining":
            assert line(64) > 0 and math.isfinite(line(64)), name
    assert found.train(512) > found.read(512)  # three products where there is one
    assert found.adam > 0 and found.pretraining == Line()


def test_what_no_stage_does_is_not_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speed.OneLayer, "train", lambda *_, **__: pytest.fail("measured"))
    found = run_probe(replace(PROBE, lengths={"read": 16}, tokens={"read": 64}, rows=0))
    assert found.train == found.step == Line() and found.read(64) > 0


def test_a_base_from_scratch_is_measured_by_its_own_step() -> None:
    config = PretrainConfig.model_validate(RECIPE["base"]["pretrain"])  # type: ignore[index]
    found = run_probe(replace(PROBE, pretraining=config, lengths=KINDS | {"pretraining": 16}))
    assert found.pretraining(128) > 0


def test_a_large_layer_is_measured_at_half_its_sides() -> None:
    large = replace(SHAPE, width=4096, inner=14336, heads=32, key_heads=8, head_size=128)
    smaller, scale = reduced(large)
    assert layer_size(smaller) <= speed.LARGEST < layer_size(large)
    assert scale * layer_size(smaller) == pytest.approx(layer_size(large))
    assert smaller.width * 4 == large.width and smaller.head_size == large.head_size
    assert reduced(SHAPE) == (SHAPE, 1.0)


def test_shapes_that_are_no_decoders_are_left_out() -> None:
    assert can_probe(SHAPE)
    changes: list[dict[str, Any]] = [{"heads": 0}, {"inner": 0}, {"vocabulary": 0}, {"key_heads": 3}, {"head_size": 21}]
    for change in changes:
        assert not can_probe(replace(SHAPE, **change)), change


def test_rates_are_kept_by_machine_threads_and_precision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRIVET_CACHE", str(tmp_path))
    (tmp_path / "data").mkdir()  # as the first user of a cache makes it
    asked: list[Probe] = []

    def noted(probe: Probe) -> Rates:
        asked.append(probe)
        return Rates(train=Line(start=0.25, each=2.0), adam=0.5)

    monkeypatch.setattr(speed, "run_probe", noted)
    monkeypatch.setattr(speed, "crowd", lambda: nullcontext(Crowd()))
    first, _ = rates_of(PROBE)
    assert first == Rates(train=Line(start=0.25, each=2.0), adam=0.5) == rates_of(PROBE)[0]
    rates_of(replace(PROBE, numbers=Numbers(checkpointing=True)))  # the same passes
    assert len(asked) == 1
    rates_of(replace(PROBE, numbers=Numbers(weight=2)))
    monkeypatch.setattr(torch, "get_num_threads", lambda: 7)
    rates_of(PROBE)
    assert len(asked) == 3


def test_a_crowded_machine_s_rates_are_used_and_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRIVET_CACHE", str(tmp_path))
    (tmp_path / "data").mkdir()
    made = [Rates(adam=9.0), Rates(adam=0.5)]
    others = [Crowd(cores=1.2), Crowd(cores=0.1)]
    monkeypatch.setattr(speed, "run_probe", lambda _: made.pop(0))
    monkeypatch.setattr(speed, "crowd", lambda: nullcontext(others.pop(0)))
    found, said = rates_of(PROBE)
    assert (found.adam, said.cores, said.matters) == (9.0, 1.2, True)
    assert [rates_of(PROBE)[0].adam for _ in range(2)] == [0.5, 0.5] and not made  # the second from the cache


@pytest.mark.parametrize(
    "others, cores, threads, expected",
    [
        (1.0, 2, 2, 1.0),  # every core is the probe's
        (1.0, 4, 2, 0.0),  # two are free
        (3.0, 4, 2, 1.0),
        (4.0, 4, 1, 0.0),  # one thread counts its own time
        (0.5, 2, 8, 0.5),  # more threads than cores
        (-0.01, 2, 2, 0.0),  # clocks of two kinds
    ],
)
def test_cores_that_the_probe_had_to_share(others: float, cores: int, threads: int, expected: float) -> None:
    assert in_the_way(others, cores, threads) == expected


def test_other_processes_are_seen_and_the_own_one_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    """On two cores of which another process had 1.5 seconds in 2, and this one 1."""
    busy, clock, own = iter([[10.0, 20.0], [11.0, 21.5]]), iter([5.0, 7.0]), iter([3.0, 4.0])
    monkeypatch.setattr(probing, "_busy", lambda: next(busy))
    monkeypatch.setattr(probing.time, "perf_counter", lambda: next(clock))
    monkeypatch.setattr(probing.time, "process_time", lambda: next(own))
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    with crowd() as found:
        assert found.cores == 0
    assert found.cores == 0.75 and found.matters
    monkeypatch.undo()
    monkeypatch.setattr(probing, "_busy", lambda: None)  # a system that does not tell
    with crowd() as found:
        pass
    assert not found.matters


def test_the_plan_says_that_it_measured_a_crowded_machine(
    planned: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRIVET_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(speed, "crowd", lambda: nullcontext(Crowd(cores=1.04)))
    (tmp_path / "r.yaml").write_text(json.dumps(planned))
    assert cli.main(["plan", str(tmp_path / "r.yaml"), "--run-dir", str(tmp_path / "run"), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)["seconds_assume"]
    assert "beside other work (1.0 cores): shorter on a quiet machine" in said and "kept for the day" not in said


def test_measuring_leaves_the_process_as_it_was() -> None:
    torch.manual_seed(3)
    before = torch.get_rng_state()
    run_probe(replace(PROBE, lengths={"read": 16}, tokens={"read": 64}, rows=0))
    assert torch.equal(before, torch.get_rng_state())


# -- the command -------------------------------------------------------------------------------------------------------


@pytest.fixture
def planned(tmp_path: Path) -> dict[str, Any]:
    """A recipe of SFT, reward and PPO on a small base."""
    data = make_data(tmp_path / "data", rows=12, prompt=9, answer=14)
    return recipe_of(make_folder(tmp_path / "base", 64), data)


def test_the_plan_says_the_time_of_each_stage(
    planned: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "r.yaml").write_text(json.dumps(planned))
    given = [str(tmp_path / "r.yaml"), "--run-dir", str(tmp_path / "run")]
    assert cli.main(["plan", *given, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [stage["name"] for stage in found["stages"]] == ["sft", "reward", "ppo"]
    assert all(stage["seconds"] > 0 and stage["memory"] > 0 for stage in found["stages"])
    assert "probe" in found["seconds_assume"]
    assert cli.main(["plan", *given]) == 0
    told = capsys.readouterr().out
    assert told.count("about ") >= 4 and "as long as the demonstrations'" in told


def test_a_finished_run_is_planned_without_the_probe(
    least_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(speed, "run_probe", lambda *_: pytest.fail("measured"))
    monkeypatch.setenv("TRIVET_CACHE", str(tmp_path))
    (tmp_path / "r.yaml").write_text(json.dumps(RECIPE))
    assert cli.main(["plan", str(tmp_path / "r.yaml"), "--run-dir", str(least_run), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert {(stage["status"], stage["seconds"]) for stage in found["stages"]} == {("cached", None)}
    assert found["seconds_assume"] == ""


def test_more_work_takes_longer(planned: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With rates that are given: twice the epochs add one more pass over all, checkpointing a pass forward."""
    each = Rates(train=Line(each=1.0), branches=Line(each=1.0), read=Line(each=0.25), step=Line(each=1.0))
    monkeypatch.setattr("pipelines.run.plan_time.rates_of", lambda probe: (each, Crowd()))

    def of(**changes: Any) -> float:
        made = Pipeline.from_recipe(
            recipe_of(Path(planned["base"]), planned["data"], **changes), run_dir=tmp_path / "run"
        )
        return PlanTime(made.details, ["sft"]).seconds["sft"]

    once, twice, thrice = (of(sft={"epochs": n}) for n in (1, 2, 3))
    assert twice - once == pytest.approx(thrice - twice) and twice > 1.5 * (once - 6)
    off, on = (of(sft={"epochs": 1}, runtime={"gradient_checkpointing": to}) for to in (False, True))
    assert on - off == pytest.approx(0.25 * (twice - once), rel=0.01)


def test_hours_of_ppo_come_with_a_shorter_first_run(
    planned: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """100 updates of 64 responses at a rate that is given; what is named takes what a plan of it says."""
    each = Rates.of({name: Line(each=2.0) for name in ("train", "branches", "read", "step")})
    monkeypatch.setattr("pipelines.run.plan_time.rates_of", lambda probe: (each, Crowd()))

    def of(**ppo: int) -> PlanTime:
        recipe = recipe_of(Path(planned["base"]), planned["data"], ppo=ppo)
        return PlanTime(Pipeline.from_recipe(recipe, run_dir=tmp_path / "run").details, ["ppo"])

    text = of(updates=100, rollouts=64).shorter_run()
    named = re.search(r"--set ppo.updates=(\d+) ppo.rollouts=(\d+) takes about (.*?);", text)
    assert named is not None and "ppo takes about" in text
    shorter = of(updates=int(named[1]), rollouts=int(named[2]))
    assert duration(shorter.seconds["ppo"]) == named[3]
    assert shorter.seconds["ppo"] < of(updates=100, rollouts=64).seconds["ppo"] / 4
    assert of(updates=1, rollouts=4).shorter_run() == ""  # an hour or two need no other run


@pytest.mark.parametrize(("rollouts", "minibatches"), [(64, 1), (60, 3), (8, 8), (7, 7)])
def test_a_shorter_run_is_one_that_ppo_takes(rollouts: int, minibatches: int) -> None:
    found = list(_smaller(100, rollouts, minibatches))
    assert found and all(m % minibatches == 0 and m <= rollouts and n <= 50 for n, m in found)
    assert [n * m for n, m in found] == sorted((n * m for n, m in found), reverse=True)
