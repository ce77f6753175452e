"""JSON under any suffix: lines, one list, one object that wraps a list, pretty-printed or not, or columns.

A file whose first line is a whole value holds one value a line; any other is one value. A list in which an item is
damaged continues at the next item that begins as the others do.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from itertools import chain, islice
from typing import Any

from data.common.errors import UserError, nearest
from data.readers.cells import LISTS
from data.readers.decoding import Encoding, Line, lines_of, whole_text
from data.readers.json_stream import Layout, Part, Window, alike, is_large, layout_of, listed, paired
from data.readers.near_json import (
    COMMAS,
    COMMENTS,
    PYTHON,
    printed_by_python,
    remark_on_python,
    remarks,
    without_comments,
)
from data.readers.packed import Content
from data.readers.rows import NOT_READ, BadLine, Names, Raw, ReadOptions, Remark

WRAPPERS = ("data", "train", "examples", "rows", "items", "records", "samples", "dataset")
SPLITS = ("train", "validation", "valid", "dev", "eval", "test")
"""Keys under which one object holds the rows of a file."""

TURNS = (frozenset({"role", "content"}), frozenset({"from", "value"}))
"""Keys of a turn: a file that is one list of these is one conversation."""

MARKS = "\x1e\ufeff"
"""Characters in front of a line's value that are none of it: RFC 7464's mark, and that of a file put behind another."""

COLUMNAR = "a list a column, each item a row"
BY_ID = "an object of {:,} rows by their id; the ids are not read"
SAMPLED = 200  # lines read to distinguish a damaged line from a value that spans many


def read_json(content: Content, encoding: Encoding, options: ReadOptions) -> Iterator[Raw]:
    """Yield (place, row).

    Raises:
        UserError: the file is neither JSON lines nor one JSON value.
    """
    if is_large(content) and (layout := layout_of(lambda: Window(content, encoding))) is not None:
        rows = _streamed(layout, lambda: Window(content, encoding), content.name, options)
        if rows is not None:
            yield from rows
            return
    if _is_lines(lines_of(content, encoding)):
        _without_lists(content.name, options)
        mended: Counter[str] = Counter()
        for number, line in lines_of(content, encoding):
            if isinstance(line, str) and not line.strip():
                continue
            row = line if isinstance(line, BadLine) else value_of(line, mended)
            if row is not None:
                yield f"{content.name}:{number}", row
        yield from ((content.name, Remark(text)) for text in remarks(mended))
        return
    text, bad = whole_text(content, encoding)
    yield from _whole(text, bad, content.name, options)


def value_of(line: str, mended: Counter[str]) -> Any:
    """The row on a line, or why there is none; None of a comment. What had to be mended is counted."""
    if "\x00" in line:
        return BadLine("it holds a NUL character")
    names = Names()
    try:
        return _checked(json.loads(_bare(line), object_pairs_hook=names.once), names)
    except json.JSONDecodeError as error:
        return _mended(line, mended, BadLine(f"not JSON: {error.msg} at column {error.colno}{remark_on_python(line)}"))
    except (ValueError, RecursionError) as error:
        return BadLine(f"not JSON: {_why(error)}")


def _mended(line: str, mended: Counter[str], bad: BadLine) -> Any:
    """The row on a line that is nearly JSON, None of a comment, or what is bad."""
    if (printed := printed_by_python(line)) is not None:
        mended[PYTHON] += 1
        return printed
    plain, names = without_comments(line), Names()
    try:
        row = None if _is_comment(line) else _checked(json.loads(_bare(plain), object_pairs_hook=names.once), names)
    except (ValueError, RecursionError):
        return bad
    mended[COMMENTS] += 1
    return row


def _is_comment(line: str) -> bool:
    """Whether a line says nothing but a comment."""
    return line.lstrip().startswith("#") or not without_comments(line).strip()


def _bare(line: str) -> str:
    """A line without the comma behind its object, as in a list whose brackets are left out."""
    line = line.lstrip(MARKS) if line[:1] in MARKS else line
    return line.rstrip().removesuffix(",") if line.rstrip().endswith("},") else line


def _why(error: Exception) -> str:
    return "nested too deeply" if isinstance(error, RecursionError) else "a number of too many digits"


def _checked(row: Any, names: Names) -> Any:
    if names.twice:
        return BadLine(f"it names the key {names.twice[0][:60]!r} twice, with two values; keep one")
    return row if isinstance(row, dict | list | str) else BadLine(f"JSON, but {_kind(row)} instead of an object")


def _kind(value: Any) -> str:
    return "null" if value is None else type(value).__name__


def _is_lines(lines: Iterator[Line]) -> bool:
    """Whether values stand one a line: more than one line, and the first, or most of them, a whole value."""
    said = (line for _, line in lines if isinstance(line, BadLine) or not _is_comment(line))
    seen = list(islice(said, SAMPLED))
    if len(seen) < 2:
        return bool(seen) and isinstance(seen[0], BadLine)
    whole = [isinstance(line, str) and _is_value(line) for line in seen]
    # a value that spans lines ends with a bracket alone, so a last line that is whole speaks for lines
    first = isinstance(seen[0], str) and _is_value(_bare(seen[0]))
    return first or (whole[-1] and len(seen) < SAMPLED) or 2 * sum(whole) > len(whole)


def holds_json(lines: Iterator[Line]) -> bool:
    """Whether a file of another suffix holds JSON: a first line that is an object, or the head of one over lines."""
    seen = [str(line).strip() for _, line in islice((n for n in lines if str(n[1]).strip()), 2)]
    if not seen or seen[0][:1] not in ("{", "["):
        return False
    if seen[0] in ("[", "{", "[{"):
        return len(seen) > 1 and seen[1][:1] in ("{", '"')
    try:
        value = json.loads(seen[0].removesuffix(","))
    except (ValueError, RecursionError):
        return False
    return isinstance(value, dict) or (isinstance(value, list) and bool(value) and isinstance(value[0], dict))


def _is_value(line: str) -> bool:
    if line.lstrip(MARKS).lstrip()[:1] not in ("{", "[", '"'):
        return False
    try:
        return isinstance(json.loads(line.lstrip(MARKS)), dict | list | str)
    except (ValueError, RecursionError):
        plain = without_comments(line)
        return printed_by_python(line) is not None or (plain != line and _is_value(plain))


# ---- one value -------------------------------------------------------------------------------------------------------


def _whole(text: str, bad: dict[int, str], name: str, options: ReadOptions) -> Iterator[Raw]:
    names = Names()
    if not bad:
        try:
            loaded = json.loads(text, object_pairs_hook=names.once)
        except (ValueError, RecursionError) as error:
            if (printed := printed_by_python(text)) is not None:
                yield name, Remark(PYTHON.format(1))
                yield from _whole(json.dumps(printed), bad, name, options)
            elif (plain := without_comments(text, commas=True)) != text:
                yield name, Remark(COMMAS)
                yield from _whole(plain, bad, name, options)
            else:
                yield from _damaged(text, bad, name, error)
            return
        if isinstance(loaded, dict):
            yield from _of_object(loaded, text, name, options, names)
            return
        _without_lists(name, options)
        if not isinstance(loaded, list):
            raise UserError(f"{name} holds {_kind(loaded)}; expected a list of objects")
        if all(isinstance(item, dict) and any(turn <= item.keys() for turn in TURNS) for item in loaded) and loaded:
            yield f"{name}:1", loaded
            return
    yield from _items(text, text.find("[") + 1, bad, name) if "[" in text else _damaged(text, bad, name, None)


def _damaged(text: str, bad: dict[int, str], name: str, error: Exception | None) -> Iterator[Raw]:
    """The items of a list that is not JSON as a whole; the list may be wrapped in an object."""
    opening = re.match(rf'\s*(\{{[^\[{{]*?"({"|".join(WRAPPERS)})"\s*:\s*)?\[', text)
    if opening is None and not bad and (rows := _in_turn(text)):
        yield from ((f"{name}:{line}", row) for line, row in rows)
        return
    if opening is None or isinstance(error, RecursionError):
        line = f":{error.lineno}" if isinstance(error, json.JSONDecodeError) else f":{min(bad, default=1)}"
        why = getattr(error, "msg", None) or (_why(error) if error else bad[min(bad)])
        raise UserError(f"{name}{line} is not JSON: {why}{remark_on_python(text)}") from error
    yield from _items(text, opening.end(), bad, name)


def _in_turn(text: str) -> list[tuple[int, Any]]:
    """Objects that stand one behind another, each perhaps over many lines (what ``jq .`` writes), with the line on
    which each begins; empty where the text holds anything else."""
    found: list[tuple[int, Any]] = []
    begin, line, at = _skip_blank(text, 0), 1, 0
    while begin < len(text):
        line, at, names = line + text.count("\n", at, begin), begin, Names()
        try:
            row, end = json.JSONDecoder(object_pairs_hook=names.once).raw_decode(text, begin)
        except (ValueError, RecursionError):
            return []
        if not isinstance(row, dict):
            return []
        found.append((line, _checked(row, names)))
        begin = _skip_blank(text, end)
    return found


def _items(text: str, start: int, bad: dict[int, str], name: str) -> Iterator[Raw]:
    """The items of a list from behind its bracket, with the line on which each begins."""
    found = list(_each(text, start))
    lines, line, at = [], 1, 0
    for begin, _, _ in found:
        line, at = line + text.count("\n", at, begin), begin
        lines.append(line)
    distinct = len(set(lines)) == len(lines)
    for number, ((begin, end, row), line) in enumerate(zip(found, lines, strict=True), start=1):
        value = BadLine(_bad_of(bad, line, text[begin:end])) if bad and "\ufffd" in text[begin:end] else row
        yield (f"{name}:{line}" if distinct else f"{name}, item {number}"), value


def _bad_of(bad: dict[int, str], line: int, item: str) -> str:
    """What is wrong with the first bad line of an item."""
    return bad[min((n for n in bad if n >= line), default=min(bad))]


def _each(text: str, end: int) -> Iterator[tuple[int, int, Any]]:
    """Yield (begin, end, row) of the items; a damaged one is a ``BadLine`` and ends where the next begins."""
    first: re.Pattern[str] | None = None
    while True:
        begin = _skip(text, end)
        if begin >= len(text) or text[begin] == "]":
            if begin >= len(text):
                yield len(text.rstrip()), begin, BadLine("the file ends within the list")
            elif text[begin + 1 :].lstrip()[:1] in ("[", "{"):
                yield begin, begin, BadLine("there is more JSON behind the end of the list")
            return
        first = first or _beginning(text, begin)
        names = Names()
        try:
            row, end = json.JSONDecoder(object_pairs_hook=names.once).raw_decode(text, begin)
            after = _skip_blank(text, end)
            if after < len(text) and text[after] not in ",]{[":
                raise json.JSONDecodeError("Expecting ',' delimiter", text, after)
        except (ValueError, RecursionError) as error:
            why = f"{error.msg} at column {error.colno}" if isinstance(error, json.JSONDecodeError) else _why(error)
            following = first.search(text, begin + 1) if first else None
            end = following.start() if following else len(text.rstrip())
            yield begin, end, BadLine(f"not JSON: {why}")
            if following is None:
                return
            continue
        yield begin, end, _checked(row, names)


_KEY = re.compile(r'\{\s*"((?:[^"\\\n]|\\.)*)"\s*:')


def _beginning(text: str, begin: int) -> re.Pattern[str] | None:
    """How an item of this list begins: its first key, and its indentation where it has a line of its own."""
    indent = text[text.rfind("\n", 0, begin) + 1 : begin]
    if "\n" in text[:begin] and not indent.strip() and text[begin] in "{[":
        return re.compile(rf"(?<=\n{indent}){re.escape(text[begin])}")
    key = _KEY.match(text, begin)
    name = key[1] if key else _longest(text, begin)
    return re.compile(rf'\{{\s*"{re.escape(name)}"\s*:') if name is not None else None


def _longest(text: str, begin: int) -> str | None:
    """The first key of the longest of the objects that follow: items are longer than what they hold."""
    found: dict[str, int] = {}
    for match in islice(_KEY.finditer(text, begin), SAMPLED):
        try:
            end = json.JSONDecoder().raw_decode(text, match.start())[1]
        except (ValueError, RecursionError):
            continue
        found.setdefault(match[1], end - match.start())
    return max(found, key=lambda k: found[k], default=None)


def _skip(text: str, at: int) -> int:
    while at < len(text) and text[at] in " \t\r\n,":
        at += 1
    return at


def _skip_blank(text: str, at: int) -> int:
    while at < len(text) and text[at] in " \t\r\n":
        at += 1
    return at


# ---- one value, row by row -------------------------------------------------------------------------------------------


def _streamed(layout: Layout, opened: Callable[[], Window], name: str, options: ReadOptions) -> Iterator[Raw] | None:
    """The rows of a large value, as ``_whole`` gives them of a small one; None where it is one row."""
    if layout.whole is not None:
        _without_lists(name, options)
        return _rows_of_list(layout.whole, opened, name)
    if layout.count <= len(layout.parts) and (rows := _rows_of_object(layout.parts, opened, name, options)) is not None:
        return rows
    by_id = layout.by_id and layout.count > 1 and not layout.columnar
    return _rows_by_id(layout, opened, name) if by_id else None


def _rows_of_list(part: Part, opened: Callable[[], Window], name: str) -> Iterator[Raw]:
    for number, (line, row, names) in enumerate(listed(opened(), part), start=1):
        yield (f"{name}:{line}" if part.distinct else f"{name}, item {number}"), _checked(row, names)


def _rows_of_object(
    parts: dict[str, Part], opened: Callable[[], Window], name: str, options: ReadOptions
) -> Iterator[Raw] | None:
    """The rows of an object that wraps lists, or holds a list a column; None where it does neither."""
    rows = {k: p for k, p in parts.items() if p.kind == "list" and p.count and p.rows}
    lists = [k for k in rows if k in (*WRAPPERS, *SPLITS) or k == options.split]
    if "features" in parts and lists == ["rows"] and parts["rows"].viewed:
        return _viewer((row for _, row, _ in listed(opened(), parts["rows"])), name)
    if {"columns", "data"} <= parts.keys() and parts["data"].kind == "list" and parts["data"].lists:
        columns = opened()
        columns.skip_to(parts["columns"].place)
        return _split_table(columns.value(), (row for _, row, _ in listed(opened(), parts["data"])), name)
    if lists:
        key = _one_list(lists, {k: parts[k].count for k in lists}, name, options)
        left = [k for k in parts if k != key]
        remark = Remark(f"rows are those of {key!r}; {NOT_READ}: {', '.join(left)}")
        return chain([(name, remark)] if left else [], _rows_of_list(parts[key], opened, name))
    _without_lists(name, options)
    return _rows_of_columns(parts, opened, name)


def _rows_of_columns(parts: dict[str, Part], opened: Callable[[], Window], name: str) -> Iterator[Raw] | None:
    kinds = {part.kind for part in parts.values()}
    if len(kinds) != 1 or not alike(list(parts.values())):
        return None
    if kinds == {"object"} and all(p.count and p.digits for p in parts.values()):
        columns: list[Iterator[Any]] = [(v for _, v, _ in paired(opened(), p)) for p in parts.values()]
    elif kinds == {"list"} and len(parts) > 1 and any(p.count and p.texts and k not in LISTS for k, p in parts.items()):
        columns = [(v for _, v, _ in listed(opened(), p)) for p in parts.values()]
    else:
        return None
    rows = (dict(zip(parts, items, strict=True)) for items in zip(*columns, strict=True))
    return chain([(name, Remark(COLUMNAR))], ((f"{name}, item {i}", row) for i, row in enumerate(rows, start=1)))


def _rows_by_id(layout: Layout, opened: Callable[[], Window], name: str) -> Iterator[Raw]:
    yield name, Remark(BY_ID.format(layout.count))
    for key, row, names in paired(opened()):
        yield f"{name}, {key[:80]!r}", _checked(row, names)


# ---- one object ------------------------------------------------------------------------------------------------------


def _of_object(row: dict[str, Any], text: str, name: str, options: ReadOptions, names: Names) -> Iterator[Raw]:
    """The rows that one object holds, or the object as a row."""
    lists = [k for k, v in row.items() if _is_rows(v) and (k in (*WRAPPERS, *SPLITS) or k == options.split)]
    if "features" in row and lists == ["rows"] and all(isinstance(r, dict) and "row" in r for r in row["rows"]):
        yield from _viewer(row["rows"], name)
    elif {"columns", "data"} <= row.keys() and all(isinstance(r, list) for r in row["data"]):
        yield from _split_table(row["columns"], row["data"], name)
    elif lists:
        key = _one_list(lists, {k: len(row[k]) for k in lists}, name, options)
        if left := [k for k in row if k != key]:
            yield name, Remark(f"rows are those of {key!r}; {NOT_READ}: {', '.join(map(str, left))}")
        opening = re.search(rf'"{re.escape(key)}"\s*:\s*\[', text)
        yield from _items(text, opening.end(), {}, name) if opening else ()
    elif options.split is not None:
        _without_lists(name, options)
    elif columns := _columns(row):
        yield name, Remark(COLUMNAR)
        yield from ((f"{name}, item {i}", one) for i, one in enumerate(columns, start=1))
    elif rows := _by_id(row):
        yield name, Remark(BY_ID.format(len(rows)))
        yield from ((f"{name}, {key[:80]!r}", one) for key, one in rows.items())
    else:
        yield f"{name}:1" if text.lstrip().startswith("{") else name, _checked(row, names)


def _is_rows(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(r, dict | list) for r in value)


def _one_list(lists: list[str], lengths: dict[str, int], name: str, options: ReadOptions) -> str:
    if options.split in lists or (len(lists) == 1 and options.split is None):
        return options.split if options.split in lists else lists[0]
    counts = ", ".join(f"{key} ({lengths[key]:,} rows)" for key in lists)
    if options.split is not None:
        raise UserError(f"{name} holds no list {options.split!r}; it holds {counts}.{nearest(options.split, lists)}")
    raise UserError(f"{name} holds several lists: {counts}; choose one with `split`, such as split: {lists[0]}")


def _without_lists(name: str, options: ReadOptions) -> None:
    """Refuse a split of what holds no lists by name."""
    if options.split is not None:
        raise UserError(f"{name}: split {options.split!r} has no effect: it holds no lists by name; remove it")


def _split_table(columns: list[str], data: Iterable[list[Any]], name: str) -> Iterator[Raw]:
    """pandas's ``{"columns": [...], "data": [[...], ...]}``."""
    for i, cells in enumerate(data, start=1):
        fits = len(cells) == len(columns)
        yield (
            f"{name}, item {i}",
            dict(zip(columns, cells, strict=True)) if fits else BadLine(f"it has {len(cells)} cells"),
        )


