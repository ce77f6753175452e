"""A process of several that is killed: the others say which, and how to go on, and do not wait for hours."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from models.backbone.peers import Peer, alive, death_notice
from tests.support.recipes import RECIPE

ROOT = Path(__file__).parents[2]


def test_the_others_name_the_process_that_died_and_the_way_on(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(RECIPE))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command += [str(ROOT / "tests/pipelines/dying.py"), "run", str(tmp_path / "r.yaml"), "--run-dir"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
    environment["DIED_AT"] = str(tmp_path / "died")
    done = subprocess.run(
        [*command, str(tmp_path / "run")], capture_output=True, text=True, timeout=580, env=environment, cwd=tmp_path
    )
    ended = time.time()
    # the start and pretraining, which take long on a busy machine, are no part of the minute that is promised
    assert done.returncode != 0 and ended - float((tmp_path / "died").read_text()) < 60
    said = re.search(
        r"process 1 \(pid \d+ on .+?\) died.*the same command resumes from the newest checkpoint", done.stderr
    )
    assert said, done.stderr[-3000:]
    assert (tmp_path / "run/pretrain/manifest.json").exists()


@pytest.fixture
def ended() -> int:
    process = subprocess.Popen([sys.executable, "-c", "pass"])
    process.wait()
    return process.pid


def test_a_process_that_left_in_order_has_not_died(tmp_path: Path, ended: int) -> None:
    marker = tmp_path / "marker"
    peers = [Peer(0, "here", os.getpid(), str(marker)), Peer(1, "here", ended, str(marker))]
    assert alive(os.getpid()) and not alive(ended)
    assert not any(peer.died for peer in peers)
    marker.touch()
    assert [peer for peer in peers if peer.died] == peers[1:]
    assert f"process 1 (pid {ended} on here) died" in death_notice(peers[1:])


def test_a_process_that_nobody_has_asked_about_is_gone(tmp_path: Path) -> None:
    """A killed child stays in the table of processes until its parent looks."""
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    (tmp_path / "marker").touch()
    peer = Peer(1, "here", process.pid, str(tmp_path / "marker"))
    assert not peer.died
    process.kill()
    try:
        until = time.monotonic() + 10.0
        while not peer.died and time.monotonic() < until:
            time.sleep(0.05)
        assert peer.died
    finally:
        process.wait()
