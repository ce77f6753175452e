"""A stage's code cannot change without its VERSION: the version is in the key, and old results would pass for new.

After a change of behaviour raise VERSION in the stage's file; then (or after a change that alters no result) run
``python tests/pipelines/test_versions.py`` and commit the new digests.
"""

from __future__ import annotations

import ast
import hashlib
import json
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
RECORD = Path(__file__).with_name("stage_versions.json")
FAST = [f"models/fast_{part}.py" for part in ("weights", "layers", "body", "engine", "head", "products", "trunk")]
CODE = {
    "pretrain": ["stages/pretrain.py"],
    "sft": [
        "stages/sft.py",
        "stages/sft_trainer.py",
        "models/response_loss.py",
        "stages/trainers.py",
        "stages/pieces.py",
        *FAST,
    ],
    "rankings": ["stages/rankings.py", "models/generation.py", *FAST],
    "reward": [
        "stages/reward_model.py",
        "stages/prompt_order.py",
        "stages/trainers.py",
        "stages/pieces.py",
        "reward/losses.py",
        "reward/model.py",
        "reward/files.py",
        "reward/shared_prompt.py",
        *FAST,
    ],
    "ppo": [
        "stages/ppo.py",
        "stages/ppo_stage.py",
        "stages/ppo_watcher.py",
        "stages/ppo_math.py",
        "stages/rollout.py",
        "stages/old_logprobs.py",
        "stages/lower_layers.py",
        "models/generation.py",
        "stages/kl_control.py",
        *FAST,
    ],
    "evaluate": [
        "pipelines/evaluating.py",
        "pipelines/opening_systems.py",
        "evaluation/held_out.py",
        "evaluation/results.py",
        "evaluation/divergence.py",
        "evaluation/prompting.py",
        *FAST,
    ],
}


def normalised(path: Path) -> str:
    """The syntax tree without comments, layout and docstrings."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node) is not None:
            node.body = node.body[1:] or [ast.Pass()]
    return ast.unparse(tree)


def current() -> dict[str, dict[str, object]]:
    from pipelines.jobs import STAGES

    text = {stage: "\n".join(normalised(ROOT / f) for f in files) for stage, files in CODE.items()}
    return {
        s: {"version": STAGES[s].version(), "code": hashlib.sha256(t.encode()).hexdigest()} for s, t in text.items()
    }


def test_every_stage_has_its_code_listed():
    from pipelines.jobs import STAGES

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
