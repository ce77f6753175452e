"""A few real kills of a short run; ``make test-resume`` does them at every boundary and at a hundred instants."""

from __future__ import annotations

import random

import pytest

from tests.resume.kills import Harness

SHORT = (
    "stages=[pretrain, sft, ppo]",
    "rankings=null",
    "ppo.reward=[{source: 'data.demo.task:gold', weight: 1.0}]",
    "ppo.value.init=sft",
    "base.pretrain.steps=6",
)


@pytest.fixture(scope="module")
def harness(tmp_path_factory) -> Harness:
    return Harness(tmp_path_factory.mktemp("kills"), SHORT, ("pretrain", "sft", "ppo"))


def test_killed_runs_end_in_the_bytes_of_the_one_that_nobody_killed(harness):
    assert harness.points == {"pretrain": 6, "sft": 4, "ppo": 15}
    harness.at_boundary("ppo", 8, written=False)  # between minibatches of the second update, as it is being written
    harness.at_boundary("sft", 3, "every_steps=2")  # a step has to be done again
    stood = harness.at_instants(2, random.Random(5))
    assert harness.failures == [] and sum(stood.values()) >= 2


@pytest.mark.slow
def test_a_difference_would_be_seen(harness, monkeypatch):
    """The harness itself: a run of another seed is not the same."""
    monkeypatch.setattr(harness, "settings", (*SHORT, "seed=1"))
    harness.at_boundary("ppo", 4)
    wrong, harness.failures = harness.failures, []
    assert len(wrong) == 1 and "ppo/adapter/adapter_model.safetensors" in wrong[0] and "ppo/metrics.jsonl" in wrong[0]
