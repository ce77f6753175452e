"""What ``trivet plan`` says a run will take, against what it took; and the code that it says will run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from models.backbone.settings import AdapterConfig
from pipelines.cli import main as cli
from pipelines.run.pipeline import Pipeline
from pipelines.stages.estimates import FACTOR, LIBRARIES
from pipelines.stages.lengths import largest_sum
from pipelines.stages.memory import Numbers, Rows, Sampling, cache_bytes, layer_kept, sampled
from pipelines.stages.shapes import Shape, shape_of, shape_of_folder
from pipelines.stages.table import folders
from pipelines.workspace.gc import size_of
from pipelines.workspace.run_folder import read_run
from tests.conftest import tiny_lm, word_tokenizer
from tests.support.memory_peak import make_data, make_folder, measured, recipe_of
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


@pytest.mark.parametrize(
    ("config", "found"),
    [
        ({"model_type": "mpt", "d_model": 32, "n_layers": 2, "n_heads": 4}, (2, 32, 4, 128)),
        (
            {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": [64, 96]},
            (2, 32, 2, 96),
        ),
    ],
)
def test_a_shape_is_read_by_every_name_of_a_size_and_of_a_list_the_largest(
    config: dict[str, object], found: tuple[int, ...], tmp_path: Path
) -> None:
    tiny_lm("gpt2").save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(config | {"vocab_size": 40}))
    shape = shape_of_folder(tmp_path, AdapterConfig())
    assert (shape.layers, shape.width, shape.heads, shape.inner) == found


@pytest.mark.parametrize("names", [["lm_head"], ["model.embed_tokens"], ["lm_head", "model.embed_tokens"]])
def test_a_tied_matrix_counts_once_by_whatever_name_a_file_holds_it(names: list[str], tmp_path: Path) -> None:
    rows = {f"{name}.weight": torch.zeros(40, 8) for name in names}
    save_file(rows | {"model.layers.0.mlp.up_proj.weight": torch.zeros(16, 8)}, tmp_path / "model.safetensors")
    config = {"model_type": "llama", "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    (tmp_path / "config.json").write_text(json.dumps(config | {"vocab_size": 40, "tie_word_embeddings": True}))
    shape = shape_of_folder(tmp_path, AdapterConfig(rank=4, modules_to_save=["embed_tokens"]))
    assert (shape.parameters, shape.linear) == (40 * 8 + 16 * 8, 16 * 8)
    assert shape.adapter == 4 * (16 + 8) + 40 * 8
    assert shape.size == "0.00 M parameters, 1 layers, 8 wide"


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


def test_what_autograd_keeps_is_counted_to_the_byte() -> None:
    """A layer's share of the fast path, and of the modules, as counted by hooks at Qwen2.5-1.5B's shape."""
    shape = Shape(parameters=0, linear=0, adapter=0, layers=1, trained_layers=1, width=1536, inner=8960, heads=12,
                  key_heads=2, head_size=128, vocabulary=9)  # fmt: skip
    one = Rows(count=1, tokens=1.0, longest=1.0, read=1.0)
    assert layer_kept(shape, Numbers(), one, 1.0) == 105_520
    modules = layer_kept(shape, Numbers(weight=2, product=2, fast=False), one, 1.0)
    assert modules == pytest.approx(146_424, rel=0.005)
    rows = Rows(count=4, tokens=96.0, longest=24.0, read=96.0)
    assert layer_kept(shape, Numbers(), rows, rows.read) == 96 * 105_520
    assert layer_kept(shape, Numbers(weight=2, product=2), one, 1.0) < 0.5 * modules


def test_the_cache_counts_key_heads_alone() -> None:
    shape = Shape(parameters=0, linear=0, adapter=0, layers=3, trained_layers=3, width=64, inner=128, heads=8,
                  key_heads=2, head_size=16, vocabulary=9, window=10, sliding=2)  # fmt: skip
    sampling = Sampling(rows=5, prompt=20, prompts=100, room=12)
    assert cache_bytes(shape, Numbers(weight=2, product=2), sampling) == 2 * 5 * 32 * 2 * 3 * 32
    windowed = cache_bytes(shape, Numbers(weight=2, fast=False), sampling)
    assert windowed == 2 * 5 * 32 * 2 * (10 + 10 + 32)


def test_a_copy_of_the_output_layer_is_counted_where_sampling_reads_one() -> None:
    shape = Shape(parameters=0, linear=500, adapter=0, layers=1, trained_layers=1, width=64, inner=128, heads=8,
                  key_heads=2, head_size=8, vocabulary=9, window=None, sliding=0)  # fmt: skip
    one = Sampling(rows=5, prompt=20, prompts=100, room=12)
    copies = [
        sampled(shape, Numbers(weight=2, product=2, packed_output=packed), one)["weights_for_sampling"]
        for packed in (False, True)
    ]
    assert copies == [500 * 2, 500 * 2 + 9 * 64 * 2]


def test_the_largest_rows_are_likely_ones() -> None:
    assert largest_sum([3.0] * 9, 4, 100.0) == 12.0  # rows of one length
    assert largest_sum([1.0, 1.0, 1.0, 9.0], 2, 1e9) == 10.0  # no more than the longest rows there are
    assert 8.0 < largest_sum([1.0, 3.0] * 50, 4, 20.0) <= 12.0
    assert largest_sum([], 4, 9.0) == 0.0


@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_plans_memory_is_the_measured_peak(checkpointing: bool, tmp_path: Path) -> None:
    """Of SFT, reward and PPO, by the allocator's own events, within 15 percent; eight recipes: benchmarks/memory.py."""
    recipe = recipe_of(
        make_folder(tmp_path / "base", 128),
        make_data(tmp_path / "data", rows=16, answer=60),
        runtime={"gradient_checkpointing": checkpointing},
        stages=["sft"] if checkpointing else ["sft", "reward", "ppo"],
        sft={"batch": 8, "micro_batch": 8},
        ppo={"max_new_tokens": 40},
    )
    if checkpointing:
        recipe = {k: v for k, v in recipe.items() if k not in ("reward", "ppo")}
    made = Pipeline.from_recipe(recipe, run_dir=tmp_path / "run")
    said = {p.name: p.details["takes"].memory - LIBRARIES for p in made.plan()}
    for stage, peak in measured(made).items():
        assert said[stage] == pytest.approx(peak, rel=0.15), stage


