"""Rows of numbers read back by their first: as one stable sort gives them, in however many parts, each read once."""

from __future__ import annotations

import numpy as np
import pytest

from data.storage import number_rows
from data.storage.number_rows import NumberRows


@pytest.mark.parametrize("parts", [None, 1, 2, 8, 64])
@pytest.mark.parametrize("count", [0, 1, 500])
def test_parts_are_one_stable_sort(monkeypatch, parts, count):
    monkeypatch.setattr(number_rows, "IN_MEMORY", 64)  # most of them lie on disk
    monkeypatch.setattr(number_rows, "PART", 100)
    g = np.random.default_rng(0)
    firsts = g.choice(g.integers(0, 2**64, size=40, dtype=np.uint64, endpoint=False), size=count)
    rows = NumberRows(2)
    for i, first in enumerate(firsts.tolist()):
        rows.add(first, i)
    found = list(rows.grouped(parts))
    expected = sorted(((first, i) for i, first in enumerate(firsts.tolist())), key=lambda row: row[0])
    assert [tuple(row) for row in np.concatenate(found).tolist()] == expected
    assert len(found) == (rows.parts() if parts is None else parts) <= number_rows.PARTS
    seen = [set(part[:, 0].tolist()) for part in found]
    assert sum(map(len, seen)) == len(set().union(*seen))  # rows of one number are in one part


def test_the_rows_are_read_once_however_many_parts(monkeypatch):
    monkeypatch.setattr(number_rows, "IN_MEMORY", 64)
    rows, passes = NumberRows(1), []
    for i in range(300):
        rows.add(i << 54)
    blocks = NumberRows._blocks
    monkeypatch.setattr(NumberRows, "_blocks", lambda self: (passes.append(1), blocks(self))[1])
    assert sum(map(len, rows.grouped(32))) == 300 and len(passes) == 1
