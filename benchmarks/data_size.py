"""How checking and planning grow with the rows of a file: CPU seconds, and memory above that of a file of ten rows.

    OMP_NUM_THREADS=1 python benchmarks/data_size.py --rows 10000 100000 1000000 --write docs/measurements/data_size.md

writes preference rows of about 430 bytes, and measures the commands that a user runs, each in a process of its own:
``trivet data check RECIPE`` with an empty cache, which reads, splits and lets the doctor look; ``trivet plan RECIPE``
behind it, which plans a reward model; both again; and, with ``--file``, ``trivet data check FILE``.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).parents[1]
TRIVET = "import sys; from pipelines.cli.main import main; sys.exit(main())"
FEW = 10
"""Rows of the file whose commands take what any of them take: imports, a base's description, a table."""

WORDS = ["river", "north", "paint", "quiet", "seven", "engine", "cloud", "market", "glass", "train", "letter", "garden"]
RECIPE = {
    "name": "size",
    "base": "qwen2.5-0.5b",
    "stages": ["reward"],
    "runtime": {"device": "cpu"},
    "data": {"rankings": "rows.jsonl"},
}
COMMANDS = {
    "data check RECIPE": ["data", "check", "recipe.yaml"],
    "plan": ["plan", "recipe.yaml"],
    "data check RECIPE, again": ["data", "check", "recipe.yaml"],
    "plan, again": ["plan", "recipe.yaml"],
}
FILE = {"data check FILE": ["data", "check", "rows.jsonl"]}


def rows(count: int) -> Iterator[dict[str, str]]:
    """Preference rows, each of its own prompt."""
    r = random.Random(0)
    for i in range(count):
        asked, better, worse = (" ".join(r.choices(WORDS, k=k)) for k in (12, 25, 20))
        yield {"prompt": f"Question {i}: {asked}?", "chosen": f"{better} {i}.", "rejected": f"{worse} no {i}."}


