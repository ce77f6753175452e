"""Tables for the terminal: base models, plans, runs, data checks. Prints; decides nothing."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from data.common.number_format import duration, size
from data.common.redaction import printable
from data.counting import OfSource, said_by_source

if TYPE_CHECKING:
    from data.checks import FileCheck, Overlap
    from data.doctor.entry import Finding
    from data.source_counts import Rejected
    from data.source_settings import Source
    from data.splits import Corpus
    from pipelines.recipe.schema import Recipe
    from pipelines.run.fit import Fit, Fitted
    from pipelines.run.pipeline import StagePlan

EMPTY: Mapping[Path, str] = MappingProxyType({})
NONE: Mapping[str, float] = MappingProxyType({})
SHOWN = 5  # examples of each kind of finding


def console() -> Console:
    """Standard output; as wide as the text needs when it is no terminal."""
    plain = Console(highlight=False)
    return plain if plain.is_terminal else Console(highlight=False, width=200)


def show_models() -> None:
    """All registry entries."""
    from models.hub.registry import list_models

    table = Table("name", "source", "licence", "size and use", box=None, header_style="bold")
    family = None
    for spec in list_models():
        if spec.family != family:
            family = spec.family
            table.add_section()
        source = spec.source + (f"@{spec.revision}" if spec.revision else "")
        table.add_row(spec.name, escape(source), spec.licence, spec.note)
    console().print(table)


def show_model(name: str) -> None:
    """Every field of one entry, folder or hub id, and what its own files say where they are on this machine."""
    from models.hub.download import local_folder
    from models.hub.registry import resolve_base

    table = Table(box=None, show_header=False)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    spec = resolve_base(name, base_dir=Path.cwd())
    empty = {
        "revision": "the default branch",
        "chat_template": "the tokenizer's",
        "pad_token": "the tokenizer's",
        "stop": "the tokenizer's",
        "override_source": "nothing is overridden",
    }
    facts = spec.model_dump()
    if local_folder(spec.source, spec.revision) is not None:
        from pipelines.run.plan_details import own_facts

        facts |= own_facts(spec)
    for key, value in facts.items():
        shown = ", ".join(map(str, value)) if isinstance(value, tuple) else value
        table.add_row(key.replace("_", " "), escape(str(shown or empty.get(key, "not stated"))))
    console().print(table)


def print_plan(
    recipe: Recipe,
    run_dir: Path,
    plans: Sequence[StagePlan],
    corpus: Corpus,
    kept: Mapping[Path, str] = EMPTY,
    findings: Iterable[str] = (),
    seconds: Mapping[str, float] = NONE,
    assumed: str = "",
) -> None:
    """Stages with cached, new or stale, why, and how much work each is.

    Args:
        findings: what is doubtful in the data.
        kept: hidden folders that the run keeps next to its stages, and what they hold.
        seconds: that stages will take, as far as they are known.
        assumed: what these stand on.
    """
    from pipelines.run.plan_details import rejected_warning
    from pipelines.stages.estimates import FACTOR
    from pipelines.workspace.gc import size_of

    out = console()
    base = recipe.base if isinstance(recipe.base, str) else "from scratch"
    out.print(f"{recipe.name}: base {base}, seed {recipe.seed}, run folder {run_dir}", markup=False)
    out.print(_plan_table(plans, seconds))
    out.print(
        f"tokens (trained on, or generated at most) and disk are estimates, within a factor of {FACTOR}; memory "
        "is that of the longest rows; ? is not known before the base is there",
        style="dim",
        markup=False,
    )
    if assumed:
        out.print(assumed, style="dim", markup=False)
    for plan in plans:
        for text in plan.details.get("chosen", "").splitlines():
            out.print(printable(f"{plan.name}: {text}"), style="dim", markup=False)
    for plan in plans:
        if plan.details.get("too_large"):
            out.print(printable(f"{plan.name}: {plan.details['too_large']}"), style="yellow", markup=False)
    for folder, what in kept.items():
        line = f"kept next to them: {size(size_of(folder))} in {folder.name} ({what}); `trivet gc` removes it"
        out.print(printable(line), markup=False)
    if rejected := rejected_warning(corpus):
        out.print(printable(rejected), style="yellow", markup=False)
    _show_bad(out, corpus.rejected, every=False)
    _show_sources(out, corpus, findings)
    _show_rows_of_stages(out, plans)
    functions = {source: found for plan in plans for source, found in (plan.details.get("functions") or {}).items()}
    for source, digest in functions.items():
        where = "imported" if ".py:" not in source else "loaded and run"
        out.print(printable(f"code of yours that is {where}: {source}, sha256 {digest}"), markup=False)


def _plan_table(plans: Sequence[StagePlan], seconds: Mapping[str, float]) -> Table:
    """A row a stage: what would happen to it, why, and how much work it is."""
    columns = ("stage", "status", "why", "steps", "tokens", "memory", "disk", "time", "data")
    table = Table(*columns, box=None, header_style="bold")
    style = {"cached": "green", "stored": "green", "given": "green", "new": "cyan", "stale": "yellow"}
    for plan in plans:
        status = f"[{style.get(plan.status, 'default')}]{plan.status}[/]"
        why = escape(printable(plan.reason))
        if plan.status == "given":
            table.add_row(plan.name, status, why)
            continue
        steps, rows, takes = (plan.details.get(name) for name in ("steps", "rows", "takes"))
        what = plan.details.get("rows_are", {})
        sizes = [f"{takes.tokens:,}" if takes and takes.tokens is not None else "?"]
        sizes += [size(n) if n is not None else "?" for n in ((takes.memory, takes.disk) if takes else (None, None))]
        sizes.append(f"about {duration(seconds[plan.name])}" if plan.name in seconds else "")
        more = ", ".join(f"{count:,} {what[part]}" for part, count in (rows or {}).items())
        table.add_row(plan.name, status, why, f"{steps:,}" if steps else "", *sizes, escape(more))
    return table


def _show_rows_of_stages(out: Console, plans: Sequence[StagePlan]) -> None:
    """What each stage samples, cuts and drops."""
    for plan in plans:
        if plan.details.get("sampled"):
            out.print(printable(f"{plan.name}: {plan.details['sampled']}"), style="dim", markup=False)
        of_rows = plan.details.get("warning") or plan.details.get("counted")
        if of_rows:
            style_of = "yellow" if plan.details.get("warning") else "default"
            out.print(printable(f"{plan.name}: {of_rows}"), style=style_of, markup=False)


def plan_as_json(
    recipe: Recipe, run_dir: Path, plans: Sequence[StagePlan], seconds: Mapping[str, float], assumed: str
) -> dict[str, Any]:
    """What ``print_plan`` says of the stages, as plain values; None is what is not known."""
    stages = []
    for plan in plans:
        takes = plan.details.get("takes")  # nothing of a stage whose result is given
        names = ("steps", "rows", "rows_are", "chosen", "counts", "warning", "too_large")
        counted = {name: plan.details.get(name) for name in names}
        sizes = {name: getattr(takes, name, None) for name in ("tokens", "memory", "disk")}
        known = {"seconds": round(seconds[plan.name], 1) if plan.name in seconds else None}
        stages.append({"name": plan.name, "status": plan.status, "why": plan.reason} | counted | sizes | known)
    return {"name": recipe.name, "run_dir": str(run_dir), "stages": stages, "seconds_assume": assumed}


def print_fit(fit: Fit, found: Fitted) -> None:
    """The memory of each role and phase with what was found, and the settings that are to be changed for it."""
    out = console()
    out.print(f"to fit {size(fit.limit)} of memory:", markup=False)
    table = Table("stage", "phase", "what", "memory", box=None, header_style="bold")
    for name in fit.stages:
        takes = fit.takes(name, found.settings)
        if takes.parts is None:
            table.add_row(name, "", "not known before the base is there", "?")
            continue
        always, phases = takes.parts.always, takes.parts.phases
        rows = [("always", p) for p in always] + [(phase, p) for phase, of in phases.items() for p in of]
        for i, (phase, part) in enumerate(rows):
            table.add_row(name if not i else "", phase, part.what, size(part.bytes))
        table.add_row("", "peak", f"while {takes.parts.largest}", size(takes.parts.peak), style="bold")
        table.add_section()
    out.print(table)
    if not found.settings:
        return out.print("the recipe fits as it is", markup=False)
    changes = " ".join(f"{k}={str(v).lower() if isinstance(v, bool) else v}" for k, v in found.settings.items())
    words = "the most that can be done" if found.misfits else "the largest settings that fit"
    out.print(f"{words}: --set {changes}", markup=False)


def _show_sources(out: Console, corpus: Corpus, findings: Iterable[str]) -> None:
    """What became of the rows of every source, what was found out about files, and what is doubtful in the data."""
    from pipelines.run.rehearsal import source_lines

    for line in source_lines(corpus):
        out.print(printable(line), markup=False)
    for text in corpus.remarks:
        out.print(printable(text), style="dim", markup=False)
    for text in findings:
        out.print(printable(text), style="yellow", markup=False)


# -- data check -------------------------------------------------------------------------------------------------------


def show_recipe_data(recipe: Path, as_json: bool, every: bool) -> list[str]:
    """Print what a recipe's sources hold, with every bad row if asked, and return what was lost."""
    from data.losses import of_recipe
    from pipelines.run.data_health import health_of, limits_of
    from pipelines.run.pipeline import Pipeline

    pipeline = Pipeline.from_recipe(recipe)
    corpus = pipeline.corpus
    health, limits = health_of(pipeline), limits_of(pipeline)
    lost = of_recipe(corpus, pipeline.recipe.data, limits)
    out = console()
    if as_json:
        found = {
            "sources": [c.as_dict() for c in corpus.counts],
            "remarks": list(corpus.remarks),
            "bad": [{"place": r.source, "reason": r.reason} for r in corpus.rejected],
            **health.as_dict(),
            "limits": limits,
            "lost": lost,
        }
        out.print_json(data=found)
        return lost
    _show_sources(out, corpus, ())
    for part, facts in health.facts.items():
        out.print(part, style="bold", markup=False)
        _show_facts(out, facts)
    for stage, counts in limits.items():
        out.print(printable(f"{stage}: {said_of_limit(counts)}"), markup=False)
    if not limits:
        out.print("lengths are in characters: the base's tokenizer is not on this machine", style="dim", markup=False)
    _show_findings(out, health.findings, every)
    _show_bad(out, corpus.rejected, every)
    return lost


