"""Tables of runs over seeds: every number is one that the run wrote, and only the marked part of a page changes."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import pytest

from benchmarks import real_model
from data.common.errors import UserError
from tests.support.finished_run import make_run


def test_tables_hold_what_the_runs_wrote(tmp_path: Path) -> None:
    made = make_run(tmp_path / "one", n=40)
    (made / "reward" / "manifest.json").write_text(
        json.dumps({"metrics": {"pair_accuracy": 0.733, "pair_accuracy_ci95": [0.701, 0.764], "rankings": 880,
                                "watcher": {"pair_accuracy": 0.6, "pair_accuracy_ci95": None, "rankings": 90}}})
    )  # fmt: skip
    run = real_model.read(made)
    results = json.loads((made / "evaluation" / "results.json").read_text())
    page = real_model.page([run])
    ppo = results["systems"]["ppo"]
    low, high = ppo["gold"]["ci95"]
    row = next(line for line in page.splitlines() if line.startswith("| 0 | PPO | "))
    assert row.split(" | ")[2] == f"{ppo['gold']['mean']:.2f} [{low:.2f}, {high:.2f}]"
    assert f"{ppo['truncated']:.0%}" in row
    found = next(c for c in results["comparisons"] if (c["a"], c["by"], c["decoding"]) == ("ppo", "gold", "sampled"))
    low, high = found["difference"]["ci95"]
    assert f"| 0 | PPO against SFT | gold | {found['win_rate']:.2f} [" in page
    assert f"{found['difference']['mean']:+.2f} [{low:+.2f}, {high:+.2f}] | {found['verdict']} |" in page
    assert "| 0 | optimised | 880 | 0.733 [0.701, 0.764] |" in page and "| 0 | held out | 90 | 0.600 |" in page
    total = sum((52.1, 15.4, 20.2, 46.0, 70.3, 8.9)) / 60
    assert f"| {total:.1f} |" in page and "greedy" not in page
    assert page.count("> **") == 3


def test_a_judge_that_was_found_unreliable_is_marked(tmp_path: Path) -> None:
    made = make_run(tmp_path / "one", n=40)
    file = made / "evaluation" / "results.json"
    results = json.loads(file.read_text())
    for reliable in (False, True, None):
        file.write_text(json.dumps(results | {"judges": {"gold": {"reliable": reliable}}}))
        page = real_model.page([real_model.read(made)])
        found = "SFT | gold (unreliable) |" in page, "SFT | gold |" in page
        assert found == (reliable is False, reliable is not False)


def test_the_figure_draws_what_the_runs_wrote(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A curve of every seed's updates, and its held-out shares with their intervals."""
    monkeypatch.syspath_prepend(str(Path(real_model.__file__).parent))
    drawing = importlib.import_module("real_model_figure")
    folders = [make_run(tmp_path / name, n=40) for name in ("one", "two")]
    runs, paid = [drawing.read(f) for f in folders], [drawing.scores(f) for f in folders]
    assert paid[0] and paid[0] == [
        r["objective/scores"] for r in map(json.loads, (folders[0] / "ppo/metrics.jsonl").read_text().splitlines())
    ]
    assert drawing.smooth([3.0, 1.0, 2.0, 6.0]) == [3.0, 2.0, 2.0, 3.0]
    made = drawing.figure(runs, paid)
    assert len(made.data) == 6 and list(made.data[0].y) == paid[0] and list(made.data[1].y) == drawing.smooth(paid[0])
    share = made.data[2]
    gold = [runs[0].results["systems"][name]["gold"] for name in ("base", "ppo")]
    assert list(share.y) == [g["mean"] for g in gold]
    assert [y + e for y, e in zip(share.y, share.error_y.array, strict=True)] == pytest.approx(
        [g["ci95"][1] for g in gold]
    )
    assert [y - e for y, e in zip(share.y, share.error_y.arrayminus, strict=True)] == pytest.approx(
        [g["ci95"][0] for g in gold]
    )


def test_text_of_models_is_no_markup() -> None:
    assert real_model._plain("a |b|\n<b>_c_") == "a \\|b\\| \\<b\\>\\_c\\_"
    assert real_model._plain(" \n") == "(empty)" and len(real_model._plain("x" * 999)) == real_model.LONGEST + 2
    assert real_model.number(None) == "–" and real_model.number({"mean": 0.5, "ci95": None}) == "0.50"


def test_only_what_stands_between_the_marks_is_replaced() -> None:
    into = "before\n<!-- chain -->\nold\n<!-- /chain -->\nafter <!-- rule --><!-- /rule -->\n"
    text = real_model.put("Paired:\n\n| seed | a |\n| --- | --- |\n| 1 | 2 |\n", "chain", into)
    new = "Paired:\n\n| seed | a |\n| --- | --- |\n| 1 | 2 |\n"
    assert text == f"before\n<!-- chain -->\n{new}<!-- /chain -->\nafter <!-- rule --><!-- /rule -->\n"
    with pytest.raises(UserError, match="no <!-- other -->"):
        real_model.put(new, "other", into)


def test_rows_of_seeds_that_are_not_given_stay() -> None:
    def page(*rows: str, sampled: int, head: str = "| seed | a |") -> str:
        table = "\n".join([head, "| --- | --- |", *rows])
        samples = f"The first prompts of seed {sampled}:\n\n> **{sampled}?**\n> - x: y\n"
        return f"Paired; ties count half:\n\n{table}\n\n{samples}"

    old = page("| 1 | one |", "| 3 | old |", "| 3 | older |", sampled=1)
    found = real_model.merged(page("| 2 | two |", "| 3 | new |", sampled=2), old)
    assert found == page("| 1 | one |", "| 2 | two |", "| 3 | new |", sampled=1)
    assert real_model.merged(page("| 0 | zero |", sampled=0), old).endswith("of seed 0:\n\n> **0?**\n> - x: y\n")
    assert real_model.merged(old, "") == old
    assert "z: new" in real_model.merged(old.replace("x: y", "z: new"), old)  # of one seed the new samples
    with pytest.raises(UserError, match="no such table"):
        real_model.merged(page("| 2 | two |", sampled=2), "The reward models:\n\n| seed |\n| --- |\n| 1 |\n\n" + old)
    with pytest.raises(UserError, match="other columns"):
        real_model.merged(page("| 2 | two |", sampled=2, head="| seed | b |"), old)


def test_the_page_of_this_project_is_merged_into_itself() -> None:
    """What the marked parts hold is read whole, so that no row or sample of it would be lost."""
    text = (real_model.ROOT / "docs" / "measurements" / "real_model.md").read_text(encoding="utf-8")
    for mark in ("chain", "rule"):
        held = text.partition(f"<!-- {mark} -->\n")[2].partition(f"<!-- /{mark} -->")[0]
        assert real_model.merged(held, held) == held and held.count("| 1 |") > 3


def test_a_run_without_an_evaluation_is_told(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text("{}")
    with pytest.raises(UserError, match=r"results\.json"):
        real_model.read(tmp_path)
