"""A pointer of Git LFS or a web page in a file's place is named as what it is, in data and in a base's folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from data.common.errors import UserError
from data.sources import DataConfig, load_records
from models.hub.validate import check_model

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 1234567\n"
PAGE = b"\xef\xbb\xbf\n<!DOCTYPE html>\n<html><title>404</title></html>\n"


@pytest.mark.parametrize(
    "name", ["a.jsonl", "a.csv", "a.parquet", "a.jsonl.gz", "a.zip", "a.arrow", "a.xlsx", "a.json"]
)
@pytest.mark.parametrize(("held", "words"), [(POINTER, "pointer of Git LFS"), (PAGE, "web page.*resolve")])
def test_a_data_file_that_was_not_fetched_is_named(tmp_path: Path, name: str, held: bytes, words: str) -> None:
    (tmp_path / name).write_bytes(held)
    with pytest.raises(UserError, match=f"{name} is a {words}"):
        load_records([name], "demonstrations", DataConfig(), seed=0, base_dir=tmp_path)


def test_a_text_about_pages_is_data(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"<html> is how a page begins.\n\nversion 2 of it\n")
    assert len(load_records(["a.txt"], "documents", DataConfig(), seed=0, base_dir=tmp_path).records) == 2


@pytest.mark.parametrize(
    "name", ["config.json", "model.safetensors", "tokenizer.json", "tokenizer.model", "merges.txt"]
)
def test_a_file_of_a_base_that_was_not_fetched_is_named(tmp_path: Path, name: str) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    (tmp_path / name).write_bytes(POINTER)
    with pytest.raises(UserError, match=f"{name} is a pointer of Git LFS"):
        check_model(tmp_path)
