"""Processes that are stopped, fail, fall silent or are slow: what is said of them, and who ends."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from types import SimpleNamespace
from typing import Any

import pytest

from models.backbone import peers, whereabouts
from models.backbone.heartbeat import Beat, Heartbeat, connect
from models.backbone.peers import Peer, Watch, in_a_line, of_others
from models.backbone.whereabouts import WHEREABOUTS, Whereabouts

RESUMES = "the same command resumes from the newest checkpoint"


class Kept:
    """A store that keeps what it is given."""

    def __init__(self) -> None:
        self.values: dict[str, str] = {}

    def set(self, key: str, value: str) -> None:
        self.values[key] = value

    def get(self, key: str) -> bytes:
        return self.values[key].encode()

    def check(self, keys: list[str]) -> bool:
        return all(key in self.values for key in keys)


def pair(store: Kept) -> tuple[Heartbeat, Heartbeat]:
    return Heartbeat(0, [1], store), Heartbeat(1, [0], store)


def watch_of(one: Heartbeat | None, other: Peer, host: str = "here") -> tuple[Watch, list[int]]:
    ended: list[int] = []
    return Watch(Peer(1 - other.rank, host, os.getpid(), __file__), [other], one, end=ended.append), ended


def test_a_beat_says_the_stage_the_step_and_how_long_steps_take(clock: list[float]) -> None:
    store = Kept()
    zero, one = pair(store)
    try:
        WHEREABOUTS.enter("sft")
        for step in range(1, 6):
            clock[0] += 2.0
            WHEREABOUTS.advance(step)
        clock[0] += 7.0
        one.exchange()
        zero.exchange()
    finally:
        WHEREABOUTS.enter("")
    beat = zero.last(1)
    assert beat is not None and (beat.stage, beat.step, beat.taken, beat.usual) == ("sft", 5, 7.0, 2.0)
    assert beat.place == " in sft at step 5"


def test_work_that_is_not_counted_in_steps_is_not_taken_for_one(clock: list[float]) -> None:
    where = Whereabouts()
    where.enter("ppo")
    for step in (1, 2, 3):
        clock[0] += 1.0
        where.advance(step)
    clock[0] += 500.0
    where.advance(None)
    assert (where.step, where.taken(), where.usual()) == (3, 0.0, 1.0)


def test_one_elsewhere_that_is_silent_is_lost_unless_it_left(clock: list[float]) -> None:
    store = Kept()
    zero, one = pair(store)
    peer = Peer(1, "there", 4, "none")
    watch, _ = watch_of(zero, peer)
    zero.exchange()
    clock[0] += 1000.0
    assert watch.lost() == ([], "")  # never heard
    one.exchange()
    zero.exchange()
    for _ in range(int(peers.SILENT)):
        assert watch.lost() == ([], "")
        clock[0] += 1.0
        zero.exchange()
    lost, text = watch.lost()
    assert lost == [peer] and text.startswith("process 1 (pid 4 on there) cannot be reached between stages: nothing")
    assert RESUMES in text
    one.leave()
    zero.exchange()
    clock[0] += 1000.0
    assert watch.lost() == ([], "")


class Silent(Kept):
    """The store of a process that is stopped: whoever asks waits."""

    def __init__(self) -> None:
        super().__init__()
        self.answers = threading.Event()

    def set(self, key: str, value: str) -> None:
        self.answers.wait(60)
        super().set(key, value)


def test_nobody_waits_for_the_store_of_a_stopped_process_to_leave(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither for its own last beat, nor for one on the way, which holds the lock."""
    monkeypatch.setattr("models.backbone.heartbeat.ANSWER", 0.1)
    monkeypatch.setattr("models.backbone.heartbeat.EVERY", 0.0)
    store = Silent()
    one = Heartbeat(1, [0], store)
    one.start()
    started = time.monotonic()
    one.leave()
    one.fail("planted")
    assert time.monotonic() - started < 30.0 and not store.values
    store.answers.set()


