"""Parts that were read before come from the cache, by the bytes of their files; memory does not grow with a file."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from data import kept_parts, sources, splits
from data.splits import PARTS, DataConfig, load_corpus
from data.storage import folders, kept, store

ROOT = Path(__file__).parents[2]


@pytest.fixture
def cache(monkeypatch, tmp_path):
    """An empty cache that keeps small files too."""
    monkeypatch.setenv("TRIVET_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(folders, "_held", {})
    monkeypatch.setattr(store, "IN_MEMORY", 3)
    monkeypatch.setattr(kept_parts, "LARGE", 1)
    return tmp_path / "cache" / "data"


@pytest.fixture
def readings(monkeypatch):
    """How often sources were read."""
    calls = []

    def counted(*args, **kwargs):
        calls.append(args)
        return sources.load_records(*args, **kwargs)

    monkeypatch.setattr(splits, "load_records", counted)
    return calls


def write(file: Path, better: str = "good", count: int = 40, more: str = "") -> Path:
    rows = [{"prompt": f"q {i}{more}", "chosen": f"{better} {i}", "rejected": f"bad {i}", "n": i} for i in range(count)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"prompt": "cut off\n')
    return file


def load(folder: Path, **more):
    return load_corpus(DataConfig(**({"rankings": "r.jsonl"} | more)), seed=0, base_dir=folder)


def told(found) -> dict:
    sides = {p: (list(getattr(found, p).train), list(getattr(found, p).held_out)) for p in PARTS}
    return {
        "sides": sides,
        "columns": [dict(p.columns) for p in found.prompts.all],
        "counts": [c.as_dict() for c in found.counts],
        "rejected": found.rejected,
        "read": found.read,
        "notes": found.notes,
        "prints": [found.fingerprint(p) for p in PARTS],
    }


def test_what_was_read_once_is_taken_from_the_cache_whole(tmp_path, cache, readings):
    write(tmp_path / "r.jsonl")
    first = told(load(tmp_path))
    count = len(readings)
    again = load(tmp_path)
    assert told(again) == first and len(first["rejected"]) == 1 and first["counts"][0]["rejected"] == 1
    assert len(readings) == count + 3  # the three parts without a source, which take no time
    assert again.rankings.train[0].prompt.source.startswith("r.jsonl:")
    assert not list(cache.glob("scratch-*/*.arrow")) or all("scratch" in str(p) for p in cache.glob("scratch-*/*"))


@pytest.mark.parametrize(
    "change", [{"held_out": 0.5}, {"ignore": ("n",)}, {"rankings": {"path": "r.jsonl", "limit": 9}}]
)
def test_other_settings_read_again(tmp_path, cache, readings, change):
    write(tmp_path / "r.jsonl")
    load(tmp_path)
    before = len(readings)
    load(tmp_path, **change)
    assert len(readings) == before + 4


def test_a_changed_file_of_the_same_size_and_time_is_noticed(tmp_path, cache):
    file = write(tmp_path / "r.jsonl", "good")
    status = file.stat()
    one = load(tmp_path)
    write(file, "best")
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert (file.stat().st_size, file.stat().st_mtime_ns) == (status.st_size, status.st_mtime_ns)
    two = load(tmp_path)
    assert {r.answers[0].split()[0] for r in two.rankings.all} == {"best"}
    assert two.fingerprint("rankings") != one.fingerprint("rankings")


def test_a_file_that_changes_while_it_is_read_is_not_kept(tmp_path, cache, monkeypatch):
    file = write(tmp_path / "r.jsonl")

    def changing(*args, **kwargs):
        found = sources.load_records(*args, **kwargs)
        write(file, "best")
        return found

    monkeypatch.setattr(splits, "load_records", changing)
    load(tmp_path)
    assert not list(cache.glob(f"*/{kept.META}"))


def test_a_damaged_folder_is_read_again(tmp_path, cache):
    write(tmp_path / "r.jsonl")
    first = told(load(tmp_path))
    (folder,) = [meta.parent for meta in cache.glob(f"*/{kept.META}")]
    with (folder / "records.arrow").open("r+b") as stream:
        stream.truncate(100)
    assert told(load(tmp_path)) == first
    (folder / kept.META).write_text("{")
    assert told(load(tmp_path)) == first


def test_fingerprints_are_remembered_by_content(tmp_path, cache, monkeypatch):
    write(tmp_path / "r.jsonl")
    first = load(tmp_path).fingerprint("rankings")
    other = load(tmp_path)
    monkeypatch.setattr(type(other), "_hash", lambda *_: pytest.fail("it was hashed again"))
    assert other.fingerprint("rankings") == first


def test_many_rejected_rows_lie_on_disk_and_come_once_in_their_order(tmp_path, cache, readings):
    """More than stay in memory: rankings and prompts read the same file, and each bad line is told once."""
    file = write(tmp_path / "r.jsonl")
    file.write_text(file.read_text() + "".join(f'{{"prompt": {i}' + "\n" for i in range(600)))
    both = {"prompts": "r.jsonl"}
    first = load(tmp_path, **both)
    assert [r.source for r in first.rejected] == [f"r.jsonl:{41 + i}" for i in range(601)]
    assert first.rejected[0].reason.startswith("not JSON") and first.rejected[-1].reason.startswith("not JSON")
    assert {part: (n, len(bad)) for part, (n, bad) in first.read.items() if n} == {
        "rankings": (641, 601),
        "prompts": (641, 601),
    }
    count = len(readings)
    again = load(tmp_path, **both)
    assert len(readings) == count + len(PARTS) - 2 and told(again) == told(first)
    assert again.read["rankings"][1].file.is_relative_to(cache)


def test_a_part_that_was_cleaned_is_kept_with_what_cleaning_did(tmp_path, cache, readings):
    file = tmp_path / "r.jsonl"
    write(file).write_text(file.read_text() + file.read_text())
    clean = {"clean": {"duplicates": "exact", "control": True}}
    first = load(tmp_path, **clean)
    count = len(readings)
    again = load(tmp_path, **clean)
    assert len(readings) - count == len(PARTS) - 1, "the part with sources is not read again"
    assert told(again) == told(first)
    (of_file,) = again.counts
    assert of_file.dropped == 40 and of_file.cleaning == first.counts[0].cleaning
    assert of_file.cleaning.lines() == ["40 rows dropped: the same as one before; the first is r.jsonl:42"]


def test_a_cache_that_can_only_be_read_is_read(tmp_path, cache, readings, monkeypatch):
    write(tmp_path / "r.jsonl")
    first = told(load(tmp_path))
    before = len(readings)

    def refused(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(folders, "_held", {})
    for name in ("mkdir", "rename", "replace", "write_text"):
        monkeypatch.setattr(Path, name, refused)
    monkeypatch.setattr(os, "utime", refused)
    found = load(tmp_path)
    assert len(readings) == before + 3
    monkeypatch.undo()
    assert [r.answers for r in found.rankings.train] == [r.answers for r in first["sides"]["rankings"][0]]


def test_what_nobody_used_for_a_month_goes(tmp_path, cache):
    write(tmp_path / "r.jsonl")
    load(tmp_path)
    (old,) = [meta.parent for meta in cache.glob(f"*/{kept.META}")]
    os.utime(old, (0, 0))
    write(tmp_path / "r.jsonl", "other")
    load(tmp_path)
    assert not old.exists() and len(list(cache.glob(f"*/{kept.META}"))) == 1


CHILD = """
    import json, resource, sys
    sys.path.insert(0, {root!r})
    from pathlib import Path
    import pyarrow, scipy.sparse.csgraph
    from data.doctor.corpus import examine
    from data.languages import language_of
    from data.near_duplicates import near_duplicates
    from data.splits import DataConfig, load_corpus
    language_of("what is loaded when it is first used"), list(near_duplicates([("a", "so is this")]))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    found = load_corpus(DataConfig(rankings={file!r}), seed=0, base_dir=Path("."))
    prints = [found.fingerprint("rankings"), found.fingerprint("prompts")]
    if {examined}:
        examine(found, near=50)
    print(json.dumps([(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024, prints]))
"""


def child(file: Path, cache: Path, examined: bool = False) -> subprocess.Popen[str]:
    code = textwrap.dedent(CHILD.format(root=str(ROOT), file=str(file), examined=examined))
    more = {"TRIVET_CACHE": str(cache)}
    return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=os.environ | more)


def result(process: subprocess.Popen[str]) -> tuple[int, list[str]]:
    out, _ = process.communicate(timeout=300)
    assert process.returncode == 0
    return tuple(json.loads(out))


def test_memory_grows_by_less_than_100_bytes_a_row(tmp_path):
    few, many = 6_000, 36_000
    peaks = []
    for count in (few, many):
        file = write(tmp_path / f"{count}.jsonl", count=count, more=" and so on" * 100)  # a kilobyte a row
        peaks.append(result(child(file, tmp_path / "cache", examined=True))[0])
    assert (peaks[1] - peaks[0]) / (many - few) < 100


def test_two_processes_at_once_keep_one_folder(tmp_path):
    file = write(tmp_path / "r.jsonl", count=5_000, more=" and so on" * 100)
    both = [child(file, tmp_path / "cache") for _ in range(2)]
    one, two = (result(process)[1] for process in both)
    assert one == two == result(child(file, tmp_path / "cache"))[1]
    left = sorted(p.name for p in (tmp_path / "cache" / "data").iterdir())
    assert len(left) == 2 and not any(name.startswith(folders.SCRATCH) for name in left)  # the part, its fingerprints
