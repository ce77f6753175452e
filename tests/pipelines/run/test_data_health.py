"""The doctor's look at a run's data: told at the start, kept in run.json, shown by plan, check and report."""

from __future__ import annotations

import json
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from data import kept_parts
from data.corpus import is_held_out
from data.doctor.corpus import examine
from data.records import Message, group_of
from data.storage import folders
from pipelines.cli.main import main
from pipelines.report.stage_facts import data_check
from pipelines.run import data_health
from pipelines.run.data_health import KEPT, check_data, health_of, limits_of
from pipelines.run.pipeline import Pipeline
from tests.conftest import tiny_lm, word_tokenizer
from tests.support.finished_run import Tags

ROWS = 40


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    """Rankings that prefer the longer answer in words and the shorter in characters; every fourth is contradicted."""
    tiny_lm().save_pretrained(tmp_path / "base")
    word_tokenizer().save_pretrained(tmp_path / "base")
    pairs = [{"prompt": f"w{i} w1", "chosen": "w1 w2 w3", "rejected": "incomprehensibilities"} for i in range(ROWS)]
    pairs += [{"prompt": f"w{i} w1", "chosen": "w9", "rejected": "w1 w2 w3"} for i in range(0, ROWS, 4)]
    pairs += [{"prompt": f"w{i} w1", "chosen": "w1 w2 w3", "rejected": "w9"} for i in range(0, ROWS, 4)]
    shown = [{"prompt": f"w{i} w1", "completion": "w1 " * (20 if i % 2 else 2) + "w2"} for i in range(ROWS)]
    for name, rows in {"rank": pairs, "sft": shown}.items():
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in [*rows, {"nothing": 1}]))
    made = {
        "name": "r",
        "base": "./base",
        "template": "dialogue",
        "stages": ["sft", "reward", "evaluate"],
        "data": {"demonstrations": "sft.jsonl", "rankings": "rank.jsonl", "held_out": 0.3},
        "sft": {"max_tokens": 12},
        "reward": {"max_tokens": 64},
        "evaluation": {"prompts": 100},
        "runtime": {"device": "cpu"},
    }
    (tmp_path / "r.yaml").write_text(json.dumps(made))
    return tmp_path / "r.yaml"


def test_findings_have_tokens_places_and_what_evaluation_lacks(recipe: Path) -> None:
    pipeline = Pipeline.from_recipe(recipe)
    health = health_of(pipeline)
    by_kind = {f.kind: f for f in health.findings}
    contradicted = by_kind["contradiction"]
    assert contradicted.count == ROWS // 4 and contradicted.text.startswith(
        "data.rankings: 10 of 60 rankings contradict"
    )
    assert "in tokens" not in contradicted.text and contradicted.places[0].startswith("rank.jsonl:")
    held = len(pipeline.corpus.prompts.held_out)
    few = by_kind["few held-out prompts"].text
    assert few == f"evaluation.prompts asks for 100, and {held} are held out: evaluation takes these"
    assert health.facts["demonstrations"]["tokens"]["answer"]["longest"] == 21
    assert health.facts["shared"] == {"demonstrations and rankings": ROWS}


@pytest.mark.parametrize(
    "held_out, asked, few, cure",
    [
        (0.1, 256, True, "hold out more prompts (data.held_out of 0.36 of these)"),  # 7 are: 0.1 * 25 / 7
        (0.4, 256, False, ""),
        (0.4, 20, False, ""),
        (0.4, 19, True, "set evaluation.prompts to 20 or more"),
    ],
)
def test_too_few_prompts_for_an_interval_are_told_first(
    recipe: Path, held_out: float, asked: int, few: bool, cure: str
) -> None:
    prompts = [{"prompt": f"w{i} w{j} w3"} for i in range(10) for j in range(10)]
    (recipe.parent / "p.jsonl").write_text("".join(json.dumps(row) + "\n" for row in prompts))
    settings = ["data.prompts=p.jsonl", f"data.held_out={held_out}", f"evaluation.prompts={asked}"]
    pipeline = Pipeline.from_recipe(recipe, settings)
    taken = min(asked, len(pipeline.corpus.prompts.held_out))
    assert few == (taken < 20)
    told = [f for f in health_of(pipeline).findings if f.kind == "too few held-out prompts for an interval"]
    assert [f.count for f in told] == [taken] * few
    assert not few or told[0].text.endswith(f"nothing can be shown to be better or worse; {cure} (200 tell more)")


