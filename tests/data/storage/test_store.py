"""Records on disk are the records that were put there, in their order, whatever they hold."""

from __future__ import annotations

import datetime
import json
import signal
import subprocess
import sys
import textwrap
from decimal import Decimal
from pathlib import Path

import numpy as np
import pytest

from data.common.errors import UserError
from data.corpus import Split
from data.records import Demonstration, Document, Message, Prompt, RankedAnswers
from data.splits import PARTS, DataConfig, load_corpus
from data.storage import folders, store
from data.storage.digests import among, digest, firsts, group_digest, repeated
from data.storage.first_places import Firsts
from data.storage.store import Store
from data.storage.views import Chain, Mapped, View

ROOT = Path(__file__).parents[3]
CALLS = '[{"type": "function", "function": {"name": "f", "arguments": "{}"}}]'
ODD = {
    "when": datetime.datetime(2024, 5, 1, 12, 30),
    "day": datetime.date(2024, 5, 1),
    "took": datetime.timedelta(days=1, seconds=2),
    "price": Decimal("1.10"),
    "raw": b"\x00\xff",
    "pairs": [("a", 1), ("b", None)],
    "nested": {"\u4e2d": [1.5, float("inf"), {"x": "\ud800"}]},
}


@pytest.fixture
def small(monkeypatch, tmp_path):
    """Stores that write from the fourth record on, into a cache of their own."""
    monkeypatch.setenv("TRIVET_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(folders, "_held", {})
    monkeypatch.setattr(store, "IN_MEMORY", 3)
    monkeypatch.setattr(store, "BATCH", 4)
    return tmp_path / "cache" / "data"


def prompt(i: int, **more) -> Prompt:
    messages = (Message(role="user", content=f"ask \u4e2d {i}"),)
    return Prompt(**({"messages": messages, "group": f"{i:016x}", "source": f"f:{i}"} | more))


RECORDS = {
    Document: [Document(text=f"text {i}\n\u0645", group=f"g{i}", source=f"d:{i}") for i in range(9)],
    Demonstration: [Demonstration(prompt=prompt(i), answer=f"a{i}", finished=i % 2 == 0) for i in range(9)],
    RankedAnswers: [
        RankedAnswers(
            prompt=prompt(i, category="c"),
            answers=("x", f"y{i}"),
            ranks=(0, 1),
            scores=(0.1 + 0.2, -1e-9) if i % 2 else None,
            finished=(True, False),
            weight=1 / 3 if i == 4 else 1.0,
        )
        for i in range(9)
    ],
    Prompt: [prompt(i, columns=ODD | {"n": i}) for i in range(9)],
}


@pytest.mark.parametrize("kind", RECORDS, ids=lambda kind: kind.__name__)
def test_what_comes_back_is_what_was_put_there(small, kind):
    kept: Store = Store(kind)
    kept.extend(RECORDS[kind])
    assert kept.file is not None and kept.file.is_file() and not kept.unwritten
    assert list(kept) == RECORDS[kind] and [kept[i] for i in (8, 0, 5)] == [RECORDS[kind][i] for i in (8, 0, 5)]
    assert kept == RECORDS[kind] and kept != RECORDS[kind][:-1] and tuple(RECORDS[kind]) == kept
    if kind is Prompt:  # columns are no part of equality
        assert [dict(p.columns) for p in kept] == [ODD | {"n": i} for i in range(9)]
        assert isinstance(kept[0].columns["pairs"][0], tuple)
    with pytest.raises(IndexError):
        kept[9]


def test_calls_keep_the_order_of_their_keys_and_what_cannot_be_written_stays_in_memory(small):
    turn = Message(role="assistant", content="", tool_calls=CALLS, trained=False)
    calls = Demonstration(prompt=prompt(1, messages=(Message(role="user", content="q", tools=CALLS), turn)), answer="a")
    odd = Demonstration(prompt=prompt(2, columns={"thing": {1, 2}, 3: "three"}), answer="b")
    kept: Store = Store(Demonstration)
    kept.extend([calls, odd] * 3)
    assert kept[0].prompt.messages[1] == turn and kept[0].prompt.messages[0].tools == CALLS
    assert kept[5].prompt.columns == {"thing": {1, 2}, 3: "three"} and set(kept.unwritten) == {1, 3, 5}


def test_views_are_sequences_of_the_same_items():
    base = [10, 11, 12, 13]
    view = View(base, np.array([3, 1]))
    assert list(view) == [13, 11] and view[-1] == 11 and view[:1] == (13,) and view == (13, 11)
    chained = Chain(view, (), base[:1])
    assert len(chained) == 3 and chained[1:] == [11, 10] and list(chained) == [13, 11, 10]
    assert list(Mapped(str, chained)) == ["13", "11", "10"] and Split((1,), (2, 3)).all == [1, 2, 3]


@pytest.mark.parametrize("count", [50, 70_000])  # one range, and many
def test_first_and_repeated_numbers_are_those_of_a_loop(count):
    r = np.random.default_rng(0)
    numbers = r.integers(0, 2**64 - 1, count, dtype=np.uint64)
    numbers[r.integers(0, count, count // 3)] = numbers[r.integers(0, count, count // 3)]
    seen: dict[int, int] = {}
    twice = set()
    for place, number in enumerate(numbers.tolist()):
        twice |= {number} if number in seen else set()
        seen.setdefault(number, place)
    assert firsts(numbers).tolist() == sorted(seen.values())
    assert repeated(numbers).tolist() == sorted(twice)
    assert among(numbers, repeated(numbers)).tolist() == [n in twice for n in numbers.tolist()]


def test_groups_that_are_hashes_sort_as_their_names():
    names = ["00ff00ff00ff00ff", "ffffffffffffffff", "0123456789abcdef"]
    assert sorted(names, key=group_digest) == sorted(names)
    assert group_digest("topic=1") == digest("topic=1") != group_digest("topic=2")


def test_a_full_disk_is_told_with_its_folder(small, monkeypatch):
    kept: Store = Store(Document)

    def full(*_):
        raise OSError(28, "No space left on device")

    kept.extend(RECORDS[Document][:4])
    kept._writer = type("Full", (), {"write_batch": full, "close": full})()
    with pytest.raises(UserError, match=r"records cannot be written to .*No space left.*TRIVET_CACHE"):
        kept.extend(RECORDS[Document])


def test_a_cache_that_cannot_be_written_gives_way_to_the_temporary_folder(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("TRIVET_CACHE", str(tmp_path / "file"))  # no folder can be made in a file
    monkeypatch.setattr(folders, "_held", {})
    monkeypatch.setattr(store, "IN_MEMORY", 3)
    kept: Store = Store(Document)
    kept.extend(RECORDS[Document])
    assert list(kept) == RECORDS[Document]


CHILD = """
    import sys, time
    sys.path.insert(0, {root!r})
    from data.records import Document
    from data.storage import store
    store.IN_MEMORY = 3
    kept = store.Store(Document)
    kept.extend(Document(text=str(i), group="g") for i in range(2000))
    print(kept.file, flush=True)
    time.sleep(60)
"""


def test_what_a_killed_process_left_is_removed_by_the_next_and_that_of_a_living_one_stays(small, monkeypatch):
    def child() -> tuple[subprocess.Popen[str], Path]:
        code = textwrap.dedent(CHILD.format(root=str(ROOT)))
        process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        return process, Path(process.stdout.readline().strip())

    killed, left = child()
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    living, own = child()  # removes what the killed one left
    try:
        assert not left.parent.exists() and own.is_file()
        monkeypatch.setattr(folders, "_held", {})
        kept: Store = Store(Document)
        kept.extend(RECORDS[Document])
        assert own.is_file() and list(kept) == RECORDS[Document]
    finally:
        living.kill()
        living.wait()


# ---- the split over records on disk ----------------------------------------------------------------------------------


def rows(folder: Path) -> dict[str, str]:
    ranked = [
        {"prompt": f"q {i % 30}", "chosen": f"a {i}", "rejected": f"b {i}", "n": i, "topic": i % 7} for i in range(60)
    ]
    shown = [
        {"prompt": f"q {i}", "completion": f"c {i}"} if i % 3 else {"prompt": "", "completion": f"t {i % 4}"}
        for i in range(40)
    ]
    texts = [{"text": f"t {i % 9}"} for i in range(20)] + [{"text": "some q 4 and so on"}]
    for name, found in (("r", ranked), ("d", shown), ("t", texts)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in found))
    return {"rankings": "r.jsonl", "demonstrations": "d.jsonl", "documents": "t.jsonl"}


CASES = {
    "three parts": {},
    "share": {"annotators": "share"},
    "mean": {"annotators": "mean"},
    "half": {"held_out": 0.5},
    "derived documents": {"documents": ()},
    "sampled": {"rankings": {"path": "r.jsonl", "limit": 20}, "demonstrations": {"path": "d.jsonl", "weight": 0.5}},
}


def told(found) -> dict:
    sides = {p: (list(getattr(found, p).train), list(getattr(found, p).held_out)) for p in PARTS}
    columns = [dict(p.columns) for p in found.prompts.all]
    prints = [found.fingerprint(p) for p in (*PARTS, "held_out")] + [found.columns_fingerprint("prompts")]
    return {"sides": sides, "columns": columns, "prints": prints, "counts": [c.as_dict() for c in found.counts]}


@pytest.mark.parametrize("case", CASES)
def test_a_split_is_the_same_in_memory_and_on_disk(tmp_path, small, monkeypatch, case):
    config = DataConfig(**(rows(tmp_path) | CASES[case]))
    on_disk = load_corpus(config, seed=1, base_dir=tmp_path)
    assert any(small.glob("scratch-*/*.arrow"))
    monkeypatch.setattr(store, "IN_MEMORY", 10**6)
    in_memory = load_corpus(config, seed=1, base_dir=tmp_path)
    assert told(on_disk) == told(in_memory)
    assert all(len(getattr(in_memory, p).train) for p in PARTS)


def test_the_first_place_of_each_number_is_remembered():
    firsts_of, draw = Firsts(), np.random.default_rng(0)
    numbers = [0, 2**63, 2**64 - 1, *map(int, draw.integers(0, 50, 500))]
    known: dict[int, str] = {}
    for i, number in enumerate(numbers):
        assert firsts_of.of(number, f"f:{i}") == known.setdefault(number, f"f:{i}")
