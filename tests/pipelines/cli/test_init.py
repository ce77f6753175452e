"""``trivet init``: the recipe that it writes, its questions in a terminal, and one clear error for each bad input."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from pipelines.cli.main import main
from pipelines.loading.load import load_recipe
from pipelines.run.pipeline import Pipeline
from tests.conftest import tiny_lm, word_tokenizer

ROOT = Path(__file__).parents[3]


def lines(path: Path, made: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in made))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A base of 64 positions, 60 demonstrations in alpaca's format of which 5 have 90 words, 30 rankings, 30 lines."""
    monkeypatch.chdir(tmp_path)
    tiny_lm().save_pretrained(tmp_path / "base")
    word_tokenizer().save_pretrained(tmp_path / "base")
    long = " ".join(["w1"] * 90)
    lines(
        tmp_path / "shown.jsonl",
        [{"instruction": f"w{i % 33} w{i % 7}", "input": "", "output": long if i < 5 else "w2 w3"} for i in range(60)],
    )
    lines(tmp_path / "ranked.jsonl", [{"prompt": f"w{i} w5 w6", "responses": ["w1 w2", "w3"]} for i in range(30)])
    (tmp_path / "lines.txt").write_text("".join(f"w{i} w{i + 1} w4\n" for i in range(30)))
    return tmp_path


def test_the_recipe_says_what_was_recognised_and_what_will_be_chosen(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["init", "shown.jsonl", "ranked.jsonl", "--base", "base"]) == 0
    said, text = capsys.readouterr().out, (folder / "mine.yaml").read_text()
    assert "shown.jsonl: demonstrations, for SFT (alpaca, 60 rows" in said
    assert "ranked.jsonl: rankings, for the reward model (ranked answers, 30 rows)" in said
    assert "stages: sft, reward, ppo, evaluate" in said and "`trivet plan mine.yaml` passes" in said
    recipe = load_recipe(folder / "mine.yaml")
    assert (recipe.name, recipe.base, recipe.data.demonstrations) == ("mine", "./base", ("shown.jsonl",))
    assert recipe.sft.max_tokens == 64 and "the base has 64 positions" in text
    assert recipe.data.held_out == 0.4  # few rows, of which 25 would be held out, but not nearly half
    settled = Pipeline.from_recipe(folder / "mine.yaml").recipe
    for stage in ("sft", "reward", "ppo"):
        group = text.split(f"{stage}:\n")[1].split("\n\n")[0]
        assert f"#   learning_rate: {getattr(settled, stage).learning_rate:g}" in group
    assert f"#   epochs: {settled.sft.epochs:g}" in text and f"#   batch: {settled.sft.batch}" in text
    assert f"#   max_new_tokens: {settled.ppo.max_new_tokens}" in text
    assert main(["plan", "mine.yaml"]) == 0


def test_what_stands_behind_a_hash_changes_nothing(folder: Path) -> None:
    """Without its #, each shown line gives the settled recipe that stands there anyway."""
    assert main(["init", "shown.jsonl", "ranked.jsonl", "--base", "base"]) == 0
    text = (folder / "mine.yaml").read_text()
    shown = re.sub(r"(?m)^# (?=  \w+: |(sft|reward|ppo):$)", "", text.replace("#   prompts: FILE", "# "))
    assert shown.count("\nppo:\n  learning_rate: ") == 1
    (folder / "whole.yaml").write_text(shown)
    ours, theirs = (Pipeline.from_recipe(folder / name).recipe for name in ("mine.yaml", "whole.yaml"))
    assert ours.sft == theirs.sft and ours.reward == theirs.reward and ours.ppo == theirs.ppo


def test_a_limit_is_raised_where_many_rows_are_longer(folder: Path) -> None:
    """By hand: a tenth of the rows has 1,500 words and the tokens around them; 1,536 is the next multiple of 64."""
    tiny_lm(max_position_embeddings=4096).save_pretrained(folder / "base")
    rows = [{"prompt": f"w{i % 33}", "completion": " ".join(["w1"] * (1500 if i % 10 == 0 else 9))} for i in range(80)]
    lines(folder / "long.jsonl", rows)
    assert main(["init", "long.jsonl", "--base", "base"]) == 0
    assert load_recipe(folder / "mine.yaml").sft.max_tokens == 1536


def test_a_table_of_positions_is_kept_in_evaluation(folder: Path) -> None:
    """64 positions, of which the longest held-out prompts take 45 and the words around them, of 30-word responses."""
    tiny_lm("gpt2").save_pretrained(folder / "base")
    texts = [" ".join([f"w{i % 33}", *["w1"] * (44 if i % 5 == 0 else 3)]) for i in range(80)]
    lines(folder / "a.jsonl", [{"prompt": text, "completion": " ".join(["w2"] * 30)} for text in texts])
    lines(folder / "b.jsonl", [{"prompt": text, "chosen": "w2 w2", "rejected": "w3"} for text in texts])
    assert main(["init", "a.jsonl", "b.jsonl", "--base", "base"]) == 0
    found = load_recipe(folder / "mine.yaml").evaluation.max_new_tokens
    assert found is not None and 8 <= found <= 64 - 45


