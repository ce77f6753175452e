"""Tables of finished runs of a recipe over seeds, for docs/measurements/real_model.md: good or bad, as they are.

    for s in 1 2 3; do trivet run examples/real_model/chain.yaml --set seed=$s --run-dir runs/real-chain-$s; done
    python benchmarks/real_model.py runs/real-chain-1 runs/real-chain-2 runs/real-chain-3 [--write FILE --mark chain]

A run that was stopped goes on by the same command; the tables are of runs whose evaluation is there. With ``--write``
they take the place of what stands between ``<!-- MARK -->`` and ``<!-- /MARK -->`` in FILE. Rows of seeds that are not
given stay there: seeds may be had at different times and places.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from data.common.errors import UserError  # noqa: E402
from data.common.strict_json import read_object  # noqa: E402

SHOWN = 3  # prompts whose responses are shown of each run
LONGEST = 240  # characters of a response in the table
SAMPLED = "The first prompts of seed "
NAMES = {"base": "base", "sft": "SFT", "ppo": "PPO"}


@dataclass(frozen=True, kw_only=True)
class Run:
    """What a finished run wrote: its evaluation, the reward stage's metrics where it has one, and times."""

    name: str
    seed: int
    results: Mapping[str, Any]
    reward: Mapping[str, Any]
    seconds: Mapping[str, float]
    samples: Sequence[Mapping[str, Any]]


def read(folder: Path) -> Run:
    """A run folder.

    Raises:
        UserError: it has not been evaluated, or its files are not as trivet writes them.
    """
    about, results = read_object(folder / "run.json"), read_object(folder / "evaluation" / "results.json")
    manifest = folder / "reward" / "manifest.json"
    lines = (folder / "evaluation" / "samples.jsonl").read_text(encoding="utf-8").splitlines()
    return Run(
        name=folder.name,
        seed=about.get("seed", 0),
        results=results,
        reward=read_object(manifest).get("metrics", {}) if manifest.is_file() else {},
        seconds={k: float(v.get("seconds") or 0.0) for k, v in about.get("stages", {}).items()},
        samples=[json.loads(line) for line in lines],
    )


def number(found: Any, digits: int = 2, sign: str = "") -> str:
    """``mean [low, high]`` of what results write; a bare number as it is, and a dash where there is none."""
    if found is None:
        return "–"
    if not isinstance(found, Mapping):
        return f"{found:{sign}.{digits}f}"
    low, high = found.get("ci95") or (None, None)
    bracket = "" if low is None or high is None else f" [{low:{sign}.{digits}f}, {high:{sign}.{digits}f}]"
    return f"{found['mean']:{sign}.{digits}f}{bracket}"


def systems_table(runs: Sequence[Run]) -> str:
    """One row a system and seed: scores, KL, length, what was cut off, and every metric that is one number."""
    metrics = list(
        dict.fromkeys(m for run in runs for s in run.results["systems"].values() for m in s.get("metrics", {}))
    )
    scores = [
        k
        for k in ("gold", "held_out_reward", "reward")
        if any(k in s for r in runs for s in r.results["systems"].values())
    ]
    head = ["seed", "system", *(k.replace("_", " ") for k in (*scores, "KL", "tokens", "cut off", *metrics))]
    rows = [
        [
            str(run.seed),
            NAMES.get(name, name.replace("_", " ")),
            *(number(s.get(k)) for k in (*scores, "kl")),
            number(s["length"]["mean"], 0),
            f"{s['truncated']:.0%}",
            *(number(s.get("metrics", {}).get(m)) for m in metrics),
        ]
        for run in runs
        for name, s in run.results["systems"].items()
    ]
    return _table(head, rows)


def judge_of(run: Run, name: str) -> str:
    """A judge's name, and whether it was found to prefer responses that deserve nothing."""
    reliable = (run.results.get("judges") or {}).get(name, {}).get("reliable")
    return name.replace("_", " ") + " (unreliable)" * (reliable is False)


def comparisons_table(runs: Sequence[Run]) -> str:
    """Every system against the reference one by every judge: wins and mean difference with their intervals."""
    rows = [
        [
            str(run.seed),
            f"{NAMES.get(c['a'], c['a'].replace('_', ' '))} against {NAMES.get(c['b'], c['b'])}",
            judge_of(run, str(c["by"])),
            number({"mean": c["win_rate"], "ci95": c.get("ci95")}),
            number(c.get("difference"), sign="+"),
            str(c.get("verdict", "")),
        ]
        for run in runs
        for c in run.results["comparisons"]
        if c.get("decoding", "sampled") == "sampled"
    ]
    return _table(["seed", "systems", "judge", "wins", "difference", "verdict"], rows)


def reward_table(runs: Sequence[Run]) -> str:
    """Held-out pair accuracy of the model that PPO optimised and of the one that judges; empty without any."""
    rows = []
    for run in runs:
        for name, found in (("optimised", run.reward), ("held out", run.reward.get("watcher", {}))):
            if "pair_accuracy" in found:
                share = {"mean": found["pair_accuracy"], "ci95": found.get("pair_accuracy_ci95")}
                rows.append([str(run.seed), name, str(found.get("rankings", "")), number(share, 3)])
    return _table(["seed", "reward model", "training rankings", "held-out pairs right"], rows) if rows else ""


