"""The command line: help, exit codes, messages, options that take several values. No stage runs here."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import requests

import pipelines.cli.main as cli
from data.common.errors import StageError, UserError
from pipelines.cli.exit_codes import StageFailed, exit_code, spread_values
from pipelines.cli.run import forget_failure, parse_inputs
from pipelines.cli.words import plain_words
from tests.conftest import tiny_lm, word_tokenizer
from tests.support.exits import exit_code_of

ROOT = Path(__file__).parents[3]
COMMANDS = [
    "run",
    "pretrain",
    "sft",
    "rankings",
    "reward",
    "ppo",
    "evaluate",
    "plan",
    "models",
    "score",
    "export",
    "report",
    "watch",
    "chat",
]
GOOD = "base: gpt2\ndata: {demonstrations: d.jsonl, rankings: r.jsonl}\n"


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "recipe.yaml"
    path.write_text(GOOD)
    return path


@pytest.mark.parametrize("command", [*COMMANDS, "verify", "ls", "gc", "data check"])
def test_every_help_teaches_with_an_example(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([*command.split(), "--help"]) == 0
    assert f"trivet {command}" in capsys.readouterr().out.split("Usage:")[1].split("\n", 1)[1]


def test_help_is_quick_and_imports_no_heavy_library() -> None:
    code = (
        "import sys; from pipelines.cli.main import main; main(['--help']); "
        "sys.exit(bool({'torch', 'transformers', 'datasets', 'scipy', 'plotly'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.DEVNULL).returncode == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nope"], "No such command"),
        (["run"], "Missing argument"),
        (["run", "{recipe}", "--bogus"], "No such option"),
        (["run", "{folder}/none.yaml"], "none.yaml: no such recipe"),
        (["run", "{recipe}", "--set", "ppo.kl_ceof=1"], "Did you mean 'kl_coef'"),
        (["plan", "{recipe}", "--set", "ppo.clip=x"], "ppo.clip: must be a number"),
        (["run", "{recipe}", "--input", "sft"], "must have the form stage=path"),
        (["evaluate", "{folder}/nothing"], "no such run folder or recipe"),
        (["evaluate", "{folder}", "--prompts", "none.jsonl"], "--prompts none.jsonl is not there"),
        (["report", "{folder}/no/run"], "no run folder"),
        (["verify", "{folder}/no/run"], "no run folder"),
        (["models", "qwen2.5-05b"], "Did you mean 'qwen2.5-0.5b'"),
        (["ls", "{folder}/nothing"], "no such folder"),
        (["data", "check", "{folder}/none.jsonl"], "is not there"),
    ],
)
def test_wrong_input_is_one_message_and_exit_code_2(
    arguments: list[str], message: str, recipe: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = cli.main([a.format(recipe=recipe, folder=recipe.parent) for a in arguments])
    told = capsys.readouterr()
    assert code == 2 and message in told.err and "Traceback" not in told.err


def test_models_lists_without_a_network(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["models"]) == 0
    assert "Qwen/Qwen2.5-0.5B" in capsys.readouterr().out
    assert cli.main(["models", "opt-125m"]) == 0
    out = capsys.readouterr().out
    assert "refs/pr/35" in out and "lora targets" in out and "override source" in out


def test_models_says_of_a_folder_what_its_files_do(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lm, tokenizer = tiny_lm(), word_tokenizer()
    lm.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)

    def said() -> dict[str, str]:
        assert cli.main(["models", str(tmp_path)]) == 0
        lines = capsys.readouterr().out.splitlines()
        return {line[:18].strip(): line[18:].strip() for line in lines}

    found = said()
    assert found["chat template"].startswith("the tokenizer has no chat template")
    assert found["positions"] == "64"
    count = sum(p.numel() for p in lm.parameters())
    assert found["size"] == f"{count / 1e6:.2f} M parameters, 2 layers, 32 wide"
    tokenizer.chat_template = "{{ messages }}"
    tokenizer.save_pretrained(tmp_path)
    assert said()["chat template"] == "the tokenizer's"


def test_ls_shows_finished_stages(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "one"
    run.mkdir()
    stages = {"sft": {"status": "done", "seconds": 61}, "ppo": {"status": "running"}}
    (run / "run.json").write_text(json.dumps({"name": "mine", "seed": 3, "stages": stages}))
    assert cli.main(["ls", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert all(word in out for word in ("one", "mine", "sft", "ppo (stopped)", "1 min 01 s"))


def test_data_check_counts_rows_and_tells_bad_ones(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text('{"prompt": "p", "completion": "c"}\n{"prompt": \n')
    assert cli.main(["data", "check", str(file)]) == 0
    out = capsys.readouterr().out
    assert "1 bad row\n" in out and "rows.jsonl:2" in out
    assert cli.main(["data", "check", str(file), "--strict"]) == 1


def test_an_error_about_columns_gives_the_options_that_mend_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps({"my_q": f"question {i}", "my a": f"answer {i}"}) + "\n" for i in range(5)))
    columns = ["--columns", "prompt=my_q", "completion=my a"]
    for command in (["data", "check", str(file)], ["init", str(file), "--base", "gpt2"]):
        assert cli.main(command) == 2
        told = capsys.readouterr().err
        assert "`columns: {prompt: my_q, completion: my a}` (here: `--columns prompt=my_q 'completion=my a'`)" in told
        assert "`columns: {prompt: my_q}, ignore: [my a]` (here: `--columns prompt=my_q --ignore 'my a'`)" in told
    assert cli.main(["data", "check", *columns, str(file)]) == 0
    assert "demonstrations (5)" in capsys.readouterr().out


def test_strict_counts_parts_of_a_file_that_are_not_read(tmp_path: Path) -> None:
    recipe, rows = tmp_path / "r.yaml", "".join(f"q{i},a{i}\n" for i in range(30))
    recipe.write_text("base: gpt2\ndata: {demonstrations: a.csv, held_out: 0.2}\nstages: [sft]\n")
    (tmp_path / "a.csv").write_text("prompt,completion\n" + rows)
    assert cli.main(["data", "check", str(recipe), "--strict"]) == 0
    wrapped = tmp_path / "w.json"
    wrapped.write_text(json.dumps({"data": [{"prompt": "p", "completion": "c"}]}))
    assert cli.main(["data", "check", str(wrapped), "--strict"]) == 0
    wrapped.write_text(json.dumps({"data": [{"prompt": "p", "completion": "c"}], "more": [{"prompt": "lost"}]}))
    assert cli.main(["data", "check", str(wrapped), "--strict"]) == 1


def test_several_values_after_one_option() -> None:
    given = ["run", "--set", "a.b=1", "c=2", "recipe.yaml", "--only", "sft", "ppo", "--input", "sft=x", "reward=y"]
    assert spread_values(given) == [
        *["run", "--set", "a.b=1", "--set", "c=2", "recipe.yaml", "--only", "sft", "--only", "ppo"],
        *["--input", "sft=x", "--input", "reward=y"],
    ]
    given = ["data", "check", "--columns", "prompt=my_q", "completion=my_a", "rows.jsonl", "--json"]
    assert spread_values(given) == [
        *["data", "check", "--columns", "prompt=my_q", "--columns", "completion=my_a", "rows.jsonl", "--json"]
    ]
    assert parse_inputs(["sft=a=b"]) == {"sft": "a=b"}
    with pytest.raises(UserError, match="given twice"):
        parse_inputs(["sft=a", "sft=b"])


@pytest.mark.parametrize(
    ("error", "said"),
    [(RuntimeError("out of luck"), " with RuntimeError: out of luck"), (StageError("out of luck"), ": out of luck")],
)
def test_a_failed_stage_leaves_a_log_and_exit_code_3(
    error: Exception, said: str, recipe: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import pipelines.run.pipeline as runner

    def broken(self: runner.Pipeline, **which: object) -> None:
        progress = which["progress"]
        with progress.stage("reward", 5):  # type: ignore[attr-defined]
            raise error

    monkeypatch.setattr(runner.Pipeline, "run", broken)
    (recipe.parent / "d.jsonl").write_text('{"prompt": "w1", "completion": "w2"}\n')
    (recipe.parent / "r.jsonl").write_text('{"prompt": "w1", "responses": ["w2", "w3"]}\n')
    run_dir = recipe.parent / "run"
    assert cli.main(["run", str(recipe), "--run-dir", str(run_dir), "--set", "runtime.device=cpu"]) == 3
    told = capsys.readouterr().err
    assert f"the reward stage failed{said}" in told and "Traceback" not in told
    assert str(run_dir / "error.log") in told
    assert "out of luck" in (run_dir / "error.log").read_text()


@pytest.mark.parametrize("of_failure", [True, False])
def test_a_failure_that_is_overcome_takes_its_report_along(of_failure: bool, tmp_path: Path) -> None:
    """A report from before the failure, which wrote none, is not its own."""
    for place, (name, written) in enumerate({"error.log": 5, "report.html": 6 if of_failure else 4}.items()):
        (tmp_path / name).write_text(f"{place}")
        os.utime(tmp_path / name, (written, written))
    (tmp_path / "error-1.log").write_text("of another process, later")
    forget_failure(tmp_path)
    assert [f.name for f in tmp_path.iterdir()] == ([] if of_failure else ["report.html"])


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signals_stop_with_their_exit_code(number: int, code: int, monkeypatch: pytest.MonkeyPatch) -> None:
    before = signal.getsignal(number)
    monkeypatch.setattr("pipelines.cli.run_commands.run_stages", lambda *_, **__: os.kill(os.getpid(), number))
    assert cli.main(["sft", "recipe.yaml"]) == code
    assert signal.getsignal(number) is before


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_server_ends_at_a_signal_without_a_word(number: int, tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text("def f(prompts, completions):\n    return [float(len(c)) for c in completions]\n")
    command = [sys.executable, "-m", "pipelines", "serve-reward", f"{tmp_path}/own.py:f", "--port", "0"]
    server = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert server.stdout is not None
    told = [server.stdout.readline() for _ in range(4)]
    address = told[2].split()[1]
    assert f"scores at {address}" in told[0] and told[2].split()[0] == "curl"
    shown = json.loads(told[3].partition("-d '")[2].strip().strip("'"))  # what the message says to send
    answer = requests.post(address, json=shown, timeout=10).json()
    assert answer == {"scores": [float(len(shown["rows"][0]["completion"]))]}
    server.send_signal(number)
    rest = server.communicate(timeout=20)
    assert (server.returncode, rest[1]) == (0, "")


def test_an_exit_code_says_what_each_failure_means(capsys: pytest.CaptureFixture[str]) -> None:
    def fails(error: BaseException) -> int:
        def command() -> None:
            raise error

        return exit_code_of(command)

    assert fails(UserError("line 3 is wrong")) == 2
    assert fails(StageFailed("ppo")) == 3
    assert fails(ValueError("odd")) == 3
    told = capsys.readouterr().err
    assert "trivet: line 3 is wrong" in told and "ValueError: odd" in told and "error.log" in told
    assert exit_code_of(lambda: None) == 0


def test_module_equals_script() -> None:
    done = subprocess.run([sys.executable, "-m", "pipelines", "--version"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.startswith("trivet")


LOSSES = {
    "a rejected row": ([{"prompt": "q", "completion": ""}], {}, "1 rows are rejected"),
    "a repeated row": (
        [{"prompt": "q0", "completion": "a0"}],
        {"clean": {"duplicates": "exact"}},
        "1 rows are dropped",
    ),
    "a short row": ([{"prompt": "q", "completion": "no"}], {"clean": {"min_characters": 3}}, "1 rows are dropped"),
    "a column": ([], {"ignore": ["grade"]}, "data.ignore: the columns grade"),
    "a repeated prompt": ([], {"prompts": ["a.jsonl", "b.jsonl"]}, "repeated prompts dropped (1)"),
}


@pytest.mark.parametrize(("rows", "settings", "said"), LOSSES.values(), ids=LOSSES)
def test_strict_of_a_recipe_tells_every_loss(tmp_path: Path, capsys, rows, settings, said) -> None:
    grade = {"grade": "very good indeed"} if "ignore" in settings else {}
    rows = [*({"prompt": f"q{i}", "completion": f"a{i} of many"} | grade for i in range(30)), *rows]
    if "clean" in settings:
        rows = [r | {"completion": "a0 of many"} if r["completion"] == "a0" else r for r in rows]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    (tmp_path / "b.jsonl").write_text('{"prompt": "q3"}\n{"prompt": "other"}\n')
    given = {"base": "gpt2", "stages": ["sft"], "data": {"demonstrations": "a.jsonl", "held_out": 0.2, **settings}}
    given |= {"stages": ["sft", "evaluate"]} if "prompts" in settings else {}
    recipe = tmp_path / "r.yaml"
    recipe.write_text(json.dumps(given))
    assert cli.main(["data", "check", str(recipe), "--strict"]) == 1
    assert f"--strict: {said}" in capsys.readouterr().err.replace("a.jsonl: ", "")


def test_strict_of_files_tells_losses_and_lets_whole_ones_pass(tmp_path: Path, capsys) -> None:
    whole, twice = tmp_path / "whole.jsonl", tmp_path / "twice.jsonl"
    whole.write_text('{"prompt": "p", "completion": "c", "id": 3}\n')
    twice.write_text('{"prompt": "q", "responses": ["a", "a", "b"]}\n')
    assert cli.main(["data", "check", str(whole), "--strict"]) == 0
    assert cli.main(["data", "check", str(twice), "--strict"]) == 1
    assert "repeated responses dropped (1)" in capsys.readouterr().err
    assert cli.main(["data", "check", str(whole), "--ignore", "id", "--strict"]) == 1
    assert "--ignore: the columns id are left out" in capsys.readouterr().err


def test_data_check_of_a_recipe_counts_by_source_and_strict_ends_with_one(tmp_path: Path, capsys) -> None:
    (tmp_path / "a.csv").write_text("prompt;completion\n" + "".join(f"q{i};a{i}\n" for i in range(30)) + 'x;"y\n')
    recipe = tmp_path / "r.yaml"
    recipe.write_text("base: gpt2\ndata: {demonstrations: {path: a.csv, limit: 20}, held_out: 0.2}\nstages: [sft]\n")
    assert cli.main(["data", "check", str(recipe), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    counts = found["sources"][0]
    assert (counts["read"], counts["rejected"], counts["not_sampled"], counts["used"]) == (31, 1, 10, 20)
    assert [row["place"] for row in found["bad"]] == ["a.csv:32"] and "';'" in found["remarks"][0]
    assert cli.main(["data", "check", str(recipe), "--strict", "--all"]) == 1
    assert "a.csv: 31 rows read, 1 rejected, 10 not sampled" in capsys.readouterr().out


@pytest.mark.parametrize("change", ["", "a wrong key", "a wrong suffix"])
def test_a_recipe_in_json_is_looked_at_as_a_recipe(change: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """What a JSON file is, is known by what it holds: data has no base and no data."""
    recipe = {"base": "smollm2-135m", "stages": ["sft"], "data": {"demonstrations": "demo-task?rows=20"}}
    file = tmp_path / ("r.JSON" if change == "a wrong suffix" else "r.json")
    file.write_text(json.dumps(recipe | ({"stagez": 1} if change == "a wrong key" else {})))
    rows = tmp_path / "rows.json"
    rows.write_text(json.dumps([{"prompt": "a", "completion": "b"}]))
    one = tmp_path / "one.json"
    one.write_text(json.dumps({"base": "text", "data": {"a": 1}, "prompt": "a", "completion": "b"}))
    code = cli.main(["data", "check", str(file)])
    out, err = capsys.readouterr()
    assert "known format" not in err
    assert (code, "stagez" in err) == ((2, True) if change == "a wrong key" else (0, False)) and ("20" in out) == (
        not code
    )
    assert cli.main(["data", "check", str(rows)]) == 0 and "usable as" in capsys.readouterr().out
    assert cli.main(["data", "check", str(rows), str(file)]) == 2
    assert f"{file}: is a recipe, which is checked alone" in capsys.readouterr().err.replace("\n", "")
    assert cli.main(["data", "check", str(one)]) == 2 and "known format" in capsys.readouterr().err


@pytest.mark.parametrize("closed", ["1>&-", "2>&-", "1>&- 2>&-"])
def test_closed_outputs_are_no_failure(closed: str, tmp_path: Path) -> None:
    """As a scheduler starts it that keeps no output."""
    (tmp_path / "recipe.yaml").write_text(GOOD)
    code = "import sys; from pipelines.cli.main import main; sys.exit(main(sys.argv[1:]))"
    for arguments, expected in (("models", 0), ("plan recipe.yaml", 2)):
        line = f'"$0" -c "$1" {arguments} {closed}'
        ended = subprocess.run(
            ["bash", "-c", line, sys.executable, code], cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT)}
        )
        assert ended.returncode == expected


@pytest.mark.parametrize("command", [["data", "fix"], ["init"], ["data", "check"], ["plan"]])
def test_a_name_whose_bytes_are_no_text_is_the_users_to_change(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It could be written into no recipe, list of changes or manifest: before, a fault of ours with a log."""
    file = os.fsdecode(os.fsencode(tmp_path) + b"/bad\xff.jsonl")
    Path(file).write_text(json.dumps({"prompt": "q", "completion": "a"}))
    assert cli.main([*command, file]) == 2
    assert r"bad\udcff.jsonl: its bytes are no UTF-8 text; rename" in capsys.readouterr().err
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--run-dir", ""], "--run-dir: its value is empty"),
        (["--run-dir="], "--run-dir: its value is empty"),
        ([""], "argument 3 is empty"),
        (["--run-dir", "loop"], "is a link that leads back to itself"),
        (["--run-dir", "x" * 300], "cannot be a name here (File name too long)"),
    ],
)
def test_names_that_cannot_be_are_the_users_to_change(
    words: list[str], said: str, recipe: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before, an empty --run-dir was the folder that one is in, and the others were faults of ours with a log."""
    monkeypatch.chdir(recipe.parent)
    rows = '"demo-task?rows=20"'
    recipe.write_text(
        f"base: {{pretrain: {{}}}}\nstages: [pretrain, sft]\ndata: {{documents: {rows}, demonstrations: {rows}}}"
    )
    os.symlink("loop", "loop")
    assert cli.main(["plan", str(recipe), *words]) == 2
    assert said in capsys.readouterr().err
    assert sorted(os.listdir()) == ["loop", "recipe.yaml"]


def test_the_sign_of_the_home_folder_is_read_where_a_shell_leaves_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """A shell does so behind `=` and in quotes; a folder called ~ would be made, which nobody should remove by name."""
    monkeypatch.setenv("HOME", "/home/me")
    given = ["run", "~/r.yaml", "--run-dir=~/a b", "--out", "~", "--set", "name=~/x", "~x", "./~/y", "--system", ""]
    read = ["run", "/home/me/r.yaml", "--run-dir=/home/me/a b", "--out", "/home/me", *given[5:]]
    assert plain_words(given) == read


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES, errno.ENAMETOOLONG, errno.ELOOP])
def test_a_place_that_cannot_be_used_is_the_users_to_change(number: int, capsys: pytest.CaptureFixture[str]) -> None:
    with exit_code() as ended:
        raise OSError(number, os.strerror(number), "/some/export")
    said = capsys.readouterr().err
    assert ended.code == 2 and said.startswith("trivet: /some/export: cannot be ") and "choose another" in said
    assert "log" not in said
