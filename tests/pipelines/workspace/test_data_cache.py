"""``trivet gc --cache``: what dead processes left goes, what a live one may use stays."""

from __future__ import annotations

import os
import time

import pytest

from data.storage.folders import Folder, cache_root
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
