"""What a page shows of a run, from its folder and its log alone: stages, how far, curves, and a list of runs.

Pure functions of files; nothing here knows of pages.
"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data.common.errors import UserError
from pipelines.report import charts
from pipelines.report.first_screen import ended
from pipelines.report.run_files import read_run
from pipelines.report.stage_facts import stage_rows, stage_warnings
from pipelines.report.verdicts import verdict
from pipelines.stages.table import STAGES, title_of
from pipelines.workspace import run_folder
from pipelines.workspace.run_folder import RECIPE, RUN, holder, is_run

COUNTED = re.compile(r"(?m)^(?P<what>[a-z][\w ,]*?) (?P<step>\d+)/(?P<total>\d+) \((?P<share>\d+)%\)(?P<more>.*)$")
"""A line of ``pipelines.execution.progress`` with a total: ``sft 5/12 (42%)  1,200 tokens/s  4 s left  loss 3.1``."""
COLOURS = {
    "@base": "#8a94a3",
    "@sft": "#5b97d6",
    "@ppo": "#d9783f",
    "@reward": "#8b7ed0",
    "@pretrain": "#8592a6",
    "@other": "#3fa396",
    "@muted": "#8a94a3",
    "@open": "#b98a25",
    "@card": "#ffffff",
    "@line": "rgba(128, 140, 160, 0.3)",
    "@ink": "#7d8896",
}
"""The report's colours in tones that can be read on light and dark."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HowFar:
    """The newest count in a log: what is counted, the share that is done, and the rest of the line."""

    what: str
    share: float
    text: str


def how_far(log: str) -> HowFar | None:
    """How far the stage is that a log's last count is about; None where the last command has counted nothing yet."""
    newest = log[log.rfind("\n$ trivet ") + 1 :]
    found = None
    for found in COUNTED.finditer(newest):  # noqa: B007 (the last one is used below)
        pass
    if found is None:
        return None
    done, total = int(found["step"]), int(found["total"])
    text = f"{found['what']} {done:,} of {total:,}{found['more']}"
    return HowFar(what=found["what"], share=done / total if total else 0.0, text=text)


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """A run as its page shows it.

    Attributes:
        title: its folder's name, as the list of runs has it.
        there: whether the folder is a run, or a process is about to make one there.
        stages: ``name, title, status, time, lines`` of every stage that left a trace.
        live: whether a process holds the folder.
        curves: title of a stage -> its charts.
        warnings: what stages noticed of themselves.
        verdict: what the evaluation showed, or else the reward model; '' where there is none yet.
    """

    title: str
    there: bool = True
    stages: Sequence[Mapping[str, Any]] = ()
    live: bool = False
    curves: Mapping[str, Sequence[Mapping[str, Any]]]
    warnings: Sequence[str] = ()
    verdict: str = ""

    @property
    def finished(self) -> bool:
        """Whether every stage that was started is done."""
        return bool(self.stages) and all(stage["status"] == "done" for stage in self.stages)


def seen(folder: Path) -> Seen:
    """A run folder, at any moment of its run; one that is not there yet is empty.

    Raises:
        UserError: ``run.json`` is damaged.
    """
    title = folder.resolve().name
    try:
        files = read_run(folder)
    except UserError:
        if is_run(folder):
            raise
        live = bool(holder(folder))
        return Seen(title=title, there=live, live=live, curves={})
    warned = stage_warnings(files)
    curves = {
        title_of(stage): [themed(one) for one in charts.curves(stage, files.metrics[stage], warned.get(stage, ()))]
        for stage in STAGES
        if stage in files.metrics
    }
    return Seen(
        title=title,
        stages=stage_rows(files),
        live=bool(holder(folder)),
        curves={title: found for title, found in curves.items() if found},
        warnings=[f"{title_of(stage)}: {w['text']}" for stage, found in warned.items() for w in found],
        verdict=verdict(folder, "evaluate") or verdict(folder, "reward"),
    )


def themed(value: Any) -> Any:
    """A figure with the colours of the page."""
    if isinstance(value, str):
        return COLOURS.get(value.removesuffix("-soft"), value) if value.startswith("@") else value
    if isinstance(value, Mapping):
        return {key: themed(one) for key, one in value.items()}
    return [themed(one) for one in value] if isinstance(value, list | tuple) else value


def figure_of(chart: Mapping[str, Any]) -> dict[str, Any]:
    """A chart as Plotly draws it on the page."""
    axis = {"gridcolor": COLOURS["@line"], "linecolor": COLOURS["@line"], "zeroline": False, "automargin": True}
    layout = {
        **chart["layout"],
        "margin": {"l": 44, "r": 12, "t": 6, "b": 34},
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "font": {"size": 11, "color": COLOURS["@ink"]},
        "showlegend": False,
        "dragmode": False,
        "autosize": True,
    }
    for name in ("xaxis", "yaxis"):
        layout[name] = axis | chart["layout"].get(name, {})
    config = {"displayModeBar": False, "responsive": True}
    return {"data": list(chart["data"]), "layout": layout, "config": config}


@dataclass(frozen=True, slots=True, kw_only=True)
class Listed:
    """A run in the list of runs."""

    folder: Path
    name: str
    stages: str
    verdict: str
    age: float
    live: bool


def runs_in(folder: Path) -> list[Listed]:
    """The runs in a folder, the newest first, as ``trivet ls`` has them."""
    if not folder.is_dir():
        return []
    found = []
    for path in folder.iterdir():
        if not is_run(path):
            continue
        age = time.time() - (path / RUN).stat().st_mtime
        live = bool(holder(path))
        try:
            run = run_folder.read_run(path)
        except UserError as error:
            found.append(Listed(folder=path, name="", stages=str(error), verdict="", age=age, live=live))
            continue
        stages = run.get("stages", {})
        noted = {name: ended(path, stages[name]) for name in (*STAGES, *stages) if name in stages}
        words = [
            name if one.get("status") == "done" else f"{name} ({one.get('status')})" for name, one in noted.items()
        ]
        about = verdict(path, "evaluate") or verdict(path, "reward")
        name = str(run.get("name", ""))
        found.append(Listed(folder=path, name=name, stages=", ".join(words), verdict=about, age=age, live=live))
    return sorted(found, key=lambda one: one.age)


def resolved_recipe(folder: Path) -> Path | None:
    """The recipe that a run keeps, by which it can be resumed; None where it has none yet."""
    return folder / RECIPE if (folder / RECIPE).is_file() else None
