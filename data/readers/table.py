"""csv and tsv: the delimiter set, on a ``sep=`` line, or the one by which most lines have as many cells as the header.

Quotes follow RFC 4180 in csv; in tab-separated files a quotation mark is one, unless the first lines have cells that
are quoted as in csv (doubled marks, tabs or line ends inside), which is told. A quote that does not close costs its row
and the lines up to the next that fits the header, and each is named.
"""

from __future__ import annotations

import csv
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

from data.common.errors import UserError
from data.readers.cells import cell
from data.readers.decoding import Encoding, Line, lines_of
from data.readers.packed import Content
from data.readers.rows import CELLS, BadLine, Raw, ReadOptions, Remark, Row

DELIMITERS = (",", ";", "\t", "|")
NAMED = {"\t": "tabs", ",": "','", ";": "';'", "|": "'|'"}
SAMPLED = 100  # lines from which the delimiter is found
QUOTED_SAMPLED = 2000  # lines of a tab-separated file in which quoted cells are looked for
MAX_CELL_LINES = 10_000
LONGEST_NAME = 64


def read_table(content: Content, encoding: Encoding, options: ReadOptions, *, usual: str) -> Iterator[Raw]:
    """Yield (place, row): a dict of a table with a header, the cells of one without.

    Args:
        content: the file.
        encoding: of its bytes.
        options: delimiter and header as the recipe has them.
        usual: the delimiter that the file's extension stands for.

    Raises:
        UserError: there is no header line, or none that could be one.
    """
    csv.field_size_limit(sys.maxsize)
    sampled = [(n, line) for n, line in islice(lines_of(content, encoding), SAMPLED) if isinstance(line, str)]
    sampled = [(n, line) for n, line in sampled if line.strip()]
    marked = re.fullmatch(r"\ufeff?\"?sep=(.)\"?", sampled[0][1].strip("\r\n ")) if sampled else None
    delimiter = options.delimiter or (marked[1] if marked else _delimiter([line for _, line in sampled], usual))
    if delimiter != usual and not options.delimiter:
        yield content.name, Remark(f"cells are separated by {NAMED.get(delimiter, repr(delimiter))}")
    numbered = ((n, line) for n, line in lines_of(content, encoding) if not (marked and n == sampled[0][0]))
    plain = delimiter == "\t" and usual == "\t"
    if plain and _has_quoted_cells(list(islice(lines_of(content, encoding), QUOTED_SAMPLED)), delimiter):
        yield content.name, Remark("cells are quoted as in csv")
        plain = False
    records = _plain(numbered, delimiter) if plain else _quoted(numbered, delimiter)
    if options.header is not True:
        names = list(options.header) if options.header else None
        yield from _rows(records, names, content.name)
        return
    number, header = next(records, (1, []))
    if isinstance(header, BadLine):
        raise UserError(f"{content.name}:{number}: the header line cannot be read: {header.reason}")
    names = header_of(header, f"{content.name}:{number}", content.name, options.names)
    if changed := [n for n, old in zip(names, header, strict=True) if n != old.strip()]:
        yield content.name, Remark(f"column names are read in lower case: {', '.join(changed)}")
    yield from _rows(records, names, content.name, "" if options.delimiter else delimiter)


class _Records(Iterator[tuple[int, "list[str] | BadLine"]]):
    """Records that know how many cells fit, once the header is known."""

    width: int | None = None


Record = tuple[int, "list[str] | BadLine"]


@dataclass(frozen=True, slots=True)
class Stray(BadLine):
    """A line of so many cells that closes a quotation mark which none opens."""

    cells: int


def _rows(records: _Records, names: list[str] | None, name: str, delimiter: str = "") -> Iterator[Raw]:
    """The rows; with one name, what stands between delimiters is one text, since nothing was to be separated."""
    records.width = len(names) if names else None
    for number, cells in _whole(records, len(names)) if names else records:
        place = f"{name}:{number}"
        if isinstance(cells, BadLine):
            yield place, cells
        elif any(c.strip() for c in cells):
            one_text = names is not None and len(names) == 1 and delimiter and not any(delimiter in c for c in cells)
            yield place, _record(names, [delimiter.join(cells)] if one_text else cells)


