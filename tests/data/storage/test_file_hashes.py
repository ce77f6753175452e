"""Hashes that are remembered: nothing is read again for a plan, and everything at a run."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from data.storage import file_hashes
from data.storage.file_hashes import LARGE, remembered, sha256_of


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@pytest.fixture
def big(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TRIVET_CACHE", str(tmp_path / "cache"))
    file = tmp_path / "model.safetensors"
    file.write_bytes(b"a" * LARGE)
    return file


def same_stamp(file: Path, data: bytes) -> None:
    """Other bytes of the same size, in place, with the time put back."""
    stat = file.stat()
    with file.open("r+b") as stream:
        stream.write(data)
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def test_a_plan_reads_a_large_file_once(big: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with remembered():
        assert sha256_of(big) == digest(b"a" * LARGE)
        monkeypatch.setattr(hashlib, "file_digest", lambda *_: pytest.fail("it is read again"))
        assert sha256_of(big) == digest(b"a" * LARGE)


def test_a_run_notices_what_a_plan_cannot(big: Path) -> None:
    sha256_of(big)
    same_stamp(big, b"b" * LARGE)
    with remembered():
        assert sha256_of(big) == digest(b"a" * LARGE)
    assert sha256_of(big) == digest(b"b" * LARGE)
    with remembered():  # and the next plan knows
        assert sha256_of(big) == digest(b"b" * LARGE)


@pytest.mark.parametrize("change", ["size", "time", "inode"])
def test_a_file_that_changed_is_read(change: str, big: Path) -> None:
    sha256_of(big)
    data = b"c" * (LARGE + (change == "size"))
    stat = big.stat()
    if change == "inode":
        other = big.with_name("other")
        other.write_bytes(data)
        os.utime(other, ns=(stat.st_atime_ns, stat.st_mtime_ns))
        other.replace(big)
    else:
        big.write_bytes(data)
        os.utime(big, ns=(stat.st_atime_ns, stat.st_mtime_ns + (change == "time") * 10**9))
    with remembered():
        assert sha256_of(big) == digest(data)


@pytest.mark.parametrize("damage", ["", "[]", "{", '{"x": 3}'])
def test_a_damaged_memory_is_none(damage: str, big: Path) -> None:
    sha256_of(big)
    (file_hashes.cache_root() / file_hashes.NAME).write_text(damage)
    with remembered():
        assert sha256_of(big) == digest(b"a" * LARGE)


def test_small_files_are_read(tmp_path: Path, big: Path) -> None:
    small = tmp_path / "config.json"
    small.write_bytes(b"1")
    sha256_of(small)
    same_stamp(small, b"2")
    with remembered():
        assert sha256_of(small) == digest(b"2")
