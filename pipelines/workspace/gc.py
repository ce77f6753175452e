"""``trivet gc``: what nobody needs any more in run folders and stores, by name and size. Never what somebody holds.

Removable in a run: the hidden folder of a stage that is finished (its checkpoints), the result and the report that a
newer one replaced, the recipes of results that are gone, and what a killed process left half written. Removable in a
store: entries that no run holds and nobody used for some days, damaged ones that were set aside, half-written ones of
dead processes. Finished stages of a run are never removed, and what stopped stages have saved only where it is asked
for.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from data.common.errors import UserError
from data.common.patience import each
from models.backbone.artifacts import partial_folder, previous_folder, read_artifact
from pipelines.stages.table import folders
from pipelines.workspace.kept_recipes import of_no_result
from pipelines.workspace.run_folder import REPORT, holder, holding, is_run, read_run
from pipelines.workspace.store import MARK, Store
from stages.safe_points.stopped import kept_of, read_work


@dataclass(frozen=True, slots=True, kw_only=True)
class Leftover:
    """Something that can go.

    ``owner`` is the run or store that it lies in, ``held`` the process that keeps it there now ('' if none).
    """

    path: Path
    owner: Path
    why: str
    bytes: int
    held: str = ""


def size_of(path: Path) -> int:
    """Bytes of a file, or of all files below a folder; links are not followed."""
    if path.is_symlink() or not path.is_dir():
        return path.lstat().st_size
    return sum(os.lstat(os.path.join(root, name)).st_size for root, _, names in os.walk(path) for name in names)


def is_store(path: Path) -> bool:
    return (path / MARK).is_file()


def runs_below(folder: Path) -> list[Path]:
    """The run folder itself, or those directly in a folder, each with its separate evaluations.

    Raises:
        UserError: no such folder.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; runs lie in ./runs unless --run-dir says otherwise")
    runs = [folder] if is_run(folder) else sorted(p for p in folder.iterdir() if p.is_dir() and is_run(p))
    return [r for run in runs for r in (run, *(p for p in sorted(run.glob("evaluations/*")) if is_run(p)))]


def leftovers(folder: Path, days: float = 30.0, unfinished: bool = False) -> list[Leftover]:
    """What could be removed below a folder: a store, a run, or a folder of runs. Removes nothing.

    Args:
        days: entries of a store stay that were used within so many days.
        unfinished: also what stopped stages have saved; they start again then.

    Raises:
        UserError: no such folder, or a damaged ``run.json``.
    """
    if is_store(folder):
        return list(_of_store(Store(folder, make=False), days))
    return [one for run in runs_below(folder) for one in _of_run(run, unfinished)]


def _of_run(run: Path, unfinished: bool) -> Iterator[Leftover]:
    held = holder(run)
    for path, why in _candidates(run, unfinished):
        yield Leftover(path=path, owner=run, why=why, bytes=size_of(path), held=held)


def _candidates(run: Path, unfinished: bool) -> Iterator[tuple[Path, str]]:
    noted = read_run(run).get("stages", {})
    for stage, name in folders().items():
        final = run / name
        partial, old, fetched = partial_folder(final), run / f".{name}.old", run / f".{name}.fetched"
        done = read_artifact(final)
        entry = noted.get(stage, {})
        work = read_work(partial)
        in_progress = entry.get("status", "done") != "done" and (done is None or done.key != entry.get("key"))
        in_progress |= work is not None and (done is None or done.key != work.key)
        if partial.is_dir() and (unfinished or (done is not None and not in_progress)):
            yield partial, f"checkpoints of {stage}, which {'is not' if in_progress or done is None else 'is'} finished"
        if old.is_dir() and done is not None:
            yield old, f"an older {stage} that was replaced"
        for kept, what in kept_of(final, stage):
            stopped_work = None if kept == previous_folder(final) else read_work(kept)
            finished = done is not None and stopped_work is not None and stopped_work.key == done.key
            if (kept == previous_folder(final) and done is not None) or finished or unfinished:
                yield kept, what
        if fetched.is_dir():
            yield fetched, f"a half-written copy of {stage} from a store"
    for file in of_no_result(run):
        yield file, "the recipe of a result that is gone"
    for file in sorted(run.glob(".*.partial")):
        if file.is_file():
            yield file, "a file that was never finished"
    if previous_folder(run / REPORT).is_file():
        yield previous_folder(run / REPORT), "the report that the present one replaced"


def _of_store(store: Store, days: float) -> Iterator[Leftover]:
    for path in store.unneeded(days):
        why = f"no run holds it, and nobody used it for {days:g} days"
        if path.parent == store.partial:
            why = "damaged, set aside" if path.name.startswith("damaged.") else "left half written"
        yield Leftover(path=path, owner=store.root, why=why, bytes=size_of(path))


def remove(found: list[Leftover], days: float = 30.0, unfinished: bool = False) -> tuple[list[Leftover], list[str]]:
    """Remove them, asking again under each owner's lock.

    Returns:
        What was removed, and why the rest was not.
    """
    gone: list[Leftover] = []
    errors: list[str] = []
    for owner in each(list(dict.fromkeys(one.owner for one in found)), "removing", "folders and stores"):
        wanted = {one.path for one in found if one.owner == owner}
        try:
            if is_store(owner):
                gone += _clean_store(Store(owner, make=False), days, wanted)
            else:
                with holding(owner):
                    gone += [_removed(one) for one in _of_run(owner, unfinished) if one.path in wanted]
        except (UserError, OSError) as error:
            errors.append(f"{error}; nothing was removed there" if isinstance(error, UserError) else str(error))
    return gone, errors


def _clean_store(store: Store, days: float, wanted: set[Path]) -> list[Leftover]:
    with store.alone():
        gone = []
        for one in _of_store(store, days):
            if one.path in wanted:
                gone.append(_removed(one))
                for note in store.used.glob(f"{one.path.name}.*") if one.path.parent == store.entries else ():
                    note.unlink(missing_ok=True)
        return gone


def _removed(one: Leftover) -> Leftover:
    if one.path.is_dir() and not one.path.is_symlink():
        shutil.rmtree(one.path)
    else:
        one.path.unlink()
    return one
