"""Several runs on one page: their differences, the numbers of each at its own place, and nothing from outside."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from data.common.errors import UserError
from data.common.number_format import interval, number
from pipelines.cli.main import main
from pipelines.report.compare import _notes, names, recipe_differences, write_comparison
from pipelines.report.run_files import read_run
from pipelines.stages.table import STAGES
from tests.support.finished_run import Tags, embedded
from tests.support.planting import ROOT


def edit(path: Path, change) -> None:
    path.write_text(json.dumps(change(json.loads(path.read_text(encoding="utf-8")))), encoding="utf-8")


@pytest.fixture(scope="module")
def other(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same run with less KL, higher scores in training and another reward model; PPO took 99 s and 1,234 tokens."""
    folder = shutil.copytree(run, tmp_path_factory.mktemp("other") / "less <b>kl")
    recipe = folder / "recipe.yaml"
    recipe.write_text(recipe.read_text().replace("kl_coef: 0.1", "kl_coef: 0.4").replace("seed: 0", "seed: 7"))
    rows = [json.loads(line) for line in (folder / "ppo/metrics.jsonl").read_text().splitlines()]
    rows = [r | {"objective/scores": r["objective/scores"] + 10} for r in rows]
    (folder / "ppo/metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))

    def noted(run_json):
        run_json["stages"]["ppo"] |= {"seconds": 99.0, "tokens": 1234}
        run_json["stages"]["reward"]["key"] = "f" * 64
        return run_json | {"seed": 7}

    def moved(results):
        results["systems"]["ppo"]["gold"] |= {"mean": 4.321, "ci95": [4.1, 4.6]}
        return results

    edit(folder / "run.json", noted)
    edit(folder / "evaluation/results.json", moved)
    return folder


@pytest.fixture(scope="module")
def page(run: Path, other: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_comparison([run, other], tmp_path_factory.mktemp("out") / "c.html").read_text(encoding="utf-8")


def cells_of(page: str, start: str) -> list[str]:
    """The text of the table row whose heading starts so."""
    for row in re.findall(r"<tr[^>]*>(.*?)</tr>", page.replace("<small>", " <small>"), re.S):
        text = [" ".join(Tags(c).text.split()) for c in re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row, re.S)]
        if text and text[0].startswith(start):
            return text
    raise AssertionError(f"no row {start}")


def test_only_what_differs_in_the_recipes_is_shown(page: str):
    assert cells_of(page, "ppo.kl_coef") == ["ppo.kl_coef", "0.1", "0.4"]
    assert cells_of(page, "seed") == ["seed", "0", "7"]
    assert "ppo.updates" not in page and "reward.gate" not in page


def test_recipe_differences_by_hand():
    a, b = "x: {y: 1, z: [1, 2], w: true}\nn: null\n", "x: {y: 2, z: [1, 2]}\nn: null\n"
    assert recipe_differences({"a": a, "b": b}) == [
        {"key": "x.y", "values": ["1", "2"]},
        {"key": "x.w", "values": ["true", "–"]},
    ]
    assert recipe_differences({"a": a, "b": a}) == [] and recipe_differences({"a": "", "b": "]["}) == []


def test_every_run_has_its_own_numbers_and_intervals(run: Path, other: Path, page: str):
    for folder in (run, other):
        gold = json.loads((folder / "evaluation/results.json").read_text())["systems"]["ppo"]["gold"]
        row = cells_of(page, f"PPO {folder.name}")
        assert row[2] == f"{number(gold['mean'])} {interval(gold['ci95'])}"
    assert cells_of(page, "PPO less <b>kl")[2].startswith("4.32")
    cost = cells_of(page[page.index('id="cost"') :], "PPO")
    assert cost[1:] == ["1 min 10 s 740 MB", "1 min 39 s 1,234 tokens, 740 MB"]
    assert "different reward models" in page and "different SFT models" not in page
    assert "the same result" in cells_of(page, "Instruction tuning")[0]
    assert "the same result" not in cells_of(page, "Reward model")[0]


def test_curves_lie_over_each_other(run: Path, page: str):
    charts = {c["id"]: c for c in embedded(page, "charts")}
    scores = charts["chart-ppo-objective-scores"]["data"]
    assert [t["name"] for t in scores] == ["demo", "less &lt;b&gt;kl"]
    assert len({t["line"]["color"] for t in scores}) == len({t["line"]["dash"] for t in scores}) == 2
    assert [b - a for a, b in zip(scores[0]["y"], scores[1]["y"], strict=True)] == pytest.approx([10] * 40, abs=1e-3)
    path = [t for t in charts["chart-reward-kl"]["data"] if "update" in t["name"]]
    assert len(path) == 2 and min(path[1]["y"]) > max(path[0]["y"])
    places = {a.get("id") for tag, a in Tags(page).tags if tag == "div"}
    assert set(charts) <= places


def test_training_is_shown_in_the_order_of_the_stages(page: str) -> None:
    shown = re.findall("<h3>(.*?)</h3>", page[page.index('id="training"') :])
    titles = [STAGES[name].title for name in STAGES if STAGES[name].title in shown]
    assert len(titles) > 1 and shown[: len(titles)] == titles


def test_self_contained_and_names_are_text(page: str):
    for tag, attributes in Tags(page).tags:
        assert tag not in ("link", "iframe", "img", "object", "embed", "b ")
        assert "src" not in attributes and (attributes.get("href") or "#").startswith("#")
    ours = without_packed_plotly(page)
    assert not re.search(r"https?://|@import|url\(|fetch\(", ours) and "<b>kl" not in ours
    assert len(page) < 3 * 2**20


def without_packed_plotly(page: str) -> str:
    return re.sub(r'<script type="application/octet-stream" id="plotly">.*?</script>', "", page, flags=re.S)


def test_an_unfinished_run_is_compared_as_far_as_it_is(run: Path, tmp_path: Path):
    begun = shutil.copytree(run, tmp_path / "begun", ignore=shutil.ignore_patterns("evaluation", "ppo"))
    text = Tags(write_comparison([run, begun], tmp_path / "c.html").read_text(encoding="utf-8")).text
    assert "Not evaluated: begun." in text and "Not evaluated yet" in text
    one, two = (shutil.copytree(run, tmp_path / n, ignore=shutil.ignore_patterns("evaluation")) for n in "xy")
    page = write_comparison([one, two], tmp_path / "c.html").read_text(encoding="utf-8")
    places = {a["id"] for tag, a in Tags(page).tags if a.get("class") == "plot"}
    assert {c["id"] for c in embedded(page, "charts")} == places and "chart-reward-kl" in places


def test_a_part_of_another_shape_is_left_out_and_named(run: Path, tmp_path: Path):
    bent = shutil.copytree(run, tmp_path / "bent")
    (bent / "evaluation/results.json").write_text('{"systems": [1], "comparisons": 3}')
    text = Tags(write_comparison([run, bent], tmp_path / "c.html").read_text(encoding="utf-8")).text
    assert "bent: evaluation/results.json: not of the shape" in text and "PPO beat SFT" in text


def notes_of(runs: list[Path]) -> list[str]:
    return _notes({folder.name: read_run(folder) for folder in runs})


def test_models_that_an_evaluation_was_given_are_told_apart(run: Path, tmp_path: Path) -> None:
    """Such a folder holds no stage but evaluation, whose manifest says what it stands on."""
    alike, other = (tmp_path / name for name in ("alike", "other"))
    for folder in (alike, other):
        shutil.copytree(run / "evaluation", folder / "evaluation")
        (folder / "run.json").write_text(json.dumps({"stages": {"evaluate": {"status": "done"}}}))
    assert notes_of([run, alike]) == []
    manifest = other / "evaluation/manifest.json"
    edit(manifest, lambda found: found | {"parents": found["parents"] | {"reward": "e" * 64}})
    reward = "The runs have different reward models: rewards of one cannot be set against those of another."
    assert notes_of([run, other]) == notes_of([other, run]) == notes_of([alike, other]) == [reward]
    edit(manifest, lambda found: found | {"parents": found["parents"] | {"sft": "d" * 64}})
    assert [note.split(":")[0] for note in notes_of([run, other])] == [
        "The runs have different reward models", "The runs have different SFT models"
    ]  # fmt: skip


def test_other_settings_of_sampling_are_told(run: Path, tmp_path: Path) -> None:
    settings = {"prompts": "a", "seed": 1, "temperature": 1.0, "max_new_tokens": 24, "samples_per_prompt": 1}

    def evaluated(name: str, **changes: object) -> Path:
        folder = shutil.copytree(run, tmp_path / name)
        edit(folder / "evaluation/results.json", lambda results: results | {"settings": settings | changes})
        return folder

    one, seed = evaluated("one"), evaluated("seed", seed=2)
    assert notes_of([one, seed]) == [] and notes_of([run, one]) == []  # older results do not say it
    hot = evaluated("hot", temperature=0.3, max_new_tokens=9)
    assert notes_of([one, hot]) == [
        "The runs' responses were not sampled alike: evaluation's temperature is 1.0 in one; 0.3 in hot.",
        "The runs' responses were not sampled alike: evaluation's max_new_tokens is 24 in one; 9 in hot.",
    ]
    (told,) = notes_of([one, evaluated("turns", prompts="b")])
    assert told.endswith("same texts, in another order or behind other turns.")
    twice = evaluated("twice", prompts="c", samples_per_prompt=2)
    assert [note.split(" is ")[1] for note in notes_of([one, twice])] == ["1 in one; 2 in twice."]


LIGHT = """
import sys
from pipelines.cli.main import main
run, other, out = sys.argv[1:]
for asked in (["report", run], ["report", run, other, "--out", out], ["verify", run], ["ls", run]):
    assert main(asked) in (0, 2)  # 2: the made-up run's files are not those that it says
    assert not {"torch", "transformers", "peft", "datasets"} & set(sys.modules), asked
"""


def test_a_look_at_what_is_finished_waits_for_no_model_library(run: Path, other: Path, tmp_path: Path) -> None:
    copied = shutil.copytree(run, tmp_path / "run")
    command = [sys.executable, "-c", LIGHT, str(copied), str(other), str(tmp_path / "c.html")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert not done.returncode, done.stderr
    assert (tmp_path / "c.html").is_file()


def test_equal_names_are_told_apart():
    assert names([Path("/a/x/demo"), Path("/a/y/demo")]) == ["x/demo", "y/demo"]
    assert names([Path("/a/x"), Path("/a/y")]) == ["x", "y"]


def test_refusals_name_what_is_wrong(run: Path, tmp_path: Path, capsys, monkeypatch):
    with pytest.raises(UserError, match="named twice"):
        write_comparison([run, run], tmp_path / "c.html")
    with pytest.raises(UserError, match="2 to 6 runs, here are 1"):
        write_comparison([run], tmp_path / "c.html")
    assert main(["report", str(run), str(tmp_path / "nothing")]) == 2
    assert "no run folder" in capsys.readouterr().err
    assert main(["report", str(run), "--out", str(tmp_path / "c.html")]) == 2
    assert f"the report of one run is {run / 'report.html'}" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_the_command_compares_several_runs(run: Path, other: Path, tmp_path: Path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["report", str(run), str(other)]) == 0
    assert capsys.readouterr().out.strip() == "comparison.html"
    assert "trivet comparison" in (tmp_path / "comparison.html").read_text(encoding="utf-8")
