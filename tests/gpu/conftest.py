"""What a test does on a device, or on its double, is not known to the tests of the CPU in the same process."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from accelerate.state import AcceleratorState, GradientState, PartialState

STATES = (PartialState, AcceleratorState, GradientState)


@pytest.fixture(autouse=True)
def own_accelerator(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Accelerate keeps one device a process: these tests get a state of their own, and the one before comes back."""
    monkeypatch.delenv("ACCELERATE_USE_CPU", raising=False)
    before = [dict(state._shared_state) for state in STATES]
    for state in STATES:
        state._shared_state.clear()
    yield
    for state, kept in zip(STATES, before, strict=True):
        state._shared_state.clear()
        state._shared_state.update(kept)
    os.environ.pop("ACCELERATE_USE_CPU", None)  # before the patch puts back what was there
