"""What a recipe's tuning does not go with, said before anything is loaded; and a plan that knows new tokens."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from data.common.errors import UserError
from pipelines.loading.load import load_recipe
from pipelines.run.base_rehearsal import check_adapter, known_base
from pipelines.run.pipeline import Pipeline
from pipelines.run.rehearsal import _base_of
from pipelines.stages.depends_on import adapter_settings
from pipelines.stages.shapes import embedding_numbers, shape_of
from tests.conftest import tiny_lm, word_tokenizer

PLAIN: dict[str, Any] = {
    "base": "gpt2",
    "data": dict.fromkeys(("demonstrations", "rankings", "prompts"), "demo-task?rows=60"),
}
WHOLE, ROWS = {"modules_to_save": ["lm_head"]}, {"new_tokens": ["<a>"]}
VLLM = {"rollouts": {"engine": "vllm", "servers": ["http://localhost:1"]}}


@pytest.mark.parametrize(
    ("adapter", "runtime", "says"),
    [
        (
            WHOLE,
            {"sharding": "fsdp2"},
            r"'fsdp2' has embeddings and output layer in parts, and adapter",
        ),
        (ROWS, {"sharding": "fsdp2"}, r"and adapter\.new_tokens trains them: use 'none'"),
        ({"method": "full", **ROWS}, {"sharding": "fsdp2"}, r"and adapter\.new_tokens trains them: use 'none'"),
        (WHOLE, VLLM, r"given LoRA adapters alone, and adapter\.modules_to_save trains more: remove it"),
        (ROWS, VLLM, r"given LoRA adapters alone, and adapter\.new_tokens trains more: remove it"),
        ({"method": "adalora"}, VLLM, r"adapter\.method 'adalora' writes adapters that vLLM does not run"),
        ({"method": "adalora"}, {"sharding": "fsdp2"}, r"goes with adapter\.method lora and full, not with 'adalora'"),
        ({"method": "adalora", "rank": 8, "init_rank": 8}, {}, r"init_rank: must be more than adapter\.rank, 8"),
        ({"method": "adalora", "budget": [0.7, 0.7]}, {}, r"budget: .*two shares of the steps"),
        ({"method": "ia3", **ROWS}, {}, r"new_tokens: .*adapter\.method has no new_tokens"),
        ({"method": "freeze", **WHOLE}, {}, r"modules_to_save: .*adapter\.method has no modules_to_save"),
    ],
)
def test_what_it_does_not_go_with(adapter: dict[str, Any], runtime: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says):
        load_recipe(PLAIN | {"adapter": adapter, "runtime": runtime})


def test_unset_settings_are_in_no_key() -> None:
    later = {"init_rank", "orthogonality", "budget", "modules_to_save", "new_tokens"}
    assert not later & adapter_settings(load_recipe(PLAIN)).keys()
    assert "new_tokens" in adapter_settings(load_recipe(PLAIN | {"adapter": ROWS}))


def test_embedding_numbers_are_counted(tmp_path: Path) -> None:
    """A vocabulary of 40, 32 wide: both whole, one of them, and one row of each."""
    tiny_lm().save_pretrained(tmp_path)
    word_tokenizer().save_pretrained(tmp_path)
    sizes = {}
    for name, adapter in (("plain", {}), ("both", {"modules_to_save": ["embed_tokens", "lm_head"]}), ("rows", ROWS)):
        found = shape_of(load_recipe(PLAIN | {"base": str(tmp_path), "adapter": {"rank": 4, **adapter}}))
        assert found is not None
        sizes[name] = found.adapter
    assert sizes["both"] - sizes["plain"] == 2 * 40 * 32 and sizes["rows"] - sizes["plain"] == 2 * 32
    tied = load_recipe(PLAIN | {"adapter": {"modules_to_save": ["wte"]}}).adapter
    assert embedding_numbers(tied, 40, 32, tied=True) == 40 * 32


def test_a_plan_renders_with_new_tokens_and_refuses_what_the_base_cannot_do(tmp_path: Path) -> None:
    tiny_lm().save_pretrained(tmp_path / "base")
    word_tokenizer().save_pretrained(tmp_path / "base")
    (tmp_path / "d.jsonl").write_text(json.dumps({"prompt": "w1 <a>", "completion": "w2"}) + "\n")
    recipe: dict[str, Any] = {
        "base": "./base",
        "data": {"demonstrations": "d.jsonl"},
        "adapter": ROWS,
        "template": "dialogue",
    }
    (tmp_path / "recipe.yaml").write_text(json.dumps(recipe))
    pipeline = Pipeline.from_recipe(tmp_path / "recipe.yaml", run_dir=tmp_path / "run")
    spec = _base_of(pipeline)
    assert spec is not None
    base = known_base(spec, "dialogue")
    assert base is not None and base.limits is not None and base.limits.embeddings == 41
    assert 40 in base.renderer.prompt_ids([{"role": "user", "content": "w1 <a>"}])
    check_adapter(base, pipeline.recipe.adapter, warn=lambda text: None)
    wrong = load_recipe(PLAIN | {"adapter": {"modules_to_save": ["lm_heat"]}}).adapter
    with pytest.raises(UserError, match="'lm_heat' is neither the embeddings nor the output layer"):
        check_adapter(base, wrong, warn=lambda text: None)
