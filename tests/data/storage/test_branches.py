"""Messages of a dump become the trees that they are, whatever their order, in memory that does not grow with them."""

from __future__ import annotations

import datetime
import random
import tracemalloc
from collections.abc import Iterator
from typing import Any

import pytest

from data.common.errors import UserError
from data.formats import assembled
from data.storage import branches
from data.storage.branches import Branches


def message(name: str, above: str | None, **more: Any) -> dict[str, Any]:
    return {"message_id": name, "parent_id": above, "role": "prompter", "text": f"text of {name}", **more}


def shape(row: Any) -> Any:
    return row["message_id"], [shape(one) for one in row["replies"]]


def test_trees_have_their_rows_in_the_order_in_which_they_came():
    when = datetime.datetime(2024, 5, 1)
    rows = [
        ("1", message("b", "a", when=when)),
        ("2", message("lost", "nobody")),
        ("3", {"prompt": "another row"}),
        ("4", message("a", None)),
        ("5", message("c", "b", odd={1: "a key that is no text", "x": "\ud800"})),
        ("6", message("d", "a", text="\ud83d half")),
        ("7", message("a", "c", text="again")),
        ("8", message("x", "y")),
        ("9", message("y", "x")),
        ("10", message("", "")),
    ]
    found = list(assembled(rows))
    assert [place for place, _ in found] == ["3", "7", "2", "4", "10", "8", "9"]
    whole = dict(found)
    assert whole["3"] == {"prompt": "another row"} and whole["7"]["parent_id"] == "(again)"
    assert shape(whole["4"]) == ("a", [("b", [("c", [])]), ("d", [])])
    first, last = whole["4"]["replies"]
    assert first["when"] == when and last["text"] == "\ud83d half"
    assert first["replies"][0]["odd"] == {1: "a key that is no text", "x": "\ud800"}
    assert whole["8"]["replies"] == [] and whole["2"]["parent_id"] == "nobody"


def test_any_forest_comes_back():
    r = random.Random(0)
    above = {i: r.choice([None, *range(i)]) for i in range(300)}
    order = r.sample(range(300), 300)
    rows = [(str(i), message(str(i), None if above[i] is None else str(above[i]))) for i in order]

    def expected(i: int) -> Any:
        return str(i), [expected(j) for j in order if above[j] == i]

    assert [shape(row) for _, row in assembled(rows)] == [expected(i) for i in order if above[i] is None]


def test_memory_does_not_grow_with_the_messages(monkeypatch):
    monkeypatch.setattr(branches, "CACHE", 512)

    def rows() -> Iterator[tuple[str, Any]]:
        for i in range(8000):
            yield str(i), message(str(i), None if i % 4 == 0 else str(i - i % 4), text="a long text " * 100)

    tracemalloc.start()
    count = sum(len(tree["replies"]) for _, tree in assembled(rows()))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count == 6000 and peak < 1_000_000


def test_a_full_disk_is_told():
    full = Branches("replies")
    full._base.execute("PRAGMA max_page_count = 10")
    with pytest.raises(UserError, match=r"messages cannot be put together .*SQLITE_TMPDIR"):
        for i in range(1000):
            full.add(str(i), None, "a:1", {"text": "x" * 1000})
