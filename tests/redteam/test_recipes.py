"""Hostile recipes, functions and settings: exit code 2, one message, quickly, and nothing written."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import pytest

import pipelines.cli.main as cli
from data.common.errors import UserError
from data.common.redaction import printable, redact, redacted
from data.common.user_functions import fingerprint_of, load_function

GOOD = "base: gpt2\ndata: {demonstrations: d.jsonl}\n"
LAUGHS = "a0: &a0 [x]\n" + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 12))
MERGES = "a0: &a0 {x: 1}\n" + "".join(f"a{i}: &a{i} {{<<: [{', '.join([f'*a{i - 1}'] * 9)}]}}\n" for i in range(1, 12))
HOSTILE = {
    "laughs": (LAUGHS, "aliases stand for more than"),
    "merged laughs": (MERGES, "aliases stand for more than"),
    "python object": (GOOD + "name: !!python/object/apply:os.system ['touch owned']\n", "not readable as YAML"),
    "python name": (GOOD + "name: !!python/name:os.system\n", "not readable as YAML"),
    "binary": (GOOD + "name: !!binary aGVsbG8=\n", "makes no plain value"),
    "bad integer": (GOOD + "seed: !!int many\n", "no value"),
    "bad boolean": (GOOD + "seed: !!bool many\n", "no value"),
    "date": (GOOD + "name: !!timestamp never\n", "makes no plain value"),
    "many digits": (GOOD + f"seed: {'9' * 5000}\n", "no value"),
    "large number": (GOOD + f"seed: {'9' * 30}\n", "too large"),
    "infinite": (GOOD + "ppo: {kl_coef: 1e999}\n", "finite"),
    "deep flow": ("base: " + "[" * 20_000, "nested too deeply"),
    "deep blocks": ("".join(" " * i + "a:\n" for i in range(600)), "nested too deeply"),
    "huge": ("# " + "x" * 2_000_000, "are no recipe"),
    "path in the name": (GOOD + "name: ../../owned\n", "names the run folder"),
    "best of everything": (GOOD + "evaluation: {systems: [best_of_99999999999]}\n", "no system"),
    "remote code": (GOOD + "trust_remote_code: true\n", "no such setting"),
    "remote code in a group": (GOOD + "runtime: {trust_remote_code: true}\n", "no such setting"),
    "token": (GOOD + "name: hf_abcdefghijklmnopqrstuv\n", "looks like a secret"),
    "password in an address": ("base: gpt2\ndata: {demonstrations: 'https://me:hunter22@host/x.jsonl'}\n", "secret"),
    "control codes": (GOOD + '"\\e]0;owned\\a": 1\n', "no such setting"),
}


def refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    started = time.process_time()
    code = cli.main(arguments)
    told = capsys.readouterr().err
    assert code == 2 and "Traceback" not in told and time.process_time() - started < 5
    assert not any(ord(c) < 32 and c != "\n" for c in told)
    return told


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_recipes(name: str, tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    text, message = HOSTILE[name]
    (tmp_path / "recipe.yaml").write_text(text)
    told = refused(["run", "recipe.yaml"], capsys)
    assert message in told and "hunter22" not in told and "hf_abc" not in told
    assert [p.name for p in tmp_path.iterdir()] == ["recipe.yaml"]


def test_hostile_overrides(tmp_path: Path, capsys) -> None:
    (tmp_path / "recipe.yaml").write_text(GOOD)
    for value in ("[" * 5000, "!!python/name:os.system", "!!bool x", "9" * 5000):
        refused(["plan", str(tmp_path / "recipe.yaml"), "--set", f"seed={value}"], capsys)


def test_a_function_beside_files_with_our_names(tmp_path: Path) -> None:
    """The user's ``reward.py``, ``models.py`` and ``data/`` neither replace ours nor are they replaced."""
    (tmp_path / "data").mkdir()
    for name in ("stages.py", "data/__init__.py", "json.py"):
        (tmp_path / name).write_text("raise RuntimeError('the wrong module')\n")
    (tmp_path / "models.py").write_text("ONE = 1.0\n")
    (tmp_path / "reward.py").write_text(
        "import json, models, data.records\n"
        "def f(prompts, completions):\n    return [models.ONE * len(json.dumps(c)) / 3 for c in completions]\n"
    )
    path = list(sys.path)
    assert load_function("reward.py:f", tmp_path)(["p"], ["c"]) == [1.0]
    assert sys.path == path
    import models

    assert Path(models.__file__ or "").parents[1] == Path(cli.__file__).parents[2]
    assert not list(tmp_path.rglob("__pycache__"))


