"""Run by torchrun in test_runner: the whole pipeline as one of several processes, with a trace of what this one saw."""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path

from pipelines.run.pipeline import Pipeline
from stages import reward_model, sft
from stages.ppo.update import PPO
from tests.support.recipes import RECIPE


def main(folder: Path) -> None:
    pipeline = Pipeline.from_recipe(RECIPE, ["ppo.updates=1"], run_dir=folder / "run")
    seen: list[str] = []
    hashes: dict[str, str] = {}

    def digest(role: str) -> str:
        tensors = pipeline.loaded.base().parameters_of(role).values()
        return hashlib.sha256(b"".join(p.detach().numpy().tobytes() for p in tensors)).hexdigest()

    rollout, save_sft, save_reward, update = PPO.rollout, sft.labelled_nll, reward_model.evaluate_rankings, PPO.update

    def watched_rollout(self):
        made = rollout(self)
        seen.extend(p.group for p in pipeline.processes.dealt(made[0].prompts))
        return made

    def watched_update(self, made, *records):
        out = update(self, made, *records)
        hashes["policy"] = digest("policy") + digest("value")
        return out

    def watched_nll(*args, **more):
        hashes["sft"] = digest("sft")
        return save_sft(*args, **more)

    def watched_measure(*args):
        hashes["reward"] = digest("reward")
        return save_reward(*args)

    PPO.rollout, PPO.update = watched_rollout, watched_update  # type: ignore[method-assign,assignment]
    sft.labelled_nll, reward_model.evaluate_rankings = watched_nll, watched_measure
    pipeline.run()
    rank = pipeline.processes.rank
    trace = {"world": pipeline.processes.world_size, "prompts": seen, "hashes": hashes}
    (folder / f"rank{rank}.json").write_text(json.dumps(trace))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
