"""Under what watch processes work: who is named before all are together, at the very end, and by whom."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from models.backbone import peers, watching
from models.backbone.peers import Peer, Watch
from models.backbone.watching import siblings, starting
from models.backbone.whereabouts import WHEREABOUTS

RESUMES = "the same command resumes from the newest checkpoint"


def test_the_one_that_fails_says_so_itself(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """A launcher's signal may end the others before they hear of it."""

    class Two:
        rank, world_size = 0, 2

        def gather(self, items: list[Peer]) -> list[Peer]:
            return [*items, Peer(1, items[0].host, os.getpid(), __file__)]

    monkeypatch.setattr(watching, "connect", lambda processes: None)
    try:
        WHEREABOUTS.enter("reward")
        WHEREABOUTS.advance(2)
        with pytest.raises(ValueError, match="planted"), watching.watching(Two()):  # type: ignore[arg-type]
            raise ValueError("planted")
    finally:
        WHEREABOUTS.enter("")
    said = capsys.readouterr().err
    assert f"process 0 (pid {os.getpid()} on " in said and RESUMES in said
    assert "failed in reward at step 2 with ValueError: planted" in said


def test_one_that_is_stopped_before_it_joins_is_said_to_be_before_the_first_stage(
    sleeper: subprocess.Popen[bytes], clock: list[float]
) -> None:
    peer = watching.Sibling(1, "here", sleeper.pid, __file__)
    watch = Watch(Peer(0, "here", os.getpid(), __file__), [peer])
    sleeper.send_signal(signal.SIGSTOP)
    os.waitpid(sleeper.pid, os.WUNTRACED)
    watch.lost()
    clock[0] += peers.STOPPED
    assert "was stopped by a signal before the first stage" in watch.lost()[1]
    sleeper.kill()
    sleeper.wait()
    assert watch.lost() == ([], "")  # the launcher tells of one that ends


def test_one_process_is_not_watched() -> None:
    with watching.watching(SimpleNamespace(world_size=1)), starting({"RANK": "0", "WORLD_SIZE": "1"}), starting({}):  # type: ignore[arg-type]
        assert not [t for t in threading.enumerate() if getattr(t, "_target", None) is Watch.run]


def test_siblings_of_one_launcher_are_found_by_their_rank(tmp_path: Path) -> None:
    code = (
        "import os, subprocess, sys, time\n"
        "from models.backbone.watching import siblings\n"
        "if os.environ.get('RANK') == '0': print(sorted(p.rank for p in siblings('h'))); sys.exit()\n"
        "if 'RANK' in os.environ: time.sleep(60)\n"
        "me = [sys.executable, sys.argv[0]]\n"
        "other = subprocess.Popen(me, env=os.environ | {'RANK': '1'}); subprocess.Popen([*me[:1], '-c', 'pass'])\n"
        "subprocess.run(me, env=os.environ | {'RANK': '0'}); other.kill(); other.wait()\n"
    )
    (tmp_path / "launcher.py").write_text(code)
    environment = {k: v for k, v in os.environ.items() if k != "RANK"} | {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, str(tmp_path / "launcher.py")], capture_output=True, text=True, timeout=60, env=environment
    )
    assert done.stdout.strip() == "[1]", done.stderr
    assert siblings("h") == [] or all(p.pid != os.getpid() for p in siblings("h"))
    assert not torch.distributed.is_initialized()


class Waits:
    """An event that is set after so many waits of any length."""

    def __init__(self, count: int) -> None:
        self.count, self.seconds = count, list[float]()

    def wait(self, seconds: float) -> bool:
        self.seconds.append(seconds)
        return len(self.seconds) > self.count


LAUNCHED = {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "29500"}


def test_one_that_waits_for_others_who_never_come_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    """torch waits for hours without a word."""
    done: Any = Waits(2)
    watching.say_who_is_missing(LAUNCHED, done)
    assert done.seconds == [30.0, 60.0, 120.0]
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 2 and all("process 0 has waited" in line for line in said)
    assert all("at 10.0.0.1:29500 for the others: WORLD_SIZE=2" in line for line in said)


def test_it_is_said_while_processes_meet_and_no_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[Any] = []
    monkeypatch.setattr(watching, "say_who_is_missing", lambda environment, done: waits.append((environment, done)))
    with starting(LAUNCHED | {"WORLD_SIZE": "1"}):
        assert not waits
    with starting(LAUNCHED):
        while not waits:
            time.sleep(0.01)
        (environment, done) = waits[0]
        assert environment == LAUNCHED and not done.is_set()
    assert done.is_set()


STOPS_ITSELF = """
import os, signal, sys, time
from pathlib import Path
from types import SimpleNamespace
from models.backbone import peers
from models.backbone.processes import Processes
from pipelines.cli import run

peers.STOPPED, peers.GRACE = 1.0, 2.0
where, rank, folder = sys.argv[1], os.environ["RANK"], Path(sys.argv[2])
stop = lambda *_: os.kill(os.getpid(), signal.SIGSTOP)
processes = Processes("cpu", 1)
run.finish = lambda *_: (stop() if where == "report" else (folder / "report").touch())
if (where, rank) == ("before", "1"):
    stop()
run.run_pipeline(SimpleNamespace(processes=processes, run_dir=folder, run=lambda **_: None))
if (where, rank) == ("after", "1"):
    stop()
"""


@pytest.mark.parametrize(
    ("where", "rank", "said"),
    [
        ("before", 1, r"was stopped by a signal before the first stage"),  # when all have met, and nobody knows them
        (
            "report",
            0,
            r"was stopped by a signal( between stages)? and is ended here",
        ),  # while the others have nothing left to do
        ("after", 1, "was stopped by a signal when all was done"),  # and a launcher waits for it
    ],
)
def test_one_that_is_stopped_outside_of_the_stages_is_named_and_ended(
    tmp_path: Path, where: str, rank: int, said: str
) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1", "MASTER_PORT": port}
    environment |= {"MASTER_ADDR": "127.0.0.1", "WORLD_SIZE": "2"}
    command = [sys.executable, "-c", STOPS_ITSELF, where, str(tmp_path)]
    both = [
        subprocess.Popen(
            command,
            env=environment | {"RANK": str(r), "LOCAL_RANK": str(r)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for r in (0, 1)
    ]
    try:
        texts = [process.communicate(timeout=120)[0] for process in both]
    finally:
        for process in both:
            process.kill()
    lost, other = both[rank], both[1 - rank]
    assert lost.returncode == -signal.SIGKILL, texts
    assert re.search(rf"trivet: process {rank} \(pid {lost.pid} on .+?\) {said}", texts[1 - rank]), texts
    assert (other.returncode == 0) == (where == "after") == (tmp_path / "report").exists(), texts
