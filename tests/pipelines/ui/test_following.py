"""What a page shows of a run: from a made-up run, and lines of progress by hand."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from pipelines.ui.following import COLOURS, figure_of, how_far, runs_in, seen, themed
from pipelines.workspace.run_folder import holding

LOG = """\
$ trivet run a.yaml
sft 5/12 (42%)  1,200 tokens/s  4 s left  loss 3.1
sft: done in 9 s  loss 2.9
$ trivet run a.yaml
sft: finished and unchanged
reward, calibration 64/256 (25%)  3 s left
"""


def test_how_far_is_the_last_count_of_the_last_command() -> None:
    found = how_far(LOG)
    assert found is not None and found.what == "reward, calibration" and found.share == 0.25
    assert found.text == "reward, calibration 64 of 256  3 s left"
    first = how_far(LOG[: LOG.index("sft: done")])
    assert first is not None and first.what == "sft" and abs(first.share - 5 / 12) < 1e-9
    assert how_far(LOG[: LOG.index("reward,")]) is None and how_far("") is None


def test_a_run_at_any_moment(run: Path, tmp_path: Path) -> None:
    none = seen(tmp_path / "none")
    assert not none.stages and not none.live and not none.there
    with holding(tmp_path / "soon"):
        assert seen(tmp_path / "soon").there
    whole = seen(run)
    assert whole.title == "demo" and whole.there and whole.finished and not whole.live and whole.verdict
    assert [stage["name"] for stage in whole.stages] == ["pretrain", "sft", "rankings", "reward", "ppo", "evaluate"]
    assert "PPO" in whole.curves and len(whole.curves["PPO"]) > 3
    copy = Path(shutil.copytree(run, tmp_path / "copy"))
    noted = json.loads((copy / "run.json").read_text())
    assert seen(copy).title == "copy" and noted["name"] == "demo"  # as the list of runs calls it
    noted["stages"]["evaluate"]["status"] = "running"
    (copy / "run.json").write_text(json.dumps(noted))
    assert seen(copy).stages[-1]["status"] == "stopped" and not seen(copy).finished
    with holding(copy):
        assert seen(copy).stages[-1]["status"] == "running" and seen(copy).live


def test_figures_have_the_colours_of_the_page() -> None:
    chart = {"data": [{"line": {"color": "@ppo"}, "x": (1, 2)}], "layout": {"yaxis": {"rangemode": "tozero"}}}
    figure = figure_of(themed(chart))
    assert figure["data"] == [{"line": {"color": COLOURS["@ppo"]}, "x": [1, 2]}]
    assert figure["layout"]["yaxis"]["rangemode"] == "tozero" and figure["layout"]["xaxis"]["automargin"]
    assert themed("@ppo-soft") == COLOURS["@ppo"] and themed("plain") == "plain"


def test_the_list_of_runs(run: Path, tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path / "first")
    (tmp_path / "no-run").mkdir()
    (tmp_path / "first.log").write_text("$ trivet run\n")
    broken = Path(shutil.copytree(run, tmp_path / "broken"))
    (broken / "run.json").write_text('{"stages": 3}')
    found = {one.folder.name: one for one in runs_in(tmp_path)}
    assert set(found) == {"first", "broken"} and "damaged" in found["broken"].stages
    assert found["first"].stages.split(", ") == ["pretrain", "sft", "rankings", "reward", "ppo", "evaluate"]
    assert "against" in found["first"].verdict and not found["first"].live
    assert runs_in(tmp_path / "none") == []
