"""On a CUDA device: the same numbers as on the CPU, bf16 base with fp32 adapters, hand-over both ways, memory back.

Run by ``make gpu-check``; on a machine without a GPU they run on its double (``tests/support/gpu_double.py``).
"""

from __future__ import annotations

import contextlib
import gc
import json

import pytest
import torch

from models.backbone.logprobs import make_rows, token_logprobs
from models.backbone.processes import resolve_dtype
from models.roles.export import save_role
from models.roles.shared_base import SharedBase
from pipelines.run.pipeline import Pipeline
from reward.model import score_rows
from tests.conftest import ADAPTER, make_base, randomise, tiny_lm, word_tokenizer
from tests.support.gpu_double import NAME, GpuDouble
from tests.support.recipes import RECIPE

pytestmark = pytest.mark.gpu
QUERIES, RESPONSES = [[5, 9], [7, 8, 9, 10]], [[20, 21, 2], [22, 23, 24, 25, 26]]


@pytest.fixture(autouse=True)
def device():
    """The real one where there is one."""
    with contextlib.nullcontext() if torch.cuda.is_available() else GpuDouble().installed():
        yield


def on_gpu(dtype: torch.dtype) -> SharedBase:
    return SharedBase(tiny_lm().to("cuda", dtype), word_tokenizer(), name="tiny-llama")


def logprobs(base: SharedBase, role: str) -> torch.Tensor:
    rows = make_rows(QUERIES, RESPONSES, 0, base.device)
    with base.role(role) as view, torch.no_grad():
        hidden = view.hidden(rows.ids, rows.mask).flatten(0, 1)[rows.response_positions()]
        return token_logprobs(hidden, rows.targets(), view.logits)[0].cpu()


def handed_over(tmp_path, dtype: torch.dtype) -> tuple[SharedBase, SharedBase]:
    cpu = make_base()
    cpu.add_role("reward", ADAPTER, head=True)
    randomise(cpu, "reward", 0, scale=0.1)
    save_role(cpu, "reward", tmp_path / "cpu")
    gpu = on_gpu(dtype)
    gpu.load_role("reward", tmp_path / "cpu", head=True)
    return cpu, gpu


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-3), (torch.bfloat16, 0.6)])
def test_logprobs_and_rewards_are_those_of_the_cpu(tmp_path, dtype, tolerance):
    cpu, gpu = handed_over(tmp_path, dtype)
    torch.testing.assert_close(logprobs(gpu, "reward"), logprobs(cpu, "reward"), atol=tolerance, rtol=0.05)
    ours, theirs = (score_rows(b, "reward", QUERIES, RESPONSES, 0, 8) for b in (cpu, gpu))
    torch.testing.assert_close(theirs, ours, atol=tolerance, rtol=0.05)


def test_a_bf16_base_has_fp32_adapters_and_heads(tmp_path):
    _, gpu = handed_over(tmp_path, torch.bfloat16)
    assert resolve_dtype("auto", torch.device("cuda")) in (torch.bfloat16, torch.float32)
    assert {p.dtype for p in gpu.base_tensors().values()} == {torch.bfloat16}
    assert {p.dtype for p in gpu.parameters_of("reward").values()} == {torch.float32}
    with gpu.training("reward"), gpu.role("reward") as view:
        rows = make_rows(QUERIES, RESPONSES, 0, "cuda")
        view.head(view.hidden(rows.ids, rows.mask)).sum().backward()
        assert all(torch.isfinite(p.grad).all() for p in gpu.parameters_of("reward").values())


def test_an_artifact_goes_to_the_gpu_and_back_unchanged(tmp_path):
    _, gpu = handed_over(tmp_path, torch.float32)
    save_role(gpu, "reward", tmp_path / "back")
    for name in ("adapter/adapter_model.safetensors", "head.safetensors"):
        assert (tmp_path / "cpu" / name).read_bytes() == (tmp_path / "back" / name).read_bytes()


def test_the_pipeline_runs_and_gives_memory_back(tmp_path):
    if torch.cuda.get_device_name() == NAME:
        pytest.skip("tests/gpu/test_double.py runs it on the double, beside the CPU")
    gc.collect()
    torch.cuda.empty_cache()
    pipeline = Pipeline.from_recipe(RECIPE, ["runtime.device=cuda"], run_dir=tmp_path)
    pipeline.run()
    rows = [json.loads(line) for line in (tmp_path / "ppo/metrics.jsonl").read_text().splitlines()]
    assert abs(rows[0]["objective/kl"]) < 1e-2 and rows[0]["ppo/policy/ratio"] == pytest.approx(1.0, abs=2e-2)
    pipeline.loaded.clear()
    held = torch.cuda.memory_allocated()
    base = sum(p.numel() * p.element_size() for p in pipeline.loaded.base().base_tensors().values())
    assert held < 4 * base + 2**24