def _viewer(rows: Iterable[dict[str, Any]], name: str) -> Iterator[Raw]:
    """Rows as the hub's viewer hands them out, which cuts long cells."""
    for i, one in enumerate(rows, start=1):
        cut = one.get("truncated_cells")
        yield f"{name}, item {i}", BadLine(f"its cells {cut} were cut by the viewer") if cut else one["row"]


def _columns(row: dict[str, Any]) -> list[dict[str, Any]] | None:
    """``{"a": [...], "b": [...]}``, or pandas's ``{"a": {"0": ...}}``, turned into rows."""
    values = list(row.values())
    if all(isinstance(v, dict) and v and all(k.isdigit() for k in v) for v in values) and values:
        keys = list(dict.fromkeys(k for v in values for k in v))
        return [{name: v[k] for name, v in row.items() if k in v} for k in keys]
    if len(values) < 2 or not all(isinstance(v, list) for v in values) or len({len(v) for v in values}) != 1:
        return None
    if not any(v and all(isinstance(x, str) for x in v) and k not in LISTS for k, v in row.items()):
        return None
    return [dict(zip(row, items, strict=True)) for items in zip(*values, strict=True)]


def _by_id(row: dict[str, Any]) -> dict[str, Any] | None:
    """Rows as the values of one object: two or more objects with the same first key."""
    values = list(row.values())
    alike = len(values) > 1 and all(isinstance(v, dict) and v for v in values)
    return row if alike and len({next(iter(v)) for v in values}) == 1 else None
