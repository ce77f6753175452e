"""How checking and planning grow with the rows of a file: CPU seconds, and memory above the imports.

    OMP_NUM_THREADS=1 python benchmarks/data_size.py --rows 10000 100000 1000000 --write docs/measurements/data_size.md

generates preference rows of about 430 bytes, and in a process of its own for each number of rows reads, splits and
fingerprints them as a run's start does (with an empty cache), plans the run, and does it all again from the cache.
``--findings`` lets the doctor look at them too.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

WORDS = ["river", "north", "paint", "quiet", "seven", "engine", "cloud", "market", "glass", "train", "letter", "garden"]
RECIPE = {"name": "size", "base": "qwen2.5-0.5b", "stages": ["reward"], "runtime": {"device": "cpu"}}


def rows(count: int) -> Iterator[dict[str, str]]:
    """Preference rows, each of its own prompt."""
    r = random.Random(0)
    for i in range(count):
        asked, better, worse = (" ".join(r.choices(WORDS, k=k)) for k in (12, 25, 20))
        yield {"prompt": f"Question {i}: {asked}?", "chosen": f"{better} {i}.", "rejected": f"{worse} no {i}."}


def peak() -> int:
    """Bytes of memory that this process has had at most."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def child(file: str, findings: bool) -> None:
    """Measure one file, and print what was found as JSON."""
    from datasets import Dataset  # noqa: F401  what a run imports anyway
    from scipy.sparse import csgraph  # noqa: F401

    from data.doctor.corpus import examine
    from pipelines.run.pipeline import Pipeline

    before, out = peak(), {}
    for turn in ("first", "again"):
        steps: dict[str, Any] = {"read and split": lambda p: p.corpus, "plan": lambda p: p.plan()}
        if findings and turn == "first":
            steps["findings"] = lambda p: examine(p.corpus)
        pipeline = Pipeline.from_recipe(RECIPE | {"data": {"rankings": file}})
        for name, step in steps.items():
            started, clock = time.process_time(), time.perf_counter()
            step(pipeline)
            out[f"{name}, {turn}"] = {
                "cpu": time.process_time() - started,
                "seconds": time.perf_counter() - clock,
                "peak_above_imports": peak() - before,
            }
    print(json.dumps(out))


def measure(count: int, folder: Path, findings: bool) -> dict[str, Any]:
    """Write a file of so many rows and measure it in a process with an empty cache."""
    file = folder / f"{count}.jsonl"
    with file.open("w", encoding="utf-8") as out:
        for row in rows(count):
            out.write(json.dumps(row) + "\n")
    command = [sys.executable, __file__, "--child", str(file), *(["--findings"] if findings else [])]
    environment = os.environ | {"TRIVET_CACHE": str(folder / f"cache-{count}")}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr)
    kept = sum(p.stat().st_size for p in (folder / f"cache-{count}").rglob("*") if p.is_file())
    found = {"rows": count, "bytes": file.stat().st_size, "cache_bytes": kept}
    file.unlink()
    return found | {"steps": json.loads(done.stdout.splitlines()[-1])}


def _cpu(one: dict[str, Any]) -> float:
    return sum(step["cpu"] for name, step in one["steps"].items() if name.endswith("first"))


def _top(one: dict[str, Any]) -> int:
    return max(step["peak_above_imports"] for step in one["steps"].values())


def page(results: list[dict[str, Any]]) -> str:
    """The measurements as a table, with the growth between two neighbours."""
    names = list(results[-1]["steps"])
    lines = [
        "# Data of any size",
        "",
        "Preference rows (prompt, chosen, rejected; about 430 bytes each), read, split, fingerprinted and planned for",
        "a reward model in one process on one core; memory is the peak above the imports. The second turn takes them",
        "from the cache, after hashing the files. Written by `benchmarks/data_size.py`.",
        "",
        chart(
            "CPU of the first turn", "seconds per 10,000 rows", results, [1e4 * _cpu(r) / r["rows"] for r in results]
        ),
        "",
        chart("Peak memory above the imports", "MB", results, [_top(r) / 1e6 for r in results]),
        "",
        "| rows | file | cache | " + " | ".join(f"{n}: CPU s" for n in names) + " | memory above the imports |",
        "|" + "---|" * (len(names) + 4),
    ]
    for one in results:
        cpu = " | ".join(f"{one['steps'][n]['cpu']:,.1f}" if n in one["steps"] else "" for n in names)
        top = _top(one)
        sizes = f"{one['bytes'] / 1e6:,.0f} MB | {one['cache_bytes'] / 1e6:,.0f} MB"
        lines.append(f"| {one['rows']:,} | {sizes} | {cpu} | {top / 1e6:,.0f} MB |")
    lines.append("")
    for few, many in pairwise(results):
        extra = (_top(many) - _top(few)) / (many["rows"] - few["rows"])
        lines.append(
            f"From {few['rows']:,} to {many['rows']:,} rows: {_cpu(many) / _cpu(few):.1f} times the CPU, {extra:.0f} "
            "bytes of memory more for each row."
        )
        lines.append("")
    few, many = results[-2], results[-1]
    slope = (_top(many) - _top(few)) / (many["rows"] - few["rows"])
    memory = (_top(many) + slope * (1e7 - many["rows"])) / 1e9
    lines += [
        f"10,000,000 rows were not run. A straight line through the last two gives {memory:.1f} GB and "
        f"{_cpu(many) / many['rows'] * 1e7 / 60:.0f} minutes of CPU on one core.",
        "",
    ]
    return "\n".join(lines)


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
    parser.add_argument("--findings", action="store_true", help="let the doctor look at the records too")
    parser.add_argument("--write", type=Path, help="the page")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.child:
        child(chosen.child, chosen.findings)
        return
    results = []
    for count in chosen.rows:
        with tempfile.TemporaryDirectory() as folder:
            results.append(measure(count, Path(folder), chosen.findings))
        print(json.dumps(results[-1]), flush=True)
    (ROOT / "benchmarks" / "results" / "data_size.json").write_text(json.dumps(results, indent=1) + "\n")
    if chosen.write:
        chosen.write.write_text(page(results), encoding="utf-8")


if __name__ == "__main__":
    main()