def said_of_limit(counts: Mapping[str, Any]) -> str:
    """What a stage's limit cuts, and the one that would keep 95 % of the rows whole."""
    rows, cut, dropped = counts["rows"], counts["cut"], counts["dropped"]
    share = f"{cut / rows:.1%}" if rows else "none"
    text = f"{counts['what']}: {rows:,}, of which {cut:,} are cut ({share}) and {dropped:,} dropped"
    if counts.get("limit") is not None:
        text += f" at {counts['limit']:,} tokens; {counts['limit_for_95_percent']:,} keep 95 % whole"
    return text + said_by_source({name: OfSource(**own) for name, own in counts.get("by_source", {}).items()})


def _show_facts(out: Console, facts: Mapping[str, Any]) -> None:
    """One line for each count; lengths by kind of text."""
    table = Table(box=None, show_header=False, padding=(0, 1, 0, 2))
    for name, value in facts.items():
        if name in ("characters", "tokens"):
            for kind, n in value.items():
                table.add_row(f"{name} per {kind}", _quantiles(n))
        elif isinstance(value, dict):
            table.add_row(name, _counts(value))
        elif name != "languages of":
            table.add_row(name, escape(f"{value:,}" if isinstance(value, int) else str(value)))
    out.print(table)


def _quantiles(n: Mapping[str, Any]) -> str:
    middle = f"median {n['median']:,.0f}, mean {n['mean']:,.0f}"
    return f"{middle}, 95 % {n['p95']:,.0f}, longest {n['longest']:,.0f}"


