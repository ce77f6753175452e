"""One made-up run and its report for all tests of the report; whoever changes the folder copies it first."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipelines.report import write_report
from tests.pipelines.report_world import make_run


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("runs") / "demo")


@pytest.fixture(scope="session")
def page(run: Path) -> str:
    return write_report(run).read_text(encoding="utf-8")
