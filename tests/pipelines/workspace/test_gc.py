"""``trivet gc``, ``verify`` and ``ls``: what goes, what stays whatever happens, and what is told by name."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import time
from pathlib import Path

import pytest

from models.backbone.artifacts import publish
from pipelines.cli import main as cli
from pipelines.stages.keys import hash_of
from pipelines.stages.table import STAGES, folders
from pipelines.workspace.gc import leftovers, remove, size_of
from pipelines.workspace.run_folder import holder, holding
from pipelines.workspace.store import Store
from pipelines.workspace.verify import verify_run


def finish(run: Path, stage: str, parents: dict[str, str] | None = None, text: str = "weights") -> str:
    """A finished stage of a made-up run."""
    part = run / f".{folders()[stage]}.partial"
    part.mkdir(parents=True)
    (part / "w.safetensors").write_text(text)
    (part / "metrics.jsonl").write_text('{"step": 1}\n')
    described = {"stage": stage, "inputs": parents or {}, "text": text}
    key = hash_of(described)
    publish(
        part, run / folders()[stage], {"stage": stage, "key": key, "described": described, "parents": parents or {}}
    )
    return key


def begin(run: Path, stage: str) -> Path:
    """A stage under way, with a checkpoint of 1,000 bytes."""
    folder = run / f".{folders()[stage]}.partial/checkpoints/step_1"
    folder.mkdir(parents=True)
    (folder / "tensors.safetensors").write_bytes(b"x" * 1000)
    return folder.parents[1]


def note(run: Path, **stages: dict[str, str]) -> None:
    (run / "recipe.yaml").write_text("name: r\n")
    (run / "run.json").write_text(json.dumps({"name": "r", "seed": 0, "stages": stages}))


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """SFT finished, the reward stage stopped in the midst of it."""
    run = tmp_path / "runs/r"
    run.mkdir(parents=True)
    key = finish(run, "sft")
    begin(run, "reward")
    note(run, sft={"status": "done", "key": key}, reward={"status": "running", "key": "k"})
    return run


def test_folders_are_the_stages_own() -> None:
    assert {name: stage.folder for name, stage in STAGES.items()} == folders()


def test_what_can_go_and_what_stays(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert leftovers(run) == []  # the stopped stage can go on
    begun = begin(run, "sft")  # of a finished stage
    (run / ".run.json.partial").write_text("half")
    (run / ".sft.old").mkdir()
    (run / ".ppo.old").mkdir()  # may hold the only good copy: there is no ppo
    found = leftovers(run.parent)
    assert {one.path for one in found} == {begun, run / ".run.json.partial", run / ".sft.old"}
    assert next(one for one in found if one.path == begun).bytes == 1000
    assert cli.main(["gc", str(run.parent)]) == 0
    told = capsys.readouterr().out
    assert "1.0 kB in 3 places can go; nothing was removed" in told and begun.is_dir()
    assert cli.main(["gc", str(run.parent), "--yes"]) == 0
    assert "3 places removed" in capsys.readouterr().out
    assert leftovers(run) == [] and not begun.exists() and verify_run(run) == []
    assert (run / ".reward.partial").is_dir() and (run / ".ppo.old").is_dir()


def test_a_stopped_stage_goes_only_when_asked_for(run: Path) -> None:
    assert [one.path.name for one in leftovers(run, unfinished=True)] == [".reward.partial"]
    # run again with other settings, then stopped: the older result is there, and the newer one is under way
    key = finish(run, "ppo")
    begin(run, "ppo")
    note(run, ppo={"status": "running", "key": "another"})
    assert run / ".ppo.partial" not in [one.path for one in leftovers(run)]
    note(run, ppo={"status": "running", "key": key})  # killed just after it was published
    assert run / ".ppo.partial" in [one.path for one in leftovers(run)]


def hold(path: Path, ready: multiprocessing.Event, done: multiprocessing.Event) -> None:  # type: ignore[valid-type]
    with holding(path):
        ready.set()  # type: ignore[attr-defined]
        done.wait(30)  # type: ignore[attr-defined]


def test_what_a_live_process_holds_is_never_removed(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    begun = begin(run, "sft")
    before = leftovers(run)
    context = multiprocessing.get_context("fork")
    ready, done = context.Event(), context.Event()
    process = context.Process(target=hold, args=(run, ready, done))
    process.start()
    assert ready.wait(30)
    try:
        assert holder(run) == str(process.pid)
        assert cli.main(["gc", str(run), "--yes"]) == 0
        assert f"stays, process {process.pid} holds the run" in capsys.readouterr().out
        gone, told = remove(before)  # it was free when we looked
        assert gone == [] and "another run holds this folder" in told[0] and begun.is_dir()
    finally:
        done.set()
        process.join(30)
    assert holder(run) == "" and [one.path for one in remove(before)[0]] == [begun]


def test_entries_of_a_store(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from models.backbone.artifacts import read_artifact

    made = read_artifact(run / "sft")
    assert made is not None
    store = Store(tmp_path / "store")
    store.put(made)
    entry = store.entries / made.key
    (store.partial / f"{made.key}.dead").mkdir()
    os.utime(entry, (0, 0))
    assert [one.path.parent for one in leftovers(store.root, days=1)] == [store.partial]  # the run holds the entry
    shutil.rmtree(run / "sft")
    assert {one.path for one in leftovers(store.root, days=1)} == {entry, store.partial / f"{made.key}.dead"}
    assert leftovers(store.root, days=1)[0].bytes == size_of(entry)
    with store._using():
        assert cli.main(["gc", str(store.root), "--days", "1", "--yes"]) == 2
    assert entry.is_dir() and "is using this store" in capsys.readouterr().err
    os.utime(entry, (time.time(),) * 2)
    assert entry not in [one.path for one in leftovers(store.root, days=1)]
    os.utime(entry, (0, 0))
    assert cli.main(["gc", str(store.root), "--days", "1", "--yes"]) == 0
    assert store.keys() == [] and not list(store.used.iterdir()) and not list(store.partial.glob("*.dead"))


def test_verify_names_every_kind_of_damage(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sft = json.loads((run / "sft/manifest.json").read_text())["key"]
    finish(run, "ppo", {"sft": sft})
    note(run, sft={"status": "done", "key": sft}, rankings={"status": "done"})
    assert [w.split(": ")[1] for w in verify_run(run)] == ["missing, and run.json says that rankings is finished"]
    note(run, sft={"status": "done", "key": sft})
    assert cli.main(["verify", str(run)]) == 0 and "all well" in capsys.readouterr().out
    (run / "sft/metrics.jsonl").write_text('{"step": 2}\n')  # same size: logs are hashed too
    (run / "sft/more").write_text("x")
    (run / "ppo/w.safetensors").unlink()
    wrong = verify_run(run)
    told = sorted(w.partition(": ")[2] for w in wrong)
    extra = "not in the manifest; move it elsewhere, or remove it"
    assert told == ["altered since the stage finished", "missing", extra]
    assert cli.main(["verify", str(run)]) == 2
    shutil.rmtree(run / "sft")
    assert any("made from sft" in w and "not there" in w for w in verify_run(run))
    finish(run, "sft", text="others")
    assert any("made from another sft" in w for w in verify_run(run))
    manifest = json.loads((run / "sft/manifest.json").read_text())
    manifest["described"]["text"] = "told otherwise"
    (run / "sft/manifest.json").write_text(json.dumps(manifest))
    assert any("not the hash of what its manifest describes" in w for w in verify_run(run))


def test_a_nested_file_with_a_manifests_name_is_hashed_like_any_other(tmp_path: Path) -> None:
    part = tmp_path / ".sft.partial"
    (part / "adapter").mkdir(parents=True)
    for name in ("manifest.json", "metrics.jsonl"):
        (part / "adapter" / name).write_text("{}")
    made = publish(part, tmp_path / "sft", {"stage": "sft", "key": "k"})
    assert set(made.manifest["files"]) == {"adapter/manifest.json", "adapter/metrics.jsonl"}


def test_parents_that_were_given_are_followed(tmp_path: Path) -> None:
    other, run = tmp_path / "other", tmp_path / "run"
    key = finish(other, "sft")
    finish(run, "ppo", {"sft": key})
    note(run)
    assert any("not there" in w for w in verify_run(run))
    (run / "run.json").write_text(json.dumps({"inputs": {"sft": str(other / "sft")}}))
    assert verify_run(run) == []


def test_ls_says_that_a_stage_failed(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    noted = (run / "run.json").read_text()
    (run / "error.log").write_text("ValueError: odd\n")  # newer than the last start: of the stage that was running
    assert cli.main(["ls", str(run.parent)]) == 0 and "reward (failed)" in capsys.readouterr().out
    os.utime(run / "error.log", (1, 1))
    assert cli.main(["ls", str(run.parent)]) == 0 and "reward (stopped)" in capsys.readouterr().out
    (run / "run.json").write_text(noted.replace("running", "failed"))
    for folder in (run.parent, run):
        assert cli.main(["ls", str(folder)]) == 0 and "failed" in capsys.readouterr().out


def test_ls_of_runs_of_a_run_and_of_a_store(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from models.backbone.artifacts import read_artifact

    made = read_artifact(run / "sft")
    assert made is not None
    Store(tmp_path / "store").put(made)
    (run / "evaluation").mkdir()
    judged = [{"a": "ppo", "b": "sft", "by": "gold", "verdict": "better", "verdict_text": "better: wins 90 %"}]
    (run / "evaluation/results.json").write_text(json.dumps({"comparisons": judged}))
    for folder, words in (
        (run.parent, ("reward (stopped)", "ppo against sft: better: wins 90 %")),
        (run, ("sft", made.key[:12], "stopped", "damaged manifest.json")),
        (tmp_path / "store", (made.key[:12], str(run / "sft"))),
    ):
        assert cli.main(["ls", str(folder)]) == 0
        told = capsys.readouterr().out
        assert all(word in told for word in words)
