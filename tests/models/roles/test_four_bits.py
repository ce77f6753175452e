"""A base in four bits (``runtime.quantize: nf4``): one under all roles, by the fast path as by the modules."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch

from data.common.errors import UserError
from models.backbone import four_bits
from models.backbone.architecture import linear_layers
from models.backbone.forward import set_gradient_checkpointing
from models.backbone.four_bits import PackedWeight, is_packed, quantize, whole
from models.backbone.logprobs import make_rows
from models.backbone.settings import METHODS
from models.roles.shared_base import SharedBase
from pipelines.loading.load import load_recipe
from tests.conftest import ADAPTER, randomise, tiny_lm, word_tokenizer

needs_package = pytest.mark.skipif(not four_bits.can_quantize(), reason="the extra nf4 (bitsandbytes) is not installed")
CPU = torch.device("cpu")
QUERIES, RESPONSES = [[5, 6, 7], [8, 9, 10, 11]], [[12, 13], [14, 15, 16]]
DATA = {"demonstrations": "demo-task?rows=9"}


def packed_base(family: str = "llama", dtype: torch.dtype = torch.float32, **changes: Any) -> tuple[SharedBase, Any]:
    """A base in four bits, and the plain model whose matrices are what the packed ones unpack to."""
    shape = {"hidden_size": 64, "intermediate_size": 128, "initializer_range": 0.1}
    lm = tiny_lm(family, **(shape | changes)).to(dtype)
    plain = copy.deepcopy(lm)
    quantize(lm, linear_layers(lm), CPU)
    for path, module in lm.named_modules():
        if is_packed(module):
            plain.get_submodule(path).weight.data = PackedWeight(module.weight).whole()
    return SharedBase(lm, word_tokenizer(), name="packed"), plain


def with_role(base: SharedBase) -> SharedBase:
    base.add_role("policy", ADAPTER, seed=0)
    randomise(base, "policy", seed=1)
    return base


def numbers(base: SharedBase, fast: bool, checkpointing: bool = False) -> dict[str, torch.Tensor]:
    base.fast = fast
    set_gradient_checkpointing(base.lm, checkpointing)
    rows = make_rows(QUERIES, RESPONSES, 0, "cpu")
    with base.training("policy") as tensors, base.role("policy") as view:
        assert (view.decoder() is not None) == fast
        states = view.states(rows.ids, rows.mask, rows.response_positions())
        logprobs, _ = view.logprobs(states, rows.targets())
        logprobs.sum().backward()
        found = {name: p.grad.clone() for name, p in tensors.items() if p.grad is not None}
    set_gradient_checkpointing(base.lm, False)
    return found | {"logprobs": logprobs.detach()}


@needs_package
@pytest.mark.parametrize("family", ["llama", "qwen3", "qwen2", "gemma2"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_all_paths_compute_with_the_unpacked_matrices(family: str, checkpointing: bool) -> None:
    """Log-probabilities and gradients of the fast path and of the modules, against a plain model of those numbers."""
    base, plain = packed_base(family)
    with_role(base)
    expected = numbers(with_role(SharedBase(plain, word_tokenizer(), name="plain")), fast=False)
    for fast in (True, False):
        found = numbers(base, fast, checkpointing)
        assert found.keys() == expected.keys() and len(found) > 10
        for name, value in expected.items():
            torch.testing.assert_close(found[name], value, atol=2e-4, rtol=2e-4)


@needs_package
def test_bf16_products_read_the_unpacked_matrices(monkeypatch: pytest.MonkeyPatch) -> None:
    from models.fast import products

    monkeypatch.setattr(products, "has_bf16_units", lambda: True)
    base, plain = packed_base(dtype=torch.bfloat16, initializer_range=0.05)
    expected = numbers(with_role(SharedBase(plain, word_tokenizer(), name="plain")), fast=True)
    found = numbers(with_role(base), fast=True)
    torch.testing.assert_close(found["logprobs"], expected["logprobs"], atol=1e-3, rtol=1e-3)


@needs_package
def test_sampling_gives_the_same_tokens_and_unpacks_one_layer_at_a_time() -> None:
    from models.fast.products import MergedProducts, products_of
    from models.sampling.fast import FastEngine
    from models.sampling.generate import SamplingParams, sampling_noise

    base, plain = packed_base()
    made = []
    for one in (with_role(base), with_role(SharedBase(plain, word_tokenizer(), name="plain"))):
        noise = sampling_noise(2, 6, torch.Generator().manual_seed(0))
        params = SamplingParams(max_new_tokens=6, temperature=1.0, stop_ids=(2,), pad_id=0)
        with one.role("policy") as view:
            made.append(FastEngine()(view, QUERIES, params=params, noise=noise).ids)
            decoder = view.decoder()
    assert made[0] == made[1] and decoder is not None
    with base.role("policy") as view:
        kept = products_of(view.decoder(), keep=4)  # type: ignore[arg-type]
    assert isinstance(kept, MergedProducts) and kept.keep is None


@needs_package
def test_a_matrix_takes_four_bits_and_a_scale() -> None:
    base, _ = packed_base()
    module = next(m for m in base.lm.modules() if is_packed(m))
    weight = PackedWeight(module.weight)
    assert module.weight.numel() * 2 == weight.shape.numel() and len(weight) == weight.shape[0]
    scales = four_bits.scales_of(module.weight)
    assert scales is not None and scales.numel() == -(-weight.shape.numel() // 64) and scales.dtype == torch.float32
    assert whole(weight).dtype == torch.float32 and not weight.requires_grad
    assert not is_packed(base.lm.get_output_embeddings())


@needs_package
def test_the_fingerprint_knows_bits_and_scales() -> None:
    base, plain = packed_base()
    same, _ = packed_base()
    assert base.fingerprint == same.fingerprint != SharedBase(plain, word_tokenizer(), name="p").fingerprint
    module = next(m for m in same.lm.modules() if is_packed(m))
    scales = four_bits.scales_of(module.weight)
    assert scales is not None
    scales[0] *= 2
    assert same.base_fingerprint() != base.fingerprint


@needs_package
def test_a_pass_leaves_the_packed_weights_as_they_lie(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a CPU with AVX512-BF16 bitsandbytes would lay them out anew, and the fast path and the hash would be wrong."""
    import bitsandbytes.nn.modules as theirs

    monkeypatch.setattr(theirs, "has_avx512bf16", lambda: True)
    monkeypatch.setattr(theirs, "_convert_weight_packed_for_cpu", lambda *_: pytest.fail("it is laid out anew"))
    base, _ = packed_base()
    with torch.no_grad():
        base.lm(torch.tensor([[5, 6, 7]]))
    assert base.base_fingerprint() == base.fingerprint


