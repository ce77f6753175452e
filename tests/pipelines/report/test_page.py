"""The report of a made-up run: complete, partial and hostile ones."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from data.common.errors import UserError
from pipelines.cli.summary import metrics_table
from pipelines.report.charts import reward_against_kl
from pipelines.report.first_screen import lost_rows
from pipelines.report.page import page_of, view, write_report
from pipelines.report.reward_card import training_scale
from pipelines.report.run_files import read_run
from pipelines.report.samples import PACKED, chosen_samples, packed_samples, unpacked
from pipelines.report.stage_facts import counted
from tests.support.finished_run import RECIPE, Tags, embedded, make_run, many_rows, unpacked_part, without_packed


def test_words_first_and_five_questions(page: str):
    text = Tags(page).text
    assert "PPO beat SFT" in text
    assert re.search(r"PPO wins \d\d % of 256 held-out prompts \[\d\d, \d\d\] by the gold preference", text)
    questions = [
        "Did PPO beat SFT?",
        "By how much?",
        "May I trust the reward?",
        "Did it cheat?",
        "How do I run it again?",
    ]
    places = [text.index(q) for q in questions]
    assert places == sorted(places) and places[-1] < text.index("Results on held-out prompts")
    assert re.search(r"It orders \d\d % of 360 held-out pairs as people did \[\d\d, \d\d\]; a coin gets 50 %", text)
    assert "choosing the longest response" in text and "The gate before PPO passed." in text
    assert re.search(r"recipe\.yaml'? --run-dir", text) and "Seed 0" in text  # in quotes where the folder has blanks


def test_self_contained_and_small(run: Path, page: str):
    assert (run / "report.html").stat().st_size < 10 * 2**20
    for tag, attributes in Tags(page).tags:
        assert tag not in ("link", "iframe", "img", "object", "embed"), tag
        address = attributes.get("href") or "#"
        assert "src" not in attributes and (address[0] == "#" or (run / address).is_file()), (tag, attributes)
    from plotly.offline import get_plotlyjs

    assert unpacked_part(page, "plotly") == get_plotlyjs()
    ours = without_packed(page)
    assert not re.search(r"https?://|@import|url\(|fetch\(|XMLHttpRequest", ours)
    assert "default-src 'none'" in page  # and the browser is told to refuse what we should have missed


def test_every_chart_is_there(page: str):
    charts = {c["id"]: c for c in embedded(page, "charts")}
    titles = {c["title"] for c in charts.values()}
    assert {"Win rates", "Reward and gold", "Reward against KL", "Time", "Loss", "Token accuracy"} <= titles
    assert {"Reward", "KL to the reference", "Entropy", "Response length", "Cut off", "Clipped steps"} <= titles
    places = {a.get("id") for tag, a in Tags(page).tags if tag == "div"}
    assert set(charts) <= places
    assert all(c["data"][0]["x"] and c["data"][0]["y"] for c in charts.values())
    assert "prefers-color-scheme: dark" in page


def test_lineage_cost_data_and_recipe(page: str):
    text = Tags(page).text
    for part in (
        "1a3f09c7be25",
        "740 MB",
        "1 min 10 s",
        "supervised tokens",
        "44,120",
        "kl_coef: 0.1",
        "In all: 3 min 33 s",
    ):
        assert part in text, part


def test_hostile_text_stays_text(tmp_path: Path):
    run = make_run(tmp_path / "demo", n=24)
    evil = "</script><script>window.evil = 1</script><img src=x onerror=alert(1)>"
    row = {
        "prompt": evil,
        "category": evil,
        "decoding": "sampled",
        "systems": {evil: {"response": evil, "reward": 1e9}},
    }
    (run / "evaluation" / "samples.jsonl").write_text(json.dumps(row) + "\n", encoding="utf-8")
    (run / "recipe.yaml").write_text(f"name: '{evil}'\n", encoding="utf-8")
    results = json.loads((run / "evaluation" / "results.json").read_text(encoding="utf-8"))
    results["warnings"].append(evil)
    results["systems"][evil] = results["systems"]["base"]
    results["comparisons"].append(results["comparisons"][0] | {"a": evil})
    (run / "evaluation" / "results.json").write_text(json.dumps(results), encoding="utf-8")
    noted = json.loads((run / "run.json").read_text(encoding="utf-8"))
    (run / "run.json").write_text(json.dumps(noted | {"name": evil}), encoding="utf-8")
    page = write_report(run).read_text(encoding="utf-8")
    assert "window.evil" in page and "<script>window.evil" not in page and "<img" not in page
    tags = Tags(page).tags
    assert sum(tag == "script" for tag, _ in tags) == 5
    assert not any("onerror" in attributes for _, attributes in tags)
    assert json.loads(unpacked_part(page, "samples"))[0]["prompt"] == evil


@pytest.mark.parametrize(
    "kept",
    [
        ["run.json"],
        ["sft/metrics.jsonl"],
        ["run.json", "sft", "reward"],
        ["run.json", "ppo/metrics.jsonl"],
        ["evaluation/results.json"],
        ["recipe.yaml", "reward/manifest.json"],
    ],
)
def test_partial_runs_have_partial_reports(run: Path, tmp_path: Path, kept: list[str]):
    for name in kept:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (shutil.copytree if (run / name).is_dir() else shutil.copy)(run / name, tmp_path / name)
    page = write_report(tmp_path).read_text(encoding="utf-8")
    text = Tags(page).text
    evaluated = "evaluation/results.json" in kept
    assert ("Not evaluated yet" in text) != evaluated and ("PPO beat SFT\n" in text) == evaluated
    assert ("Did it cheat?" in text) == evaluated and "Responses side by side" not in text and "None" not in text
    drawn = "metrics.jsonl" in str(kept) or "sft" in kept or evaluated or "run.json" in kept
    assert bool(embedded(page, "charts")) == drawn


def test_a_growing_or_damaged_file_is_no_obstacle(run: Path, tmp_path: Path):
    shutil.copytree(run, tmp_path / "demo")
    (tmp_path / "demo" / "evaluation" / "results.json").write_text("{", encoding="utf-8")
    with (tmp_path / "demo" / "ppo" / "metrics.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"step": 41, "objective/scores": NaN, "objective/kl": Infinity}\n{"step": 42, "obj')
    files = read_run(tmp_path / "demo")
    assert len(files.metrics["ppo"]) == 41
    assert files.notes == ["evaluation/results.json is damaged and was left out."]
    page = write_report(tmp_path / "demo").read_text(encoding="utf-8")
    assert "results.json is damaged" in Tags(page).text
    for c in embedded(page, "charts"):
        assert "NaN" not in json.dumps(c)


def test_nothing_to_report_is_an_error(tmp_path: Path):
    with pytest.raises(UserError, match="no such run folder"):
        write_report(tmp_path / "missing")
    with pytest.raises(UserError, match="trivet run"):
        write_report(tmp_path)


def test_what_does_not_fit_leaves_the_extremes():
    rows = many_rows(300)
    rows[150]["systems"]["ppo"]["reward"] = -55.0
    rows[251]["systems"]["ppo"]["reward"] = 155.0
    assert chosen_samples(rows) == chosen_samples(rows, 300) and len(chosen_samples(rows)) == 300
    text, count = packed_samples(rows, budget=30_000)
    kept = json.loads(unpacked(text))
    assert len(text) <= 30_000 and 20 < count < 300 and count == len(kept)
    numbers = [int(r["prompt"].split()[0]) for r in kept]
    assert {0, 150, 251} <= set(numbers) and numbers == sorted(numbers)
    assert packed_samples(rows[:3])[1] == 3 and packed_samples([])[1] == 0 and PACKED < 8 * 2**20


def test_warnings_are_marked_at_their_step(run: Path, tmp_path: Path):
    shutil.copytree(run, tmp_path / "demo")
    path = tmp_path / "demo" / "ppo" / "manifest.json"
    manifest = json.loads(path.read_text(encoding="utf-8"))
    manifest["metrics"]["warnings"] = [{"step": 12, "text": "the <b>critic</b> sleeps"}]
    path.write_text(json.dumps(manifest), encoding="utf-8")
    page = write_report(tmp_path / "demo").read_text(encoding="utf-8")
    ours = [c for c in embedded(page, "charts") if c["id"].startswith("chart-ppo")]
    assert len(ours) == 8
    for chart in ours:
        assert chart["layout"]["shapes"][0]["x0"] == 12 and chart["data"][1]["x"] == [12]
        assert "&lt;b&gt;critic" in chart["data"][1]["hovertemplate"]
    assert "step 12: the <b>critic</b> sleeps" in Tags(page).text and "PPO, update 12" in Tags(page).text


def test_a_running_stage_shows_its_growing_curve(run: Path, tmp_path: Path):
    partial = tmp_path / ".ppo.partial"
    shutil.copytree(run / "ppo", partial)
    (partial / "manifest.json").unlink()
    (tmp_path / "run.json").write_text(json.dumps({"stages": {"ppo": {"status": "running"}}}), encoding="utf-8")
    page = write_report(tmp_path).read_text(encoding="utf-8")
    charts = {c["id"]: c["title"] for c in embedded(page, "charts")}
    assert {"Reward", "Reward against KL"} <= set(charts.values()) and "running" in Tags(page).text
    assert set(charts) == {a["id"] for tag, a in Tags(page).tags if a.get("class") == "plot"}


@pytest.mark.parametrize(
    ("changes", "short"),
    [
        ({"warnings": ["ppo: the reward rose but gold fell against sft: the reward is over-optimised."]}, ("No",)),
        ({}, ("Mostly",)),
    ],
)
def test_trust_falls_with_over_optimisation(run: Path, tmp_path: Path, changes: dict[str, Any], short: tuple[str]):
    shutil.copytree(run, tmp_path / "demo")
    path = tmp_path / "demo" / "evaluation" / "results.json"
    results = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(results | {"warnings": []} | changes), encoding="utf-8")
    assert view(read_run(tmp_path / "demo"))["questions"][2]["short"] == short[0]


def test_trust_goes_by_the_card_and_the_gate(run: Path, tmp_path: Path):
    shutil.copytree(run, tmp_path / "demo")
    recipe, card = tmp_path / "demo" / "recipe.yaml", tmp_path / "demo" / "reward" / "report_card.json"

    def trust() -> dict[str, str]:
        return view(read_run(tmp_path / "demo"))["questions"][2]

    recipe.write_text(RECIPE.replace("accuracy: 0.5", "accuracy: 0.9"), encoding="utf-8")
    # the verdict is the same for every gate
    assert trust()["short"] == "Mostly" and "The gate before PPO failed. " in trust()["text"]
    recipe.write_text(RECIPE.replace("enabled: true", "enabled: false"), encoding="utf-8")
    assert trust()["short"] == "Mostly" and "gate" not in trust()["text"]
    found = json.loads(card.read_text(encoding="utf-8"))
    card.write_text(json.dumps(found | {"warnings": ["it likes long answers"]}), encoding="utf-8")
    assert trust()["short"] == "With care"
    for ci, short in (([0.796, 0.85], "Mostly"), ([0.6, 0.79], "With care"), ([0.45, 0.6], "No"), (None, "Unknown")):
        accuracy = found["accuracy"] | {"ci95": ci}
        card.write_text(json.dumps(found | {"accuracy": accuracy, "warnings": []}), encoding="utf-8")
        assert trust()["short"] == short
    card.unlink()  # the manifest has the accuracy alone
    assert "73 % of 1,204 held-out pairs as people did [70, 76]" in trust()["text"]


def test_signs_of_cheating_are_named(run: Path, tmp_path: Path):
    shutil.copytree(run, tmp_path / "demo")
    path = tmp_path / "demo" / "evaluation" / "results.json"
    results = json.loads(path.read_text(encoding="utf-8"))
    assert view(read_run(tmp_path / "demo"))["questions"][3]["tone"] == "good"
    ppo = results["systems"]["ppo"]
    ppo["gold"]["mean"], ppo["kl"]["mean"], ppo["distinct_2"] = -2.5, 124.0, 0.001
    path.write_text(json.dumps(results), encoding="utf-8")
    card = view(read_run(tmp_path / "demo"))["questions"][3]
    assert card["tone"] == "bad" and card["short"] == "Far from the reference"
    assert "monotonous responses, reward up, gold down" in card["text"]


def test_a_held_out_reward_model_judges_where_there_is_no_gold(run: Path, tmp_path: Path):
    shutil.copytree(run, tmp_path / "demo")
    path = tmp_path / "demo" / "evaluation" / "results.json"
    results = json.loads(path.read_text(encoding="utf-8").replace('"gold"', '"held_out_reward"'))
    path.write_text(json.dumps(results), encoding="utf-8")
    found = view(read_run(tmp_path / "demo"))
    assert (
        "by the held-out reward model" in found["headline"]["detail"] and found["judge"] == "the held-out reward model"
    )
    how_much, cheating = found["questions"][1], found["questions"][3]
    assert "Mean held-out reward" in how_much["text"]
    assert cheating["tone"] == "good" and "no independent judge" not in cheating["text"]
    results["systems"]["ppo"]["held_out_reward"]["mean"] = -2.5
    path.write_text(json.dumps(results), encoding="utf-8")
    assert view(read_run(tmp_path / "demo"))["questions"][3]["short"] == "Reward up, held-out reward down"
    page = write_report(tmp_path / "demo").read_text(encoding="utf-8")
    assert "<th>Held-out reward</th>" in page and "Reward and held-out reward" in page
    shutil.copytree(run, tmp_path / "other")
    assert "<th>Held-out reward</th>" not in write_report(tmp_path / "other").read_text(encoding="utf-8")


def _path_and_places(chart: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    return chart["data"][0], {t["name"]: (t["x"][0], t["y"][0]) for t in chart["data"][1:]}


def test_reward_against_kl_in_one_unit_with_readable_updates():
    rows = [{"step": i, "objective/kl": i / 4, "objective/scores": i / 10} for i in range(1, 21)]
    systems = {"base": {"kl": {"mean": 44.0}, "reward": {"mean": -3.0}},
               "ppo": {"kl": {"mean": 5.0}, "reward": {"mean": 4.1}}}  # fmt: skip
    chart = reward_against_kl(rows, systems, kept=15, scale=2.0)
    assert chart is not None
    path, places = _path_and_places(chart)
    assert path["y"] == pytest.approx([i / 5 for i in range(1, 21)]) and path["customdata"] == list(range(1, 21))
    named = [int(t) for t in path["text"] if t]
    assert named[0] == 1 and named[-1] == 20 and 4 <= len(named) <= 12
    assert places == {"Kept: update 15": (3.75, 3.0), "PPO, held out": (5.0, 4.1)}
    assert "Far off: Base at KL 44, reward -3." in chart["hint"] and "other units" not in chart["hint"]
    other = reward_against_kl(rows, systems | {"base": {"kl": {"mean": 14.0}, "reward": {"mean": -3.0}}}, scale=None)
    assert other is not None
    path, places = _path_and_places(other)
    assert path["y"][-1] == 2.0 and "Base, held out" in places and "other units" in other["hint"]


@pytest.mark.parametrize(
    ("ppo", "scale"),
    [
        ("{}", 1.0),
        ("{standardise_scores: true}", 1.5),
        ("{standardise_scores: true, reward: [{source: model, weight: 1.0, clip: null}]}", 1.5),
        ("{reward: [{source: model, weight: 2.0}]}", None),
        ("{reward: [{source: model}, {source: length}]}", None),
        ("{reward: [{source: model, normalise: true}]}", None),
        ("[", 1.0),
    ],
)
def test_scores_of_training_are_put_into_the_units_of_evaluation(ppo: str, scale: float | None):
    assert training_scale(f"ppo: {ppo}\n", {"spread": 1.5}) == scale


def test_what_each_source_lost_stands_under_the_source_s_own_name() -> None:
    own = {"rows": 9, "cut": 2, "dropped": 0}
    found = counted({"held_out_counts": {"rows": 18, "cut_answers": 3, "by_source": {"my_data.jsonl": own, "b": own}}})
    assert found["held out: cut of my_data.jsonl"] == "2" and found["held out: cut answers"] == "3"
    assert counted({"counts": {"rows": 9, "by_source": {"my_data.jsonl": own}}}) == {"rows": "9"}


def first_screen(run: Path) -> tuple[dict[str, str], dict[str, str]]:
    """The headline, and question -> short answer."""
    seen = view(read_run(run))
    return seen["headline"], {q["question"]: q["short"] for q in seen["questions"]}


CURVE = {"learnt": True, "text": "held-out loss 3.2 before, 2.9 after 20 steps"}


def only(run: Path, to: Path, stages: list[str], learnt: bool | None = True, within_chance: bool = False) -> Path:
    """A copy with some of the stages, which are all that the recipe asks for."""
    for stage in stages:
        shutil.copytree(run / stage, to / stage)
        manifest = json.loads((to / stage / "manifest.json").read_text(encoding="utf-8"))
        manifest["metrics"]["held_out_curves"] = {stage: CURVE | {"learnt": learnt, "within_chance": within_chance}}
        (to / stage / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    noted = json.loads((run / "run.json").read_text(encoding="utf-8"))
    noted["stages"] = {s: noted["stages"][s] for s in stages}
    (to / "run.json").write_text(json.dumps(noted), encoding="utf-8")
    (to / "recipe.yaml").write_text(f"stages: [{', '.join(stages)}]\n{RECIPE}", encoding="utf-8")
    return to


def test_a_run_of_sft_alone_is_asked_nothing_else(run: Path, tmp_path: Path):
    headline, answers = first_screen(only(run, tmp_path / "sft-only", ["sft"]))
    assert (headline["tone"], headline["text"]) == ("good", "Finished: Instruction tuning (SFT)")
    assert "Held-out loss 3.2 before, 2.9 after 20 steps." in headline["detail"]
    assert answers == {"Did SFT learn?": "Yes", "How do I run it again?": "Seed 0"}
    headline, answers = first_screen(only(run, tmp_path / "in-vain", ["sft"], learnt=False))
    assert (headline["tone"], headline["text"]) == ("bad", "Instruction tuning (SFT): nothing was learnt")
    assert answers["Did SFT learn?"] == "No"
    headline, answers = first_screen(only(run, tmp_path / "unclear", ["sft"], learnt=False, within_chance=True))
    assert (headline["tone"], headline["text"]) == ("open", "Finished: Instruction tuning (SFT)")
    assert answers["Did SFT learn?"] == "Not shown"


def test_a_run_of_a_reward_model_alone_is_asked_about_the_reward(run: Path, tmp_path: Path):
    headline, answers = first_screen(only(run, tmp_path / "reward-only", ["reward"]))
    assert headline["text"] == "Finished: Reward model"
    asked = ["Did the reward model learn?", "May I trust the reward?", "How do I run it again?"]
    assert list(answers) == asked and "Unknown" not in answers.values()


def test_a_failed_and_a_stopped_run_say_so(run: Path, tmp_path: Path):
    folder = only(run, tmp_path / "failed", ["sft", "reward"])
    noted = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    noted["stages"]["reward"] = {"status": "running", "key": "k"}
    (folder / "run.json").write_text(json.dumps(noted), encoding="utf-8")
    (folder / "reward" / "manifest.json").unlink()
    (folder / "reward" / "report_card.json").unlink()
    headline, answers = first_screen(folder)
    assert (headline["tone"], headline["text"]) == ("open", "Reward model was stopped")
    assert answers["May I trust the reward?"] == "Not yet"
    (folder / "error.log").write_text("Traceback\n  File\nValueError: a bad thing\n", encoding="utf-8")
    headline, _ = first_screen(folder)
    assert (headline["tone"], headline["text"]) == ("bad", "Reward model failed")
    assert (
        headline["detail"].startswith("ValueError: a bad thing.")
        and "Finished before it: Instruction tuning (SFT)." in headline["detail"]
    )
    os.utime(folder / "error.log", (1, 1))  # of a failure before this start
    assert first_screen(folder)[0]["text"] == "Reward model was stopped"


def test_stages_stand_in_order(page: str):
    titles = {"pretrain": "Pretraining", "sft": "Instruction tuning (SFT)", "reward": "Reward model", "ppo": "PPO"}
    places = [page.index(f'<i class="dot {stage}"></i>{title}</h3>') for stage, title in titles.items()]
    assert places == sorted(places)


def test_what_was_asked_for_and_lost_stands_up_front(run: Path, tmp_path: Path):
    copy = shutil.copytree(run, tmp_path / "demo")
    path = copy / "evaluation" / "results.json"
    results = json.loads(path.read_text(encoding="utf-8"))
    for name, value in (("sft", 0.21), ("ppo", 0.25)):
        results["systems"][name]["metrics"] = {"rouge_l": {"mean": value}, "references_n": 3, "kinds": {"a": 1}}
    path.write_text(json.dumps(results), encoding="utf-8")
    manifest = json.loads((copy / "sft" / "manifest.json").read_text(encoding="utf-8"))
    lost = {"rows": 90, "cut": 4, "dropped": 2, "dropped: empty responses": 2, "limit": 64}
    manifest["metrics"]["counts"] = lost
    (copy / "sft" / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    other = copy / "evaluations" / "ab12" / "evaluation"
    other.mkdir(parents=True)
    shutil.copy(path, other / "results.json")
    seen = view(read_run(copy))
    assert seen["metrics"] == ["rouge l: SFT 0.210 → PPO 0.250"]
    assert seen["lost"] == ["Instruction tuning (SFT): of 90 rows 4 cut to 64 tokens and 2 dropped (empty responses)"]
    assert seen["evaluations"] == [("evaluations/ab12/evaluation/results.json", "Base, SFT, PPO on 256 prompts")]
    page = page_of(read_run(copy))
    text = Tags(page).text
    assert text.index("rouge l: SFT 0.21") < text.index("What of the data") < text.index("Results on held-out prompts")
    console = Console(width=80, file=io.StringIO())
    console.print(metrics_table(results))
    assert re.search(r"rouge_l +│? *0\.210 +│? *0\.250", console.file.getvalue())  # type: ignore[attr-defined]


def test_curves_are_a_table(run: Path, page: str):
    rows = list(csv.DictReader(io.StringIO(unpacked_part(page, "curves"))))
    wanted = [json.loads(line) for line in (run / "sft" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    found = [(int(r["step"]), float(r["value"])) for r in rows if r["stage"] == "sft" and r["metric"] == "loss"]
    assert found == [(w["step"], pytest.approx(w["loss"], rel=1e-4)) for w in wanted]


def test_what_was_cut_and_what_is_unknown_are_said_apart_and_each_once():
    counts = {"rows": 9, "cut": 2, "dropped": 0, "limit": 8, "tokens": 40, "unknown_tokens": 4}
    manifests = {"sft": {"metrics": {"counts": counts}}}
    cut, unknown = "Instruction tuning (SFT): of 9 rows 2 cut to 8 tokens", "4 of 40 tokens stand for text that the"
    assert lost_rows({}, manifests)[0] == cut and unknown in lost_rows({}, manifests)[1]
    warning = "SFT: of 9 demonstrations 2 cut to 8 tokens; in demonstrations 4 of 40 tokens stand for text that the "
    assert lost_rows({}, manifests, [f"{warning}tokenizer does not know; take another"]) == []
    assert lost_rows({}, manifests, ["SFT: of 9 demonstrations 2 cut to 8 tokens"]) == lost_rows({}, manifests)[1:]
