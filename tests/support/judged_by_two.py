"""Run by torchrun in test_judges: one of two processes asks a judge that fails; each writes how it ended."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from evaluation.settings import EvaluationConfig, JudgeConfig
from models.backbone.processes import Processes
from pipelines.evaluate.stage import chat_verdicts
from tests.support.answers import responses_of


def main(folder: Path, url: str) -> None:
    processes = Processes("cpu")
    judge = JudgeConfig(name="j", url=url, model="m", concurrency=1, retries=0, adversary_prompts=0)
    recipe = SimpleNamespace(evaluation=EvaluationConfig(judges=(judge,), bootstrap=50))
    context: Any = SimpleNamespace(generations=folder, say=lambda text: None)
    loaded: Any = SimpleNamespace(recipe=recipe, processes=processes)
    try:
        found: Any = chat_verdicts(context, loaded, [responses_of("sft", n=20), responses_of("ppo", n=20)], "sft", 0)
        ended = {"wins": found["comparisons"][0]["wins"]}
    except Exception as error:
        ended = {"error": type(error).__name__, "text": str(error)}
    (folder / f"rank{processes.rank}.json").write_text(json.dumps(ended | {"world": processes.world_size}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
