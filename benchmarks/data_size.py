"""How checking and planning grow with the rows of a file: CPU seconds, and memory above the imports.

    OMP_NUM_THREADS=1 python benchmarks/data_size.py --rows 10000 100000 1000000 --write docs/measurements/data_size.md

writes preference rows of about 430 bytes into a temporary folder, and in a process of its own for each number of rows
reads, splits and fingerprints them as a run's start does (with an empty cache), plans the run, and does it all again
from the cache. ``--findings`` lets the doctor look at them too.
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
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

WORDS = "river north paint quiet seven engine cloud market glass train letter garden copper sail winter stone".split()
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

    from data.doctor.corpus import corpus_findings
    from pipelines.run.pipeline import Pipeline

    before, out = peak(), {}
    for turn in ("first", "again"):
        steps: dict[str, Any] = {"read and split": lambda p: p.corpus, "plan": lambda p: p.plan()}
        if findings and turn == "first":
            steps["findings"] = lambda p: corpus_findings(p.corpus)
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


def page(results: list[dict[str, Any]]) -> str:
    """The measurements as a table, with the growth between two neighbours."""
    names = list(results[-1]["steps"])
    lines = [
        "# Data of any size",
        "",
        "Preference rows (prompt, chosen, rejected; about 430 bytes each), read, split, fingerprinted and planned for a",
        "reward model in one process on one core; memory is the peak above the imports. The second turn takes them from",
        "the cache, after hashing the files. Written by `benchmarks/data_size.py`.",
        "",
        "![CPU seconds and memory by rows](data_size.png)",
        "",
        "| rows | file | cache | " + " | ".join(f"{n}: CPU s" for n in names) + " | memory above the imports |",
        "|" + "---|" * (len(names) + 4),
    ]
    for one in results:
        cpu = " | ".join(f"{one['steps'][n]['cpu']:,.1f}" if n in one["steps"] else "" for n in names)
        top = max(step["peak_above_imports"] for step in one["steps"].values())
        sizes = f"{one['bytes'] / 1e6:,.0f} MB | {one['cache_bytes'] / 1e6:,.0f} MB"
        lines.append(f"| {one['rows']:,} | {sizes} | {cpu} | {top / 1e6:,.0f} MB |")
    lines.append("")
    for few, many in zip(results, results[1:], strict=False):
        spent = [sum(s["cpu"] for n, s in one["steps"].items() if n.endswith("first")) for one in (few, many)]
        tops = [max(s["peak_above_imports"] for s in one["steps"].values()) for one in (few, many)]
        extra = (tops[1] - tops[0]) / (many["rows"] - few["rows"])
        lines.append(
            f"From {few['rows']:,} to {many['rows']:,} rows: {spent[1] / spent[0]:.1f} times the CPU, {extra:.0f} bytes "
            "of memory more for each row."
        )
        lines.append("")
    return "\n".join(lines)


def figure(results: list[dict[str, Any]], file: Path) -> None:
    """Two panels over the number of rows, both axes logarithmic."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    counts = [one["rows"] for one in results]
    drawn, (left, right) = plt.subplots(1, 2, figsize=(9, 3.2), constrained_layout=True)
    for name in results[0]["steps"]:
        left.loglog(counts, [one["steps"][name]["cpu"] for one in results], marker="o", label=name)
        right.loglog(counts, [one["steps"][name]["peak_above_imports"] / 1e6 for one in results], marker="o")
    left.set(xlabel="rows", ylabel="CPU seconds")
    right.set(xlabel="rows", ylabel="peak memory above the imports, MB")
    right.loglog(counts, [one["bytes"] / 1e6 for one in results], linestyle=":", color="grey", label="size of the file")
    left.legend(fontsize=7)
    right.legend(fontsize=7)
    drawn.savefig(file, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--findings", action="store_true", help="let the doctor look at the records too")
    parser.add_argument("--write", type=Path, help="the page; the figure is put beside it")
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
        figure(results, chosen.write.with_suffix(".png"))


if __name__ == "__main__":
    main()