def _show_findings(out: Console, findings: Iterable[Finding], every: bool) -> None:
    """What is doubtful, one line each; with ``--all`` every place that is kept."""
    for found in findings:
        out.print(printable(f"  {found.text}"), style="yellow", markup=False)
        if every and len(found.places) > 1:
            out.print(printable("    " + ", ".join(found.places)), markup=False)


def show_data(
    files: Sequence[Path],
    tokenizer: str | None,
    reading: Source | None = None,
    *,
    as_json: bool = False,
    every: bool = False,
) -> list[str]:
    """Print what the files hold, with every bad row if asked, and return what was lost or is shared."""
    from data.checks import check_files
    from data.losses import of_files

    check = check_files(files, tokenizer=tokenizer, reading=reading)
    lost = of_files(check, reading)
    out = console()
    if as_json:
        out.print_json(data=check.as_dict() | {"lost": lost})
        return lost
    for one in check.files:
        _show_file(out, one, every)
    for overlap in check.overlaps:
        _show_overlap(out, overlap)
    if check.overlaps:
        out.print("train on one and hold out the other, and the shared prompts are a leak", markup=False)
    return lost


def _show_overlap(out: Console, one: Overlap) -> None:
    of = f" ({one.sampled})" if one.sampled else ""
    if one.shared:
        text = f"{one.first} and {one.second} share {one.shared:,} prompts{of}"
        out.print(printable(text), style="yellow", markup=False)
    for first, second in one.examples[:SHOWN]:
        out.print(printable(f"  {first} is also {second}"), markup=False)
    if one.nearly:
        text = f"{one.nearly:,} prompts of {one.second} are one of {one.first} but for a few characters{of}"
        out.print(printable(text), style="yellow", markup=False)
    for first, second in one.near_examples[:SHOWN]:
        out.print(printable(f"  {first} is nearly {second}"), markup=False)


