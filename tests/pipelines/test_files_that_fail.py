"""Files that cannot be read or written: pipes, devices, impossible destinations, a full disk, kills while writing."""

from __future__ import annotations

import errno
import json
import os
import re
import resource
import shutil
import signal
import socket
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

import pipelines.cli.main as cli
from data.common.errors import UserError
from data.languages import _identifier, language_of
from models.backbone.artifacts import atomic_file, check_destination, problems, publish, read_artifact, write_atomic
from pipelines.cli.exit_codes import summary_of, write_traceback
from pipelines.report.page import write_report
from pipelines.workspace.gc import leftovers, remove
from pipelines.workspace.store import Store
from tests.support.exits import exit_code_of

KEY = "a" * 64


def pipe(path: Path) -> None:
    os.mkfifo(path)


def bound(path: Path) -> None:
    here = Path.cwd()
    os.chdir(path.parent)  # a socket's name may have 107 bytes
    try:
        socket.socket(socket.AF_UNIX).bind(path.name)
    finally:
        os.chdir(here)


def device(path: Path) -> None:
    path.symlink_to("/dev/zero")


RECIPE: dict[str, object] = {
    "name": "x",
    "base": "smollm2-135m",
    "stages": ["sft"],
    "data": {"demonstrations": "demo-task?rows=20"},
}
INPUTS: dict[str, tuple[str, dict[str, object]]] = {
    "data": ("rows.jsonl", {"data": {"demonstrations": "rows.jsonl"}}),
    "held-out prompts": ("held.jsonl", {"data": {"demonstrations": "demo-task?rows=20", "held_out": "held.jsonl"}}),
    "template": ("own.jinja", {"template": "own.jinja"}),
    "models.yaml": ("models.yaml", {"base": "mine"}),
    "annotator": ("own.py", {"stages": ["sft", "rankings"], "rankings": {"annotator": "own.py:f"}}),
    "recipe": ("recipe.yaml", {}),
}


