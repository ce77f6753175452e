"""A line now and then from what takes long, with how far it is; nothing from what is quick, and one process speaks."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from data.common import patience as module
from data.common.patience import each, patience
from data.sources import DataConfig, load_records


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """What takes any time at all is told."""
    monkeypatch.setattr(module, "FIRST", 0.0)
    monkeypatch.setattr(module, "EVERY", 0.01)


def test_long_work_is_told_while_it_goes_on(impatient: None) -> None:
    said: list[str] = []
    far = ["1 of 3 files"]
    with patience("hashing", lambda: far[0], said.append):
        while len(said) < 2:
            time.sleep(0.005)
        far[0] = "2 of 3 files"
        while not said[-1].startswith("hashing: 2 of 3 files (0 s so far)"):
            time.sleep(0.005)
    assert said[0] == "hashing: 1 of 3 files (0 s so far)"
    count = len(said)
    time.sleep(0.05)
    assert len(said) == count and threading.active_count() < 50


def test_quick_work_is_not_told(capsys: pytest.CaptureFixture[str]) -> None:
    with patience("hashing"):
        pass
    assert list(each([1, 2], "reading")) == [1, 2]
    assert capsys.readouterr() == ("", "")


def test_an_error_ends_the_lines(impatient: None) -> None:
    before = threading.active_count()
    with pytest.raises(ZeroDivisionError), patience("dividing", say=lambda _: None):
        _ = 1 / 0
    assert threading.active_count() == before


def test_other_processes_are_silent(
    impatient: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RANK", "1")
    with patience("hashing"):
        time.sleep(0.05)
    assert capsys.readouterr().err == ""


def test_rows_are_told_with_their_number_and_total(impatient: None, capsys: pytest.CaptureFixture[str]) -> None:
    def until_told(text: str) -> None:
        """Work on a row until it is told so."""
        told = ""
        while text not in told:
            time.sleep(0.005)
            told += capsys.readouterr().err

    for i in each(range(3), "reading", "lines"):
        until_told(f"reading: {i} of 3 lines (")
    for i in each(iter(range(2)), "reading"):
        until_told(f"reading: {i} rows (")  # of a stream nobody knows the total


def test_reading_and_rendering_and_hashing_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from data.template import Renderer
    from pipelines.stages.keys import folder_hash
    from stages.settings import RewardConfig, SFTConfig
    from stages.sft import encode_demonstrations
    from stages.stage import prompt_rows
    from stages.training.ranking_rows import encode_rankings
    from tests.conftest import word_tokenizer
    from tests.support.training import DEMONSTRATIONS, rankings

    told: list[str] = []

    @contextmanager
    def noted(what: str, done: Callable[[], str]) -> Iterator[None]:
        yield
        told.append(f"{what}: {done()}")

    monkeypatch.setattr(module, "patience", noted)
    rows = [{"prompt": f"w{i}", "completion": "w2"} for i in range(30)]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
    load_records(["a.jsonl"], "demonstrations", DataConfig(), seed=0, base_dir=tmp_path)
    renderer = Renderer(word_tokenizer(), template="dialogue")
    encode_demonstrations(renderer, DEMONSTRATIONS, SFTConfig())
    encode_rankings(renderer, rankings(5), RewardConfig(), "held-out rankings")
    prompt_rows(renderer, [d.prompt for d in DEMONSTRATIONS])
    folder_hash(tmp_path)
    assert told == [
        "reading a.jsonl: 30 rows",
        "rendering demonstrations: 12 of 12 rows",
        "rendering held-out rankings: 5 of 5 rows",
        "rendering prompts: 12 of 12 rows",
        f"hashing {tmp_path}: 1 of 1 files",
    ]
