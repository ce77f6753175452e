"""Full weights in a precision and in shards: what rounding does is worked by hand; what has no number is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from transformers import AutoModelForCausalLM

from data.common.errors import UserError
from models.roles.export import write_model
from models.roles.saving import Saving, rounding
from tests.conftest import ADAPTER, make_base, randomise


class One(nn.Module):
    def __init__(self, *weights: float) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.tensor(weights))


def test_the_rounding_error_is_that_worked_by_hand() -> None:
    # bf16 has 8 significant bits: 1 + 1/256 becomes 1, so that of a change of (1/256, 1) an error of 1/256 is left
    found = rounding(One(1 + 1 / 256, 3.0), One(1.0, 2.0), torch.bfloat16, "bf16")
    assert found.of_weights == pytest.approx((1 / 256) / ((1 + 1 / 256) ** 2 + 9) ** 0.5, rel=1e-6)
    assert found.of_change == pytest.approx((1 / 256) / ((1 / 256) ** 2 + 1) ** 0.5, rel=1e-6)
    # of what training did not change nothing is said, whatever rounding does to it
    assert rounding(One(1 + 1 / 256), One(1 + 1 / 256), torch.bfloat16, "bf16").of_change is None
    assert rounding(One(1.0, 2.5), One(0.0, 0.0), torch.bfloat16, "bf16").of_change == 0


def test_a_weight_beyond_the_precision_is_refused_by_name() -> None:
    with pytest.raises(UserError, match=r"--dtype fp16: w holds 7e\+04, too large for fp16; choose bf16 or fp32"):
        Saving(dtype="fp16").cast(One(1.0, 70000.0), One(1.0, 1.0), print)


def test_merged_weights_are_rounded_once_and_told(tmp_path: Path) -> None:
    base = make_base()
    base.add_role("sft", ADAPTER)
    randomise(base, "sft", 1)
    said: list[str] = []
    write_model(base, "sft", tmp_path / "exact", [2])
    write_model(base, "sft", tmp_path / "rounded", [2], Saving(dtype="bf16", max_shard_size="20KB"), said.append)
    exact = load_file(tmp_path / "exact/model.safetensors")
    index = json.loads((tmp_path / "rounded/model.safetensors.index.json").read_text())["weight_map"]
    files = sorted(set(index.values()))
    assert len(files) > 1
    stored = {k: v for name in files for k, v in load_file(tmp_path / "rounded" / name).items()}
    assert stored.keys() == exact.keys()
    for name, tensor in stored.items():
        assert tensor.dtype == torch.bfloat16 and torch.equal(tensor, exact[name].to(torch.bfloat16)), name
    opened: Any = AutoModelForCausalLM.from_pretrained(tmp_path / "rounded")
    assert opened.dtype == torch.bfloat16
    (sentence,) = said
    assert sentence.startswith("Rounding to bf16 changes the weights by 0.00") and "what training changed" in sentence


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"dtype": "bf61"}, "--dtype bf61: no such precision.*bf16"),
        ({"max_shard_size": "5"}, "--max-shard-size 5: is no size; write it as 500MB or 5GB"),
        ({"max_shard_size": "0GB"}, "is no size"),
    ],
)
def test_what_is_no_precision_or_size_is_refused(options: dict[str, str], words: str) -> None:
    with pytest.raises(UserError, match=words):
        Saving(**options)
