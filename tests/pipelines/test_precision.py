"""The precision of what a run trains does not hang on that of its base."""

from __future__ import annotations

import torch
from safetensors.torch import load_file

from pipelines import Pipeline
from pipelines.export.stage import export_stage
from tests.support.recipes import RECIPE


def run_with(dtype, folder, **changes):
    recipe = RECIPE | {"runtime": RECIPE["runtime"] | {"dtype": dtype}, "stages": ["pretrain", "sft"]} | changes
    pipeline = Pipeline.from_recipe(
        {k: v for k, v in recipe.items() if k not in ("rankings", "reward", "ppo")}, run_dir=folder
    )
    pipeline.run()
    return pipeline


def test_a_base_from_scratch_and_a_full_copy_are_trained_and_kept_in_fp32(tmp_path):
    full = {"adapter": {"method": "full"}}
    half, whole = (run_with(dtype, tmp_path / dtype, **full) for dtype in ("bfloat16", "float32"))
    assert half.loaded.base().dtype == torch.bfloat16
    made = [load_file(p.run_dir / "pretrain/model/model.safetensors") for p in (half, whole)]
    assert all(v.dtype == torch.float32 and torch.equal(v, made[1][n]) for n, v in made[0].items())
    trained = load_file(half.run_dir / "sft/model/model.safetensors")
    assert {v.dtype for v in trained.values()} == {torch.float32}
    assert any(not torch.equal(v, v.bfloat16().float()) for v in trained.values())
    export_stage(half.run_dir, "sft", tmp_path / "out")
    exported = load_file(tmp_path / "out/model.safetensors")
    assert exported.keys() == trained.keys() and all(torch.equal(v, trained[n]) for n, v in exported.items())
    from transformers import AutoModelForCausalLM

    lm = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert lm.dtype == torch.float32
