"""Files that a user's function opens are noted with their bytes; what it writes, imports or leaves alone is not."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from data.common.opened_files import forget, noting, read_by
from data.common.user_functions import load_function, owners_of

FUNCTION = """
import json, os
from pathlib import Path
HERE = Path(__file__).parent
TABLE = json.loads((HERE / "table.json").read_text())

def f(completions):
    for name in ("lexicon.txt", b"deep/er.bin"):
        with open(HERE / os.fsdecode(name), "rb") as file:
            file.read()
    with open(HERE / "scores.log", "a") as log:
        log.write("1")
    (HERE / "scores.log").read_text()
    (HERE / "cache.json").exists()
    return [float(TABLE["x"]) for _ in completions]
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "mine/deep").mkdir(parents=True)
    (tmp_path / "mine/f.py").write_text(FUNCTION)
    for name in ("table.json", "lexicon.txt", "deep/er.bin", "cache.json"):
        (tmp_path / "mine" / name).write_text('{"x": 1}')
    return tmp_path


def noted(folder: Path) -> dict[str, str]:
    owners = owners_of("mine/f.py:f", folder)
    return {str(path.relative_to(folder)): sha for owner in owners for path, sha in read_by(owner).items()}


def test_what_the_file_and_the_function_read_is_noted(folder: Path) -> None:
    function = load_function("mine/f.py:f", folder)
    assert list(noted(folder)) == ["mine/table.json"]
    before = hashlib.sha256(b'{"x": 1}').hexdigest()
    assert function(["p"], ["c"]) == [1.0]
    (folder / "mine/lexicon.txt").write_text("later")
    function(["p"], ["c"])
    assert noted(folder) == dict.fromkeys(("mine/table.json", "mine/lexicon.txt", "mine/deep/er.bin"), before)
    forget(owners_of("mine/f.py:f", folder)[-1])
    assert list(noted(folder)) == ["mine/table.json"]
    function(["p"], ["c"])
    assert noted(folder)["mine/lexicon.txt"] == hashlib.sha256(b"later").hexdigest()


def test_what_is_opened_by_others_or_elsewhere_is_not_noted(
    folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    elsewhere = tmp_path_factory.mktemp("elsewhere") / "x.txt"
    elsewhere.write_text("x")
    (folder / "own.txt").write_text("x")
    with noting("owner", [folder]):
        elsewhere.read_text()
        os.close(os.open(folder / "own.txt", os.O_RDONLY))
        with pytest.raises(OSError):
            (folder / "not there").read_text()
    (folder / "mine/lexicon.txt").read_text()
    assert list(read_by("owner")) == [folder / "own.txt"] and read_by("nobody") == {}
