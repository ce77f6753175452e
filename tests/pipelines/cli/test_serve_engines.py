"""``trivet serve --engine``: a stage is exported and served by somebody else's server, with the run's responses."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from data.records import Message
from data.storage.folders import cache_root
from pipelines.cli import serve_engines
from pipelines.cli.main import main
from pipelines.cli.serve_engines import Engine
from pipelines.run.chat_models import open_room
from pipelines.run.pipeline import Pipeline
from tests.conftest import tiny_lm, word_tokenizer
from tests.support.recipes import ROOT

ASKED = ["w1 w2", "w3 w4 w5", "w8"]
READS = """
import json, sys
from pathlib import Path
folder = Path(sys.argv[1])
config = json.loads((folder / "config.json").read_text())
Path({out!r}).write_text(json.dumps([
    sys.argv[1:], config["dtype"], (folder / "model.safetensors").is_file(), (folder / "adapter_config.json").exists(),
    str(folder.resolve()),
]))
sys.exit(7)
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of SFT, whose responses have several words."""
    folder = tmp_path_factory.mktemp("served")
    tiny_lm(hidden_size=128, intermediate_size=128, initializer_range=0.2).save_pretrained(
        folder / "base"
    )  # vLLM's heads
    word_tokenizer().save_pretrained(folder / "base")
    rows = [{"prompt": f"w{i} w{i % 7}", "completion": f"w{i % 5} w5 w6 w7"} for i in range(1, 33)]
    (folder / "d.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe = {
        "base": "./base", "template": "dialogue", "stages": ["sft"], "data": {"demonstrations": "d.jsonl"},
        "adapter": {"rank": 4, "alpha": 8}, "sft": {"learning_rate": 1e-2, "batch": 8, "epochs": 6},
        "runtime": {"device": "cpu", "threads": 1},
    }  # fmt: skip
    (folder / "recipe.yaml").write_text(json.dumps(recipe))
    Pipeline.from_recipe(folder / "recipe.yaml", run_dir=folder / "run").run()
    return folder / "run"


def test_the_newest_stage_is_exported_whole_and_the_folder_goes_with_the_server(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    script, out = tmp_path / "server.py", tmp_path / "out.json"
    script.write_text(READS.format(out=str(out)))
    double = Engine(
        lambda python, name, port: [python, str(script), name, str(port)], lambda python: None, {"MORE": "1"}
    )
    monkeypatch.setitem(serve_engines.ENGINES, "double", double)
    assert main(["serve", str(run), "--engine", "double", "--port", "8123", "--flag", "2"]) == 7
    arguments, dtype, whole, adapter, folder = json.loads(out.read_text())
    assert arguments == ["sft", "8123", "--flag", "2"]
    assert (dtype, whole, adapter) == ("float32", True, False)
    assert cache_root() in Path(folder).parents
    assert "'sft' of " in capfd.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--engine", "vlm"], r"--engine vlm: no such server\. Did you mean 'vllm'\?.*trivet, transformers, vllm"),
        (["--engine", "vllm"], r"has no vLLM"),
        (["--engine", "vllm", "--python", "nowhere/python"], r"--python nowhere/python: No such file"),
        (["--engine", "transformers", "--python", "python3"], r"--python is for vLLM"),
        (["--engine", "transformers", "--stage", "ppo"], r"ppo stage"),
        (["--engine", "transformers", "--stage", "base"], r"--stage base: no stage of .* has made it"),
        (["--max-model-len", "9"], r"--max-model-len: is for --engine"),
        (["--python", "python3"], r"--python: is for --engine"),
    ],
)
def test_what_cannot_be_served_so_is_told(run: Path, arguments: list[str], message: str, capsys) -> None:
    pytest.importorskip("fastapi")
    assert main(["serve", str(run), *arguments]) == 2
    assert re.search(message, capsys.readouterr().err)


def test_an_export_that_fails_says_why_and_starts_no_server(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "cache").write_text("")  # a file where the folder would be
    monkeypatch.setattr(serve_engines, "scratch_folder", lambda: SimpleNamespace(path=tmp_path / "cache"))
    monkeypatch.setattr(serve_engines, "supervised", lambda *_, **__: pytest.fail("a server was started"))
    monkeypatch.setitem(serve_engines.ENGINES, "double", Engine(lambda *_: [], lambda _: None, {}))
    assert main(["serve", str(run), "--engine", "double"]) == 2
    assert "cannot be written" in capfd.readouterr().err


def test_a_model_that_is_no_run_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("fastapi")
    assert main(["serve", str(tmp_path), "--engine", "transformers"]) == 2
    assert "is no run folder; --engine serves a stage of a run" in capsys.readouterr().err


@contextlib.contextmanager
def serving(run: Path, folder: Path, *more: str, **variables: str) -> Iterator[str]:
    """The address of ``trivet serve`` for a run, once it answers; its end by Ctrl-C is checked."""
    out, environment = folder / "out", os.environ | variables
    with out.open("wb") as said:
        line = [sys.executable, "-m", "pipelines", "serve", str(run), *more, "--port", "0"]
        process = subprocess.Popen(line, cwd=ROOT, env=environment, stdout=said, stderr=subprocess.STDOUT)
    try:
        end = time.monotonic() + 500
        while True:
            assert process.poll() is None and time.monotonic() < end, out.read_text()
            found = re.search(r"http://127\.0\.0\.1:\d+/v1", out.read_text())
            if found:
                with contextlib.suppress(OSError), urllib.request.urlopen(f"{found[0][:-3]}/health", timeout=5):
                    break
            time.sleep(0.5)
        yield found[0]
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0, out.read_text()
    finally:
        process.kill()
        process.wait()


def check_responses(run: Path, address: str) -> None:
    """OpenAI's own client gets the run's greedy responses."""
    openai = pytest.importorskip("openai")
    speaker = open_room(str(run), "sft").speakers[0]
    with openai.OpenAI(base_url=address, api_key="none", max_retries=0) as client:
        for text in ASKED:
            asked: Any = [{"role": "user", "content": text}]
            made = client.chat.completions.create(model="sft", messages=asked, temperature=0, max_tokens=8)
            mine = speaker.answer(
                [Message(role="user", content=text)], temperature=0, max_new_tokens=8, generator=torch.Generator()
            )
            said = (made.choices[0].message.content or "").strip()  # vLLM leaves a blank before a word's first piece
            assert said == list(mine)[-1][0] != ""


@pytest.mark.slow
def test_transformers_serves_the_runs_responses(run: Path, tmp_path: Path) -> None:
    pytest.importorskip("fastapi")
    with serving(run, tmp_path, "--engine", "transformers", TRIVET_CACHE=str(tmp_path / "cache")) as address:
        check_responses(run, address)
    assert not [*(tmp_path / "cache").rglob("*.safetensors")]


@pytest.mark.slow
def test_vllm_serves_the_runs_responses(run: Path, tmp_path: Path) -> None:
    python = os.environ.get("TRIVET_VLLM_PYTHON", str(ROOT / ".vllm-env" / "bin" / "python"))
    if not os.path.exists(python):
        pytest.skip("no vLLM: `make vllm-env` builds an environment for it")
    on_cpu = {
        "TORCHDYNAMO_DISABLE": "1",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "TRIVET_CACHE": str(tmp_path / "cache"),
    }
    with serving(run, tmp_path, "--engine", "vllm", "--python", python, "--enforce-eager", **on_cpu) as address:
        check_responses(run, address)