@pytest.mark.parametrize("what", INPUTS)
@pytest.mark.parametrize("make", [pipe, bound, device])
def test_what_is_no_file_is_refused_at_once(
    what: str, make: Callable[[Path], None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name, changes = INPUTS[what]
    make(tmp_path / name)
    recipe = tmp_path / ("recipe.yaml" if what == "recipe" else "r.json")
    if what != "recipe":
        recipe.write_text(json.dumps(RECIPE | changes))
    signal.alarm(30)  # a hang ends the test
    try:
        assert cli.main(["plan", str(recipe)]) == 2
    finally:
        signal.alarm(0)
    told = capsys.readouterr().err
    assert name in told and "no regular file" in told and "Did you mean" not in told and len(told.splitlines()) <= 2


@pytest.mark.parametrize("command", [["data", "check"], ["score", "RUN"]])
def test_a_pipe_as_the_file_of_a_command_is_refused(
    command: list[str], run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pipe(tmp_path / "rows.jsonl")
    words = [str(run) if w == "RUN" else w for w in command]
    assert cli.main([*words, str(tmp_path / "rows.jsonl")]) == 2
    assert "pipe" in capsys.readouterr().err


DESTINATIONS = {
    "run --run-dir": ["run", "RECIPE", "--run-dir", "TO"],
    "run --store": ["run", "RECIPE", "--store", "TO"],
    "evaluate --run-dir": ["evaluate", "RUN", "--run-dir", "TO"],
    "export --to": ["export", "RUN", "--stage", "sft", "--to", "TO"],
    "score --out": ["score", "RUN", "ROWS", "--out", "TO"],
    "report --out": ["report", "RUN", "OTHER", "--out", "TO"],
}


@pytest.mark.parametrize("to", ["/dev/null/x", "FILE/x", "x" * 300])
@pytest.mark.parametrize("what", DESTINATIONS)
def test_an_impossible_destination_is_one_error_by_name(
    what: str, to: str, least_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    (tmp_path / "rows.jsonl").write_text('{"prompt": "a", "completion": "b"}\n')
    (tmp_path / "r.json").write_text(json.dumps(RECIPE | {"base": str(least_run / "pretrain" / "model")}))
    to = to.replace("FILE", str(tmp_path / "file"))
    named = {"RECIPE": "r.json", "RUN": str(least_run), "ROWS": "rows.jsonl", "TO": to, "OTHER": str(least_run / "sft")}
    if "OTHER" in DESTINATIONS[what]:
        shutil.copytree(least_run, tmp_path / "other", ignore=shutil.ignore_patterns("model", "*.safetensors"))
        named["OTHER"] = str(tmp_path / "other")
    code = cli.main([named.get(word, word) for word in DESTINATIONS[what]])
    told = capsys.readouterr().err
    assert code == 2 and to[:60] in told.replace("\n", "") and "Traceback" not in told


# -- a full disk -------------------------------------------------------------------------------------------------------


class FullFile:
    """A text file on a full disk: it opens, and takes nothing."""

    def __init__(self, file) -> None:
        self.file = file

    def __getattr__(self, name):
        return getattr(self.file, name)

    def __enter__(self):
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()

    def write(self, text: str) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def writelines(self, lines) -> None:
        self.write("".join(lines))


@pytest.fixture
def full(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing can be written from here on."""
    real = Path.open

    def opened(path: Path, mode: str = "r", *args, **kwargs):
        file = real(path, mode, *args, **kwargs)
        return FullFile(file) if mode[0] in "wax" and "error" not in path.name else file

    monkeypatch.setattr(Path, "open", opened)


def test_a_full_disk_at_the_report_names_the_report(
    run: Path, tmp_path: Path, full: None, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(run, tmp_path / "run")
    before = (tmp_path / "run" / "report.html").read_bytes() if (run / "report.html").is_file() else None
    assert exit_code_of(lambda: write_report(tmp_path / "run")) == 3
    told = capsys.readouterr().err
    assert str(tmp_path / "run" / "report.html") in told and "No space left" in told and "checkpoint" not in told
    assert not list((tmp_path / "run").glob(".*.partial"))
    if before is not None:
        assert (tmp_path / "run" / "report.html").read_bytes() == before


def test_a_full_disk_at_scores_and_samples_names_the_file_and_leaves_the_old_one(
    tmp_path: Path, full: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    import pipelines.evaluate.stage as evaluate
    from pipelines.run import score

    monkeypatch.setattr(score, "load_scorer", lambda *_: lambda asked, answers, finished: [1.0] * len(answers))
    os.write(fd := os.open(tmp_path / "rows.jsonl", os.O_CREAT | os.O_WRONLY), b'{"prompt": "a", "completion": "b"}\n')
    os.close(fd)
    os.close(os.open(tmp_path / "out.jsonl", os.O_CREAT | os.O_WRONLY))
    with pytest.raises(OSError, match=r"No space left.*out\.jsonl"):
        score.score_file("any", tmp_path / "rows.jsonl", tmp_path / "out.jsonl")
    assert not (tmp_path / ".out.jsonl.partial").exists()

    monkeypatch.setattr(evaluate, "write_json", lambda *_, **__: None)
    monkeypatch.setattr(evaluate, "samples_rows", lambda answers: [{"prompt": "a"}])
    with pytest.raises(OSError, match=r"No space left.*samples\.jsonl"):
        evaluate.write(tmp_path, {}, [])
    assert not (tmp_path / "samples.jsonl").exists()


@contextmanager
def files_up_to(count: int) -> Iterator[None]:
    """The system lets no file grow beyond so many bytes, whoever writes it, libraries in other languages included."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (count, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


EXPORTS = {
    "an adapter": (["sft"], 6_000, "adapter_model.safetensors"),
    "merged weights": (["sft", "--merge"], 12_000, "out"),
    "a head's folder": (["reward"], 6_000, "adapter_model.safetensors"),
    "a base": (["pretrain"], 12_000, "out"),
}


@pytest.mark.parametrize("what", EXPORTS)
def test_a_full_disk_at_an_export_names_the_file_and_leaves_nothing(
    what: str, least_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words, room, file = EXPORTS[what]
    command = ["export", str(least_run), "--stage", *words, "--to", str(tmp_path / "out")]
    with files_up_to(room):
        code = cli.main(command)
    told = capsys.readouterr().err
    assert code == 3 and "make room" in told and "Traceback" not in told
    assert str(tmp_path / "out") in told and file in told and "partial" not in told
    assert list(tmp_path.iterdir()) == []
    assert cli.main(command) == 0 and (tmp_path / "out").is_dir()


EVALUATIONS = {"recipe.yaml": 1_000, "evaluation": 4_600, "report.html": 60_000}


@pytest.mark.parametrize("file", EVALUATIONS)
def test_a_full_disk_at_an_evaluation_names_the_file_and_the_same_command_ends_it(
    file: str, least_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert language_of("words of which the language is plain to see")  # its model is in memory from here on
    there = tmp_path / "there"
    command = ["evaluate", str(least_run), "--systems", "base", "--run-dir", str(there)]
    short = ["--set", "evaluation.prompts=16", "evaluation.max_new_tokens=8", "evaluation.greedy=false", "tracking=[]"]
    with files_up_to(EVALUATIONS[file]):
        code = cli.main([*command, *short])
    told = capsys.readouterr().err
    assert (
        code == 3
        and re.search(rf"{there}/\S*{file}\S*: cannot be written", told)
        and "make room" in told
        and "Traceback" not in told
    )
    final = read_artifact(there / "evaluation")
    assert (final is not None and not problems(final)) if file == "report.html" else final is None
    assert not (there / "report.html").exists() and not list(there.rglob("*.json.partial"))
    assert cli.main([*command, *short]) == 0
    assert (there / "report.html").is_file() and (final := read_artifact(there / "evaluation")) and not problems(final)


def test_a_full_disk_for_temporary_files_is_named_where_a_language_is_told() -> None:
    _identifier.cache_clear()
    with files_up_to(4000), pytest.raises(OSError, match="File too large") as failed:
        language_of("words of which the language is plain to see")
    assert failed.value.filename == tempfile.gettempdir()


def test_a_log_that_the_disk_does_not_take_whole_is_not_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    (tmp_path / "run").mkdir()
    with files_up_to(10):
        try:
            raise RuntimeError("the cause")
        except RuntimeError:
            assert write_traceback(tmp_path / "run") is None
    assert not list(tmp_path.rglob("error.log"))


def test_removing_needs_no_room(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """``gc`` is what one does on a full disk."""
    finished_stage(tmp_path / "run" / "sft", "weights" * 900)
    (tmp_path / "run" / "run.json").write_text('{"name": "x", "stages": {}}')
    (tmp_path / "run" / ".sft.partial" / "checkpoints").mkdir(parents=True)
    (tmp_path / "run" / ".sft.partial" / "checkpoints" / "step_1").write_text("state" * 900)
    with files_up_to(10):
        code = cli.main(["gc", str(tmp_path / "run"), "--yes"])
    assert code == 0, capsys.readouterr().err
    assert not (tmp_path / "run" / ".sft.partial").exists() and read_artifact(tmp_path / "run" / "sft") is not None


def test_a_full_disk_at_a_store_leaves_the_run_and_no_entry(tmp_path: Path) -> None:
    finished_stage(tmp_path / "one", "weights" * 900)
    artifact = read_artifact(tmp_path / "one")
    assert artifact is not None
    store = Store(tmp_path / "store")
    with files_up_to(4000), pytest.raises(OSError, match="File too large") as failed:
        store.put(artifact)
    assert failed.value.filename is not None or failed.value.filename2 is not None
    assert store.find(KEY) is None and store.verify() == [] and not list(store.partial.glob(f"{KEY}*"))
    store.put(artifact)
    assert store.find(KEY) is not None
    with files_up_to(4000), pytest.raises(OSError, match="File too large"):
        store.fetch(KEY, tmp_path / "two")
    assert not (tmp_path / "two").exists() and store.fetch(KEY, tmp_path / "two") is not None


def test_a_full_disk_at_a_checkpoint_or_weights_names_the_file(tmp_path: Path) -> None:
    from models.backbone.tensor_files import save_tensors

    with files_up_to(4000), pytest.raises(OSError, match="File too large") as failed:
        save_tensors({"a": torch.zeros(9000)}, tmp_path / "a.safetensors")
    assert failed.value.filename == str(tmp_path / "a.safetensors")


def test_an_error_is_told_where_no_disk_takes_its_log(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails() -> None:
        raise RuntimeError("the cause")

    def full(*_: object, **__: object) -> str:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(tempfile, "mkdtemp", full)
    assert exit_code_of(fails) == 3
    assert "the cause" in (told := capsys.readouterr().err) and "no log could be written" in told


def test_only_a_stage_speaks_of_its_checkpoint() -> None:
    error = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/a/b.jsonl")
    assert "checkpoint" in summary_of(error) and "checkpoint" not in summary_of(error, resumes=False)
    assert all("/a/b.jsonl" in summary_of(error, resumes) for resumes in (True, False))


def test_a_file_is_whole_or_not_there_and_a_device_is_never_replaced(tmp_path: Path) -> None:
    write_atomic(tmp_path / "a", "old")
    with pytest.raises(KeyboardInterrupt), atomic_file(tmp_path / "a") as file:
        file.write("ne")
        raise KeyboardInterrupt
    assert (tmp_path / "a").read_text() == "old" and [p.name for p in tmp_path.iterdir()] == ["a"]
    (tmp_path / "null").symlink_to("/dev/null")
    write_atomic(tmp_path / "null", "text")
    assert (tmp_path / "null").is_symlink() and (tmp_path / "null").is_char_device()
    check_destination(tmp_path / "null", "--out")
    os.mkfifo(tmp_path / "pipe")
    for wrong in (tmp_path, tmp_path / "pipe", tmp_path / "a" / "b", tmp_path / "none" / "b"):
        with pytest.raises(UserError, match="choose another --out"):
            check_destination(wrong, "--out")


# -- kills -------------------------------------------------------------------------------------------------------------

POINTS = ("os.replace", "os.fsync", "shutil.copyfile", "shutil.rmtree", "os.rename", "os.link")


def killed(work: Callable[[], object], point: str, number: int) -> bool:
    """Do ``work`` in a process that kills itself at the ``number``-th call of ``point``; whether it came that far."""
    child = os.fork()
    if child == 0:
        module = {"os": os, "shutil": shutil}[point.partition(".")[0]]
        name, left = point.partition(".")[2], number
        real = getattr(module, name)

        def planted(*args, **kwargs):
            nonlocal left
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*args, **kwargs)

        setattr(module, name, planted)
        try:
            work()
        finally:
            os._exit(0)
    return os.waitpid(child, 0)[1] == signal.SIGKILL


def each_kill(work: Callable[[], object], check: Callable[[], None]) -> int:
    """Kill ``work`` at every point in turn, each time checking what is left; the number of kills."""
    kills = 0
    for point in POINTS:
        number = 1
        while killed(work, point, number):
            check()
            kills, number = kills + 1, number + 1
        check()
    return kills


def test_kills_while_a_report_is_written(run: Path, tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path / "run")
    page = write_report(tmp_path / "run")
    good = page.read_bytes()
    count = 0

    def work() -> None:
        write_atomic(page, "an older report")
        write_report(tmp_path / "run")

    def whole() -> None:
        nonlocal count
        count += 1
        assert page.read_bytes() in (good, b"an older report")

    assert each_kill(work, whole) >= 4 and count
    assert write_report(tmp_path / "run").read_bytes() == good
    assert not list((tmp_path / "run").glob(".report*.partial"))


def finished_stage(folder: Path, weights: str = "weights") -> None:
    part = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(part, ignore_errors=True)
    (part / "adapter").mkdir(parents=True)
    (part / "adapter" / "a.safetensors").write_text(weights)
    (part / "metrics.jsonl").write_text("{}\n")
    publish(part, folder, {"stage": "sft", "key": KEY})


def test_kills_while_a_store_is_written_and_read(tmp_path: Path) -> None:
    finished_stage(tmp_path / "one")
    artifact = read_artifact(tmp_path / "one")
    assert artifact is not None
    root = tmp_path / "store"
    Store(root)

    def work() -> None:
        shutil.rmtree(root / "entries" / KEY, ignore_errors=True)
        store = Store(root)
        store.put(artifact)
        store.fetch(KEY, tmp_path / "two")

    def whole() -> None:
        for folder in (root / "entries" / KEY, tmp_path / "two"):
            if folder.exists() and folder != root / "entries" / KEY:
                found = read_artifact(folder)
                assert found is not None and not problems(found)
        store = Store(root)
        store.put(artifact)  # the same again completes
        assert store.verify() == [] and store.fetch(KEY, tmp_path / "two") is not None

    assert each_kill(work, whole) >= 8
    remove(leftovers(root, 0), 0)
    assert not [p for p in Store(root).partial.iterdir() if p.is_dir()]
    assert Store(root).fetch(KEY, tmp_path / "three") is not None


def test_kills_while_gc_removes(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "run.json").write_text(json.dumps({"name": "x", "stages": {"sft": {"status": "done", "key": KEY}}}))
    finished_stage(run / "sft")
    kept = read_artifact(run / "sft")
    assert kept is not None

    def work() -> None:
        for name in (".sft.previous", ".sft.old"):
            (run / name).mkdir(exist_ok=True)
            (run / name / "a").write_text("x")
        remove(leftovers(run))

    def whole() -> None:
        assert (not problems(kept) and not leftovers(tmp_path / "run")) or not remove(leftovers(run))[1]
        assert leftovers(run) == []

    assert each_kill(work, whole) >= 1
    assert sorted(p.name for p in run.iterdir() if p.name != ".lock") == ["run.json", "sft"]


def test_kills_while_a_model_is_exported(least_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pipelines.export import stage as export
    from pipelines.export.model_card import Exported

    to = tmp_path / "exported"
    written: list[str] = []

    def made(model, partial, merge, saving, say) -> Exported:
        for name in ("adapter_config.json", "adapter_model.safetensors", "tokenizer.json"):
            write_atomic(partial / name, name)
            written.append(name)
        return Exported(form="adapter", renderer=model.pipeline.loaded.renderer)

    def card(pipeline, stage, exported, partial) -> None:
        write_atomic(partial / "README.md", "a card")

    monkeypatch.setattr(export, "export_lm", made)
    monkeypatch.setattr(export, "write_card", card)

    def work() -> None:
        shutil.rmtree(to, ignore_errors=True)
        export.export_stage(least_run, "sft", to)

    def whole() -> None:
        if to.exists():
            assert len(list(to.iterdir())) == 4
            shutil.rmtree(to)
        export.export_stage(least_run, "sft", to)
        assert [p.name for p in tmp_path.iterdir()] == ["exported"] and len(list(to.iterdir())) == 4

    assert each_kill(work, whole) >= 6
