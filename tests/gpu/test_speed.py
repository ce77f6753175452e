"""The probe behind the plan's time, on the double of a device: it runs there, and counts a step by what it reads."""

from __future__ import annotations

import math

import torch

from pipelines.run import speed
from pipelines.run.probing import Probe
from pipelines.run.speed import run_probe
from pipelines.stages.duration import Line, layer_size
from pipelines.stages.memory import Numbers
from pipelines.stages.shapes import Shape
from stages.settings import PretrainConfig
from tests.support.gpu_double import NAME, GpuDouble
from tests.support.recipes import RECIPE

SHAPE = Shape(parameters=0, linear=0, adapter=0, layers=2, trained_layers=2, width=32, inner=64, heads=2, key_heads=1,
              head_size=16, vocabulary=99)  # fmt: skip
KINDS = {"train": 16, "read": 16, "branches": 32, "pretraining": 16}


def test_every_pass_is_made_on_the_device(monkeypatch) -> None:
    """A step reads a layer's matrices in bf16 once, and of each row 32 keys and values, each 16 wide."""
    monkeypatch.setattr(speed, "bandwidth", lambda device: 1e6)
    scratch = PretrainConfig.model_validate(RECIPE["base"]["pretrain"])  # type: ignore[index]
    with GpuDouble().installed() as gpu:
        numbers, tokens = Numbers(weight=2, product=2), dict.fromkeys(KINDS, 128)
        probe = Probe(shape=SHAPE, numbers=numbers, device=torch.device("cuda:0"), rank=4, lengths=KINDS, tokens=tokens,
                      rows=4, behind=32, pretraining=scratch)  # fmt: skip
        found = run_probe(probe)
        assert gpu.launches[""] > 1000 and not gpu.float64
        assert NAME in probe.described()["machine"]
    assert found.step == Line(start=2 * layer_size(SHAPE) / 1e6, each=2 * 2 * 32 * 16 / 1e6)
    for line in (found.train, found.branches, found.read, found.loss, found.logprobs, found.choice, found.pretraining):
        assert line(64) > 0 and math.isfinite(line(64))
