"""Records and findings are the same with helper processes and without."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from data import blocks
from data.doctor import corpus as doctor
from data.doctor.corpus import examine
from data.source_settings import DataConfig
from data.splits import PARTS, load_corpus
from data.storage import store


def write(path: Path, rows: list[Any]) -> None:
    path.write_text("".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in rows), encoding="utf-8")


def odd(i: int) -> Any:
    """Rows of every kind: pairs, contradictions, repeats, thumbs, messages of a dump, and what is rejected."""
    message = {"message_id": f"m{i}", "parent_id": None, "text": f"asked {i}", "role": "prompter"}
    answer = {"message_id": f"a{i}", "parent_id": f"m{i - 1}", "text": f"said {i}", "role": "assistant", "rank": i % 2}
    kinds = {
        3: {"prompt": f"q {i % 7}", "chosen": "b", "rejected": "a"},
        5: {"prompt": f"q {i % 7}", "chosen": "a", "rejected": "b"},
        6: {"prompt": f"thumb {i // 20}", "completion": f"c {i}", "label": i % 4 == 2},
        8: "{",
        11: {"prompt": "no answer", "chosen": "x", "rejected": "x"},
        13: {"chosen": f"without {i}", "rejected": "a prompt"},
        16: message,
        17: answer | {"parent_id": f"m{i - 1}"},
        18: answer | {"parent_id": f"m{i - 2}"},
    }
    usual = {"prompt": f"Explain number {i}", "chosen": f"It is {i}.", "rejected": f"It is not {i}", "n": i % 2}
    return kinds.get(i % 20, usual if i % 19 else usual | {"note_id": "7"})


@pytest.fixture
def many(monkeypatch, tmp_path):
    """A few rows as many: they are written, and helpers look at them."""
    monkeypatch.setenv("TRIVET_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(store, "IN_MEMORY", 10)
    monkeypatch.setattr(blocks, "MANY", 30)
    monkeypatch.setattr(blocks, "BLOCK", 50)
    monkeypatch.setattr(doctor, "MANY", 50)
    monkeypatch.setattr(doctor, "BLOCK", 40)
    return tmp_path


def found(folder: Path, helpers: int, monkeypatch) -> Any:
    monkeypatch.setattr(blocks, "helpers", lambda: helpers)
    monkeypatch.setattr(doctor, "helpers", lambda: helpers)
    config = DataConfig(rankings="a.jsonl", demonstrations="b.jsonl", held_out=0.3)
    corpus = load_corpus(config, seed=0, base_dir=folder)
    health = examine(corpus, lambda texts: [len(t.split()) for t in texts], near=20)
    places = [
        [(r.prompt.source, r.prompt.columns) for r in side]
        for side in (corpus.rankings.train, corpus.rankings.held_out)
    ]
    rest = (list(corpus.rejected), corpus.notes, [str(c) for c in corpus.counts], corpus.remarks)
    return health.as_dict(), [corpus.fingerprint(part) for part in PARTS], places, rest


def noted(mapped: Any, made: list[Any], *given: Any) -> Iterator[Any]:
    for block, one in mapped(*given):
        made.append(one)
        yield block, one


def test_helpers_make_the_records_and_findings_of_one_process(many, monkeypatch):
    write(many / "a.jsonl", [odd(i) for i in range(900)])
    few = [{"prompt": f"q {i % 7}" if i % 5 else f"thing {i}", "completion": f"a {i}"} for i in range(25)]
    write(many / "b.jsonl", few)
    alone = found(many, 0, monkeypatch)
    made: list[Any] = []
    for module in (blocks, doctor):
        monkeypatch.setattr(module, "mapped", partial(noted, module.mapped, made))
    assert found(many, 2, monkeypatch) == alone
    assert len(made) > 30 and sum(one is None for one in made) < len(made) / 2
    kinds = {finding["kind"] for finding in alone[0]["findings"]}
    assert {"contradiction", "duplicates"} <= kinds and alone[3][0]


def test_formats_that_helpers_do_not_know_are_read_by_their_caller(many, monkeypatch):
    from data.formats import FORMATS

    rows = [{"prompt": f"q {i}", "completion": f"a {i}"} for i in range(200)]
    write(many / "a.jsonl", rows)
    write(many / "b.jsonl", rows)
    monkeypatch.setattr(blocks, "helpers", lambda: 1)
    monkeypatch.setitem(FORMATS, "mine", FORMATS["prompt and completion"])
    corpus = load_corpus(DataConfig(demonstrations="a.jsonl"), seed=0, base_dir=many)
    assert len(corpus.demonstrations) == 200
