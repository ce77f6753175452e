"""A stage's code cannot change without its VERSION: the version is in the key, and old results would pass for new.

After a change of behaviour raise VERSION in the stage's file; then (or after a change that alters no result) run
``python tests/pipelines/workspace/test_versions.py`` and commit the new digests.
"""

from __future__ import annotations

import ast
import hashlib
import json
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
RECORD = Path(__file__).with_name("stage_versions.json")
FAST = [
    "models/fast/weights.py",
    "models/fast/products.py",
    "models/fast/layers.py",
    "models/fast/layout.py",
    "models/fast/hidden_states.py",
    "models/sampling/fast.py",
    "models/sampling/decoding.py",
    "models/sampling/device_steps.py",
    "models/fast/logprobs.py",
    "models/fast/matmul.py",
    "models/fast/prefix_cache.py",
]
NEXT_TOKEN = ["stages/training/next_token.py", "stages/training/chunks.py"]
TRAINER = [
    "stages/training/sft_trainer.py",
    "stages/training/hf_trainer.py",
    "stages/training/training_run.py",
    "stages/training/micro_batches.py",
    "stages/training/held_out_curve.py",
    "stages/held_out_cost.py",
]
CODE = {
    "pretrain": ["stages/pretrain.py", "stages/training/new_tokenizer.py", "stages/training/masked.py", *NEXT_TOKEN],
    "continued": ["stages/continued.py", "data/vocabulary.py", *NEXT_TOKEN],
    "sft": [
        "stages/sft.py",
        "stages/training/sft_trainer.py",
        "models/roles/response_loss.py",
        "stages/training/hf_trainer.py",
        "stages/training/training_run.py",
        "stages/training/micro_batches.py",
        "stages/training/held_out_curve.py",
        "stages/held_out_cost.py",
        *FAST,
    ],
    "distil": [
        "stages/distil.py",
        "stages/distil_math.py",
        "stages/training/distil_losses.py",
        "stages/training/distil_trainer.py",
        "stages/sft.py",
        "models/sampling/generate.py",
        *TRAINER,
        *FAST,
    ],
    "rankings": ["stages/rankings.py", "models/sampling/generate.py", *FAST],
    "reward": [
        "stages/reward_model.py",
        "stages/training/ranking_rows.py",
        "stages/training/ranking_trainer.py",
        "stages/training/calibration.py",
        "stages/training/prompt_sampler.py",
        "stages/training/hf_trainer.py",
        "stages/training/training_run.py",
        "stages/training/micro_batches.py",
        "stages/training/held_out_curve.py",
        "stages/held_out_cost.py",
        "reward/losses.py",
        "reward/model.py",
        "reward/pooling.py",
        "reward/files.py",
        "reward/shared_prompt.py",
        *FAST,
    ],
    "ppo": [
        "stages/ppo/update.py",
        "stages/ppo/stage.py",
        "stages/ppo/holdout_monitor.py",
        "stages/ppo/metrics.py",
        "stages/ppo/micro_batching.py",
        "stages/ppo/optimizer.py",
        "stages/ppo/prompt_stream.py",
        "stages/ppo/ptx.py",
        "stages/ppo_math.py",
        "stages/ppo/rollout.py",
        "stages/ppo/old_logprobs.py",
        "stages/ppo/shared_layers.py",
        "models/sampling/generate.py",
        "stages/ppo/kl_controller.py",
        *FAST,
    ],
    "evaluate": [
        "pipelines/evaluate/stage.py",
        "pipelines/evaluate/systems.py",
        "evaluation/held_out.py",
        "evaluation/likelihood.py",
        "evaluation/results.py",
        "evaluation/divergence.py",
        "evaluation/prompting.py",
        *(f"evaluation/metrics/{name}.py" for name in ("base", "builtin", "compare", "length_control", "text")),
        *FAST,
    ],
}


def normalised(path: Path) -> str:
    """The syntax tree without comments, layout, docstrings and imports: where a name lives changes no result."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if hasattr(node, "body") and isinstance(node.body, list):
            node.body = [n for n in node.body if not isinstance(n, ast.Import | ast.ImportFrom)] or [ast.Pass()]
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node) is not None:
            node.body = node.body[1:] or [ast.Pass()]
    return ast.unparse(tree)


def current() -> dict[str, dict[str, object]]:
    from pipelines.stages.table import STAGES

    text = {stage: "\n".join(normalised(ROOT / f) for f in files) for stage, files in CODE.items()}
    return {
        s: {"version": STAGES[s].version(), "code": hashlib.sha256(t.encode()).hexdigest()} for s, t in text.items()
    }


def test_every_stage_has_its_code_listed():
    from pipelines.stages.table import STAGES

    assert set(CODE) == set(STAGES)


@pytest.mark.skipif(sys.version_info[:2] != (3, 11), reason="digests are of Python 3.11's syntax trees")
@pytest.mark.parametrize("stage", CODE)
def test_code_changes_only_with_its_version(stage):
    recorded, found = json.loads(RECORD.read_text())[stage], current()[stage]
    assert found == recorded, (
        f"{stage}: code changed; raise VERSION if results can, then record it (see this file's head)"
    )


def test_comments_and_docstrings_do_not_count(tmp_path):
    a, b, c = (tmp_path / n for n in "abc")
    a.write_text('"""One."""\ndef f(x):\n    """Doc."""\n    return x + 1\n')
    b.write_text('"""Two."""\n\n\ndef f(x):  # why\n    return (x + 1)\n')
    c.write_text("def f(x):\n    return x + 2\n")
    assert normalised(a) == normalised(b) != normalised(c)


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    RECORD.write_text(json.dumps(current(), indent=1, sort_keys=True) + "\n")
