"""How what each stage loads grows with the rows of its file: CPU seconds and peak memory, from file to token ids.

    OMP_NUM_THREADS=1 python benchmarks/loading_size.py --rows 10000 100000 --write docs/measurements/loading_size.md

Each number is that of a process of its own, which reads and splits a file (answers for SFT, pairs for the reward model,
prompts for PPO) and renders every training row to ids, as the stage does before its first step.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

from data_size import WORDS, rows  # noqa: E402

STAGES = {"sft": "demonstrations", "reward": "rankings", "ppo": "prompts"}


def load(stage: str, count: int, folder: Path) -> dict[str, float]:
    """Read, split and render a stage's file in this process; CPU seconds and peaks in bytes."""
    from data.sources import DataConfig
    from data.splits import load_corpus
    from data.template import Renderer
    from stages.ppo.stage import fitting_prompts
    from stages.pretrain import train_tokenizer
    from stages.settings import PPOConfig, PretrainConfig, RewardConfig, SFTConfig
    from stages.sft import encode_demonstrations
    from stages.training.ranking_rows import encode_rankings

    text = " ".join([*WORDS, "user : assistant : system : Question ? . no"])
    tokenizer = train_tokenizer([text] * 3, PretrainConfig(tokenizer="bpe", vocabulary=400))
    renderer = Renderer(tokenizer, template="dialogue")
    started = time.process_time()
    source: dict[str, Any] = {STAGES[stage]: [f"{stage}-{count}.jsonl"]}
    corpus = load_corpus(DataConfig(**source, held_out=0.05), seed=0, base_dir=folder)
    split = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    kept: Any
    if stage == "sft":
        kept, _ = encode_demonstrations(renderer, corpus.demonstrations.train, SFTConfig())
    elif stage == "reward":
        kept, _ = encode_rankings(renderer, corpus.rankings.train, RewardConfig())
    else:
        kept, _ = fitting_prompts(renderer, corpus.prompts.train, PPOConfig(max_prompt_tokens=512), None)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {"rows": len(kept), "cpu": time.process_time() - started, "split": split, "peak": peak}


def write_rows(stage: str, count: int, folder: Path) -> None:
    """Write the stage's file of so many rows."""
    shapes = {
        "sft": lambda row: {"prompt": row["prompt"], "completion": row["chosen"]},
        "reward": lambda row: row,
        "ppo": lambda row: {"prompt": row["prompt"]},
    }
    with (folder / f"{stage}-{count}.jsonl").open("w", encoding="utf-8") as out:
        out.writelines(json.dumps(shapes[stage](row)) + "\n" for row in rows(count))


def measure(stage: str, count: int, parent: Path | None) -> dict[str, Any]:
    """Measure one stage in a process of its own, with an empty cache."""
    with tempfile.TemporaryDirectory(dir=parent) as name:
        folder = Path(name)
        write_rows(stage, count, folder)
        line = [sys.executable, __file__, "--load", stage, "--rows", str(count), "--folder", str(folder)]
        environment = os.environ | {"TRIVET_CACHE": str(folder / "cache"), "PYTHONPATH": str(ROOT)}
        done = subprocess.run(line, env=environment, check=True, stdout=subprocess.PIPE, text=True)
        return {"stage": stage, "count": count, **json.loads(done.stdout.splitlines()[-1])}


def page(results: list[dict[str, Any]], machine: str) -> str:
    """The measurements as a table, and the growth between two sizes of each stage."""
    lines = [
        "# What the stages load",
        "",
        "Reading and splitting a stage's file, and rendering every training row to token ids, as the stage does before",
        "its first step: prompts of about 90 bytes, with an answer of about 150 for SFT and two for the reward model.",
        "Each number is that of a process of its own. Written by `benchmarks/loading_size.py`.",
        "",
        machine,
        "",
        "| stage | rows of the file | rows trained on | CPU s | memory: read and split | memory: with ids |",
        "|---|---|---|---|---|---|",
    ]
    for one in results:
        memory = f"{one['split'] / 1e6:,.0f} MB | {one['peak'] / 1e6:,.0f} MB"
        lines.append(f"| {one['stage']} | {one['count']:,} | {one['rows']:,} | {one['cpu']:,.1f} | {memory} |")
    lines.append("")
    for less, more in pairwise(results):
        if less["stage"] == more["stage"]:
            extra = (more["peak"] - less["peak"]) / (more["count"] - less["count"])
            lines += [
                f"{more['stage']}, from {less['count']:,} to {more['count']:,} rows: {more['cpu'] / less['cpu']:.1f} "
                f"times the CPU, {extra:.0f} bytes of memory more for each row.",
                "",
            ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[10_000, 100_000])
    parser.add_argument("--stages", nargs="+", default=list(STAGES), choices=list(STAGES))
    parser.add_argument("--write", type=Path, help="the page")
    parser.add_argument("--results", type=Path, default=ROOT / "benchmarks" / "results" / "loading_size.json")
    parser.add_argument("--machine", default="", help="a sentence about the machine, for the page")
    parser.add_argument("--folder", type=Path, help="where files are made; default: a temporary folder")
    parser.add_argument("--load", choices=list(STAGES), help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.load:
        print(json.dumps(load(chosen.load, chosen.rows[0], chosen.folder)))
        return
    results = []
    for stage in chosen.stages:
        for count in chosen.rows:
            results.append(measure(stage, count, chosen.folder))
            print(results[-1], file=sys.stderr, flush=True)
            chosen.results.write_text(json.dumps(results, indent=1) + "\n")
    if chosen.write:
        chosen.write.write_text(page(results, chosen.machine), encoding="utf-8")


if __name__ == "__main__":
    main()
