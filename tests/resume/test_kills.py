"""A few real kills of a short run; ``make test-resume`` does them at every boundary and at a hundred instants."""

from __future__ import annotations

import random

import pytest

from tests.resume.command_kills import COMMANDS, CommandKills
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


@pytest.fixture(scope="module")
def commands(tmp_path_factory) -> CommandKills:
    return CommandKills(tmp_path_factory.mktemp("commands"))


@pytest.mark.parametrize(
    ("command", "calls"), [("export", (2, -1)), ("report", (4, -1)), ("gc", (3,)), ("run --store", (12, -6))]
)
def test_a_killed_command_given_again_leaves_what_one_leaves_that_nobody_kills(commands, command, calls):
    assert commands.at_calls(command, calls) == len(calls) and commands.failures == []


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_may_be_killed_before_any_of_its_calls(commands, command):
    assert commands.at_calls(command) >= 5 and commands.failures == []
