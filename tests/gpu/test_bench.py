"""``make gpu-bench`` at a tiny size: every phase runs on the device, and what is written says where and what."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch

from tests.support import four_bits_double
from tests.support.gpu_double import NAME, GpuDouble


@pytest.fixture(scope="module")
def bench():
    sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
    try:
        import gpu
    finally:
        del sys.path[0]
    return gpu


def test_every_phase_is_measured_on_the_device(bench, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(bench, "peak_memory", lambda device: 3 << 30)
    with GpuDouble().installed() as gpu:
        bench.main(["--sizes", "tiny", "--dtypes", "bfloat16", "--write", str(tmp_path / "gpu.json")])
    found = json.loads((tmp_path / "gpu.json").read_text())
    (row,) = found["models"]
    assert found["device"] == NAME and row["dtype"] == "bfloat16"
    for name in ("sft", "reward", "ppo", "decode"):
        assert row[name]["tokens_per_second"] > 0
    assert row["parameters"] > 0 and row["ppo_peak_over_sft"] == 1.0
    # 2 layers of (4 + 2 + 2 + 4) x 8 x 32 + 3 x 32 x 64 weights, norms, 64 x 32 words; keys and values of 8 rows
    weights = 2 * (12 * 8 * 32 + 3 * 32 * 64 + 2 * 32) + 32 + 64 * 32
    assert row["decode"]["bytes_per_step"] == 2 * weights + 2 * 2 * 16 * 2 * 8 * (6 + 15)
    assert gpu.launches[""] > 1000 and not gpu.float64
    assert "| tiny | bfloat16 |" in capsys.readouterr().out


def test_a_base_in_four_bits_is_measured_as_well(bench, tmp_path, monkeypatch):
    """Matrices of 64 and more numbers: half a byte each, and 4 for 64 of them; the rest as in bf16."""
    pytest.importorskip("bitsandbytes")
    monkeypatch.setattr("bitsandbytes.functional.dequantize_4bit", four_bits_double.dequantize)
    monkeypatch.setattr(bench, "quantize", four_bits_double.quantize)
    monkeypatch.setattr(bench, "peak_memory", lambda device: 3 << 30)
    with GpuDouble().installed() as gpu:
        (row,) = bench.main(["--sizes", "tiny", "--dtypes", "nf4"])["models"]
    matrices, rest = 2 * (12 * 8 * 32 + 3 * 32 * 64), 2 * 2 * 32 + 32 + 64 * 32
    assert row["parameters"] == matrices + rest
    assert row["decode"]["bytes_per_step"] == matrices // 2 + matrices // 16 + 2 * rest + 2 * 2 * 16 * 2 * 8 * (6 + 15)
    assert all(row[name]["tokens_per_second"] > 0 for name in ("sft", "reward", "ppo", "decode"))
    assert not gpu.float64


def test_without_the_package_four_bits_are_left_out_with_the_reason(bench, monkeypatch):
    monkeypatch.setattr(bench, "can_quantize", lambda: False)
    with GpuDouble().installed():
        (row,) = bench.main(["--sizes", "tiny", "--dtypes", "nf4"])["models"]
    assert row["left_out"] == "bitsandbytes is not installed" and "sft" not in row


def test_what_does_not_fit_is_left_out_with_the_reason(bench, monkeypatch, capsys):
    def full(self):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")

    monkeypatch.setattr(bench.Bench, "reward", full)
    with GpuDouble().installed():
        (row,) = bench.main(["--sizes", "tiny", "--dtypes", "float32"])["models"]
    assert "sft" in row and "ppo" not in row and "Tried to allocate 20.00 GiB" in row["left_out"]
    assert "Tried to allocate" in capsys.readouterr().out


def test_without_a_device_nothing_is_measured(bench, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit, match="no CUDA device"):
        bench.main([])
