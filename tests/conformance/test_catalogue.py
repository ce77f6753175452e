"""The page of classes, the tests that it names and the planted defects stay together."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.mutations.table import MUTANTS
from tests.support.planting import ROOT, mutated

ROW = re.compile(r"^\| ([A-Z][^|]*?) \| (S[123]) \| ([^|]*) \| ([^|]*) \|$", re.MULTILINE)
PAGE = (ROOT / "docs" / "design" / "conformance.md").read_text(encoding="utf-8")
ROWS = {group: (severity, re.findall(r"`([^`]+)::([^`]+)`", tests)) for group, severity, _, tests in ROW.findall(PAGE)}


def test_the_page_is_read():
    assert len(ROWS) > 100 and {"R1", "L2", "W5", "A1", "O1", "C6", "P2", "M1", "F2", "E1"} <= set(ROWS)


def test_every_named_test_exists():
    missing = [
        f"{group}: {file}::{name}"
        for group, (_, tests) in ROWS.items()
        for file, name in tests
        if f"def {name}(" not in _text(ROOT / "tests" / file)
    ]
    assert not missing


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8") if path.is_file() else ""


def test_every_severe_class_with_a_test_has_a_planted_defect():
    planted = {m.group for m in MUTANTS}
    severe = {group for group, (severity, tests) in ROWS.items() if severity == "S1" and tests and group != "K7"}
    assert not severe - planted
    assert len(MUTANTS) >= 60


def test_every_planted_defect_belongs_to_a_class_and_a_test_file():
    assert not {m.group for m in MUTANTS} - set(ROWS)
    assert all((ROOT / m.tests).is_file() for m in MUTANTS)


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda m: f"{m.group}-{m.what}")
def test_every_planted_defect_can_be_planted_and_changes_the_syntax_tree(mutant):
    assert mutated((ROOT / mutant.file).read_text(encoding="utf-8"), mutant.old, mutant.new)
