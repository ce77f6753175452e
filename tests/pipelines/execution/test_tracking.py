"""Trackers by name: the same numbers everywhere, none twice after a resumption, and no training lost to a tracker.

W&B, MLflow and Trackio are tested with the packages themselves, offline, where they are installed.
"""

from __future__ import annotations

import importlib
import json
import os
import sqlite3
import struct
from pathlib import Path

import pytest
from accelerate import PartialState

from data.common.errors import UserError
from pipelines.execution import tracking
from pipelines.execution.tracking import NEEDS, check_trackers, tracked_log
from pipelines.loading.load import load_recipe


def values(step: int) -> dict[str, float]:
    return {"loss": 1.0 / step, "objective/kl": float(step)}


def open_log(folder: Path, *names: str, start: int = 0, warnings: list[str] | None = None):
    PartialState(cpu=True)
    out = folder / ".sft.partial"
    out.mkdir(parents=True, exist_ok=True)
    return tracked_log(
        names, True, out, start, project="mine", run=folder, stage="sft",
        settings={"sft": {"epochs": 1, "seed": None}}, warn=(warnings if warnings is not None else []).append,
    )  # fmt: skip


@pytest.fixture(autouse=True)
def files_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    """TensorBoard orders files of one second by their writer's number as text, where 10 stands before 9."""
    from tensorboard.summary.writer import event_file_writer

    monkeypatch.setattr(event_file_writer, "_global_uid", event_file_writer.AtomicCounter(0))


def interrupted(folder: Path, *names: str) -> list[str]:
    """Rows 1 to 5 with a checkpoint after 3; then rows 4 and 5 again, twice stopped, and at last 4 to 6."""
    warnings: list[str] = []
    log = open_log(folder, *names, warnings=warnings)
    for step in (1, 2, 3, 4, 5):
        if step == 4:
            start = log.position()["bytes"]
        log.write(step, values(step))
    log.close()
    open_log(folder, *names, start=start, warnings=warnings).close()  # stopped before its first row
    log = open_log(folder, *names, start=start, warnings=warnings)
    for step in (4, 5, 6):
        log.write(step, values(step))
    log.close()
    return warnings


# -- readers: step -> loss, in the order in which they are kept --------------------------------------------------------


def tensorboard_rows(folder: Path) -> list[tuple[int, float]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder / "tensorboard" / "sft"))
    events.Reload()
    return [(e.step, e.value) for e in events.Scalars("loss")]


def mlflow_rows(folder: Path) -> list[tuple[int, float]]:
    with sqlite3.connect(folder / "mlflow.db") as db:
        assert db.execute("select count(*) from runs").fetchone() == (1,)
        assert db.execute("select value from params where key = 'sft.epochs'").fetchone() == ("1",)
        return db.execute("select step, value from metrics where key = 'loss' order by timestamp, step").fetchall()


def trackio_rows(folder: Path) -> list[tuple[int, float]]:
    with sqlite3.connect(folder / "trackio" / "mine.db") as db:
        assert len(db.execute("select distinct run_name from metrics").fetchall()) == 1
        return [(s, json.loads(m)["loss"]) for s, m in db.execute("select step, metrics from metrics order by id")]


def wandb_rows(folder: Path) -> list[tuple[int, float]]:
    from wandb.proto.wandb_internal_pb2 import Record

    files = sorted((folder / "wandb").glob("offline-run-*/*.wandb"), key=os.path.getmtime)
    assert len({f.name for f in files}) == 1  # every process wrote to the same tracker run
    out = []
    for file in files:
        for data in leveldb_records(file.read_bytes()[7:]):
            record = Record.FromString(data)
            if record.WhichOneof("record_type") == "history":
                row = {i.key or "/".join(i.nested_key): json.loads(i.value_json) for i in record.history.item}
                out.append((row["_step"], row["loss"]))
    return out


def leveldb_records(data: bytes):
    """Records of a LevelDB log: blocks of 32 KB (the first is 7 bytes shorter here), parts of first, middle, last."""
    at, left, parts = 0, 32768 - 7, b""
    while at + 7 <= len(data):
        if left < 7:
            at, left = at + left, 32768
            continue
        size, kind = struct.unpack("<HB", data[at + 4 : at + 7])
        parts += data[at + 7 : at + 7 + size]
        at, left = at + 7 + size, left - 7 - size
        if kind in (1, 4):
            yield parts
            parts = b""


# -- tests -------------------------------------------------------------------------------------------------------------


