"""What the terminal shows when a run is over: the table of systems, three responses before and after, the report."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from data.common.number_format import number
from data.common.redaction import printable
from pipelines.report.first_screen import metric_values
from pipelines.report.main_comparison import main_comparison
from pipelines.report.names import plain_name
from pipelines.report.outdated import outdated


def show_summary(run_dir: Path, console: Console) -> None:
    """Print the evaluation's table and responses, if the run was evaluated."""
    path = run_dir / "evaluation" / "results.json"
    if not path.is_file():
        return
    results = json.loads(path.read_text(encoding="utf-8"))
    for text in outdated(run_dir).values():
        console.print(Text(printable(f"warning: {text}"), style="yellow"))
    console.print(systems_table(results))
    if metric_values(results):
        console.print(metrics_table(results))
    for text in results.get("warnings", []):
        console.print(Text(printable(f"warning: {text}"), style="yellow"))
    compared = main_comparison(results) or {"b": "sft", "a": "ppo"}
    for row in some_responses(run_dir / "evaluation" / "samples.jsonl", (str(compared["b"]), str(compared["a"]))):
        console.print(row)


def systems_table(results: dict[str, Any]) -> Table:
    """One row a system: independent judge, reward, KL, length, wins against the reference one with their interval."""
    judge = str(results.get("judge"))
    first = [judge] if judge in ("gold", "held_out_reward") else []
    table = Table(title=f"{results['prompts']} held-out prompts", title_justify="left")
    table.add_column("system")
    every = [*results["systems"].values(), *results.get("greedy", {}).values()]
    first += ["reward"] if any(_number(system, "reward") for system in every) else []
    moved = any(_number(system, "kl") for system in every)
    against = escape(printable(plain_name(results.get("against", "sft"))))
    others = [*(["KL"] if moved else []), "length", "distinct-2", "cut", f"wins against {against} [95 %]"]
    for name in [key.replace("_", " ").replace("held out", "held-out") for key in first] + others:
        table.add_column(name, justify="right")
    for decoding, systems in (("", results["systems"]), (" greedy", results.get("greedy", {}))):
        for name, system in systems.items():
            cells = [_number(system, key) for key in first]
            cells += [*([_number(system, "kl")] if moved else []), _number(system, "length", 1)]
            cells += [f"{system['distinct_2']:.3f}", f"{system['truncated']:.0%}", _wins(results, name, decoding)]
            table.add_row(name + decoding, *cells)
    return table


def metrics_table(results: dict[str, Any]) -> Table:
    """One row for each metric that was asked for and is one number, one column a system."""
    found = metric_values(results)
    systems = list(dict.fromkeys(system for values in found.values() for system in values))
    table = Table("metric")
    for system in systems:
        table.add_column(escape(system), justify="right")
    for metric, values in found.items():
        table.add_row(escape(metric), *(number(values[s]) if s in values else "" for s in systems))
    return table


def _number(system: dict[str, Any], key: str, digits: int = 2) -> str:
    value = (system.get(key) or {}).get("mean")
    return "" if value is None else f"{value:.{digits}f}"


def _wins(results: dict[str, Any], name: str, decoding: str) -> str:
    for c in results["comparisons"]:
        same = c["a"] == name and c["by"] == results["judge"]
        if same and c.get("decoding", "sampled") == (decoding.strip() or "sampled"):
            interval = c.get("ci95")
            shown = f" [{interval[0]:.2f}, {interval[1]:.2f}]" if interval else ""
            return f"{c['win_rate']:.2f}{shown}"
    return ""


def some_responses(path: Path, compared: Sequence[str], count: int = 3) -> list[Text]:
    """The first prompts with the responses of the systems compared; where neither was evaluated, with those of all."""
    out: list[Text] = []
    if not path.is_file():
        return out
    with path.open(encoding="utf-8") as file:
        for line in list(file)[:count]:
            row = json.loads(line)
            out.append(Text(printable(f"\n{row['prompt'].strip() or '(no prompt)'}"), style="bold"))
            for name in [name for name in compared if name in row["systems"]] or row["systems"]:
                said = printable(" ".join(row["systems"][name]["response"].split()))
                out.append(Text(printable(f"  {name}: "), style="cyan").append(said, style="default"))
    return out