@needs_package
def test_other_layers_than_linear_ones_are_refused() -> None:
    lm = tiny_lm("gpt2")
    with pytest.raises(UserError, match=r"runtime\.quantize.*Conv1D"):
        quantize(lm, linear_layers(lm), CPU)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        *(({"adapter": {"method": method}}, f"'{method}'.*use 'lora'") for method in METHODS if method != "lora"),
        ({}, r"pip install 'trivet\[nf4\]'"),
    ],
)
def test_what_cannot_be_is_refused_when_the_recipe_is_read(
    changes: dict[str, Any], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pipelines.loading import checks

    monkeypatch.setattr(checks, "find_spec", lambda name: object() if changes else None)
    with pytest.raises(UserError, match=rf"runtime\.quantize.*{words}"):
        load_recipe({"base": "qwen2.5-0.5b", "data": DATA, "runtime": {"quantize": "nf4"}} | changes)


@needs_package
def test_a_run_in_four_bits_and_its_export(tmp_path: Path) -> None:
    """SFT to PPO on one packed base; merged, the adapter stands on the base as it was given."""
    from pipelines import Pipeline
    from pipelines.export.stage import export_stage
    from tests.support.memory_peak import make_data, make_folder, recipe_of

    folder = make_folder(tmp_path / "base", 64, num_attention_heads=2, num_key_value_heads=1, num_hidden_layers=2)
    recipe = recipe_of(
        folder,
        make_data(tmp_path / "data", rows=8, prompt=6, answer=6),
        runtime={"quantize": "nf4"},
        ppo={"rollouts": 4, "micro_batch": 4, "epochs": 1, "max_new_tokens": 4},
    )
    made = Pipeline.from_recipe(recipe, run_dir=tmp_path / "run")
    made.run()
    assert {p.status for p in made.plan()} == {"cached"}
    assert any(is_packed(m) for m in made.loaded.base().lm.modules())
    plain = Pipeline.from_recipe(recipe | {"runtime": {"device": "cpu", "threads": 1}}, run_dir=tmp_path / "run")
    assert {p.name: p.status for p in plain.plan()} == dict.fromkeys(("sft", "reward", "ppo"), "stale")
    export_stage(tmp_path / "run", "ppo", tmp_path / "out", merge=True)
    from safetensors.torch import load_file

    given, merged = (load_file(f / "model.safetensors") for f in (folder, tmp_path / "out"))
    adapter = load_file(tmp_path / "run/ppo/adapter/adapter_model.safetensors")
    name = "model.layers.0.mlp.up_proj"
    a, b = (adapter[f"base_model.model.{name}.lora_{x}.weight"] for x in "AB")
    torch.testing.assert_close(merged[f"{name}.weight"], given[f"{name}.weight"] + 2.0 * b @ a, atol=1e-6, rtol=1e-5)