def test_a_stop_token_that_was_never_trained_gives_way_to_one_that_was(folder: Path) -> None:
    """``<eos>`` and ``<pad>`` share one embedding; the model's configuration lists ``<bos>`` as a stop as well."""
    lm = tiny_lm()
    tied = lm.get_output_embeddings().weight.data
    tied[2] = tied[0]
    lm.generation_config.eos_token_id = [1, 2]
    lm.save_pretrained(folder / "base")
    assert main(["init", "shown.jsonl", "--base", "base"]) == 0
    assert load_recipe(folder / "mine.yaml").stop == ("<bos>",)
    lm.generation_config.eos_token_id = 2
    lm.save_pretrained(folder / "base")
    assert main(["init", "shown.jsonl", "--base", "base", "--force"]) == 0
    assert load_recipe(folder / "mine.yaml").stop == ()
    assert "never trained on its stop token <eos>" in (folder / "mine.yaml").read_text()


def test_stories_get_the_template_that_writes_nothing_around_them(folder: Path) -> None:
    lines(folder / "stories.jsonl", [{"prompt": f"w{i}", "completion": " w1 w2"} for i in range(30)])
    assert main(["init", "stories.jsonl", "--base", "base"]) == 0
    assert load_recipe(folder / "mine.yaml").template == "text"


def test_two_files_of_one_part_are_both_listed(folder: Path) -> None:
    lines(folder / "more rows.jsonl", [{"prompt": f"w{i} w9", "completion": "w1"} for i in range(20)])
    out = folder / "deep/own.yaml"
    out.parent.mkdir()
    assert main(["init", "shown.jsonl", "more rows.jsonl", "--base", "./base", "--out", str(out)]) == 0
    recipe = load_recipe(out)
    assert recipe.name == "own" and [Path(str(p)).name for p in recipe.data.demonstrations] == [
        "shown.jsonl", "more rows.jsonl",
    ]  # fmt: skip
    assert len(Pipeline.from_recipe(out).corpus.demonstrations) == 80


def test_settings_of_a_source_are_taken_as_a_recipe_writes_them(folder: Path) -> None:
    (folder / "table.tsv").write_text("".join(f"w{i} w1\tw{i} w2\n" for i in range(30)))
    lines(folder / "own.jsonl", [{"question": f"w{i}", "completion": "w1", "note": "x y"} for i in range(30)])
    table = "{path: table.tsv, header: false}"
    given = ["init", table, "own.jsonl", "--columns", "prompt=question", "--ignore", "note", "--base", "base"]
    assert main(given) == 0
    data = load_recipe(folder / "mine.yaml").data
    assert data.rankings[0].header is False and data.ignore == ("note",)  # type: ignore[union-attr]
    assert data.demonstrations[0].columns == {"prompt": "question"}  # type: ignore[union-attr]


def test_texts_pretrain_a_base(folder: Path) -> None:
    assert main(["init", "lines.txt", "--base", "scratch"]) == 0
    recipe = load_recipe(folder / "mine.yaml")
    assert recipe.stages == ("pretrain",) and recipe.data.documents == ("lines.txt",) and recipe.data.held_out == 0.2


@pytest.mark.parametrize("rankings, share", [(600, 0.2), (90, 0.4)])
def test_few_prompts_take_no_large_share_of_many_rankings(folder: Path, rankings: int, share: float) -> None:
    """Of 60 prompts two fifths are held out where no file has more than 500 rows, else a fifth of everything."""
    rows = [{"prompt": f"w{i} w{i % 7} w6", "responses": ["w1 w2", "w3"]} for i in range(rankings)]
    lines(folder / "ranked.jsonl", rows)
    lines(folder / "asked.jsonl", [{"prompt": f"w{i} w9 w4"} for i in range(60)])
    assert main(["init", "ranked.jsonl", "asked.jsonl", "--base", "base"]) == 0
    assert load_recipe(folder / "mine.yaml").data.held_out == share


