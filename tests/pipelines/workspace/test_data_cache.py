"""``trivet gc --cache``: what dead processes left goes, what a live one may use stays."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import pytest

from data.storage.folders import BASES, RATINGS, Folder, cache_root
from pipelines.cli.main import main


@pytest.fixture
def root(tmp_path, monkeypatch):
    monkeypatch.setenv("TRIVET_CACHE", str(tmp_path))
    made = cache_root()
    for name, days in (("old", 40), ("lately", 1)):
        (made / name).mkdir(parents=True)
        (made / name / "rows").write_bytes(b"x" * 1000)
        os.utime(made / name, (time.time() - days * 86400,) * 2)
    (made / "scratch-dead").mkdir()
    (made / "scratch-dead" / "lock").touch()
    return made


def there(root):
    return sorted(p.name for p in root.iterdir())


def test_the_cache_is_listed_and_emptied_when_asked_for(root, capsys):
    assert main(["gc", "--cache"]) == 0
    out = capsys.readouterr().out
    assert "1.0 kB in 2 places can go" in out and "the data cache holds 2.0 kB" in out
    assert there(root) == ["lately", "old", "scratch-dead"]
    assert main(["gc", "--cache", "--yes"]) == 0
    assert there(root) == ["lately"]
    assert main(["gc", "--cache", "--days", "0", "--yes"]) == 0
    assert there(root) == []
    assert main(["gc", "--cache", "runs/a"]) == 2


def test_what_a_live_process_may_use_stays(root, capsys):
    live = Folder(root)
    used = root / "used"
    used.mkdir()
    assert main(["gc", "--cache", "--days", "0", "--yes"]) == 0
    assert "stays, a live process may use it" in capsys.readouterr().out
    assert there(root) == [live.path.name, "used"]
    live.remove()


def test_bases_that_gguf_files_were_read_into_go_and_ratings_stay(root, capsys):
    bases, ratings = cache_root(BASES), cache_root(RATINGS)
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    for name in (
        "m.Q8_0-0123",
        f".m.Q8_0-4567.{gone.pid}.partial",
        f".m.Q8_0-89ab.{os.getpid()}.partial",
        ".x.partial",
    ):
        (bases / name).mkdir(parents=True)
        (bases / name / "model.safetensors").write_bytes(b"x" * 3000)
        os.utime(bases / name, (time.time() - 40 * 86400,) * 2)
    ratings.mkdir()
    (ratings / "judge.jsonl").write_bytes(b"x" * 500)
    assert main(["gc", "--cache"]) == 0
    out = capsys.readouterr().out
    assert "10.0 kB in 5 places can go" in out and "the data cache holds 14.0 kB" in out
    assert "a base that a GGUF file was read into" in out and "500 B of judges' ratings stay" in out
    assert main(["gc", "--cache", "--yes"]) == 0
    assert there(bases) == [f".m.Q8_0-89ab.{os.getpid()}.partial"] and there(ratings) == ["judge.jsonl"]
    assert there(root) == ["lately"]
