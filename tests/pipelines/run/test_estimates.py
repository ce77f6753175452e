"""What ``trivet plan`` says a run will take, against what it took; and the code that it says will run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from pipelines.cli import main as cli
from pipelines.run.pipeline import Pipeline
from pipelines.stages.estimates import FACTOR, LIBRARIES, Estimator, Work, shape_of
from pipelines.stages.table import folders
from pipelines.workspace.gc import size_of
from pipelines.workspace.run_folder import read_run
from tests.conftest import tiny_lm, word_tokenizer
from tests.support.recipes import RECIPE


@pytest.mark.slow
def test_a_tiny_run_takes_what_the_plan_said_within_the_stated_factor(tmp_path: Path) -> None:
    made = Pipeline.from_recipe(RECIPE, run_dir=tmp_path / "run")
    said = {p.name: p.details["takes"] for p in made.plan()}
    made.run()
    noted = read_run(tmp_path / "run")["stages"]
    for stage, takes in said.items():
        disk, memory = size_of(tmp_path / "run" / folders()[stage]), noted[stage]["peak_memory"]
        assert takes.disk / FACTOR <= disk <= takes.disk * FACTOR, (stage, takes, disk)
        assert takes.memory / FACTOR <= memory <= takes.memory * FACTOR, (stage, takes, memory)
        tokens = noted[stage].get("tokens")
        if tokens:
            assert takes.tokens / FACTOR <= tokens <= takes.tokens * FACTOR, (stage, takes, tokens)


@pytest.mark.parametrize("family", ["llama", "gpt2", "qwen2", "opt"])
def test_the_shape_of_a_base_is_its_own(family: str, tmp_path: Path) -> None:
    """Parameters and adapter against the loaded model."""
    from models.backbone.settings import AdapterConfig
    from models.roles.shared_base import SharedBase

    lm = tiny_lm(family)
    lm.save_pretrained(tmp_path / "base")
    word_tokenizer().save_pretrained(tmp_path / "base")
    recipe = Pipeline.from_recipe(
        {"base": str(tmp_path / "base"), "adapter": {"rank": 4}, "data": {"demonstrations": "demo-task?rows=9"}}
    ).recipe
    shape = shape_of(recipe)
    assert shape is not None and (shape.layers, shape.width) == (2, 32)
    assert shape.parameters == sum(p.numel() for p in lm.parameters())
    base = SharedBase(lm, word_tokenizer(), name="b")
    base.add_role("sft", AdapterConfig(rank=4), seed=0)
    trained = sum(t.numel() for t in base.adapter_state("sft").values())
    assert trained <= shape.adapter <= 1.5 * trained  # position tables have numbered names in none of these


@pytest.mark.parametrize(("rows", "length", "width"), [(4, 24, 64), (8, 48, 128), (2, 60, 32)])
def test_memory_of_a_training_step(rows: int, length: int, width: int, tmp_path: Path) -> None:
    """Against the tensors that autograd keeps for the backward pass, without the libraries' share."""
    model = {"layers": 3, "width": width, "feed_forward": 2 * width, "heads": 4, "context": 64}
    recipe = RECIPE | {"base": {"pretrain": {"tokenizer": "words", "vocabulary": 300, "model": model}}}
    made = Pipeline.from_recipe(recipe, run_dir=tmp_path / "run")
    estimator = Estimator(made.recipe, made.corpus, 4)
    lm = tiny_lm("llama", vocab_size=300, hidden_size=width, intermediate_size=2 * width, num_hidden_layers=3,
                 num_key_value_heads=4, tie_word_embeddings=True)  # fmt: skip
    kept: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    ids = torch.zeros(rows, length, dtype=torch.long)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = lm(input_ids=ids, labels=ids).loss
    parameters = sum(p.numel() for p in lm.parameters())
    assert loss.requires_grad and estimator.shape is not None
    taken = sum(kept.values()) + 16 * parameters  # weights were kept as well; here they stand for gradients' share
    said = estimator._memory(Work(rows=rows, length=float(length), tokens=0, whole=True)) - LIBRARIES
    assert said / FACTOR <= taken <= said * FACTOR, (said, taken)


def test_the_plan_names_code_of_the_users(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine.py").write_text("open('ran', 'w')\ndef kind(prompts, completions):\n    return [1.0]\n")
    recipe = RECIPE | {"rankings": {"annotator": "mine.py:kind"}, "name": "r"}
    (tmp_path / "r.yaml").write_text(json.dumps(recipe))
    assert cli.main(["plan", str(tmp_path / "r.yaml"), "--run-dir", str(tmp_path / "run")]) == 0
    told = capsys.readouterr().out
    import hashlib

    digest = hashlib.sha256((tmp_path / "mine.py").read_bytes()).hexdigest()
    assert f"code of yours that is loaded and run: mine.py:kind, sha256 {digest}" in told
    assert "estimates, within a factor of 3" in told and " MB" in told and " kB" in told
    assert not (tmp_path / "ran").exists() and not Path("ran").exists()
