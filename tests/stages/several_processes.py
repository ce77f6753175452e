"""Run by torchrun, or by itself, in test_processes: tiny stages whose numbers must not hang on how many processes run.

Each process writes what it ended in: weights as nested lists, metrics of every step, and the answers it sampled.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

from data.records import Demonstration, RankedAnswers
from data.splits import Corpus, Split
from models.backbone.processes import Processes
from stages import rankings, reward_model, sft
from stages.ppo import stage as ppo_stage
from stages.ppo.update import PPO
from stages.settings import PPOConfig, RankingsConfig, RewardConfig, SFTConfig
from stages.stage import StageContext
from tests.conftest import make_base, randomise
from tests.support.ppo import make_context, make_prompt

LENGTHS = (1, 9, 2, 14, 3, 1, 11, 5, 2, 7, 1)  # 11 rows: neither batches of 4 nor two processes divide them
CASES: dict[str, dict[str, Any]] = {
    "rows": {"batch": 4, "micro_batch": 2},
    "one row left": {"batch": 5, "micro_batch": 5},
    "odd micro-batches": {"batch": 6, "micro_batch": 2},
    "by tokens": {"batch": 8, "batch_tokens": 24},
    "fewer rows than processes": {"batch": 1, "micro_batch": 1},
}
ALIGNED: dict[str, dict[str, Any]] = {
    "whole": {"rollouts": 8, "minibatches": 2},
    "odd": {"rollouts": 6, "minibatches": 2},
    "a row a minibatch": {"rollouts": 2, "minibatches": 2},
}


def longest_first(prompts: list[str], completions: list[str]) -> list[float]:
    """Score by length: an annotator that sees all answers at once: what it says of one depends on the others."""
    top = max(len(c) for c in completions)
    return [len(c) / top for c in completions]


def context_of(folder: Path, name: str, corpus: Corpus) -> StageContext:
    out = folder / f"{name}-{os.environ.get('RANK', '0')}"
    out.mkdir()
    return make_context(make_base(attention_dropout=0.0), out, corpus, recipe_folder=Path(__file__).parent)


def ended(context: StageContext, role: str) -> dict[str, Any]:
    weights = {n: p.detach().flatten().tolist() for n, p in context.base.parameters_of(role).items()}
    log = context.out / "metrics.jsonl"
    rows = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
    return {"weights": weights, "log": rows}


def tuned(folder: Path, name: str, settings: dict[str, Any]) -> dict[str, Any]:
    rows = tuple(
        Demonstration(prompt=make_prompt(f"w{i} w{i + 1}"), answer=" ".join(f"w{(i * 7 + j) % 30}" for j in range(n)))
        for i, n in enumerate(LENGTHS)
    )
    context = context_of(folder, f"sft {name}", Corpus(demonstrations=Split(train=rows)))
    sft.run(context, SFTConfig(epochs=2, learning_rate=1e-3, **settings))
    return ended(context, "sft")


def ranked(folder: Path, micro_batch: int) -> dict[str, Any]:
    rows = tuple(
        RankedAnswers(
            prompt=make_prompt(f"w{i % 9} w3"),
            answers=tuple(f"w{i} w{j} " + "w20 " * j for j in range(2 + i % 3)),
            ranks=tuple(range(2 + i % 3)),
        )
        for i in range(11)
    )
    context = context_of(folder, f"reward {micro_batch}", Corpus(rankings=Split(train=rows)))
    context.base.add_role("sft", context.adapter)
    settings = RewardConfig(epochs=2, learning_rate=1e-3, batch=4, micro_batch=micro_batch, calibration_samples=4)
    parts, _ = reward_model.encode(context, rows, settings)
    reward_model.train_all(context, {"reward": parts}, settings)
    return ended(context, "reward")


def sampled(folder: Path) -> list[str]:
    prompts = [make_prompt(f"w{i} " + "w4 " * (i % 5)) for i in range(7)]
    split = Split(train=tuple(prompts[:5]), held_out=tuple(prompts[5:]))
    context = context_of(folder, "rankings", Corpus(prompts=split))
    context.base.add_role("sft", context.adapter)
    randomise(context.base, "sft", 1)
    settings = RankingsConfig(
        annotator="several_processes.py:longest_first", prompts=5, held_out_prompts=2, answers=3, batch=2, noise=0.5,
        max_new_tokens=9,
    )  # fmt: skip
    rankings.run(context, settings)
    file = context.out / rankings.FILE
    return file.read_text().splitlines() if file.exists() else []


def aligned(folder: Path, name: str, settings: dict[str, Any]) -> dict[str, Any]:
    """Weights of policy and value, and every response of every rollout, by its prompt."""
    prompts = tuple(make_prompt(f"w{i} w{i + 1} " + "w4 " * (i % 3)) for i in range(9))
    context = context_of(folder, f"ppo {name}", Corpus(prompts=Split(train=prompts)))
    context.base.add_role("reference", context.adapter)
    randomise(context.base, "reference", 1)
    seen: list[Any] = []
    rollout = PPO.rollout

    def watched(self: PPO) -> Any:
        made = rollout(self)
        samples = made[0]
        rows = zip([p.text for p in samples.prompts], samples.responses, strict=True)
        seen.append(context.processes.gather([(text, list(ids)) for text, ids in rows]))
        return made

    PPO.rollout = watched  # type: ignore[method-assign]
    config = PPOConfig(
        updates=2, epochs=2, learning_rate=1e-3, max_new_tokens=7, self_check=False,
        value={"init": "sft", "head": "zero"}, reward=[{"source": "length", "max_length": 3}], **settings,
    )  # fmt: skip
    try:
        ppo_stage.run(context, config, None)
    finally:
        PPO.rollout = rollout  # type: ignore[method-assign]
    weights = ended(context, "policy")["weights"] | ended(context, "value")["weights"]
    return {"weights": weights, "responses": seen}


def main(folder: Path) -> None:
    processes = Processes("auto")
    found = {
        "world": processes.world_size,
        "sft": {name: tuned(folder, name, settings) for name, settings in CASES.items()},
        "reward": {str(size): ranked(folder, size) for size in (1, 4)},
        "rankings": sampled(folder),
        "ppo": {name: aligned(folder, name, settings) for name, settings in ALIGNED.items()},
    }
    (folder / f"rank{processes.rank}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
