"""Safetensors files have the same bytes each time."""

from __future__ import annotations

import torch
from safetensors.torch import load_file

from models.backbone.tensor_files import header_of, save_tensors


def test_several_metadata_are_in_one_order(tmp_path):
    metadata = {name: f'"ü\n{name}"' for name in "abcdefgh"}
    files = [tmp_path / str(i) for i in range(8)]
    for file in files:
        save_tensors({"x": torch.arange(3.0), "y": torch.ones(2, 2)}, file, metadata=metadata)
    assert len({file.read_bytes() for file in files}) == 1
    assert header_of(files[0]) == metadata and torch.equal(load_file(files[0])["x"], torch.arange(3.0))
