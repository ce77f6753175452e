"""What of the data a stage uses, cuts and drops: one way of counting for all stages, for plan and for the report.

A row is *cut* when it is used without some of its tokens, *dropped* when nothing of it is used. Pure counting: it
knows nothing of files or models.
"""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

MANY = 0.05
"""The share of rows from which on a loss is worth a warning, and that a proposed limit may still cut."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fitted:
    """A prompt and a response as ids, perhaps shortened to a limit.

    ``full`` counts the tokens of both before that; ``kept`` are the indices of the prompt's ids that stayed.
    """

    query: list[int]
    response: list[int]
    kept: list[int]
    full: int
    cut_answer: bool
    cut_prompt: bool

    @classmethod
    def of(cls, prompt: Sequence[int], answer: Sequence[int], kept: Sequence[int], length: int) -> Fitted:
        """Of the prompt the ids at ``kept``, of the response the first ``length``."""
        return cls(
            query=[prompt[i] for i in kept],
            response=list(answer[:length]),
            kept=list(kept),
            full=len(prompt) + len(answer),
            cut_answer=length < len(answer),
            cut_prompt=len(kept) < len(prompt),
        )

    @property
    def cut(self) -> bool:
        """Whether a part of either is missing."""
        return self.cut_answer or self.cut_prompt


NO_TOKEN = "; take a base whose tokenizer writes them, or spells all text (such as one by bytes)"
"""What to do about text that the tokenizer does not know, for the end of a line."""


def unknown_text(count: int, of: int) -> str:
    """How many tokens are the tokenizer's sign for text that it has no token for."""
    return f"{count:,} of {of:,} tokens stand for text that the tokenizer does not know"


SHOWN = 5
"""Sources that a line names, those that lose most."""


@dataclass(slots=True)
class OfSource:
    """What the rows of one source lose."""

    rows: int = 0
    cut: int = 0
    dropped: int = 0

    def __str__(self) -> str:
        lost = {"cut": self.cut, "dropped": self.dropped}
        return ", ".join(f"{n:,} {what}" for what, n in lost.items() if n) + f" of {self.rows:,}"


