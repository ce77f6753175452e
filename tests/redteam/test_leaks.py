"""Nothing hostile steers the report or a terminal, and no secret is written down: every text that reaches them."""

from __future__ import annotations

import io
import json
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from models.backbone.artifacts import publish
from models.backbone.processes import Processes
from pipelines.cli.summary import show_summary
from pipelines.execution.progress import Progress
from pipelines.report.page import write_report
from pipelines.workspace.run_folder import RunFolder
from tests.support.finished_run import Tags, make_run, unpacked_part

HTML = [
    "<script>evil()</script>",
    "</script><script>evil()</script>",
    '"><img src=x onerror=evil()>',
    "'--><svg onload=evil()>",
]
SECRETS = {
    "shape": "hf_abcdefghijklmnopqrstuvwx",
    "other shape": "sk-abcdefghijklmnopqrstuvwx",
    "environment": "my-very-own-value-7",
    "address": "hunter2222",
}
TEXT = (
    f"see {SECRETS['shape']} and {SECRETS['other shape']} and {SECRETS['environment']} "
    f"at https://me:{SECRETS['address']}@host/x"
)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("leaks") / "demo", n=12)


@pytest.fixture
def run(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "demo"))


def poisoned(value: Any, poison: Callable[[str], str]) -> Any:
    """Every text in plain data changed; keys, numbers and what code compares with stay."""
    if isinstance(value, str):
        return poison(value)
    if isinstance(value, dict):
        return {k: poisoned(v, poison) for k, v in value.items()}
    return [poisoned(v, poison) for v in value] if isinstance(value, list) else value


def poison_run(run: Path, poison: Callable[[str], str]) -> None:
    for file in [*run.rglob("*.json"), *run.rglob("*.jsonl")]:
        rows = (
            [poisoned(json.loads(line), poison) for line in file.read_text().splitlines() if line.strip()]
            if (file.suffix == ".jsonl")
            else [poisoned(json.loads(file.read_text()), poison)]
        )
        file.write_text("\n".join(map(json.dumps, rows)) + "\n")
    noted = json.loads((run / "run.json").read_text())
    noted["data"] = {poison("rows"): 3}
    noted["stages"][poison("sft")] = {"status": poison("done")}
    (run / "run.json").write_text(json.dumps(noted))
    for stage in ("sft", "ppo", "reward"):
        manifest = json.loads((run / stage / "manifest.json").read_text())
        manifest["metrics"] |= {poison("a name"): poison("a value"), "warnings": [{"step": 1, "text": poison("w")}]}
        (run / stage / "manifest.json").write_text(json.dumps(manifest))
    with (run / "sft/metrics.jsonl").open("a") as log:
        log.write(json.dumps({"step": 9, poison("loss"): 1.0, "loss": 2.0}) + "\n")
    (run / "recipe.yaml").write_text(f"name: {poison('demo')}\n# {poison('x')}\n")


def counted(page: str) -> Counter[str]:
    return Counter(tag for tag, _ in Tags(page).tags)


@pytest.mark.parametrize("evil", HTML)
def test_no_text_of_a_run_becomes_markup(evil: str, run: Path) -> None:
    poison_run(run, lambda text: text + "harmless")
    harmless = counted(write_report(run).read_text(encoding="utf-8"))
    poison_run(run, lambda text: text.removesuffix("harmless") + evil)
    page = write_report(run).read_text(encoding="utf-8")
    assert "evil()" in page and evil not in page
    tags = Tags(page).tags
    assert sum(tag == "script" for tag, _ in tags) == 5 and not any(tag == "img" for tag, _ in tags)
    assert not any(name.startswith("on") for _, attributes in tags for name in attributes)
    assert set(counted(page)) == set(harmless)
    assert evil in unpacked_part(page, "samples")  # packed: text for a script that writes textContent


def test_answers_are_written_as_text_by_the_pages_script() -> None:
    script = (Path(__file__).parents[2] / "pipelines/report/report.js.jinja").read_text()
    assert "textContent" in script
    for way in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "Function("):
        assert way not in script


def without_secrets(text: str) -> None:
    assert "***" in text
    for kind, secret in SECRETS.items():
        assert secret not in text, kind


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_API_KEY", SECRETS["environment"])


@pytest.mark.usefixtures("environment")
def test_no_secret_in_the_report(run: Path) -> None:
    poison_run(run, lambda text: f"{text} {TEXT}")
    page = write_report(run).read_text(encoding="utf-8")
    without_secrets(page)
    without_secrets(unpacked_part(page, "samples"))


@pytest.mark.usefixtures("environment")
def test_no_secret_in_manifests_and_run_json(tmp_path: Path) -> None:
    part = tmp_path / ".sft.partial"
    part.mkdir()
    holding = {"described": {"settings": [TEXT]}, "metrics": {TEXT: TEXT}}
    publish(part, tmp_path / "sft", {"stage": "sft", "key": "k", **holding})
    without_secrets((tmp_path / "sft/manifest.json").read_text())
    folder = RunFolder(tmp_path, Processes("cpu", 1))
    folder.note(name=TEXT, inputs={"sft": TEXT})
    folder.stage("sft", status=TEXT)
    without_secrets((tmp_path / "run.json").read_text())


@pytest.mark.usefixtures("environment")
def test_no_secret_and_no_control_code_in_progress_and_summary(run: Path) -> None:
    out = io.StringIO()
    progress = Progress(console=Console(file=out, width=2000))
    progress.say(TEXT + "\x1b]0;owned\x07")
    progress.warn(TEXT + "\x1b[2J")
    with progress.stage("sft\x1b[2J", 2) as bar:
        bar.advance(1, {TEXT: 1.0})
    poison_run(run, lambda text: f"{text} {TEXT}\x1b[2J")
    results = json.loads((run / "evaluation/results.json").read_text())
    (run / "evaluation/results.json").write_text(json.dumps(results | {"warnings": [TEXT]}))
    show_summary(run, progress.console)
    without_secrets(out.getvalue())
    assert "\x1b" not in out.getvalue() and "\x07" not in out.getvalue() and "owned" in out.getvalue()


@pytest.mark.usefixtures("environment")
def test_no_secret_in_ls_plan_and_verify(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from pipelines.cli import main as cli

    noted = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps(noted | {"name": TEXT}))
    assert cli.main(["ls", str(run.parent)]) == 0
    without_secrets(capsys.readouterr().out)
