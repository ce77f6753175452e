"""Runs workers as subprocesses, side beside side in alternating order, and writes what they found as JSON."""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from world import machine_rates

HERE = Path(__file__).parent
ROOT = HERE.parent
ENVIRONMENTS = Path(os.environ.get("TRIVET_BENCH_ENVS", ROOT / ".bench-envs"))
# glibc keeps freed memory instead of giving it back after each large tensor: about 1.2x for TRL on CPU, so both get it
ALLOCATOR = {
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(1 << 36),
    "MALLOC_TOP_PAD_": str(64 << 20),
}
TRIVET = Path(sys.executable)


def trl(version: str) -> Path:
    """The Python of a TRL release's own environment."""
    python = ENVIRONMENTS / f"trl-{version}" / "bin" / "python"
    if not python.exists():
        raise SystemExit(f"no {python}: run `make bench-envs`, or set TRIVET_BENCH_ENVS to where they are")
    return python


def run(python: Path, worker: str, case: Mapping[str, Any]) -> dict[str, Any]:
    """One measurement in a process of its own: its last line is JSON.

    Args:
        worker: its name; or its path without suffix, in another checkout's ``benchmarks/workers``.
    """
    script = HERE / "workers" / f"{worker}.py"
    env = os.environ | ALLOCATOR | {
        "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false",
        "TRL_EXPERIMENTAL_SILENCE": "1", "CUDA_VISIBLE_DEVICES": "",
        "PYTHONPATH": f"{HERE}{os.pathsep}{script.parents[2]}" if python == TRIVET else str(HERE),
    }  # fmt: skip
    done = subprocess.run(
        [str(python), str(script), json.dumps(dict(case))],
        env=env, capture_output=True, encoding="utf-8",
    )  # fmt: skip
    if done.returncode:
        raise SystemExit(f"{worker} {dict(case)} failed:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


Side = tuple[Path, str, Mapping[str, Any]]  # its Python, its worker, what it is told besides the case


def paired(
    sides: Mapping[str, Side],
    case: Mapping[str, Any],
    repeats: int,
    after: Callable[[dict[str, list[Any]]], None] = lambda _: None,
) -> dict[str, list[Any]]:
    """Every side ``repeats`` times, the order turned round each time; ``after`` each pair it is told what there is."""
    found: dict[str, list[Any]] = {name: [] for name in sides}
    for i in range(repeats):
        for name in list(sides) if i % 2 == 0 else list(sides)[::-1]:
            python, worker, more = sides[name]
            found[name].append(run(python, worker, {**case, **more}))
            print(f"  {name}: {found[name][-1]['seconds']:.1f} CPU s, "
                  f"{found[name][-1]['peak_above_imports'] / 1e9:.2f} GB above the imports", flush=True)  # fmt: skip
        after(found)
    return found


def middle(runs: list[dict[str, Any]], key: str) -> float:
    return statistics.median(r[key] for r in runs)


def low_median_high(ratios: list[float]) -> list[float]:
    return [min(ratios), statistics.median(ratios), max(ratios)]


def compare(found: Mapping[str, list[Any]], ours: str, theirs: str, work: str | None = None) -> dict[str, Any]:
    """Ratios of each pair, theirs over ours (above 1 = trivet is better), as least, median and greatest.

    ``work``: a key that both count (tokens, pairs); the speed ratio is then that of work a second.
    """

    def cost(r: dict[str, Any]) -> float:
        return r["seconds"] / (r[work] if work else 1.0)

    pairs = list(zip(found[ours], found[theirs], strict=True))
    return {
        "speed": low_median_high([cost(b) / cost(a) for a, b in pairs]),
        "memory": low_median_high([b["peak_above_imports"] / max(1, a["peak_above_imports"]) for a, b in pairs]),
    }


def compared(found: Mapping[str, list[Any]], ours: str = "trivet") -> dict[str, Any]:
    """Ratios to every other side, and the least median of them: those of whichever of the others is best."""
    ratios = {name: compare(found, ours, name) for name in found if name != ours}
    return {"ratios": ratios, "best": {k: min(r[k][1] for r in ratios.values()) for k in ("speed", "memory")}}


def options(text: str | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=text, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="size S only, one pair a case")
    parser.add_argument("--repeats", type=int, default=3, help="pairs a case (default 3)")
    parser.add_argument("--only", default="", help="cases whose name contains this")
    parser.add_argument("--cases", nargs="+", metavar="CASE", help="these alone (PPO's benchmarks)")
    chosen = parser.parse_args()
    if chosen.quick:
        chosen.repeats = 1
    return chosen


def selected(cases: Mapping[str, Any], chosen: argparse.Namespace) -> list[str]:
    """Names of the cases to run: those named, or all that ``--only`` and ``--quick`` (size S) leave."""
    if unknown := [name for name in chosen.cases or () if name not in cases]:
        raise SystemExit(f"no case {', '.join(unknown)}; there are: {', '.join(cases)}")
    small = [n for n in cases if chosen.only in n and (n.startswith("S") or not chosen.quick)]
    return list(chosen.cases or small)


def device() -> str:
    name = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        name = next(x.split(":", 1)[1].strip() for x in lines if x.startswith("model name"))
    except (OSError, StopIteration):
        pass
    return f"one thread of {name}"


def write(name: str, chosen: argparse.Namespace, cases: list[dict[str, Any]], **more: Any) -> Path:
    """``results/NAME.json``; a quick or partial run goes to ``NAME-partial.json`` and never over a whole one."""
    part = chosen.quick or chosen.only
    path = HERE / "results" / f"{name}{'-partial' if part else ''}.json"
    path.parent.mkdir(exist_ok=True)
    head = {
        "command": " ".join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *sys.argv[1:]]),
        "date": time.strftime("%Y-%m-%d"),
        "device": device(),
        "allocator": ALLOCATOR,
        "repeats": chosen.repeats,
        "machine": machine_rates(),
    }
    path.write_text(json.dumps(head | more | {"cases": cases}, indent=1) + "\n")
    print(f"written to {path.relative_to(ROOT)}")
    return path


Work = Callable[[], None]
