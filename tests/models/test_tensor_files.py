"""Safetensors files have the same bytes each time."""

from __future__ import annotations

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from models.backbone.tensor_files import header_of, read_rows, save_tensors, shapes_of


def test_several_metadata_are_in_one_order(tmp_path):
    metadata = {name: f'"ü\n{name}"' for name in "abcdefgh"}
    files = [tmp_path / str(i) for i in range(8)]
    for file in files:
        save_tensors({"x": torch.arange(3.0), "y": torch.ones(2, 2)}, file, metadata=metadata)
    assert len({file.read_bytes() for file in files}) == 1
    assert header_of(files[0]) == metadata and torch.equal(load_file(files[0])["x"], torch.arange(3.0))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_some_rows_are_read_alone(tmp_path, dtype):
    matrix = torch.arange(30.0).view(10, 3).to(dtype)
    save_tensors({"ids": torch.arange(4), "a": torch.ones(5), "m": matrix}, tmp_path / "f", metadata={"x": "y"})
    assert shapes_of(tmp_path / "f") == {"a": (5,), "m": (10, 3)}
    assert torch.equal(read_rows(tmp_path / "f", "m", [0, 7, 9]), matrix[[0, 7, 9]])


def test_rows_of_a_file_that_is_none_or_ends_too_soon(tmp_path):
    (tmp_path / "text").write_text("no weights in here, only words")
    with pytest.raises(SafetensorError, match="no header"):
        shapes_of(tmp_path / "text")
    save_tensors({"m": torch.ones(10, 3)}, tmp_path / "f")
    (tmp_path / "f").write_bytes((tmp_path / "f").read_bytes()[:-4])
    with pytest.raises(OSError, match="ends before a row of m"):
        read_rows(tmp_path / "f", "m", [0, 9])


def test_a_file_larger_than_memory_is_read_by_rows(tmp_path):
    """As it stands on a disk, its rows never written: 140 GB of zeros."""
    header = b'{"m":{"dtype":"BF16","shape":[70000000000,1],"data_offsets":[0,140000000000]}}'
    with (tmp_path / "f").open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.truncate(8 + len(header) + 140_000_000_000)
    assert read_rows(tmp_path / "f", "m", [0, 69_999_999_999]).tolist() == [[0.0], [0.0]]