def test_while_rank_0_does_not_answer_only_rank_0_is_silent(clock: list[float]) -> None:
    store = Kept()
    two = Heartbeat(2, [0, 1], store)
    for rank in (0, 1):
        Heartbeat(rank, [], store).exchange()
    two.exchange()
    clock[0] += 30.0
    assert two.silence(0) == 30.0 and two.silence(1) == 0.0
    two.forget_silence()  # it was this process that slept
    assert two.silence(0) == 0.0


def test_a_failure_is_named_with_its_place_once_the_main_thread_has_waited(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(peers, "GRACE", 0.1)
    monkeypatch.setattr("models.backbone.heartbeat.EVERY", 0.0)
    store = Kept()
    zero, one = pair(store)
    watch, ended = watch_of(zero, Peer(1, "here", os.getpid(), __file__))
    try:
        WHEREABOUTS.enter("ppo")
        WHEREABOUTS.advance(3)
        one.fail("MemoryError: planted")
    finally:
        WHEREABOUTS.enter("")
    zero.exchange()
    watch.run()
    assert ended == [3]
    said = capsys.readouterr().err
    assert "process 1" in said and "failed in ppo at step 3 with MemoryError: planted" in said and RESUMES in said


def test_a_failure_of_all_is_told_by_each(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """The main thread ends of its own error meanwhile: no process speaks for another."""
    monkeypatch.setattr(peers, "GRACE", 5.0)
    store = Kept()
    zero, one = pair(store)
    one.failure = "StageError: the same in all"
    one.leave()
    zero.exchange()
    watch, ended = watch_of(zero, Peer(1, "here", os.getpid(), __file__))
    threading.Timer(0.7, watch.done.set).start()
    watch.run()
    assert not ended and capsys.readouterr().err == ""


def test_a_stopped_process_is_named_and_ended(
    sleeper: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(peers, "GRACE", 0.1)
    monkeypatch.setattr(peers, "STOPPED", 0.3)
    peer = Peer(1, "here", sleeper.pid, __file__)
    watch, ended = watch_of(None, peer)
    assert watch.lost() == ([], "")
    sleeper.send_signal(signal.SIGSTOP)
    watch.run()
    assert ended == [3] and sleeper.wait(10) == -signal.SIGKILL
    said = capsys.readouterr().err
    assert f"process 1 (pid {sleeper.pid} on here) was stopped by a signal" in said and RESUMES in said


def test_one_that_is_stopped_for_a_moment_is_left_alone(sleeper: subprocess.Popen[bytes], clock: list[float]) -> None:
    watch, _ = watch_of(None, Peer(1, "here", sleeper.pid, __file__))
    sleeper.send_signal(signal.SIGSTOP)
    os.waitpid(sleeper.pid, os.WUNTRACED)
    assert watch.lost() == ([], "")
    clock[0] += peers.STOPPED - 0.5
    assert watch.lost() == ([], "")
    sleeper.send_signal(signal.SIGCONT)
    os.waitpid(sleeper.pid, os.WCONTINUED)
    clock[0] += 1.0
    assert watch.lost() == ([], "")
    sleeper.send_signal(signal.SIGSTOP)
    os.waitpid(sleeper.pid, os.WUNTRACED)
    assert watch.lost() == ([], "")  # counted anew
    clock[0] += peers.STOPPED
    assert watch.lost()[0] == watch.here


SLOW = Beat(number=1, stage="sft", step=7, taken=70.0, usual=3.0)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({}, True),
        ({"waits": True}, False),  # for the one that is slow
        ({"usual": 7.5}, False),  # less than ten times as long
        ({"taken": 50.0}, False),  # too short to speak of
        ({"usual": None}, False),
        ({"stage": ""}, False),
    ],
)
def test_one_ten_times_slower_than_its_last_steps_is_named_once_and_not_ended(
    changes: dict[str, Any], named: bool
) -> None:
    zero = Heartbeat(0, [1], Kept())
    fields = {name: getattr(SLOW, name) for name in SLOW.__dataclass_fields__} | changes
    zero.hear(1, fields)
    peer = Peer(1, "here", os.getpid(), __file__)
    watch, ended = watch_of(zero, peer)
    said = list(watch.slow())
    assert len(said) == named and not list(watch.slow()) and not ended and watch.lost() == ([], "")
    if named:
        assert said[0].startswith(f"{peer} is slow in sft at step 7: ") and "last steps took 3" in said[0]
    third = Watch(Peer(2, "here", 1, __file__), [Peer(0, "here", 1, __file__), peer], zero, end=ended.append)
    assert not list(third.slow())  # process 0 says it


def test_a_wait_for_others_shows_in_the_frames_of_the_main_thread() -> None:
    seen: list[bool] = []
    done = threading.Event()

    def watch() -> None:
        seen.append(whereabouts.waits_for_others())
        done.set()

    source = "def wait(start, done):\n    start()\n    done.wait(5)\n"
    space: dict[str, Any] = {}
    exec(compile(source, "/x/torch/distributed/distributed_c10d.py", "exec"), space)
    space["wait"](threading.Thread(target=watch).start, done)
    done.clear()
    threading.Thread(target=watch).start()
    done.wait(5)
    assert seen == [True, False]


def test_an_error_of_a_collective_is_told_from_ones_own() -> None:
    def caught(path: str) -> BaseException:
        try:
            exec(compile("raise RuntimeError('lost\\nmore')", path, "exec"))
        except RuntimeError as error:
            return error
        raise AssertionError

    assert of_others(caught("/x/torch/distributed/distributed_c10d.py")) and not of_others(caught("/x/stages/sft.py"))
    assert in_a_line(caught("a.py")) == "RuntimeError: lost" and in_a_line(MemoryError()) == "MemoryError"


def test_beats_pass_through_a_store_of_rank_0() -> None:
    ports: list[int] = []

    def gather(items: list[int]) -> list[int]:
        ports.extend(items)
        return [ports[0]]

    made = [
        connect(SimpleNamespace(rank=rank, world_size=2, is_main=rank == 0, gather=gather))  # type: ignore[arg-type]
        for rank in (0, 1)
    ]
    zero, one = made
    assert zero is not None and one is not None
    one.exchange()
    zero.exchange()
    assert zero.last(1) is not None and one.last(0) is None
    one.exchange()
    assert one.last(0) is not None


def test_processes_that_all_wait_for_each_other_end(
    clock: list[float], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    zero, waits = Heartbeat(0, [1], Kept()), [True]
    watch, ended = watch_of(zero, Peer(1, "here", os.getpid(), __file__))
    monkeypatch.setattr(peers, "waits_for_others", lambda: waits[0])
    fields = {name: getattr(SLOW, name) for name in SLOW.__dataclass_fields__} | {"waits": True}
    zero.hear(1, fields)
    assert watch.stuck() == ""
    clock[0] += peers.STUCK - 1.0
    waits[0] = False
    assert watch.stuck() == ""
    clock[0] += 2.0
    waits[0] = True
    assert watch.stuck() == ""  # counted anew
    clock[0] += peers.STUCK
    watch.run()
    said = capsys.readouterr().err
    assert ended == [3] and "(0 between stages, 1 in sft at step 7)" in said and RESUMES in said


def test_one_that_is_stopped_when_all_was_done_is_named_and_ended(
    sleeper: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A launcher would wait for it for good."""
    monkeypatch.setattr(peers, "STOPPED", 0.3)
    watch, _ = watch_of(None, Peer(1, "here", sleeper.pid, "left"))
    sleeper.send_signal(signal.SIGSTOP)
    watch.await_ends()
    assert sleeper.wait(10) == -signal.SIGKILL
    assert f"process 1 (pid {sleeper.pid} on here) was stopped by a signal when all was done" in capsys.readouterr().err


def test_one_that_runs_on_when_all_was_done_is_left_alone(
    sleeper: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(peers, "GRACE", 0.2)
    watch, _ = watch_of(None, Peer(1, "here", sleeper.pid, "left"))
    watch.await_ends()
    assert sleeper.poll() is None and capsys.readouterr().err == ""
    sleeper.kill()
    monkeypatch.setattr(peers, "GRACE", 600.0)
    watch.await_ends()  # it has ended