def test_gradients_are_there_while_training_alone(tmp_path: Path) -> None:
    """12 bytes a number of both adapters stay between two updates; the policy's gradient is there while that of the
    value role is made, and with several micro-batches so is the latter."""
    data = make_data(tmp_path / "data", rows=8, answer=9)
    recipe = recipe_of(
        make_folder(tmp_path / "base", 64), data, ppo={"rollouts": 16, "minibatches": 2, "micro_batch": 4}
    )
    made = Pipeline.from_recipe(recipe, run_dir=tmp_path / "run")
    shape, parts = shape_of(made.recipe), made.details.takes("ppo").parts
    assert shape is not None and parts is not None
    always = {part.what: part.bytes for part in parts.always}
    assert always["policy with optimizer"] == always["value with optimizer"] == 12 * shape.adapter
    gradients = {name: sum(p.bytes for p in of if p.what == "gradients") for name, of in parts.phases.items()}
    assert gradients == {"training": 2 * 4 * shape.adapter, "sampling": 0, "scoring": 0}
    made = Pipeline.from_recipe(recipe, ["ppo.micro_batch=8"], run_dir=tmp_path / "run")
    parts = made.details.takes("ppo").parts
    assert parts is not None
    assert [p.bytes for p in parts.phases["training"] if p.what == "gradients"] == [4 * shape.adapter]


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


def test_the_sizes_of_blocks_are_those_of_the_code() -> None:
    """The model of memory has them itself, since commands that load no model import it."""
    from models.backbone import logprobs
    from models.fast import logprobs as fast
    from pipelines.stages import memory, shapes

    assert (memory.ROWS, memory.WORDS, memory.CHUNK) == (fast.ROWS, fast.WORDS, logprobs.CHUNK)
    assert shapes.HEAD_EXTRAS == fast.EXTRAS