def test_the_share_that_is_advised_is_larger_than_the_one_that_is_set(recipe: Path) -> None:
    """A quarter of these 100 prompts should be 25, and by their hashes it is 13: 0.25 * 25 / 13 is 0.481."""
    prompts = [{"prompt": f"w{i} w{j} w13 w3"} for i in range(10) for j in range(10)]
    (recipe.parent / "p.jsonl").write_text("".join(json.dumps(row) + "\n" for row in prompts))
    pipeline = Pipeline.from_recipe(recipe, ["data.prompts=p.jsonl", "data.held_out=0.25"])
    assert len(pipeline.corpus.prompts.held_out) == 13
    told = health_of(pipeline).findings[-1].text
    assert "evaluation has 13 prompts:" in told and "(data.held_out of 0.49 of these)" in told
    enough = Pipeline.from_recipe(recipe, ["data.prompts=p.jsonl", "data.held_out=0.49"])
    assert not [f for f in health_of(enough).findings if f.kind == "too few held-out prompts for an interval"]


def test_prompts_that_begin_alike_count_once_among_those_that_evaluation_takes(recipe: Path) -> None:
    """Of 30 conversations with one first message evaluation takes the first 25; 19 more with the 30 make 20 groups."""
    starts = [Message(role="user", content=f"w{i} w8") for i in range(40)]
    start = next(message.content for message in starts if is_held_out(group_of([message]), 0.4))
    talks = [[("user", start), ("assistant", "w1"), ("user", f"w{i} w2")] for i in range(30)]
    rows: list[Any] = [[{"role": role, "content": text} for role, text in talk] for talk in talks]
    rows += [f"w{i} w{j} w3" for i in range(10) for j in range(10)]
    (recipe.parent / "p.jsonl").write_text("".join(json.dumps({"prompt": row}) + "\n" for row in rows))
    settings = ["data.prompts=p.jsonl", "data.held_out=0.4", "evaluation.prompts=25"]
    found = health_of(Pipeline.from_recipe(recipe, settings)).findings[-1]
    assert found.count == 1 and found.text.startswith("evaluation has 25 prompts of 1 group: below 20 no interval")
    assert "set evaluation.prompts to 49 or more (200 tell more)" in found.text
    settings[-1] = "evaluation.prompts=49"
    kinds = [f.kind for f in health_of(Pipeline.from_recipe(recipe, settings)).findings]
    assert "too few held-out prompts for an interval" not in kinds


def test_of_few_prompts_no_large_share_is_advised(recipe: Path) -> None:
    """A tenth of 40 prompts is by their hashes 2 of them: 0.1 * 25 / 2 would be all."""
    told = health_of(Pipeline.from_recipe(recipe, ["data.held_out=0.1"])).findings
    assert told[-1].text.endswith("better or worse; hold out more prompts (200 tell more)")


def test_special_tokens_of_the_base_in_texts_are_told_before_the_first_stage(recipe: Path) -> None:
    """They become the tokens: a response with a stop token in its text would end there without a word."""
    token = word_tokenizer().eos_token
    file = recipe.parent / "sft.jsonl"
    file.write_text(file.read_text() + json.dumps({"prompt": "w1", "completion": f"w2 {token} w3"}) + "\n")
    told = [f for f in health_of(Pipeline.from_recipe(recipe)).findings if f.kind == "special token"]
    assert [(f.count, f.places) for f in told] == [(1, (f"sft.jsonl:{ROWS + 2}",))]
    assert told[0].text.startswith(f"data.demonstrations: 1 rows hold `{token}` in a text")