@dataclass(slots=True, kw_only=True)
class Tally:
    """Counts over the rows of one part of the data.

    ``unit`` is what a row is called, ``key`` the recipe's key that holds the limit of ``limit`` tokens. ``sample_of``
    is the number of rows that those counted were sampled from, where not all were counted. ``sources`` has the counts
    of each source of the recipe, where rows say which they are from. ``room`` is what the base's positions leave for
    a row: no limit above it helps. ``sign`` is the id that stands for text without a token: ``unknown`` counts those
    among the ``tokens`` that are used.
    """

    unit: str
    key: str
    limit: int | None = None
    sample_of: int | None = None
    room: int | None = None
    sign: int | None = None
    rows: int = 0
    tokens: int = 0
    unknown: int = 0
    cut_answers: int = 0
    cut_prompts: int = 0
    cut: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    lengths: array[int] = field(default_factory=lambda: array("I"))
    sources: dict[str, OfSource] = field(default_factory=dict)

    def record(self, parts: Sequence[Fitted], dropped: str = "", source: str = "") -> None:
        """Count one row of one or more responses; ``dropped`` is why nothing of it is used."""
        self.rows += 1
        self.lengths.append(max((p.full for p in parts), default=0))
        cut = not dropped and any(p.cut for p in parts)
        if source:
            own = self.sources.setdefault(source, OfSource())
            own.rows, own.cut, own.dropped = own.rows + 1, own.cut + cut, own.dropped + bool(dropped)
        if dropped:
            self.dropped[dropped] += 1
            return
        if self.sign is not None:
            self.tokens += sum(len(p.query) + len(p.response) for p in parts)
            self.unknown += sum(p.query.count(self.sign) + p.response.count(self.sign) for p in parts)
        self.cut_answers += any(p.cut_answer for p in parts)
        self.cut_prompts += any(p.cut_prompt for p in parts)
        self.cut += cut

    @property
    def lost(self) -> int:
        """Rows that are cut or dropped."""
        return self.cut + sum(self.dropped.values())

    def limit_for_95_percent(self) -> int | None:
        """The smallest limit, in tokens, within which 95 % of the rows are whole; None without rows."""
        if not self.lengths:
            return None
        whole = -(-len(self.lengths) * round(100 * (1 - MANY)) // 100)
        return sorted(self.lengths)[max(0, whole - 1)]

    def as_dict(self) -> dict[str, Any]:
        """Plain numbers for manifests, plans and reports."""
        out: dict[str, Any] = {
            "rows": self.rows,
            "used": self.rows - sum(self.dropped.values()),
            "cut": self.cut,
            "cut_answers": self.cut_answers,
            "cut_prompts": self.cut_prompts,
            "dropped": sum(self.dropped.values()),
        }
        if self.limit is not None:
            out |= {"limit": self.limit, "limit_for_95_percent": self.limit_for_95_percent()}
        if self.unknown:
            out |= {"tokens": self.tokens, "unknown_tokens": self.unknown}
        if self.sample_of is not None:
            out["sample_of"] = self.sample_of
        if self.sources:
            out["by_source"] = {name: asdict(own) for name, own in self.sources.items()}
        return out | {f"dropped: {why}": n for why, n in sorted(self.dropped.items())}

    def sampled(self) -> str:
        """That a sample was counted; empty where all rows were."""
        return (
            "" if self.sample_of is None else f"a sample of {self.rows:,} of {self.sample_of:,} {self.unit} is counted"
        )

    def summary(self) -> str:
        """One line for the terminal; empty where nothing was lost and every token is known."""
        return "; ".join(text for text in (self._lost_text(), self._unknown_text()) if text)

    def warning(self) -> str:
        """What to do where more than ``MANY`` of the rows are lost, or of the tokens unknown; empty otherwise."""
        lost, unknown = self.lost > MANY * self.rows, self.unknown > MANY * self.tokens
        if not lost and not unknown:
            return ""
        rows = self._lost_text() + (self._cure() if lost else "")
        tokens = self._unknown_text() + (NO_TOKEN if unknown else "")
        return "; ".join(text for text in (rows, tokens) if text)

    def _lost_text(self) -> str:
        if not self.lost:
            return ""
        parts = [f"{self.cut:,} cut to {self.limit:,} tokens"] if self.cut else []
        if self.cut_answers:
            parts[-1] += f" ({self.cut_answers:,} lose the end of a response, stop token included)"
        parts += [f"{n:,} dropped ({why})" for why, n in sorted(self.dropped.items())]
        sampled = "" if self.sample_of is None else f" (a sample of {self.sample_of:,})"
        return f"of {self.rows:,} {self.unit}{sampled} " + ", ".join(parts) + said_by_source(self.sources)

    def _unknown_text(self) -> str:
        return f"in {self.unit} {unknown_text(self.unknown, self.tokens)}" if self.unknown else ""

    def _cure(self) -> str:
        needed = self.limit_for_95_percent()
        if self.limit is None or needed is None or needed <= self.limit:
            return ""
        if self.room is not None and needed > self.room:
            return f"; 95 % of them take {needed:,}, and the base's positions leave room for {self.room:,}"
        return f"; {self.key} of {needed:,} would keep 95 % whole"


def said_by_source(sources: Mapping[str, OfSource]) -> str:
    """What each of several sources loses, for the end of a line; empty where there is one."""
    losing = [(name, own) for name, own in sources.items() if own.cut or own.dropped]
    if len(sources) < 2 or not losing:
        return ""
    losing.sort(key=lambda pair: -(pair[1].cut + pair[1].dropped))
    more = f", and {len(losing) - SHOWN:,} sources more" if len(losing) > SHOWN else ""
    return f" ({'; '.join(f'{name}: {own}' for name, own in losing[:SHOWN])}{more})"


def log_row(counts: Mapping[str, Any], part: str = "") -> dict[str, float]:
    """Counts as numbers of a metrics file, ``data/NAME`` or ``data/PART/NAME``.

    What is unknown is left out, why rows were dropped, which is a sentence, and the counts of each source, which the
    manifest has.
    """
    start = f"data/{part}/" if part else "data/"
    return {start + name: float(n) for name, n in counts.items() if isinstance(n, (int, float)) and ":" not in name}


class Counted(Protocol):
    """Counts with something to say."""

    def summary(self) -> str: ...

    def warning(self) -> str: ...


def tell(tally: Counted, what: str, say: Callable[[str], None], warn: Callable[[str], None]) -> None:
    """Say what ``what`` has lost of its rows and does not know of its tokens, as a warning where it is much."""
    if text := tally.warning() or tally.summary():
        (warn if tally.warning() else say)(f"{what}: {text}")


def share_warning(count: int, of: int, what: str, fix: str) -> str:
    """A sentence where ``count`` is more than ``MANY`` of ``of``; empty otherwise."""
    return f"{count:,} of {of:,} {what} ({count / of:.0%}); {fix}" if of and count > MANY * of else ""


def warned(*texts: str) -> dict[str, list[dict[str, Any]]]:
    """Warnings about the data for a stage's metrics, as those of training; nothing where all texts are empty."""
    found = [{"step": 0, "text": text} for text in texts if text]
    return {"warnings": found} if found else {}
