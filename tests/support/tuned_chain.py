"""SFT, a reward model and PPO in one chain on a tiny base, for roles that are tuned in some way."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from data.records import Message
from models.sampling.generate import CachedEngine, SamplingParams
from pipelines.run.pipeline import Pipeline
from tests.conftest import tiny_lm, word_tokenizer
from tests.support.killed import killed_at
from tests.support.recipes import results

ASKED = [[Message(role="user", content="w1 w2")]] * 3
NEW_TOKENS = 10


def chain_recipe(
    folder: Path, stages: Sequence[str], adapter: dict[str, Any], thought: str = "", *, rates: dict[str, float]
) -> dict[str, Any]:
    """A recipe with its base and data in a folder.

    Args:
        folder: where to; ``recipe.yaml`` says the same.
        stages: its stages.
        adapter: its settings of adapters.
        thought: words around some words of the responses, as ``"<think> {} </think>"``.
        rates: learning rates by stage.
    """
    around = thought or "{}"
    tiny_lm(initializer_range=0.2).save_pretrained(folder / "base")
    word_tokenizer().save_pretrained(folder / "base")
    shown = [{"prompt": f"w{n} w2", "completion": f"{around.format(f'w{n}')} w3 w4"} for n in range(12)]
    better = f"{around.format('w5')} w5"
    ranked = [{"prompt": f"w{n}", "chosen": better, "rejected": f"w6 w{n}"} for n in range(12)]
    for name, rows in (("d", shown), ("r", ranked)):
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
    recipe: dict[str, Any] = {
        "base": "./base",
        "template": "dialogue",
        "stages": list(stages),
        "data": {
            **{"demonstrations": "d.jsonl", "rankings": "r.jsonl", "prompts": "d.jsonl"},
            "held_out": 0.2 if "evaluate" in stages else 0.0,
        },
        "adapter": adapter,
        "sft": {"batch": 4, "epochs": 2},
        "reward": {"batch": 4, "epochs": 1, "max_tokens": 24, "calibration_samples": 8, "gate": "off"},
        "ppo": {
            **{"updates": 2, "rollouts": 8, "epochs": 1, "minibatches": 2},
            **{"max_new_tokens": 8, "max_prompt_tokens": 16},
        },
        "runtime": {"device": "cpu", "threads": 1, "dtype": "float32"},
        "checkpoint": {"every_minutes": 0},
    }
    for stage, rate in rates.items():
        recipe[stage]["learning_rate"] = rate
    if "evaluate" in stages:
        recipe["evaluation"] = {"max_new_tokens": 8, "systems": ["base", "sft", "ppo"]}
    (folder / "recipe.yaml").write_text(json.dumps(recipe))
    return recipe


def opened(run: Pipeline, stage: str, role: str) -> tuple[Any, Any]:
    """The run's base with a stage's role on it, and its rendering."""
    run.loaded.clear()
    run.loaded.load(stage, role, run.run_dir / stage)
    return run.loaded.base(), run.loaded.renderer()


def greedy(base: Any, renderer: Any, role: str) -> tuple[list[int], list[int], torch.Tensor]:
    """A query, the role's most probable response of ``NEW_TOKENS`` tokens, and its logits (1, L, V) over both."""
    query = renderer.prompt_ids(ASKED[0])
    with base.role(role) as view, torch.no_grad():
        params = SamplingParams(max_new_tokens=NEW_TOKENS, stop_ids=renderer.stop_ids)
        (response,) = CachedEngine()(view, [query], params=params, noise=None).ids
        ids = torch.tensor([[*query, *response]])
        return query, response, view.logits(view.hidden(ids, torch.ones_like(ids)))


def check_killed(whole: Pipeline, folder: Path, stage: str, number: int) -> None:
    """A stage that is killed at its ``number``-th safe point and run again has the bytes of the run nobody stopped."""
    stages = whole.recipe.stages
    before = {name: str(whole.run_dir / name) for name in stages[: stages.index(stage)]}

    def go() -> None:
        Pipeline.from_recipe(whole.recipe.base_dir / "recipe.yaml", run_dir=folder, inputs=before).run(only=[stage])

    with killed_at(number):
        go()
    go()
    mine = {k: v for k, v in results(whole.run_dir).items() if k.startswith(f"{stage}/")}
    assert mine and results(folder) == mine
