"""A thousand seeded faults: each is reported at its place, and no other row is lost."""

from __future__ import annotations

import csv
import io
import json
import random
import re
from pathlib import Path

import pytest

from data.formats import Reject, parse
from data.readers.files import read_file
from data.readers.rows import BadLine, Remark

CASES = 250
WORDS = ["water", "is", "cold, or", "ice", "Eis löst", "水", "fog"]


def made(rng: random.Random) -> list[dict]:
    count = rng.randint(4, 9)
    return [
        {
            "prompt": f"{i} {' '.join(rng.choices(WORDS, k=3))}?",
            "completion": f"a{i} {' '.join(rng.choices(WORDS, k=4))}",
        }
        for i in range(count)
    ]


def outcome(path: Path) -> tuple[list[str], list[str]]:
    """Prompts that were read, and places that were reported."""
    good, bad = [], []
    for place, row in read_file(path, path.name):
        if isinstance(row, Remark):
            continue
        try:
            if isinstance(row, BadLine):
                raise Reject(row.reason)
            good.append(parse(row)[1][0].messages[0].content)
        except Reject:
            bad.append(place)
    return good, bad


def spoil(line: str, rng: random.Random) -> bytes:
    """A JSON object's text with one fault."""
    kind = rng.choice(["cut", "byte", "quote", "type"])
    if kind == "cut":
        return line[: rng.randint(1, len(line) - 1)].encode()
    if kind == "byte":
        at = line.index("a", line.index("completion") + 12)
        return line[:at].encode() + bytes([rng.choice([0x80, 0xFE, 0xFF])]) + line[at:].encode()
    if kind == "quote":
        at = rng.choice([i for i, c in enumerate(line) if c == '"'])
        return (line[:at] + line[at + 1 :]).encode()
    return json.dumps({"prompt": json.loads(line)["prompt"], "completion": rng.choice([True, {"x": 1}])}).encode()


@pytest.mark.parametrize("form", ["jsonl", "json"])
def test_json(tmp_path, form):
    rng = random.Random(form)
    for case in range(CASES):
        rows, name = made(rng), tmp_path / f"{case}.{form}"
        lines = [json.dumps(r, ensure_ascii=False).encode() for r in rows]
        at = rng.randrange(len(rows))
        lines[at] = spoil(lines[at].decode(), rng)
        name.write_bytes(b"\n".join(lines) if form == "jsonl" else b"[\n" + b",\n".join(lines) + b"\n]\n")
        good, bad = outcome(name)
        assert good == [r["prompt"] for i, r in enumerate(rows) if i != at], lines[at]
        assert bad == [f"{name.name}:{at + (1 if form == 'jsonl' else 2)}"], lines[at]


def test_parquet(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    rng = random.Random("parquet")
    for case in range(CASES):
        rows, name = made(rng), tmp_path / "a.parquet"
        at, kind = rng.randrange(len(rows)), rng.choice(["byte", "type"])
        values = [r["completion"].encode() for r in rows]
        values[at] = values[at][:3] + b"\xff" + values[at][3:] if kind == "byte" else None
        binary = pa.array(values, pa.binary())
        text = pa.Array.from_buffers(pa.string(), len(rows), binary.buffers())
        pq.write_table(pa.table({"prompt": [r["prompt"] for r in rows], "completion": text}), name)
        found = list(read_file(name, name.name))
        missing = [p for p, r in found if isinstance(r, BadLine) or r["completion"] is None]
        assert missing == [f"a.parquet, row {at + 1}"], case
        assert sum(not isinstance(r, BadLine) for _, r in found) == len(rows) - (kind == "byte")


def test_csv(tmp_path):
    rng = random.Random("csv")
    for case in range(CASES):
        rows, name = made(rng), tmp_path / f"{case}.csv"
        rows = [row | {"score": str(i)} for i, row in enumerate(rows)]
        out = io.StringIO()
        writer = csv.DictWriter(out, ["prompt", "completion", "score"], quoting=csv.QUOTE_ALL, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        lines = [line.encode() for line in out.getvalue().splitlines()]
        at, kind = rng.randrange(1, len(rows) + 1), rng.choice(["cut", "byte", "quote", "type"])
        line = lines[at].decode()
        if kind == "cut":
            lines[at] = line[: rng.randint(1, line.index('","'))].encode()
        elif kind == "byte":
            lines[at] = line[:3].encode() + b"\xff" + line[3:].encode()
        elif kind == "type":
            lines[at] = re.sub(r'"\d+"\Z', rng.choice(['"high"', '"[1]"', '"1e999"', '"nan"']), line).encode()
        else:
            lines[at] = line.removesuffix('"').encode()
        name.write_bytes(b"\n".join(lines) + b"\n")
        good, bad = outcome(name)
        assert good == [r["prompt"] for i, r in enumerate(rows, start=1) if i != at], lines[at]
        assert bad == [f"{name.name}:{at + 1}"], lines[at]