def test_held_out_rows_in_training_are_reported(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines(folder / "held.jsonl", [{"prompt": "w3 w5 w6"}, {"prompt": "w29 w5 w6"}, {"prompt": "w31 w31"}])
    assert main(["init", "shown.jsonl", "ranked.jsonl", "--base", "base", "--held-out", "held.jsonl"]) == 0
    text = (folder / "mine.yaml").read_text()
    assert load_recipe(folder / "mine.yaml").data.held_out == "held.jsonl"
    assert "a file, in no stage's training data: 0 demonstrations, 2 rankings" in text


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ([], "init needs data files and --base"),
        (["shown.jsonl"], "init needs --base"),
        (["--base", "base"], "init needs data files"),
        (["shown.jsonl", "--base", "./nowhere"], "there is no such folder"),
        (["shown.jsonl", "--base", "bse"], "base 'bse' is not a known name"),
        (["nothing.jsonl", "--base", "base"], "nothing.jsonl is not there"),
        (["odd.jsonl", "--base", "base"], "no row fits a known format"),
        (["base", "--base", "base"], "base is a folder, not a file"),
        (["lines.txt", "--base", "base"], "--prompts lines.txt"),
        (["--documents", "lines.txt", "--base", "base"], "which pretrain a base; the base is there already"),
        (["--prompts", "lines.txt", "--base", "base"], "holds prompts alone"),
        (["--rankings", "shown.jsonl", "--base", "base"], "its rows can be demonstrations or prompts or documents"),
        (["shown.jsonl", "--base", "base", "--for", "tpu"], "--for tpu: is no machine"),
        (["shown.jsonl", "--base", "base", "--held-out", "1.5"], "a share lies between 0 and 1"),
        (["shown.jsonl", "--base", "base", "--held-out", "no.jsonl"], "neither a share such as 0.1 nor a file"),
        (["shown.jsonl", "--base", "base", "--out", "no/mine.yaml"], "its folder does not exist"),
        (["{path: shown.jsonl, heder: false}", "--base", "base"], "heder"),
        (["{path: shown.jsonl", "--base", "base"], "not readable as YAML"),
    ],
)
def test_a_bad_input_is_one_clear_error(
    folder: Path, given: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    lines(folder / "odd.jsonl", [{"a": 1, "b": 2}])
    assert main(["init", *given]) == 2
    error = capsys.readouterr().err
    assert said in error and "Traceback" not in error and error.count("trivet:") == 1
    assert not (folder / "mine.yaml").exists() and not list(folder.glob(".*partial"))


def test_a_recipe_is_replaced_by_force_alone_and_kept(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "mine.yaml").write_text("mine\n")
    given = ["init", "shown.jsonl", "--base", "base"]
    assert main(given) == 2 and (folder / "mine.yaml").read_text() == "mine\n"
    assert "--force" in capsys.readouterr().err
    assert main([*given, "--force"]) == 0 and load_recipe(folder / "mine.yaml").stages == ("sft",)
    assert [p.read_text() for p in folder.glob(".mine.yaml*")] == ["mine\n"]


def answered(folder: Path, words: list[str], answers: list[tuple[str, str]]) -> tuple[int, str]:
    """Run the command in a terminal of its own; each answer is typed once its question stands there."""
    ours, theirs = pty.openpty()
    code = "import sys; from pipelines.cli.main import main; sys.exit(main())"
    environment = os.environ | {"PYTHONPATH": str(ROOT), "TERM": "dumb", "COLUMNS": "200"}
    process = subprocess.Popen(
        [sys.executable, "-c", code, "init", *words],
        cwd=folder, stdin=theirs, stdout=theirs, stderr=theirs, env=environment, start_new_session=True,
    )  # fmt: skip
    os.close(theirs)
    shown, waiting, since, end = "", list(answers), 0, time.monotonic() + 400
    while time.monotonic() < end:
        if select.select([ours], [], [], 0.2)[0]:
            try:
                shown += os.read(ours, 65536).decode()
            except OSError:  # the other side is closed
                break
        if waiting and waiting[0][0] in shown[since:]:
            since = len(shown)
            os.write(ours, (waiting.pop(0)[1] + "\n").encode())
    os.close(ours)
    assert not waiting, shown
    return process.wait(30), shown


def test_questions_in_a_terminal(folder: Path) -> None:
    """A wrong answer is asked for again with the reason; the last question has a usual answer."""
    code, shown = answered(
        folder,
        [],
        [
            ("Base (", "bse"), ("Base (", "base"), ("Data files", "shown.jsonl nothing.jsonl"),
            ("Data files", "shown.jsonl lines.txt ranked.jsonl"), ("lines.txt: plain text", "poems"),
            ("lines.txt: plain text", "prompts"), ("Machine (", ""),
        ],
    )  # fmt: skip
    assert code == 0, shown
    assert "base 'bse' is not a known name" in shown and "nothing.jsonl is not there" in shown
    assert "'poems': write prompts or documents" in shown
    recipe = load_recipe(folder / "mine.yaml")
    assert recipe.base == "./base" and recipe.data.prompts == ("lines.txt",)
    assert recipe.data.rankings == ("ranked.jsonl",) and recipe.stages == ("sft", "reward", "ppo", "evaluate")


def test_nothing_is_asked_where_nothing_is_missing(folder: Path) -> None:
    code, shown = answered(folder, ["shown.jsonl", "--base", "base"], [])
    assert code == 0 and "Machine" not in shown and load_recipe(folder / "mine.yaml").stages == ("sft",)