def _show_file(out: Console, one: FileCheck, every: bool) -> None:
    out.print(one.file, style="bold", markup=False)
    table = Table(box=None, show_header=False, padding=(0, 1, 0, 2))
    table.add_row("rows", f"{one.rows:,}")
    table.add_row("format", _counts(one.formats))
    table.add_row("columns", escape(", ".join(one.columns)))
    if one.unread:
        table.add_row(
            "columns beside", f"{_counts(one.unread)}: no format reads them; functions of yours are given them"
        )
    table.add_row("usable as", _counts({k: v for k, v in one.usable.items() if v}))
    for what, counts in (("messages by role", one.roles), ("rows by turns", one.turns)):
        if counts:
            table.add_row(what, _counts(counts))
    for what, counts in (("languages", one.languages), ("scripts", one.scripts)):
        table.add_row(what, f"{_counts(counts)} of {one.languages_of}")
    for unit, lengths in (("characters", one.characters), ("tokens", one.tokens)):
        for kind, n in lengths.items():
            table.add_row(f"{unit} per {kind}", _quantiles(asdict(n)))
    if one.answers:
        table.add_row("responses per row", _counts(one.answers))
    if one.tied_rows:
        table.add_row("rows with ties", f"{one.tied_rows:,}")
    if one.longer_is_better is not None:
        table.add_row("longer is better", f"{one.longer_is_better:.0%} of the pairs, in characters")
    if one.longer_is_better_in_tokens is not None:
        table.add_row("longer is better", f"{one.longer_is_better_in_tokens:.0%} of the pairs, in tokens")
    if one.repeated_prompts:
        table.add_row("repeated prompts", f"{one.repeated_prompts:,}")
    for note, count in one.notes.items():
        table.add_row("note", escape(f"{note} ({count:,} rows)"))
    for remark in one.remarks:
        table.add_row("note", escape(printable(remark)))
    out.print(table)
    if one.duplicate_rows:
        out.print(f"  {one.duplicate_rows:,} duplicate rows", style="yellow", markup=False)
        for place, first in one.duplicates if every else one.duplicates[:SHOWN]:
            out.print(printable(f"    {place} is {first} again"), markup=False)
    _show_findings(out, (f for f in one.findings if f.kind != "duplicates"), every)
    _show_bad(out, one.bad, every)


def _show_bad(out: Console, bad: Sequence[Rejected], every: bool) -> None:
    if not bad:
        return
    out.print(f"  {len(bad):,} bad row{'s' * (len(bad) > 1)}", style="red", markup=False)
    for row in bad if every else bad[:SHOWN]:
        out.print(printable(f"    {row.source}: {row.reason}"), markup=False)
    if not every and len(bad) > SHOWN:
        out.print(f"    and {len(bad) - SHOWN:,} more: --all shows them", markup=False)


def _counts(counts: Mapping[Any, int]) -> str:
    return escape(", ".join(f"{name} ({count:,})" for name, count in counts.items()))