def command(arguments: list[str], folder: Path) -> dict[str, float]:
    """Run a command in a folder: CPU seconds of all its processes, seconds, and peaks of memory in bytes.

    ``peak`` is that of the process itself, ``helpers`` what those that it starts hold for themselves.

    Raises:
        SystemExit: it failed.
    """
    environment = os.environ | {"TRIVET_CACHE": str(folder / "cache"), "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    started = time.perf_counter()
    with (folder / "log").open("w+") as log:
        line = [sys.executable, "-c", TRIVET, *arguments]
        child = subprocess.Popen(line, cwd=folder, env=environment, stdout=log, stderr=log)
        helpers, status = 0, None
        while status is None:
            helpers = max(helpers, _helpers(child.pid))
            time.sleep(0.2)
            ended, code, used = os.wait4(child.pid, os.WNOHANG)
            status = code if ended else None
        child.returncode = os.waitstatus_to_exitcode(status)
        if child.returncode:
            log.seek(0)
            raise SystemExit(f"{' '.join(arguments)} ended with {child.returncode}:\n{log.read()}")
    seconds = time.perf_counter() - started
    return {"cpu": used.ru_utime + used.ru_stime, "seconds": seconds, "peak": used.ru_maxrss * 1024, "helpers": helpers}


def _helpers(parent: int) -> int:
    """Bytes that the processes below this one hold for themselves alone."""
    with contextlib.suppress(psutil.Error):
        return sum(one.memory_full_info().uss for one in psutil.Process(parent).children(recursive=True))
    return 0


def measure(count: int, parent: Path | None, with_file: bool) -> dict[str, Any]:
    """Write a file of so many rows, and measure the commands with an empty cache."""
    with tempfile.TemporaryDirectory(dir=parent) as name:
        folder = Path(name)
        with (folder / "rows.jsonl").open("w", encoding="utf-8") as out:
            for row in rows(count):
                out.write(json.dumps(row) + "\n")
        (folder / "recipe.yaml").write_text(json.dumps(RECIPE))
        steps = {}
        for step, arguments in (COMMANDS | (FILE if with_file else {})).items():
            steps[step] = command(arguments, folder)
            print(f"{count:,} rows, {step}: {steps[step]}", file=sys.stderr, flush=True)
        kept = sum(p.stat().st_size for p in (folder / "cache").rglob("*") if p.is_file())
        return {"rows": count, "bytes": (folder / "rows.jsonl").stat().st_size, "cache_bytes": kept, "steps": steps}


def _first(one: dict[str, Any]) -> list[dict[str, float]]:
    """The commands that check and plan what nobody has seen before."""
    return [one["steps"][name] for name in ("data check RECIPE", "plan")]


def _cpu(one: dict[str, Any]) -> float:
    return sum(step["cpu"] for step in _first(one))


def _over(one: dict[str, Any], few: dict[str, Any]) -> float:
    """Bytes of memory above those of the same command on a few rows, the most of all commands."""
    return max(step["peak"] - few["steps"][name]["peak"] for name, step in one["steps"].items())


def _of_helpers(one: dict[str, Any]) -> float:
    """Bytes that helpers held, the most of all commands."""
    return max(step.get("helpers", 0) for step in one["steps"].values())


def page(results: list[dict[str, Any]], machine: str) -> str:
    """The measurements as a table, with the growth between two neighbours."""
    few, *results = results
    names = list(results[-1]["steps"])
    lines = [
        "# Data of any size",
        "",
        "Preference rows (prompt, chosen, rejected; about 430 bytes each) in one file, for a reward model, by the",
        "commands that a user runs: `trivet data check RECIPE` reads, splits, and looks for what is doubtful;",
        "`trivet plan RECIPE` behind it hashes the records, and takes the rest from the cache, whose files are found",
        "by their bytes. CPU is that of all processes: above 100,000 rows helper processes, one a core, share the",
        f"work. Memory is the peak of the command itself above that of the same command on {FEW} rows; what its",
        "helpers hold does not grow with the rows. Written by `benchmarks/data_size.py`.",
        "",
        machine,
        "",
        chart(
            "CPU of check and plan", "seconds per 10,000 rows", results, [1e4 * _cpu(r) / r["rows"] for r in results]
        ),
        "",
        chart("Peak memory above a small file's", "MB", results, [_over(r, few) / 1e6 for r in results]),
        "",
        "| rows | file | cache | " + " | ".join(f"{n}: CPU s" for n in names) + " | memory above | helpers |",
        "|" + "---|" * (len(names) + 5),
    ]
    for one in (few, *results):
        cpu = " | ".join(f"{one['steps'][n]['cpu']:,.1f}" if n in one["steps"] else "" for n in names)
        sizes = f"{one['bytes'] / 1e6:,.0f} MB | {one['cache_bytes'] / 1e6:,.0f} MB"
        memory = f"{_over(one, few) / 1e6:,.0f} MB | {_of_helpers(one) / 1e6:,.0f} MB"
        lines.append(f"| {one['rows']:,} | {sizes} | {cpu} | {memory} |")
    lines.append("")
    for less, more in pairwise(results):
        extra = (_over(more, few) - _over(less, few)) / (more["rows"] - less["rows"])
        lines += [
            f"From {less['rows']:,} to {more['rows']:,} rows: {_cpu(more) / _cpu(less):.1f} times the CPU, {extra:.0f} "
            "bytes of memory more for each row.",
            "",
        ]
    return "\n".join([*lines, *_ten_million(few, results), ""])


def _ten_million(few: dict[str, Any], results: list[dict[str, Any]]) -> list[str]:
    last = results[-1]
    if last["rows"] >= 10**7 or len(results) < 2:
        return []
    less = results[-2]
    slope = (_over(last, few) - _over(less, few)) / (last["rows"] - less["rows"])
    memory = (_over(last, few) + slope * (1e7 - last["rows"])) / 1e9
    a_row = (_cpu(last) - _cpu(less)) / (last["rows"] - less["rows"])
    minutes = (_cpu(last) + a_row * (1e7 - last["rows"])) / 60
    return [
        f"10,000,000 rows are not measured here. A straight line through the last two gives {memory:.1f} GB and "
        f"{minutes:.0f} minutes of CPU."
    ]


def chart(title: str, unit: str, results: list[dict[str, Any]], values: list[float]) -> str:
    """A line over the numbers of rows, as GitHub draws it."""
    labels = ", ".join(f'"{one["rows"]:,}"' for one in results)
    line = ", ".join(f"{value:.1f}" for value in values)
    return f'''```mermaid
xychart-beta
  title "{title}"
  x-axis "rows" [{labels}]
  y-axis "{unit}" 0 --> {max(values) * 1.2:.0f}
  line [{line}]
```'''


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--file", action="store_true", help="measure `trivet data check FILE` too")
    parser.add_argument("--write", type=Path, help="the page")
    parser.add_argument("--results", type=Path, default=ROOT / "benchmarks" / "results" / "data_size.json")
    parser.add_argument("--machine", default="", help="a sentence about the machine, for the page")
    parser.add_argument("--folder", type=Path, help="where files are made; default: a temporary folder")
    chosen = parser.parse_args()
    results = []
    for count in (FEW, *chosen.rows):
        results.append(measure(count, chosen.folder, chosen.file))
        chosen.results.write_text(json.dumps(results, indent=1) + "\n")
    if chosen.write:
        chosen.write.write_text(page(results, chosen.machine), encoding="utf-8")


if __name__ == "__main__":
    main()