def _whole(records: Iterator[Record], width: int) -> Iterator[Record]:
    """The records, one that a later line seems to go on with marked as cut: that line closes a quote none opens."""
    waiting: list[Record] = []
    for number, cells in records:
        if isinstance(cells, Stray) and cells.cells < width and waiting and isinstance(waiting[0][1], list):
            why = f"it may go on to line {number}, which closes a quotation mark that none opens"
            waiting[0] = (waiting[0][0], BadLine(why))
        short = (isinstance(cells, list) and len(cells) < width) or (isinstance(cells, Stray) and cells.cells < width)
        if not short or len(waiting) > MAX_CELL_LINES:
            yield from waiting
            waiting = []
        waiting.append((number, cells))
    yield from waiting


def _record(names: list[str] | None, cells: list[str]) -> Row | BadLine:
    if names is None:
        return {CELLS: cells}
    if len(cells) != len(names):
        return BadLine(f"it has {len(cells)} cells, the header {len(names)}")
    return {key: cell(key, value) for key, value in zip(names, cells, strict=True)}


# ---- the header ------------------------------------------------------------------------------------------------------


def header_of(cells: Sequence[str], place: str, name: str, keep: Sequence[str] = ()) -> list[str]:
    """Column names without blanks around them; in lower case where each begins with a capital, save those to keep.

    Raises:
        UserError: they cannot be column names, or one stands there twice.
    """
    names = [c.strip().removeprefix("\ufeff") for c in cells]
    if not any(names):
        raise UserError(f"{name} has no header line with column names")
    if odd := next((n for n in names if not _is_name(n)), None):
        shown = odd if len(odd) <= 40 else odd[:40] + "..."
        raise UserError(
            f"{place}: {shown!r} is no column name, so the file seems to have no header line. If each line holds "
            f"responses, best first, write\n  - {{path: {name}, header: false}}\nin place of the file's name; "
            f"otherwise name its columns: {{path: {name}, header: [prompt, completion]}}"
        )
    lowered = [n.lower() for n in names]
    if all(n[:1].isupper() for n in names if n) and len(set(lowered)) == len(lowered):
        names = [n if n in keep else n.lower() for n in names]
    if twice := [n for i, n in enumerate(names) if n and n in names[:i]]:
        raise UserError(f"{name}: the header names column {twice[0]!r} twice; rename one")
    return names


def _is_name(text: str) -> bool:
    number = re.fullmatch(r"[-+]?\d+([.,]\d+)?", text)
    return len(text) <= LONGEST_NAME and not number and not re.search(r"[.!?。！？…]$|\n", text)


# ---- the delimiter ---------------------------------------------------------------------------------------------------


def _delimiter(lines: list[str], usual: str) -> str:
    """The one that splits the first line and agrees with the most lines after it; of equals, the usual one."""
    best, best_score = usual, 0.0
    for candidate in (usual, *(d for d in DELIMITERS if d != usual)):
        counts = [len(cells) for _, cells in _quoted(iter(enumerate(lines)), candidate) if isinstance(cells, list)]
        if not counts or counts[0] < 2:
            continue
        score = sum(n == counts[0] for n in counts) / max(1, len(lines))
        if score > best_score + 0.1:
            best, best_score = candidate, score
    return best


