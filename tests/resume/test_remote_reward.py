"""A scorer that is slow, wrong or dies in the midst of PPO costs no finished update: one clear error, then on."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest

from data.common.errors import StageError
from models.backbone.artifacts import files_of
from reward.terms.server import serving
from stages.ppo import stage as ppo_stage
from stages.safe_points.checkpoints import Checkpoints
from stages.settings import PPOConfig
from stages.stage import MetricsLog
from tests.conftest import make_base, randomise
from tests.support.ppo import make_context


def config_for(address: str, **remote) -> PPOConfig:
    asked = {"batch": 3, "retries": 1, "backoff": 0.0, "timeout": 0.3, "concurrency": 2} | remote
    return PPOConfig(
        updates=3, rollouts=8, epochs=1, max_new_tokens=6, learning_rate=1e-2, self_check=False,
        value={"init": "sft", "head": "zero"},
        reward=[
            {"source": address, "name": "judge", "normalise": True, "remote": asked},
            {"source": "length", "max_length": 3, "weight": 0.5, "clip": 2.0},
        ],
    )  # fmt: skip


class Scorer:
    """Right for some rows, then as ``breaks`` says."""

    def __init__(self, breaks=None, after: int = 10**9) -> None:
        self.breaks, self.left, self.lock = breaks, after, threading.Lock()

    def __call__(self, rows):
        with self.lock:
            self.left -= len(rows)
        if self.left < 0:
            return self.breaks(rows)
        return [float(len(r["completion"]) % 5) for r in rows]


def dies(rows):
    raise RuntimeError("out of memory")


def sleeps(rows):
    time.sleep(0.6)
    return [0.0] * len(rows)


def run_stage(folder: Path, address: str, **remote) -> None:
    base = make_base()
    log = folder / "metrics.jsonl"
    checkpoints = Checkpoints(folder / "checkpoints", "key")
    folder.mkdir(exist_ok=True)
    start = checkpoints.tidy(log) or 0
    kept = log.read_bytes() if start else b""
    context = make_context(base, folder, checkpoints=checkpoints)  # begins a log of its own
    log.write_bytes(kept)
    object.__setattr__(context, "log", MetricsLog(log, start=start))
    checkpoints.metrics = context.log
    base.add_role("reference", context.adapter)
    randomise(base, "reference", 1)
    try:
        ppo_stage.run(context, config_for(address, **remote), None)
    finally:
        checkpoints.close()


def result(folder: Path) -> dict:
    return {k: v for k, v in files_of(folder).items() if not k.startswith("checkpoints/")}


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("remote") / "whole"
    with serving(Scorer()) as address:
        run_stage(folder, address)
    return folder


@pytest.mark.parametrize(
    ("breaks", "said"),
    [
        (dies, "it answered 500.*out of memory"),
        (sleeps, r"no answer within 0\.3 s"),
        (lambda rows: [1.0] * (len(rows) + 1), r"4 scores for 3 responses|3 scores for 2"),
        (lambda rows: [float("nan")] * len(rows), "it answered 500.*scored nan"),
        (None, "nothing listens there"),
    ],
    ids=["dies", "slow", "wrong count", "nan", "gone"],
)
def test_finished_updates_are_kept_and_the_run_goes_on_to_the_same_bytes(whole, tmp_path, breaks, said):
    folder = tmp_path / "run"
    if breaks is None:
        with serving(Scorer()) as address:
            port = address
        with pytest.raises(StageError, match=said):
            run_stage(folder, port)
    else:
        with serving(Scorer(breaks, after=8 * 2)) as address, pytest.raises(StageError, match=f"(?s){said}") as error:
            run_stage(folder, address)
        assert "2 of 3 updates are done and saved" in str(error.value) and "resumes from there" in str(error.value)
        assert len((folder / "metrics.jsonl").read_text().splitlines()) == 2
        assert list((folder / "checkpoints").glob("step_*"))
    with serving(Scorer()) as address:
        run_stage(folder, address, timeout=60.0)
    assert result(folder) == result(whole) and result(whole)


def test_each_part_is_in_the_metrics(whole):
    text = (whole / "metrics.jsonl").read_text().splitlines()[0]
    for name in ("reward/judge", "reward/judge/transformed", "reward/length", "reward/length/transformed"):
        assert f'"{name}"' in text
