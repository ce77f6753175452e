"""Micro-batches that processes share: how PPO cuts them, and that their gradients add up as in one process."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from models.backbone.oom_retry import OOMRetry
from models.backbone.processes import Processes
from models.sampling.generate import Generated
from stages.ppo.micro_batching import MicroBatching
from stages.ppo.rollout import Rollout
from stages.settings import PPOConfig
from stages.training.gradient_sums import LARGEST_IN_ORDER, OrderedSums

LENGTHS = (3, 9, 1, 7, 5)


class Played(Processes):
    """One of several processes, whose gathering gives what the test says that all have."""

    def __init__(self, rank: int, world_size: int, all_rows: list[list[float]] | None = None) -> None:
        self.rank, self.world_size, self.all_rows, self.summed = rank, world_size, all_rows or [], False
        self.device = torch.device("cpu")

    def gather_dealt(self, rows: Tensor) -> Tensor:
        return torch.tensor(self.all_rows)

    def sum_gradients(self, parameters: object) -> None:
        self.summed = True


def rollout() -> Rollout:
    """Rows of a query of 2 tokens and responses of ``LENGTHS``."""
    ids = [[4] * n for n in LENGTHS]
    texts: list[str] = [""] * len(ids)
    return Rollout.of(
        Generated(ids=ids, finished=[True] * len(ids)),
        torch.device("cpu"),
        prompts=[],
        queries=[[1, 2]] * len(ids),
        texts=texts,
    )


def parts_of(world_size: int, size: int | None = None, **settings: int) -> list[list[list[int]]]:
    """The micro-batches of each process, where memory is enough for ``size`` rows or tokens."""
    found = []
    for rank in range(world_size):
        retry, mine = OOMRetry("x", lambda text: None), list[list[int]]()
        retry.limit = size
        MicroBatching(PPOConfig(**settings), retry, Played(rank, world_size)).each(rollout(), mine.append)
        found.append(mine)
    return found


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Processes, "together", lambda self, work: work())


def test_micro_batches_are_cut_before_they_are_dealt_out() -> None:
    """By length 9, 7, 5, 3, 1, which are rows 1, 3, 4, 0, 2."""
    assert parts_of(1, micro_batch=2) == [[[1, 3], [4, 0], [2]]]
    assert parts_of(2, micro_batch=2) == [[[1, 3], [2]], [[4, 0]]]
    assert parts_of(3, micro_batch=2) == [[[1, 3]], [[4, 0]], [[2]]]


def test_larger_ones_are_lowered_so_that_no_process_is_idle_and_of_too_few_rows_some_are() -> None:
    """16 rows to a micro-batch would be one of all five; 5 / 2 and 5 / 3 are rounded up."""
    assert parts_of(1, micro_batch=16) == [[[1, 3, 4, 0, 2]]]
    assert parts_of(2, micro_batch=16) == [[[1, 3, 4]], [[0, 2]]]
    assert parts_of(3, micro_batch=16) == [[[1, 3]], [[4, 0]], [[2]]]
    assert parts_of(7, micro_batch=16) == [[[1]], [[3]], [[4]], [[0]], [[2]], [], []]


def test_tokens_are_shared_likewise() -> None:
    """35 tokens with the queries, the longest row 11: two processes have 18 each, four no less than the longest row."""
    assert parts_of(1, micro_tokens=60) == [[[1, 3, 4, 0, 2]]]
    assert parts_of(2, micro_tokens=60) == [[[1], [0, 2]], [[3, 4]]]
    assert parts_of(4, micro_tokens=60) == [[[1]], [[3]], [[4]], [[0, 2]]]


def test_a_process_short_of_memory_cuts_its_own_again() -> None:
    assert parts_of(1, 1, micro_batch=2) == [[[1], [3], [4], [0], [2]]]
    assert parts_of(2, 1, micro_batch=2) == [[[1], [3], [2]], [[4], [0]]]


def test_gradients_are_added_in_the_order_of_one_process() -> None:
    """In fp32 (1e8 + 3) - 1e8 is 0, since 1e8 + 3 rounds to 1e8, and (1e8 - 1e8) + 3 is 3; one had no gradient."""
    weight, idle = nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(2))
    for order, expected in (((1e8, 3.0, -1e8), 0.0), ((1e8, -1e8, 3.0), 3.0)):
        rows = [[x, 0.0, 0.0, 1.0, 0.0] for x in order]  # gradients of both, and which of them there are
        sums = OrderedSums([weight, idle], Played(1, 2, rows))
        sums.begin(3)
        weight.grad = torch.tensor([order[1]])
        sums.add()
        assert weight.grad is None
        sums.finish()
        assert weight.grad.item() == expected and idle.grad is None


def test_many_numbers_are_added_in_one_message() -> None:
    weight = nn.Parameter(torch.zeros(1024))
    processes = Played(0, 2)
    sums = OrderedSums([weight], processes)
    sums.begin(LARGEST_IN_ORDER // 1024 + 1)
    weight.grad = torch.ones(1024)
    sums.add()
    assert weight.grad is not None
    sums.finish()
    assert processes.summed
