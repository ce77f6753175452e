"""The tiny PPO that nobody stops."""

from __future__ import annotations

import pytest

from tests.support.faults import NEVER, Ppo


@pytest.fixture(scope="package")
def whole_ppo(tmp_path_factory) -> dict:
    """The bytes of what it leaves."""
    return Ppo(tmp_path_factory.mktemp("faults") / "whole", settings=NEVER).run()