def test_what_runs_is_what_was_hashed_and_never_a_bytecode_file(tmp_path: Path) -> None:
    import importlib.util
    import py_compile

    file = tmp_path / "r.py"
    file.write_text("def f(prompts, completions): return [6.66] * len(completions)\n")
    cached = importlib.util.cache_from_source(str(file))
    py_compile.compile(str(file), cfile=cached, invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH)
    file.write_text("def f(prompts, completions): return [1.0] * len(completions)\n")
    assert load_function("r.py:f", tmp_path)(["p"], ["c"]) == [1.0]


def test_the_plan_hashes_a_function_without_running_it(tmp_path: Path) -> None:
    (tmp_path / "r.py").write_text("open('owned', 'w')\nraise SystemExit\ndef f(prompts, completions): return []\n")
    assert len(fingerprint_of("r.py:f", tmp_path)) == 64
    with pytest.raises(UserError, match="Did you mean 'f'"):
        fingerprint_of("r.py:ff", tmp_path)
    (tmp_path / "ok.py").write_text("def f(prompts, completions): return []\n")
    assert fingerprint_of("ok.py:f", tmp_path) == load_function("ok.py:f", tmp_path).fingerprint


@pytest.mark.parametrize(
    "reference", ["\x00.py:f", "~nobody-here/x.py:f", "x" * 5000 + ".py:f", "../no/where.py:f", ":f"]
)
def test_hostile_function_names(reference: str, tmp_path: Path) -> None:
    for look in (load_function, fingerprint_of):
        with pytest.raises(UserError):
            look(reference, tmp_path)


@pytest.mark.parametrize(
    "text",
    [
        "token hf_abcdefghijklmnopqrstuvwx0",
        "https://me:hunter2222@host/x",
        "GET https://host/x?api_key=hunter2222&b=1",
        "Authorization: Bearer hunter2222",
        "api_key: hunter2222",
        '{"openai_api_key": "hunter2222"}',
        "environment says my-own-value-1",
    ],
)
def test_secrets_are_hidden(text: str, monkeypatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "my-own-value-1")
    for shown in (redact(text), printable(text), redacted({"a": [text]})["a"][0]):
        assert "***" in shown
        assert not any(secret in shown for secret in ("hunter2222", "my-own-value-1", "hf_abc"))


@pytest.mark.parametrize(
    "text",
    [
        "max_new_tokens: 64",
        "pad_token: <|endoftext|>",
        "tokens 12345678",
        "data/tokens.jsonl",
        "stop_token=</s>",
        "a@b.c",
    ],
)
def test_ordinary_text_is_left_alone(text: str) -> None:
    assert redact(text) == text


def test_error_logs_hold_no_secret(tmp_path: Path, monkeypatch) -> None:
    from pipelines.cli.exit_codes import write_traceback

    monkeypatch.setenv("HF_TOKEN", "not-a-usual-shape-9")
    try:
        raise RuntimeError("cannot reach https://u:p4ssw0rd@host with not-a-usual-shape-9")
    except RuntimeError:
        log = write_traceback(tmp_path)
    assert log is not None
    text = log.read_text()
    assert "RuntimeError" in text and "p4ssw0rd" not in text and "not-a-usual" not in text
