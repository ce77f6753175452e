"""Commands that look after run folders and stores: ``verify``, ``ls``, ``gc``, and the tables that they print."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from data.common.errors import UserError
from data.common.number_format import size
from data.common.redaction import printable
from pipelines.cli.tables import console
from pipelines.report.verdicts import verdict


def verify(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="a run folder, or a store", show_default=False)],
) -> None:
    """Check the manifests and hashes of a run or a store.

    Every manifest, the hash of every file, and parent links. Exit code 2 if anything is wrong.

    \b
    trivet verify runs/demo
    trivet verify ~/trivet-store
    """
    from pipelines.workspace.verify import verify_run

    problems = verify_run(run, lambda text: typer.echo(printable(text), err=True))
    for problem in problems:
        typer.echo(printable(problem))
    typer.echo(f"{run}: {len(problems)} problems" if problems else f"{run}: all well")
    raise typer.Exit(2 if problems else 0)


def ls(
    folder: Annotated[Path, typer.Argument(metavar="[DIR]", help="where runs are, one run, or a store")] = Path("runs"),
) -> None:
    """List runs, the stages of a run, or a store's entries.

    With status, key, size and age, and the verdict of each run.

    \b
    trivet ls
    trivet ls runs/demo
    trivet ls ~/trivet-store
    """
    from pipelines.workspace.gc import is_store
    from pipelines.workspace.run_folder import is_run

    table = _entries(folder) if is_store(folder) else _stages(folder) if is_run(folder) else _runs(folder)
    if table.row_count:
        console().print(table)
    else:
        console().print(f"no {'entries' if is_store(folder) else 'runs'} in {folder}", markup=False)


def gc(
    folder: Annotated[Path, typer.Argument(metavar="[DIR]", help="where runs are, one run, or a store")] = Path("runs"),
    days: Annotated[
        float, typer.Option("--days", min=0.0, metavar="N", help="entries of a store used so lately stay")
    ] = 30.0,
    unfinished: Annotated[
        bool, typer.Option("--unfinished", help="also what stopped stages have saved; they start again then")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", help="remove it; without this it is only shown")] = False,
    cache: Annotated[
        bool, typer.Option("--cache", help="of the data cache instead: what was not used for --days")
    ] = False,
) -> None:
    """Show what nobody needs any more, and remove it.

    Without --yes it is only shown, with sizes.

    In runs: checkpoints of finished stages, the results and reports that newer ones replaced, and what killed processes
    left. In a store: entries that no run holds and nobody used for --days, damaged and half-written ones. Finished
    stages of runs, and whatever a live process holds, are never removed. With --cache: what the data cache
    ($TRIVET_CACHE) keeps of files that were read, and bases that GGUF files were read into; both are made again when
    they are needed, and --days 0 empties it.

    \b
    trivet gc
    trivet gc runs/demo --unfinished --yes
    trivet gc ~/trivet-store --days 7 --yes
    """
    from pipelines.workspace.data_cache import cache_size, cached, clean_cache, ratings_size
    from pipelines.workspace.gc import leftovers, remove

    root, kept_bytes = cache_size()
    if cache and (unfinished or folder != Path("runs")):
        raise UserError("--cache is for the data cache alone; leave DIR and --unfinished out")
    folder = root if cache else folder
    found = cached(days) if cache else leftovers(folder, days, unfinished)
    free = [one for one in found if not one.held]
    for one in found:
        stays = "a live process may use it" if cache else f"process {one.held} holds the run"
        kept = f"; stays, {stays}" if one.held else ""
        typer.echo(printable(f"{size(one.bytes):>10}  {one.path}  ({one.why}{kept})"))
    if not yes:
        more = "; nothing was removed, --yes removes it" if free else ""
        typer.echo(f"{folder}: {size(sum(one.bytes for one in free))} in {len(free)} places can go{more}")
        typer.echo(printable(f"{root}: the data cache holds {size(kept_bytes)}" + "; see --cache" * (not cache)))
        where, ratings = ratings_size()
        if cache and ratings:
            typer.echo(
                printable(f"{where}: {size(ratings)} of judges' ratings stay; without them judges are asked again")
            )
        return
    gone, errors = clean_cache(days) if cache else remove(free, days, unfinished)
    for text in errors:
        typer.echo(printable(text), err=True)
    typer.echo(f"{folder}: {size(sum(one.bytes for one in gone))} in {len(gone)} places removed")
    raise typer.Exit(2 if errors else 0)


# -- tables -----------------------------------------------------------------------------------------------------------


def age(path: Path) -> str:
    """How long ago something was written."""
    seconds = max(0.0, time.time() - path.stat().st_mtime)
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} s"


def _runs(folder: Path) -> Table:
    from pipelines.execution.progress import duration
    from pipelines.report.first_screen import ended
    from pipelines.stages.table import STAGES
    from pipelines.workspace.gc import size_of
    from pipelines.workspace.run_folder import RUN, is_run, read_run

    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; runs lie in ./runs unless --run-dir says otherwise")
    table = Table("run", "name", "seed", "stages", "took", "size", "age", "verdict", box=None, header_style="bold")
    for path in sorted(p for p in folder.iterdir() if is_run(p)):
        try:
            run = read_run(path)
        except UserError as error:
            table.add_row(escape(path.name), "", "", escape(printable(f"{error}")), "", "", age(path / RUN), "")
            continue
        noted: dict[str, Any] = run.get("stages", {})
        stages = {s: noted[s] for s in (*STAGES, *noted) if s in noted}
        became = {s: ended(path, e).get("status", "") for s, e in stages.items()}
        shown = [s if status == "done" else f"{s} ({status})" for s, status in became.items()]
        took = sum(s.get("seconds", 0) for s in stages.values())
        cells = [path.name, run.get("name", ""), run.get("seed", ""), " ".join(shown), duration(took) if took else ""]
        cells += [size(size_of(path)), age(path / RUN), verdict(path, "evaluate")]
        table.add_row(*(escape(printable(str(c))) for c in cells))
    return table


def _stages(run: Path) -> Table:
    from models.backbone.artifacts import MANIFEST, partial_folder, read_artifact, read_manifest
    from pipelines.execution.progress import duration
    from pipelines.report.first_screen import ended
    from pipelines.stages.table import folders
    from pipelines.workspace.gc import size_of
    from pipelines.workspace.run_folder import read_run
    from stages.safe_points.stopped import kept_of, read_work

    noted = read_run(run).get("stages", {})
    table = Table("stage", "status", "key", "size", "took", "age", "verdict", box=None, header_style="bold")
    for stage, name in folders().items():
        entry, path = noted.get(stage, {}), run / name
        for kept, what in kept_of(path, stage):
            stopped_work = read_artifact(kept) or read_work(kept)
            cells = [
                kept.name,
                what,
                stopped_work.key[:12] if stopped_work else "",
                size(size_of(kept)),
                "",
                age(kept),
                "",
            ]
            table.add_row(*(escape(printable(c)) for c in cells))
        if not (entry or path.is_dir()):
            continue
        status, key = ended(run, entry).get("status", ""), entry.get("key", "")
        if path.is_dir():
            try:
                found = read_manifest(path)
                now = "done" if not entry or key == found["key"] else f"done; another {status}"
                status, key = now, found["key"]
            except UserError:
                status = f"damaged {MANIFEST}"
        elif status == "done":
            status = "missing"
        place = path if path.is_dir() else partial_folder(path)
        took = entry.get("seconds")
        cells = [stage, status, key[:12], size(size_of(place)) if place.is_dir() else ""]
        cells += [duration(took) if took else "", age(place) if place.is_dir() else "", verdict(run, stage)]
        table.add_row(*(escape(printable(str(c))) for c in cells))
    return table


def _entries(folder: Path) -> Table:
    from models.backbone.artifacts import read_artifact
    from pipelines.workspace.gc import size_of
    from pipelines.workspace.store import Store

    store = Store(folder, make=False)
    table = Table("stage", "key", "size", "last used", "held by", box=None, header_style="bold")
    keys = store.keys()
    for key in keys:
        found = read_artifact(store.entries / key)
        stage = str(found.manifest.get("stage", "")) if found else "damaged"
        users = ", ".join(sorted(str(p) for p in store.users(key))) or "nobody"
        path = store.entries / key
        table.add_row(*map(escape, (printable(stage), key[:12], size(size_of(path)), age(path), printable(users))))
    return table
