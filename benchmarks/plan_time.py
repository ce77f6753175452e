"""The time that `trivet plan` says against what a run takes: SFT, reward and PPO of eight recipes, on a CPU.

python benchmarks/plan_time.py             two widths, bf16 and NF4, with and without checkpointing: about ten minutes
python benchmarks/plan_time.py --quick     the smaller width alone
python benchmarks/plan_time.py --recipe examples/demo.yaml --run-dir runs/demo-time    all stages of one recipe

Measured are this process's CPU seconds with one thread, so that other work on the machine counts on neither side.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import sys
import tempfile
import time
from itertools import product
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from pipelines import Pipeline
from pipelines.run.plan_time import PlanTime
from tests.support.memory_peak import make_data, make_folder, recipe_of

RESULTS = Path(__file__).parent / "results" / "plan_time.json"
WIDTHS, ROWS = (256, 384), 96
PPO = {"updates": 2}


def compare(made: Pipeline) -> list[dict[str, Any]]:
    """Said and measured seconds of each stage."""
    made.processes.use_threads(1)
    said = PlanTime(made.details_after(made.plan()), made.recipe.stages).seconds
    rows = []
    for stage in made.recipe.stages:
        began = time.process_time()
        made.run(only=[stage])
        took = time.process_time() - began
        row = {"stage": stage, "said": round(said[stage], 2), "measured": round(took, 2)}
        rows.append(row | {"ratio": round(said[stage] / took, 3)})
    return rows


def one_recipe(width: int, kind: str, checkpointing: bool) -> list[dict[str, Any]]:
    """Rows of one recipe, in a process that has imported nothing of it before."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        runtime: dict[str, Any] = {"dtype": "bfloat16", "gradient_checkpointing": checkpointing}
        runtime |= {"quantize": "nf4"} if kind == "nf4" else {}
        data = make_data(folder / "data", rows=ROWS)
        recipe = recipe_of(make_folder(folder / "base", width), data, runtime=runtime, ppo=PPO)
        made = Pipeline.from_recipe(recipe, run_dir=folder / "run")
        return [{"width": width, "base": kind, "checkpointing": checkpointing} | row for row in compare(made)]


def recipes(quick: bool) -> list[dict[str, Any]]:
    """Rows of all recipes, printed as they come."""
    found = []
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        for asked in product(WIDTHS[: 1 if quick else 2], ("bfloat16", "nf4"), (False, True)):
            for row in pool.apply(one_recipe, asked):
                found.append(row)
                show(row)
    return found


def show(row: dict[str, Any]) -> None:
    print("| " + " | ".join(map(str, row.values())) + " |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="the smaller width alone")
    parser.add_argument("--recipe", type=Path, help="all stages of this recipe instead")
    parser.add_argument("--run-dir", type=Path, help="where it runs; must be new")
    options = parser.parse_args()
    if options.recipe is not None:
        for row in compare(Pipeline.from_recipe(options.recipe, run_dir=options.run_dir)):
            show(row)
        return
    found = recipes(options.quick)
    if not options.quick:
        RESULTS.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    worst = max(found, key=lambda row: abs(row["ratio"] - 1))
    print(f"furthest from 1: {worst}")


if __name__ == "__main__":
    main()