def costs_table(runs: Sequence[Run]) -> str:
    """Minutes of each stage, by the clock."""
    stages = list(dict.fromkeys(stage for run in runs for stage in run.seconds))
    rows = [
        [str(r.seed), *(f"{r.seconds.get(s, 0) / 60:.1f}" for s in stages), f"{sum(r.seconds.values()) / 60:.1f}"]
        for r in runs
    ]
    return _table(["seed", *stages, "in all"], rows)


def samples_list(run: Run) -> str:
    """The first prompts with every system's sampled response."""
    out = []
    for row in [row for row in run.samples if row["decoding"] == "sampled"][:SHOWN]:
        out.append(f"> **{_plain(row['prompt'])}**")
        out += [f"> - {NAMES.get(k, k.replace('_', ' '))}: {_plain(c['response'])}" for k, c in row["systems"].items()]
        out.append("")
    return "\n".join(out)


def _plain(text: str) -> str:
    """One line of a page: what would be markup is escaped, and long text is cut."""
    line = " ".join(text.split())
    line = line if len(line) <= LONGEST else line[:LONGEST] + " …"
    return "".join("\\" + c if c in "\\`*_[]<>|#" else c for c in line) or "(empty)"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def page(runs: Sequence[Run]) -> str:
    """All tables, and samples of the first run."""
    parts = [
        ("The reward models:", reward_table(runs)),
        ("Sampled responses to held-out prompts; brackets are 95 % intervals over prompts:", systems_table(runs)),
        ("Paired by prompt; ties count half:", comparisons_table(runs)),
        ("Minutes by the clock:", costs_table(runs)),
        (f"{SAMPLED}{runs[0].seed}:", samples_list(runs[0])),
    ]
    return "\n".join(f"{title}\n\n{text}" for title, text in parts if text)


def parts_of(text: str) -> dict[str, str]:
    """Titles of a page of tables, each with what stands below it."""
    return {m[1]: m[2] for m in re.finditer(r"^([^|>\n].*:)\n\n((?:.|\n)*?)(?=^[^|>\n].*:\n\n|\Z)", text, re.MULTILINE)}


def merged(new: str, old: str) -> str:
    """The new tables with the old rows of seeds that are not among them, and samples of the lowest seed.

    Raises:
        UserError: a table has other columns than before.
    """
    before, out = parts_of(old), []
    sampled = {title: text for title, text in before.items() if title.startswith(SAMPLED)}
    for title, text in parts_of(new).items():
        if title.startswith(SAMPLED):
            title, text = min([(title, text), *sampled.items()], key=lambda one: _seed(one[0]))  # of one seed the new
        elif title in before:
            text = _rows_of_both(title, text, before[title])
        out.append(f"{title}\n\n{text.strip()}\n")
    if lost := [title for title in before if title not in parts_of(new) and not title.startswith(SAMPLED)]:
        raise UserError(f"'{lost[0]}' stands there, and the runs that are given have no such table")
    return "\n".join(out)


def _seed(title: str) -> int:
    return int(title.removeprefix(SAMPLED).rstrip(":"))


def _rows_of_both(title: str, new: str, old: str) -> str:
    (head, line, *rows), (old_head, _, *old_rows) = new.strip().splitlines(), old.strip().splitlines()
    if head != old_head:
        raise UserError(f"'{title}' has other columns than the rows that stand there: {head} and {old_head}")

    def seed(row: str) -> int:
        return int(row.split("|")[1])

    seeds = {seed(row) for row in rows}
    kept = [row for row in old_rows if seed(row) not in seeds]
    return "\n".join([head, line, *sorted([*kept, *rows], key=seed)])


def put(text: str, mark: str, into: str) -> str:
    """A page with ``text`` between the marks, and with rows of other seeds that stood there.

    Raises:
        UserError: the page lacks the marks, or the tables that stand there have other columns.
    """
    start, end = f"<!-- {mark} -->", f"<!-- /{mark} -->"
    if start not in into or end not in into.partition(start)[2]:
        raise UserError(f"the page has no {start} ... {end}")
    before, _, rest = into.partition(start)
    old, _, after = rest.partition(end)
    return f"{before}{start}\n{merged(text, old)}{end}{after}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+", help="run folders, one a seed")
    parser.add_argument("--write", type=Path, help="put the tables between the marks in this file")
    parser.add_argument("--mark", default="chain", help="name of the marks")
    asked = parser.parse_args()
    try:
        text = page([read(folder) for folder in asked.runs])
        if asked.write:
            asked.write.write_text(put(text, asked.mark, asked.write.read_text(encoding="utf-8")), encoding="utf-8")
    except UserError as error:
        sys.exit(str(error))
    print(text)


if __name__ == "__main__":
    main()