def test_the_look_is_remembered_by_content(recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRIVET_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(folders, "_held", {})
    monkeypatch.setattr(kept_parts, "LARGE", 1)
    first, looks = health_of(Pipeline.from_recipe(recipe)), list[Any]()

    def looked(*args: Any, **more: Any) -> Any:
        looks.append(args)
        return examine(*args, **more)

    monkeypatch.setattr(data_health, "examine", looked)
    again = health_of(Pipeline.from_recipe(recipe))
    assert again == first and first.findings and not looks
    file = tmp_path / "rank.jsonl"
    stamp = file.stat()
    file.write_text(file.read_text().replace("w9", "w8"))
    os.utime(file, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    assert file.stat().st_size == stamp.st_size
    health_of(Pipeline.from_recipe(recipe))
    assert len(looks) == 1


def test_limits_are_those_that_the_stage_cuts_by(recipe: Path) -> None:
    """By hand: ``user : wI w1 assistant :`` is six tokens, an answer of three or 21 words has its stop token behind."""
    limits = limits_of(Pipeline.from_recipe(recipe))
    sft, held = limits["sft"], limits["sft (held out)"]
    assert sft["rows"] + held["rows"] == ROWS and sft["cut"] + held["cut"] == ROWS // 2
    assert sft["limit"] == 12 and sft["limit_for_95_percent"] == 6 + 21 + 1
    assert limits["reward"]["cut"] == 0


def test_the_look_is_told_kept_and_shown(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    told: list[str] = []
    progress: Any = SimpleNamespace(warn=told.append, say=told.append)
    found = check_data(Pipeline.from_recipe(recipe), progress)
    assert sum("contradict" in text for text in told) == 1
    kept = {f["kind"]: f for f in json.loads(json.dumps(found))["findings"]}
    assert 0 < len(kept["contradiction"]["places"]) <= KEPT
    shown = dict(data_check(SimpleNamespace(run={"data_check": found})))  # type: ignore[arg-type]
    assert "rankings contradict" in shown["Data: doubtful"]["contradiction"]
    assert shown["Data: rankings"]["roles"] == "assistant: 120, user: 60"
    assert data_check(SimpleNamespace(run={})) == [] == data_check(SimpleNamespace(run={"data_check": 3}))  # type: ignore[arg-type]

    assert main(["plan", str(recipe)]) == 0
    said = capsys.readouterr().out
    assert "rankings contradict one before" in said and "rank.jsonl:61: no known format" in said
    assert main(["data", "check", str(recipe), "--all"]) == 0
    said = capsys.readouterr().out
    assert "sft: demonstrations:" in said and "28 keep 95 % whole" in said and "assistant (120), user (60)" in said
    assert main(["data", "check", str(recipe), "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert listed["limits"]["sft"]["limit"] == 12 and listed["facts"]["rankings"]["turns"] == {"2": 60}
    assert main(["data", "check", str(recipe), "--ignore", "x"]) == 2
    assert "--ignore is for files" in capsys.readouterr().err


def test_cleaning_is_part_of_the_key_and_told_for_each_source(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plain = Pipeline.from_recipe(recipe)
    clean = Pipeline.from_recipe(recipe, ["data.clean.duplicates=exact", "data.clean.control=true"])
    changed_nothing = Pipeline.from_recipe(recipe, ["data.clean.control=true"])
    described = [one.describe("sft", {}) for one in (plain, clean, changed_nothing)]
    assert "cleaning" not in described[0] and described[1]["cleaning"]["duplicates"] == "exact"
    assert described[2]["data"] == described[0]["data"] and described[2] != described[0]
    assert main(["plan", str(recipe), "--set", "data.clean.duplicates=exact", "data.clean.max_characters=50"]) == 0
    said = capsys.readouterr().out
    assert "sft.jsonl: 41 rows read, 1 rejected, 20 dropped by cleaning" in said
    assert "  20 rows dropped: longer than max_characters 50; the first is sft.jsonl:2" in said


def test_strict_tells_what_a_limit_of_tokens_cuts(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """By hand, as above: every second answer has 21 words and is cut at 12 tokens; at 28 nothing is."""
    for name in ("sft", "rank"):
        file = recipe.parent / f"{name}.jsonl"
        lines = file.read_text().splitlines()[: ROWS if name == "rank" else -1]  # none that is rejected or contradicted
        file.write_text("\n".join(lines) + "\n")
    assert main(["data", "check", str(recipe), "--strict"]) == 1
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("--strict")]
    sides = limits_of(Pipeline.from_recipe(recipe))
    assert said == [
        f"--strict: {name}: of {sides[name]['rows']} {sides[name]['what']} {sides[name]['cut']} cut"
        for name in ("sft", "sft (held out)")
        if sides[name]["cut"]
    ]
    assert sum(sides[name]["cut"] for name in ("sft", "sft (held out)")) == ROWS // 2
    recipe.write_text(recipe.read_text().replace('"max_tokens": 12', '"max_tokens": 28'))
    assert main(["data", "check", str(recipe), "--strict"]) == 0


def test_a_run_tells_what_became_of_each_of_two_sources(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Two files of demonstrations, with what is planted in each: rejected, repeated, left out and held out."""
    planted = {"one": (20, 3, 2), "two": (30, 1, 4)}  # good rows, rejected ones, copies of good ones
    for name, (good, bad, copies) in planted.items():
        rows: list[Any] = [{"prompt": f"{name[0]}{i} w{i}", "completion": f"w{i} w2"} for i in range(good)]
        rows += [*rows[:copies], *({"prompt": f"{name} x{i}", "completion": None} for i in range(bad))]
        (recipe.parent / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    given = json.loads(recipe.read_text())
    sources = [{"path": "one.jsonl"}, {"path": "two.jsonl", "where": "prompt != 't7 w7'", "limit": 25}]
    given |= {"stages": ["sft"], "data": {"demonstrations": sources, "held_out": 0.3, "clean": {"duplicates": "exact"}}}
    given |= {"sft": {"epochs": 1, "batch": 16, "max_tokens": 64}}
    for key in ("reward", "evaluation"):
        given.pop(key)
    recipe.write_text(json.dumps(given))
    held = {c.source: c.held_out for c in Pipeline.from_recipe(recipe).corpus.counts}
    kept = [Path(d.prompt.source.split(":")[0]).stem
            for d in Pipeline.from_recipe(recipe).corpus.demonstrations.held_out]  # fmt: skip
    assert held == {f"{name}.jsonl": kept.count(name) for name in planted} and min(held.values()) > 0
    assert main(["run", str(recipe), "--run-dir", str(recipe.parent / "run")]) == 0
    said = " ".join(capsys.readouterr().out.split())
    one, two = (f"demonstrations: {name}.jsonl:" for name in planted)
    assert f"{one} 25 rows read, 3 rejected, 2 dropped by cleaning, {held['one.jsonl']} held out" in said
    assert (
        f"{two} 35 rows read, 1 rejected, 1 left out by where, 4 dropped by cleaning, 4 not sampled, "
        f"{held['two.jsonl']} held out" in said
    )
    page = Tags((recipe.parent / "run" / "report.html").read_text()).text
    for name, (good, bad, copies) in planted.items():
        section = page.partition(f"Source: {name}.jsonl (demonstrations)")[2].partition("\n")[0]
        told = {"read": good + bad + copies, "rejected": bad, "dropped": copies, "held out": held[f"{name}.jsonl"]}
        assert all(f"{what}{number}" in section for what, number in told.items()), section
