"""A fixture that runs a file's tests twice, by the fast path and by Transformers' modules."""

from __future__ import annotations

import pytest

from models.roles.shared_base import SharedBase

BOTH = ("test_update", "test_ppo_path", "test_families", "test_reward_sft", "test_self_check", "test_sft_reward")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """For the ``conftest.py`` of a folder."""
    if metafunc.definition.path.stem in BOTH:
        metafunc.fixturenames.append("engine")
        modules = pytest.param(False, id="modules", marks=pytest.mark.slow)
        metafunc.parametrize("engine", [pytest.param(True, id="fast"), modules], indirect=True)


@pytest.fixture
def engine(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether bases of this test take the fast path."""
    monkeypatch.setattr(SharedBase, "fast", request.param)
    return bool(request.param)
