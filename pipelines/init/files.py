"""What data files are taken for: the doctor's verdict on each, and the part of the data that it becomes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from types import MappingProxyType

from data.checks import DataCheck, FileCheck, check_files
from data.common.errors import UserError
from data.readers.files import is_text
from data.source_settings import Source

STAGE_OF = {
    "demonstrations": "SFT",
    "rankings": "the reward model",
    "prompts": "PPO and evaluation",
    "documents": "pretraining a base",
}
"""Parts of the data and what learns from them, in the order in which stages run."""
NONE: Mapping[str, str] = MappingProxyType({})
SHARE = 0.5
"""Of the rows that a poorer part could be made of: with fewer a file is not taken for the richer one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Given:
    """A file with the part of the data that it becomes, and the settings by which it is read."""

    source: Source
    part: str
    found: FileCheck

    @property
    def path(self) -> Path:
        """Where it lies, as it was given."""
        return Path(self.source.path)

    @property
    def format(self) -> str:
        """Its formats, the commonest first."""
        return ", ".join(sorted(self.found.formats, key=lambda name: -self.found.formats[name]))

    def facts(self) -> str:
        """What was recognised and lost, in one sentence."""
        one, kept = self.found, self.found.usable[self.part]
        text = f"{self.format}, {one.rows:,} row{'s' * (one.rows != 1)}"
        if kept != one.rows:
            text += f", {kept:,} usable as {self.part}"
        if one.bad:
            text += f", {len(one.bad):,} rejected (the first is {one.bad[0].source}: {one.bad[0].reason})"
        if one.duplicate_rows:
            text += f", {one.duplicate_rows:,} repeated"
        return text


def usual_part(found: FileCheck) -> str | None:
    """The part that a file is made for: the richest one that its rows can be; None where plain text leaves it open.

    Rankings are richer than demonstrations, these than prompts, and any text is a document.
    """
    usable = found.usable
    if is_text(Path(found.file)) and not (usable["demonstrations"] or usable["rankings"]):
        return None
    order = ("rankings", "demonstrations", "prompts", "documents")
    for part, poorer in pairwise(order):
        if usable[part] and usable[part] >= SHARE * usable[poorer]:
            return part
    return next((part for part in reversed(order) if usable[part]), None)


def examined(
    sources: Sequence[Source],
    parts: Mapping[str, str],
    scratch: bool,
    columns: Mapping[str, str] = NONE,
    ignore: Sequence[str] = (),
) -> tuple[list[Given], DataCheck]:
    """Files with their parts, and all that the doctor found.

    Args:
        sources: the files, each once, with settings of how each is read.
        parts: by path those that the caller says; the others follow from the rows.
        scratch: whether the base is made by the run, so that plain text is a document.
        columns: what a format's columns are called in those files that have them.
        ignore: columns that no format has to read, whatever file they are in.

    Raises:
        UserError: the doctor's verdict on a file of no known format; a file that cannot be the part that it is given
            as, or of which nothing says what it is.
    """
    asked = [
        one.model_copy(update={"columns": {**columns, **one.columns}, "ignore": (*ignore, *one.ignore)})
        for one in sources
    ]
    check = check_files(asked)
    given = []
    for source, found in zip(sources, check.files, strict=True):
        path = source.path
        part = parts.get(path) or usual_part(found) or ("documents" if scratch else None)
        if part is None:
            raise UserError(
                f"{path}: is plain text, which may be prompts, one a line (--prompts {path}), or what a base is "
                f"pretrained on (--documents {path} --base scratch): say which"
            )
        if not found.usable[part]:
            could = [name for name in STAGE_OF if found.usable[name]]
            raise UserError(f"--{part} {path}: no row of it can be one; its rows can be {' or '.join(could)}")
        theirs = {ours: name for ours, name in columns.items() if name in found.columns}
        own = source.model_copy(update={"columns": {**theirs, **source.columns}})
        given.append(Given(source=own, part=part, found=found))
    _check_use(given, scratch)
    return given, check


def _check_use(given: Sequence[Given], scratch: bool) -> None:
    """Refuse files from which nothing would be learnt.

    Raises:
        UserError: names the file, and what it could be used for.
    """
    texts = next((one for one in given if one.part == "documents"), None)
    if texts is not None and not scratch:
        raise UserError(
            f"{texts.path}: holds texts without prompts ({texts.facts()}), which pretrain a base; the base is there "
            "already: leave the file out, or write --base scratch"
        )
    if not scratch and {one.part for one in given} == {"prompts"}:
        raise UserError(
            f"{given[0].path}: holds prompts alone ({given[0].facts()}), from which nothing is learnt: add "
            "demonstrations or rankings; or write a recipe with a function as the reward (docs/how-to/recipe.md)"
        )
