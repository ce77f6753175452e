"""The page of data formats, and of public data sets that are read by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from data.formats import FORMATS
from data.formats.columns import METADATA, REFERENCES
from data.formats.public_sets import PUBLIC_SETS, PublicSet
from data.readers.rows import CELLS
from docs.page_parts import NOTE, cell

ABOUT_FORMATS = """\
A row's format is the one that reads most of its columns, and of two that read equally many the one that stands first
here. Nulls and blank texts count as not there. A column that the format does not read is an error if it holds text,
turns, or a number whose name says that it judges; the message names it and the line to write:

- `ignore: [column]`, in `data` for every source: the column is no part of prompts and answers (functions of yours
  still get it);
- `columns: {prompt: question}`: their column is read by our name; `{prompt: request.messages}` takes what is inside;
- a function of yours that names the column as a parameter reads it.

A row that no format fits is refused with the formats that come nearest and such a line for each. Names are read as they
stand, and where that loses something in small letters with `_` between their words (`Response A` as `response_a`). What
is a number, an address, a time or an id is no text, whatever its column is called.

Records of Argilla and of Label Studio are read as rows with a column for each field and each question, one for each
person who answered.
"""
ABOUT_SETS = """\
These have columns that would be refused, and are read by settings of their own, as if a recipe had them, if they have
the columns that they are known by and the recipe names no `columns` or `format`.
"""
ABOUT_PUBLIC = """\
Small files of public repositories, as people have them, and what each becomes. A test reads them again where they are
beside the checkout.
"""


def formats_page() -> str:
    """``formats.md``: every format with its example, what may stand beside, and how public files are read."""
    out = ["# Data formats", "", NOTE, *ABOUT_FORMATS.splitlines(), "", "## Formats", ""]
    out += ["| format | needs | reads as well | an example, and what becomes of it |", "| --- | --- | --- | --- |"]
    for name, one in FORMATS.items():
        needs = ", ".join(
            code(part) if isinstance(part, str) else " or ".join(map(code, part)) for part in one.required
        )
        needs = needs or cell(one.columns)
        example = "best, tab, worse" if CELLS in one.required else f"`{table_code(one.example)}`"
        note = f"<br>{cell(one.note)}" if one.note else ""
        out.append(f"| {name} | {needs} | {', '.join(map(code, one.optional))} | {example}{note} |")
    out += [
        "",
        "## What may stand beside",
        "",
        "Kept with the row, counted, and given to functions; `*` is any text.",
        "",
    ]
    out += ["| what it tells | columns |", "| --- | --- |"]
    out += [f"| {what} | {', '.join(map(code, names.split()))} |" for what, names in METADATA.items()]
    out.append(f"| what answers are judged by, beside a prompt | {', '.join(map(code, REFERENCES.split()))} |")
    out += ["", "## Data sets that many people have", "", *ABOUT_SETS.splitlines(), ""]
    out += ["| data set | known by | how it is read |", "| --- | --- | --- |"]
    out += [
        f"| {name} | {', '.join(map(code, one.known_by))} | {public_set(one)} |" for name, one in PUBLIC_SETS.items()
    ]
    out += ["", "## Public files", "", *ABOUT_PUBLIC.splitlines(), ""]
    out += ["| file | from | how it is read |", "| --- | --- | --- |"]
    for one in json.loads(Path(__file__).with_name("public_files.json").read_text(encoding="utf-8")):
        out.append(f"| {one['file']} | {one['repository']} {cell(one['path'])} | {public_file(one)} |")
    return "\n".join(out) + "\n"


def public_set(one: PublicSet) -> str:
    """What becomes of a row of a known set, in words, and the settings."""
    if one.refused:
        return f"refused: {cell(one.refused)}"
    columns = ", ".join(f"{our}: {their}" for our, their in one.columns.items())
    parts = [cell(one.read), f"`columns: {{{columns}}}`" if columns else ""]
    parts.append(f"not read: {', '.join(map(code, one.ignore))}" if one.ignore else "")
    return "; ".join(part for part in parts if part)


def code(name: str) -> str:
    return "a line without a header" if name == CELLS else f"`{name}`"


def table_code(row: Any) -> str:
    """A row as JSON that may stand in a table's code."""
    return json.dumps(row, ensure_ascii=False).replace("|", "\\|")


def public_file(one: dict[str, Any]) -> str:
    """What becomes of a public file, in words."""
    if "table" in one:
        return cell(one["table"])
    read = one["read"]
    kinds = [f"{n} {kind}" for kind in ("demonstrations", "rankings", "prompts", "documents") if (n := read[kind])]
    parts = [f"{', '.join(read['formats'])}: {', '.join(kinds)}"] if read["formats"] else []
    parts += [f"{read['ties']} ties"] if read["ties"] else []
    if "paste" in one:
        used = one["pasted"]
        kinds = [f"{n} {kind}" for kind in ("demonstrations", "rankings", "prompts", "documents") if (n := used[kind])]
        parts.append(f"refused; with `{one['paste']}` {', '.join(kinds)}")
    else:
        parts += [f"{n} refused: {cell(why)}" for why, n in read["refused"].items()]
    return "; ".join(parts)
