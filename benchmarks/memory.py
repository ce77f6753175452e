"""The memory that `trivet plan` says against the measured peak: SFT, reward and PPO of eight recipes, on a CPU.

python benchmarks/memory.py                two widths, bf16 and NF4, with and without checkpointing: half an hour
python benchmarks/memory.py --fresh        the same again; recipes that the results have are left out otherwise

Bytes of torch's allocator, its temporaries among them; what Python and its libraries take is left out on both sides.
bf16 is measured with bf16 products, as on a GPU, whatever this processor is fastest at.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from itertools import product
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from models.fast import products
from pipelines import Pipeline
from pipelines.stages.estimates import LIBRARIES
from tests.support.memory_peak import make_data, make_folder, measured, recipe_of

RESULTS = Path(__file__).parent / "results" / "memory.json"
WIDTHS, ROWS = (256, 384), 8  # rows of a micro-batch: emulated bf16 products are slow
LENGTHS = {"prompt": 40, "answer": 56}


def compare(width: int, kind: str, checkpointing: bool, folder: Path) -> list[dict[str, Any]]:
    """Said and measured bytes of each stage of one recipe."""
    runtime = {"dtype": "bfloat16", "gradient_checkpointing": checkpointing}
    runtime |= {"quantize": "nf4"} if kind == "nf4" else {}
    recipe = recipe_of(
        make_folder(folder / "base", width),
        make_data(folder / "data", rows=2 * ROWS, **LENGTHS),
        runtime=runtime,
        sft={"batch": ROWS, "micro_batch": ROWS},
        reward={"batch": ROWS // 2, "micro_batch": ROWS // 2},
        ppo={"updates": 2, "rollouts": ROWS, "micro_batch": ROWS // 2, "max_new_tokens": 40},
    )
    made = Pipeline.from_recipe(recipe, run_dir=folder / "run")
    said = {p.name: p.details["takes"].memory - LIBRARIES for p in made.plan()}
    found = []
    for stage, peak in measured(made).items():
        row = {"width": width, "base": kind, "checkpointing": checkpointing, "stage": stage}
        found.append(row | {"said": said[stage], "measured": peak, "ratio": round(said[stage] / peak, 3)})
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fresh", action="store_true", help="measure again what the results have already")
    parser.add_argument("--width", type=int, nargs="*", help="these widths alone")
    options = parser.parse_args()
    products.has_bf16_units = lambda: True  # type: ignore[assignment]
    found = [] if options.fresh or not RESULTS.is_file() else json.loads(RESULTS.read_text(encoding="utf-8"))
    there = {(row["width"], row["base"], row["checkpointing"]) for row in found}
    print("| width | base | checkpointing | stage | said MB | measured MB | ratio |\n|---|---|---|---|---|---|---|")
    for width, kind, on in product(options.width or WIDTHS, ("bfloat16", "nf4"), (False, True)):
        if (width, kind, on) in there:
            continue
        with tempfile.TemporaryDirectory() as folder:
            for row in compare(width, kind, on, Path(folder)):
                found.append(row)
                print(f"| {width} | {kind} | {on} | {row['stage']} | {row['said'] / 1e6:.1f} | "
                      f"{row['measured'] / 1e6:.1f} | {row['ratio']:.2f} |", flush=True)  # fmt: skip
        RESULTS.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    worst = max(found, key=lambda row: abs(row["ratio"] - 1))
    print(f"furthest from 1: {worst['ratio']} ({worst['stage']}, width {worst['width']}, {worst['base']})")


if __name__ == "__main__":
    main()