def _has_quoted_cells(lines: list[Line], delimiter: str) -> bool:
    """Whether cells in quotes hold what csv quotes: with it every record has the header's cells, without it not so."""
    texts = [line for _, line in lines if isinstance(line, str)]
    edge = re.escape(delimiter)
    quoted = re.compile(rf'(?:^|{edge})"(?:[^"]|"")*"(?={edge}|$)')
    if not texts or not any('"' in text for text in texts):
        return False
    if quoted.findall(texts[0]) and len(quoted.findall(texts[0])) == texts[0].count(delimiter) + 1:
        return True  # every name of the header
    records = list(_quoted(iter(lines), delimiter))
    cells = [found for _, found in records[: -1 if len(lines) == QUOTED_SAMPLED else None]]
    width = texts[0].count(delimiter) + 1
    if not all(isinstance(found, list) and len(found) == width for found in cells):
        return False
    uneven = any(text.strip() and text.count(delimiter) + 1 != width for text in texts)
    doubled = any('""' in one for text in texts for one in quoted.findall(text))
    return uneven or doubled


# ---- records ---------------------------------------------------------------------------------------------------------


class _plain(_Records):
    """Lines whose cells are separated by a delimiter and nothing else."""

    def __init__(self, lines: Iterator[Line], delimiter: str) -> None:
        self._lines, self._delimiter = lines, delimiter

    def __next__(self) -> Record:
        for number, line in self._lines:
            if isinstance(line, BadLine):
                return number, line
            if not line.strip():
                continue
            if "\x00" in line:
                return number, BadLine("it holds a NUL character")
            return number, line.split(self._delimiter)
        raise StopIteration


class _quoted(_Records):
    """Records of csv: one reads on over the lines of a quoted cell, and starts again behind a quote left open."""

    def __init__(self, lines: Iterator[Line], delimiter: str) -> None:
        self._lines, self._delimiter = lines, delimiter
        self._ahead: list[Line] = []  # lines taken for a record that failed
        self._opened: int | None = None  # the line whose quote does not close, until a line fits again

    def __next__(self) -> Record:
        while True:
            number, line = self._take()
            if isinstance(line, BadLine):
                return number, line
            if not line.strip():
                continue
            record = self._record(number, line)
            if self._opened is None:
                return record
            if isinstance(record[1], list) and len(record[1]) == (self.width or len(record[1])):
                self._opened = None
                return record
            if record[0] == self._opened:
                return record
            return number, BadLine(f"lost behind the quote that line {self._opened} opens and does not close")

    def _take(self) -> Line:
        return self._ahead.pop() if self._ahead else next(self._lines)

    def _record(self, number: int, line: str) -> Record:
        taken: list[Line] = [(number, line)]
        reader = csv.reader(self._feed(taken), delimiter=self._delimiter, strict=True)
        try:
            cells = next(reader)
        except csv.Error as error:
            return self._failed(taken, str(error))
        if len(taken) > 1 and self.width is not None and len(cells) != self.width:
            return self._failed(taken, "")
        if any('"' in c for c in cells) and self._is_stray("\n".join(str(t[1]) for t in taken)):
            return number, Stray("not CSV: a cell ends with a quotation mark that none opens", len(cells))
        return number, cells

    def _feed(self, taken: list[Line]) -> Iterator[str]:
        yield str(taken[0][1]) + "\n"
        while len(taken) <= MAX_CELL_LINES:
            try:
                number, line = self._take()
            except StopIteration:
                return
            taken.append((number, line))
            if isinstance(line, BadLine):
                return  # no cell continues over a line that cannot be read
            yield line + "\n"

    def _failed(self, taken: list[Line], why: str) -> Record:
        number = taken[0][0]
        self._ahead += reversed(taken[1:])
        if len(taken) == 1 and "unexpected end" not in why:
            return number, BadLine(f"not CSV: {why}")
        if self._opened is None:
            self._opened = number
        return number, BadLine("not CSV: it opens a quote that does not close")

    def _is_stray(self, raw: str) -> bool:
        """Whether a cell without a quote at its start has an odd number of quotes, the last at its end."""
        outside = re.sub(rf'(?<![^{re.escape(self._delimiter)}\n])"(?:[^"]|"")*+"', "", raw)
        parts = outside.split(self._delimiter)
        return any(p.rstrip().endswith('"') and p.count('"') % 2 for p in parts)
