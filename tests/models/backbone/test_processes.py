"""Several processes: where one fails, none waits for it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest

from data.common.errors import StageError, UserError
from data.common.http_client import RemoteError
from models.backbone.processes import Processes


def both(work: Callable[[Processes], Any]) -> list[Any]:
    """What each of two processes, played by threads, returns or raises."""
    items: dict[int, list[Any]] = {}
    gate = threading.Barrier(2, timeout=10)
    out: list[Any] = [None, None]

    class Played(Processes):
        def __init__(self, rank: int) -> None:
            self.rank, self.world = rank, 2

        def gather(self, mine: Any) -> list[Any]:
            gate.wait()
            items[self.rank] = list(mine)
            gate.wait()
            return items[0] + items[1]

    def run(rank: int) -> None:
        try:
            out[rank] = work(Played(rank))
        except Exception as error:
            out[rank] = error

    threads = [threading.Thread(target=run, args=(rank,)) for rank in (0, 1)]
    for t in threads:
        t.start()
    for t in threads:
        t.join(20)
        assert not t.is_alive(), "it hangs"
    return out


def test_what_the_main_process_found_all_know():
    assert both(lambda p: p.on_main(lambda: {"by": p.rank})) == [{"by": 0}, {"by": 0}]
    assert both(lambda p: p.together(lambda: p.rank)) == [0, 1]


@pytest.mark.parametrize(
    ("error", "kind"), [(RemoteError("dead"), StageError), (UserError("wrong"), UserError), (KeyError(3), StageError)]
)
@pytest.mark.parametrize("failing", [0, 1])
def test_one_that_fails_stops_all_with_its_reason(error: Exception, kind: type, failing: int):
    def work(p: Processes) -> None:
        if p.rank == failing:
            raise error

    found = both(lambda p: p.together(lambda: work(p)))
    assert found[failing] is error
    other = found[1 - failing]
    assert type(other) is kind and str(other) == f"process {failing}: {error}"
    if failing == 0:
        assert both(lambda p: p.on_main(lambda: work(p)))[0] is error


def test_alone_there_is_nothing_to_agree_on():
    alone = Processes("cpu")
    assert alone.on_main(lambda: 5) == 5
    with pytest.raises(KeyError):
        alone.together(lambda: {}["x"])