def test_tensorboard_is_the_default_and_others_go_by_name():
    settings = {"base": "qwen2.5-0.5b", "stages": ["sft"], "data": {"demonstrations": ["x.jsonl"]}}
    assert load_recipe(settings).tracking == ("tensorboard",)
    assert load_recipe(settings, ["tracking=[]"]).tracking == ()
    assert load_recipe(settings, ["tracking=[wandb, mlflow, trackio]"]).tracking == ("wandb", "mlflow", "trackio")
    with pytest.raises(UserError, match="tracking"):
        load_recipe(settings, ["tracking=[wandbb]"])


def test_a_missing_package_is_named_before_any_work(monkeypatch, tmp_path):
    monkeypatch.setattr(tracking.importlib.util, "find_spec", lambda name: None if name != "tensorboard" else object())
    check_trackers(["tensorboard"])
    for name in NEEDS.keys() - {"tensorboard"}:
        with pytest.raises(UserError, match=rf"tracking: {name} is not installed; pip install 'trivet\[{name}\]'"):
            check_trackers(["tensorboard", name])


def test_tensorboard_has_every_step_once_after_resumptions(tmp_path):
    assert interrupted(tmp_path, "tensorboard") == []
    assert tensorboard_rows(tmp_path) == [(s, pytest.approx(1 / s)) for s in range(1, 7)]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "rows"), [("mlflow", mlflow_rows), ("trackio", trackio_rows), ("wandb", wandb_rows)])
def test_the_real_packages_have_every_step_once_after_resumptions(name, rows, tmp_path, monkeypatch):
    pytest.importorskip(name, reason=f"{name} is not installed: pip install 'trivet[{name}]'")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    if name == "trackio":  # reads its folder when it is imported
        for part in ("utils", "sqlite_storage"):
            module = importlib.import_module(f"trackio.{part}")
            if hasattr(module, "TRACKIO_DIR"):
                monkeypatch.setattr(module, "TRACKIO_DIR", tmp_path / "trackio")
    assert interrupted(tmp_path, name) == []
    assert rows(tmp_path) == [(s, pytest.approx(1 / s)) for s in range(1, 7)]


class Broken:
    """A tracker whose server goes away at the third row, and that cannot say good-bye either."""

    def __init__(self, *_, **__):
        self.rows: list[int] = []
        Broken.last = self

    def start(self): ...

    def store_init_configuration(self, values): ...

    def log(self, values, step):
        if step == 3:
            raise ConnectionError("gone, at https://user:secret-password-1@tracker.example/x")
        self.rows.append(step)

    def finish(self):
        raise ConnectionError("gone")


def test_a_tracker_that_fails_costs_one_warning_and_no_row(tmp_path, monkeypatch):
    monkeypatch.setattr("accelerate.tracking.WandBTracker", Broken)
    warnings: list[str] = []
    log = open_log(tmp_path, "wandb", "tensorboard", warnings=warnings)
    for step in (1, 2, 3, 4, 5):
        log.write(step, values(step))
    log.close()
    assert Broken.last.rows == [1, 2] and len(warnings) == 1
    assert "tracking: wandb failed (ConnectionError: gone" in warnings[0] and "secret-password-1" not in warnings[0]
    assert [r["step"] for r in log.rows()] == [1, 2, 3, 4, 5]
    assert [s for s, _ in tensorboard_rows(tmp_path)] == [1, 2, 3, 4, 5]


def test_a_tracker_that_cannot_start_costs_one_warning(tmp_path, monkeypatch):
    def refuse(self):
        raise RuntimeError("not logged in")

    monkeypatch.setattr(Broken, "start", refuse)
    monkeypatch.setattr("accelerate.tracking.MLflowTracker", Broken)
    warnings: list[str] = []
    log = open_log(tmp_path, "mlflow", warnings=warnings)
    log.write(1, values(1))
    log.write(2, values(2))
    log.close()
    assert len(warnings) == 1 and "mlflow failed (RuntimeError: not logged in)" in warnings[0]


def test_time_goes_on_where_a_stopped_process_left_it(tmp_path):
    log = open_log(tmp_path)
    log.started -= 100
    log.write(1, values(1))
    start = log.position()["bytes"]
    log.started -= 50  # after the checkpoint, and so not kept
    log.write(2, values(2))
    log = open_log(tmp_path, start=start)
    assert log.before == pytest.approx(100, abs=5)
    log.write(2, values(2))
    assert [r["time/elapsed"] for r in log.rows()] == pytest.approx([100, 100], abs=5)
    assert open_log(tmp_path).before == 0


def test_tokens_are_those_of_all_rows(tmp_path):
    log = open_log(tmp_path)
    for step in (1, 2, 3):
        log.write(step, {"tokens/response": 10 * step})
    assert log.tokens() == 60
    log = open_log(tmp_path / "other")
    for step in (1, 2):
        log.write(step, {"num_tokens": 100 * step})
    assert log.tokens() == 200 and open_log(tmp_path / "third").tokens() is None
