"""Runs for many tests: one made up, for the report, and the smallest real one. Whoever changes a folder copies it."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipelines.report.page import write_report
from tests.support.finished_run import make_run
from tests.support.recipes import RECIPE


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("runs") / "demo")


@pytest.fixture(scope="session")
def page(run: Path) -> str:
    return write_report(run).read_text(encoding="utf-8")


@pytest.fixture(scope="session")
def least_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from pipelines.run.pipeline import Pipeline

    folder = tmp_path_factory.mktemp("least") / "first"
    Pipeline.from_recipe(RECIPE, run_dir=folder).run()
    return folder
