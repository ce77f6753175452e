"""The ``data`` commands: what they read from their options, and ``data fix``."""

from __future__ import annotations

import contextlib
import json
import re
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from data.cleaning.settings import CleanConfig
from data.common.errors import UserError, nearest
from data.common.redaction import printable
from data.fix import DEFAULT, fix_file
from data.source_settings import DataConfig, Source
from pipelines.workspace.run_folder import check_outside

PASTE = re.compile(r"`((?:columns: \{|ignore: \[)[^`]*)`")
"""What a message says is to be written into a recipe."""
LARGEST = 1_000_000
"""Bytes beyond which a JSON file is no recipe."""


def is_recipe(file: Path) -> bool:
    """Whether a file is a recipe: YAML by its name, JSON where it has a base, and data by the keys of a recipe."""

    suffix = file.suffix.lower()
    if suffix != ".json" or not file.is_file() or file.stat().st_size > LARGEST:
        return suffix in (".yaml", ".yml")
    try:
        found = json.loads(file.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError):  # the reader of data says what is wrong
        return False
    data = found.get("data") if isinstance(found, dict) and "base" in found else None
    return isinstance(data, dict) and data.keys() <= set(DataConfig.model_fields)


def reading(columns: Sequence[str] | None, ignore: Sequence[str] | None) -> Source | None:
    """How files are read, by ``--columns`` and ``--ignore``; None where neither is given.

    Raises:
        UserError: a mapping is not ``OURS=THEIRS``, or names one of ours twice.
    """
    mapping: dict[str, str] = {}
    for one in columns or ():
        ours, equals, theirs = one.partition("=")
        if not (ours and equals and theirs) or ours in mapping:
            raise UserError(f"--columns {one}: must have the form OURS=THEIRS, each of ours once: prompt=question")
        mapping[ours] = theirs
    return Source(path="-", columns=mapping, ignore=tuple(ignore or ())) if mapping or ignore else None


@contextlib.contextmanager
def naming_options() -> Iterator[None]:
    """Errors of reading files name the options next to what a recipe would say of columns.

    Raises:
        UserError: the one that was raised within.
    """
    try:
        yield
    except UserError as error:
        text = PASTE.sub(_with_options, str(error))
        if text == str(error):
            raise
        raise UserError(text) from error


def _with_options(found: re.Match[str]) -> str:
    """A recipe's ``columns`` and ``ignore``, and behind it the options that say the same."""
    try:
        said = yaml.safe_load(f"{{{found[1]}}}")
    except yaml.YAMLError:
        return found[0]
    if not said.keys() <= {"columns", "ignore"}:
        return found[0]
    columns = [shlex.quote(f"{ours}={theirs}") for ours, theirs in said.get("columns", {}).items()]
    words = ["--columns", *columns] if columns else []
    words += [word for name in said.get("ignore", ()) for word in ("--ignore", shlex.quote(str(name)))]
    return f"{found[0]} (here: `{' '.join(words)}`)"


def cleaning(settings: Sequence[str] | None) -> CleanConfig:
    """What ``--clean KEY=VALUE`` asks for, the value as YAML; the default where nothing is.

    Raises:
        UserError: no such setting, or a value that it does not take.
    """
    if not settings:
        return DEFAULT
    made: dict[str, Any] = {}
    for one in settings:
        name, equals, value = one.partition("=")
        if not equals or name in made:
            raise UserError(f"--clean {one}: must have the form KEY=VALUE, each key once: mask=[email,phone]")
        if name not in CleanConfig.model_fields:
            keys = list(CleanConfig.model_fields)
            there = f"{nearest(name, keys)} There are: {', '.join(keys)}"
            raise UserError(f"--clean {one}: there is no setting {name!r}.{there}")
        try:
            made[name] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise UserError(f"--clean {one}: {value!r} is no YAML value") from error
    try:
        config = CleanConfig.model_validate(made)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise UserError(
            f"--clean {where or ' '.join(settings)}: {first['msg'].removeprefix('Value error, ')}"
        ) from None
    if not config.active:
        raise UserError(f"--clean {' '.join(settings)}: nothing is asked for")
    return config


def fix(file: Path, out: Path, config: CleanConfig, reading: Source | None, overwrite: bool) -> None:
    """Write the copy and say what became of the rows."""
    check_outside(out, "--out")
    fixed = fix_file(file, out, config, reading=reading, overwrite=overwrite)
    for line in fixed.remarks:
        print(printable(line))
    for line in fixed.tally.lines():
        print(printable(line))
    if fixed.bad:
        print(f"{fixed.bad:,} rows dropped: no row of data; {fixed.changes} names each")
    print(f"{fixed.read:,} rows read, {fixed.written:,} written to {fixed.out}; what was done is in {fixed.changes}")
